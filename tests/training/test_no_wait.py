"""No step of training waits for the device, and a faulty one is an update of zero there."""

import copy
import traceback
from pathlib import Path

import pytest
import torch
from running import run
from torch.utils._python_dispatch import TorchDispatchMode

from segue.models.dit import DiT, DiTConfig
from segue.training.config import OptimConfig, override
from segue.training.optim import make_optimizer, step_unless, update_average

# What cannot be answered before the device has computed: the host reads a number, or allocates by one.
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


OF_A_STEP = {"dit.py", "step.py", "losses.py", "alignment.py", "optim.py", "guards.py", "heads.py"}
SELDOM = {"journal.py", "checkpoint.py", "measurements.py"}


class Reads(TorchDispatchMode):
    """The lines of a step that the host must wait for. What is done with a batch before it is on the device is not
    among them: that is on the host."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation.overloadpacket._qualified_op_name.split("::")[-1] in READS:
            frames = [f for f in traceback.extract_stack() if "segue" in f.filename]
            files = {Path(frame.filename).name for frame in frames}
            if files & OF_A_STEP and not files & SELDOM:
                self.lines.append(f"{frames[-1].filename}:{frames[-1].lineno}")
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ["static-uniform", "repa", "stage", "uncertainty"])
def test_no_step_waits(taught, recipe, tmp_path, name):
    """Log lines, probes, validation and checkpoints wait; what lies between them does not."""
    changes = ["train.objective=uncertainty"] if name == "uncertainty" else []
    with Reads() as reads:
        run(recipe("static-uniform" if changes else name, *changes), taught, tmp_path)
    assert reads.lines == []


def test_what_waits_is_seen(cache, config, tmp_path):
    """An optimiser that cannot leave out a step on the device: the host asks for the verdict of every step."""
    with Reads() as reads:
        run(override(config, ["optim.kind=muon"]), cache, tmp_path)
    assert len(reads.lines) == 10 and all("optim.py" in line for line in reads.lines)


def after_a_step(kind: str, bad: bool):
    """A tiny model, its optimiser and its average after a good step, and then one that may be bad."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(channels=4, text_dim=6, width=16, depth=1, heads=2))
    config = OptimConfig(kind=kind, learning_rate=0.1)
    optimizer = make_optimizer(model, config)
    average = copy.deepcopy(model)
    states = []
    for step in range(2):
        is_bad = torch.tensor(float(bad and step == 1))
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
            if is_bad:
                weight.grad[..., 0] = float("nan")
        step_unless(is_bad, optimizer)
        update_average(average, model, optimizer, config, step + 1, is_bad)
        moments = [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
        states.append([x.clone() for x in (*model.parameters(), *average.parameters(), *moments)])
    return states


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_bad_step_leaves_weights_moments_counts_and_averages_bit_for_bit(kind):
    before, after = after_a_step(kind, bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    before, after = after_a_step(kind, bad=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim > 1)


def test_the_average_moves_as_it_does_where_no_step_can_be_bad():
    torch.manual_seed(0)
    model, average = torch.nn.Linear(37, 5), torch.nn.Linear(37, 5)
    other = copy.deepcopy(average)
    for step in range(1, 30):
        update_average(average, model, None, OptimConfig(), step)
        update_average(other, model, None, OptimConfig(), step, torch.zeros(()))
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), other.parameters()))
