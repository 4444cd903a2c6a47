"""What `--memory` chooses, on a stand-in for the count: GiB that grow with the examples of a piece."""

from math import ceil

import pytest

from segue.recipes import load_recipe
from segue.training import fit_memory as module
from segue.training.config import override
from segue.training.fit_memory import GIB, fit_memory
from segue.training.run_memory import RunNeed
from segue.types import UserError


def need(config, *_):
    """10 GiB of weights and 1 an example; 8-bit moments take 4 away, checkpointing nine tenths of the examples."""
    piece = ceil(config.train.batch_size / config.train.accumulation)
    weights = 2 if config.lora.rank else 6 if config.optim.kind == "adamw-8bit" else 10
    each = 0.1 if config.model.gradient_checkpointing else 1.0
    return RunNeed(round(weights * GIB), 0, round(each * piece * GIB), 0)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(module, "run_need", need)
    return override(load_recipe("static-uniform"), ["train.batch_size=16"])


@pytest.mark.parametrize(
    ("gib", "pieces", "again", "kind"),
    [
        (40, 1, False, "adamw"),
        (20, 2, False, "adamw"),  # 8 examples
        (13, 16, False, "adamw"),  # 1
        (12.1, 4, True, "adamw"),  # 0.4 GiB for 4
        (8.1, 3, True, "adamw-8bit"),
        (10, 1, True, "adamw-8bit"),
    ],
)
def test_the_first_thing_that_fits_is_taken(config, gib, pieces, again, kind):
    chosen, line = fit_memory(config, None, None, gib)
    assert (chosen.train.accumulation, chosen.model.gradient_checkpointing, chosen.optim.kind) == (pieces, again, kind)
    assert chosen.train.precision == "bf16" and chosen.train.batch_size == 16
    assert line.startswith(f"memory: {gib} GiB: {ceil(16 / pieces)} of 16 examples at a time, bf16")
    assert ("8-bit moments" in line) == (kind == "adamw-8bit") and ("checkpointing" in line) == again
    assert need(chosen).total + GIB <= 0.95 * gib * GIB


def test_what_does_not_fit_is_told_what_would(config):
    with pytest.raises(
        UserError, match=r"--memory 4: one example at a time needs 7.10 GiB; hint: --lora rank=16 needs 3.10 GiB"
    ):
        fit_memory(config, None, None, 4)
    adapted = override(config, ["lora.rank=4"])
    with pytest.raises(UserError, match=r"needs 3.10 GiB; hint: encode shorter clips, or --memory 4"):
        fit_memory(adapted, None, None, 3)
    assert fit_memory(adapted, None, None, 4)[0].model.gradient_checkpointing
    muon = override(config, ["optim.kind=muon"])
    with pytest.raises(UserError, match=r"one example at a time needs 11.10 GiB"):
        fit_memory(muon, None, None, 8)
