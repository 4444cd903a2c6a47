"""Variants that train at once: interrupted and resumed they end as they would alone; a failed one says why."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from segue.cli.demo_training import Variant, train_variant, train_variants
from segue.recipes import load_recipe
from segue.training import parallel_runs
from segue.training.checkpoint import latest_checkpoint
from segue.training.config import override
from segue.training.parallel_runs import slots_here
from segue.types import UserError

SETTINGS = ("model.preset=dit-tiny", "train.batch_size=8", "train.tensorboard=false", "train.checkpoint_every=64")


def variant(recipe, cache, folder, examples=256):
    config = override(load_recipe(recipe), (*SETTINGS, f"train.total_examples={examples}"))
    return Variant(config, cache, folder / recipe)


def weights(run_dir):
    return load_file(latest_checkpoint(run_dir) / "model.safetensors")


@pytest.fixture
def two_slots(monkeypatch):
    monkeypatch.setattr(parallel_runs, "cores", lambda: 2)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of two slots on two cores has
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_interrupted_and_resumed_both_variants_end_as_they_would_alone(cache, tmp_path, two_slots, one_thread):
    variants = [variant(name, cache, tmp_path, 640) for name in ("static-uniform", "static-shifted")]

    def interrupt_soon():
        while not all((a.run_dir / "log.jsonl").exists() for a in variants):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_soon, daemon=True).start()
    assert train_variants(variants) is None
    assert all(
        json.loads((latest_checkpoint(a.run_dir) / "state.json").read_text())["examples_seen"] > 0 for a in variants
    )
    results = train_variants(variants)
    assert {name: r.examples_seen for name, r in results.items()} == {"static-uniform": 640, "static-shifted": 640}
    assert all(r.finished and r.seconds > 0 and len(r.validation) == 5 for r in results.values())
    for a in variants:
        alone = replace(a, run_dir=tmp_path / "alone" / a.config.recipe)
        train_variant(alone, quiet=True)
        expected = weights(alone.run_dir)
        assert all(torch.equal(value, expected[name]) for name, value in weights(a.run_dir).items())


def test_a_failed_variant_says_why_in_its_own_words(cache, tmp_path, two_slots):
    with pytest.raises(UserError, match=r"static-uniform: .*nowhere"):
        train_variants([variant("static-uniform", tmp_path / "nowhere", tmp_path), variant("min-snr", cache, tmp_path)])


def test_no_more_slots_than_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parallel_runs, "cores", lambda: 1)
    assert slots_here(2) == 1
    monkeypatch.setattr(parallel_runs, "cores", lambda: 8)
    assert slots_here(2) == (1 if torch.backends.mps.is_available() else 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert slots_here(2) == 1
