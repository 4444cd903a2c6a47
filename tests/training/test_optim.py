import copy
import math
import sys
from dataclasses import replace

import pytest
import torch

from segue.models.dit import DiT, DiTConfig
from segue.models.files import former_names
from segue.training.config import OptimConfig
from segue.training.older import current_moments
from segue.training.optim import learning_rate, make_optimizer, step_unless, update_average, update_ema
from segue.types import UserError

BASE = OptimConfig(learning_rate=2.0, warmup_fraction=0.1, decay="linear", decay_fraction=0.4)


def test_schedules_at_known_points():
    assert learning_rate(BASE, 0.0) == 0.0
    assert learning_rate(BASE, 0.05) == pytest.approx(1.0)
    assert learning_rate(BASE, 0.3) == 2.0
    assert learning_rate(BASE, 0.8) == pytest.approx(1.0)
    assert learning_rate(BASE, 1.0) == 0.0
    assert learning_rate(replace(BASE, decay="constant"), 0.99) == 2.0


def test_schedules_have_no_jump():
    rates = [learning_rate(BASE, k / 1000) for k in range(1001)]
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


def small_dit():
    torch.manual_seed(0)
    return DiT(DiTConfig(channels=4, text_dim=6, width=16, depth=2, heads=2))


def fill_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_muon_orthogonalises_the_blocks_and_leaves_the_rest_to_adamw():
    model, plain = small_dit(), small_dit()
    config = OptimConfig(kind="muon", learning_rate=0.01, weight_decay=0.0)
    muon, adamw = make_optimizer(model, config), make_optimizer(plain, replace(config, kind="adamw"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for m, o in ((model, muon), (plain, adamw)):
        fill_gradients(m, 1)
        o.step()
    orthogonal = 0
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        if not (name.startswith("blocks.") and p.ndim == 2):
            assert torch.equal(p, q), name
            continue
        update = (before[name] - p.detach()) / (0.01 * 0.2 * math.sqrt(max(p.shape)))
        # Five Newton-Schulz iterations in bfloat16 bring singular values near 1, not to it.
        assert 0.5 < float(torch.linalg.matrix_norm(update.double(), 2)) < 1.4, name
        orthogonal += 1
    assert orthogonal >= 8


def test_muon_takes_the_q_and_the_kv_of_a_fused_layer_for_matrices_of_their_own():
    model = small_dit()
    fused = model.blocks[0].attention.qkv.weight
    width = fused.shape[1]
    parts = [torch.nn.Parameter(part.detach().clone()) for part in fused.split([width, 2 * width])]
    apart = torch.optim.Muon(parts, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = make_optimizer(model, OptimConfig(kind="muon", learning_rate=0.01, weight_decay=0.1))
    for seed in range(3):
        fill_gradients(model, seed)
        for part, gradient in zip(parts, fused.grad.split([width, 2 * width])):
            part.grad = gradient.clone()
        optimizer.step()
        apart.step()
    assert torch.equal(fused.detach(), torch.cat([p.detach() for p in parts]))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_of_an_optimiser_that_knew_q_and_kv_apart_is_that_of_the_fused_layer(kind):
    model = small_dit()
    optimizer = make_optimizer(model, OptimConfig(kind=kind, learning_rate=0.01))
    for seed in range(2):
        fill_gradients(model, seed)
        optimizer.step()
    by_parameter = {id(p): n for n, p in model.named_parameters()}
    names = [by_parameter[id(p)] for group in optimizer.param_groups for p in group["params"]]
    now = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    # As it was saved then: an index for each of the former weights, q before kv.
    then, index = {"group.0.k": torch.tensor(3.0)}, 0
    for place, name in enumerate(names):
        state = {key.split(".")[1]: v for key, v in now.items() if key.startswith(f"{place}.")}
        former = former_names(name)
        for part in range(len(former)):
            for key, value in state.items():
                rows = len(value) // 3 if value.ndim else 0
                whole = len(former) == 1 or not value.ndim
                then[f"{index}.{key}"] = value if whole else value[:rows] if part == 0 else value[rows:]
            index += 1
    assert index == len(names) + 4  # two blocks, a weight and a bias each
    found = current_moments(then, names)
    assert found.keys() == now.keys() | {"group.0.k"}
    for key, value in now.items():
        assert torch.equal(found[key], value), key
    assert current_moments(now, names).keys() == now.keys()  # today's stay as they are


def test_muons_state_goes_through_a_state_dict():
    model, twin = small_dit(), small_dit()
    config = OptimConfig(kind="muon", learning_rate=0.01)
    optimizer, other = make_optimizer(model, config), make_optimizer(twin, config)
    fill_gradients(model, 1)
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        for group in o.param_groups:
            group["lr"] = 0.003  # what the loop sets must reach both parts
        fill_gradients(m, 2)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))
    still = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), still))


def test_schedule_free_averages_by_its_closed_form():
    """x_k is the mean of z_1 ... z_k at a constant rate (arXiv 2405.15682, equation 6); no EMA has a part in it."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    config = OptimConfig(kind="schedule-free", learning_rate=0.1, weight_decay=0.0, beta1=0.9, ema_decay=0.5)
    optimizer = make_optimizer(model, config)
    average, z, second, seen = copy.deepcopy(model), 1.0, 0.0, []
    for k in range(1, 9):
        y = 0.1 * z + 0.9 * (sum(seen) / len(seen) if seen else 1.0)
        assert float(model.weight.detach()) == pytest.approx(y, abs=1e-12)
        gradient = y - 3.0
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
        update_average(average, model, optimizer, config, k)
        second = 0.99 * second + 0.01 * gradient**2
        z -= 0.1 * gradient / (math.sqrt(second / (1 - 0.99**k)) + 1e-8)
        seen.append(z)
        assert float(average.weight.detach()) == pytest.approx(sum(seen) / k, abs=1e-12)


def test_schedule_free_has_no_decay_and_unknown_kinds_are_named():
    assert learning_rate(replace(BASE, kind="schedule-free"), 0.99) == 2.0
    assert learning_rate(replace(BASE, kind="schedule-free"), 0.05) == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"optim\.kind is 'adam'; choose one of adamw, adamw-8bit, muon, schedule-free"):
        OptimConfig(kind="adam")


def test_a_missing_optimizer_names_its_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r"segue-audio\[optimizers\]"):
        make_optimizer(small_dit(), OptimConfig(kind="schedule-free"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"bitsandbytes, which is not installed; hint: .*segue-audio\[optimizers\]"):
        make_optimizer(small_dit(), OptimConfig(kind="adamw-8bit"))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"optim.kind=muon needs torch 2\.9"):
        make_optimizer(small_dit(), OptimConfig(kind="muon"))


@pytest.mark.parametrize("kind", ["adamw", "adamw-8bit"])
def test_the_pull_is_weight_decay_toward_the_start(kind):
    """Without gradients AdamW stays; the distance to the start then falls by 1 - rate * pull in each step."""
    model = torch.nn.Linear(80, 80)
    optimizer = make_optimizer(model, OptimConfig(kind=kind, learning_rate=0.1, pull=2.0, weight_decay=0.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
            p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), start[name] + 0.8**3, msg=name)
    with pytest.raises(UserError, match=r"optim.pull is -1.0; give 0 or a positive number"):
        OptimConfig(pull=-1.0)


def test_eight_bit_moments_follow_the_exact_ones():
    torch.manual_seed(0)
    exact = torch.nn.Linear(96, 96)
    coarse = copy.deepcopy(exact)
    pairs = [(net, make_optimizer(net, OptimConfig(kind=kind, learning_rate=1e-3)))
             for net, kind in ((exact, "adamw"), (coarse, "adamw-8bit"))]  # fmt: skip
    first = exact.weight.detach().clone()
    for _ in range(20):
        x = torch.randn(16, 96)
        for net, optimizer in pairs:
            (net(x) - x.roll(1, 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert pairs[1][1].state[coarse.weight]["state1"].dtype == torch.uint8
    moved = (exact.weight - first).norm()
    assert (exact.weight - coarse.weight).norm() < 0.1 * moved


def test_a_faulty_step_is_not_pulled():
    """A fused optimiser learns on the device that a step is faulty; the pull must stay away from it as well."""
    model = torch.nn.Linear(8, 8)
    optimizer = make_optimizer(model, OptimConfig(learning_rate=0.1, pull=2.0, weight_decay=0.0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
            p.grad = torch.ones_like(p)
    before = model.weight.detach().clone()
    step_unless(torch.tensor(1.0), optimizer)
    assert torch.equal(model.weight, before)
    step_unless(torch.tensor(0.0), optimizer)
    assert not torch.equal(model.weight, before)
