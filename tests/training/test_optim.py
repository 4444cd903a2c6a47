import math
from dataclasses import replace

import pytest
import torch

from segue.models.dit import DiT, DiTConfig
from segue.training.config import OptimConfig
from segue.training.optim import learning_rate, make_optimizer, update_ema

BASE = OptimConfig(learning_rate=2.0, warmup_fraction=0.1, decay="linear", decay_fraction=0.4)


def test_schedules_at_known_points():
    assert learning_rate(BASE, 0.0) == 0.0
    assert learning_rate(BASE, 0.05) == pytest.approx(1.0)
    assert learning_rate(BASE, 0.3) == 2.0
    assert learning_rate(BASE, 0.8) == pytest.approx(1.0)
    assert learning_rate(BASE, 1.0) == 0.0
    cosine = replace(BASE, decay="cosine")
    assert learning_rate(cosine, 0.55) == pytest.approx(1.0)
    assert learning_rate(cosine, 1.0) == pytest.approx(0.0)
    assert learning_rate(replace(BASE, decay="constant"), 0.99) == 2.0


def test_schedules_have_no_jump():
    for decay in ("linear", "cosine"):
        config = replace(BASE, decay=decay)
        rates = [learning_rate(config, k / 1000) for k in range(1001)]
        assert max(abs(a - b) for a, b in zip(rates, rates[1:])) < 0.03


def test_ema_equals_its_closed_form():
    model = torch.nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    expected = 0.0
    for step in range(1, 50):
        model.weight.data.fill_(math.sin(step))
        update_ema(average, model, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * math.sin(step)
    assert float(average["weight"]) == pytest.approx(expected, abs=1e-5)


def test_only_matrices_decay():
    model = DiT(DiTConfig(channels=4, text_dim=6, width=16, depth=1, heads=2))
    decayed, free = make_optimizer(model, OptimConfig()).param_groups
    assert decayed["weight_decay"] > 0 and free["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert any(p is model.null for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_the_rate_that_a_config_leaves_open_falls_with_the_width():
    from segue.recipes import load_recipe
    from segue.training.build import peak_learning_rate
    from segue.training.config import override

    config = load_recipe("static-uniform")
    assert peak_learning_rate(config, 160) == peak_learning_rate(config, 48) == 2e-3
    assert peak_learning_rate(config, 1600) == pytest.approx(2e-4)
    assert peak_learning_rate(override(config, ["optim.learning_rate=5e-4"]), 1600) == 5e-4
