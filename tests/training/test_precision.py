"""What a run computes in, and blocks that torch compiles."""

import copy

import pytest
import torch

from segue.models.dit import DiT, DiTConfig
from segue.recipes import load_recipe
from segue.stage.tap import attach
from segue.training import precision
from segue.training.compiling import compile_blocks
from segue.training.config import override
from segue.types import UserError


def settled(monkeypatch, preset, device, *, amx=False, capability=(9, 0), asked="auto"):
    monkeypatch.setattr(precision, "_cpu_has_amx", lambda: amx)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    config = override(load_recipe("stage"), [f"model.preset={preset}", f"train.precision={asked}"])
    return precision.settle(config, torch.device(device)).train.precision


@pytest.fixture(autouse=True)
def products():
    """TF32 is a setting of the process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_auto_is_bf16_where_that_is_faster(monkeypatch):
    assert settled(monkeypatch, "dit-1m", "cpu", amx=True) == "bf16"
    assert settled(monkeypatch, "dit-1m", "cpu") == "fp32"
    assert settled(monkeypatch, "dit-tiny", "cpu", amx=True) == "fp32"
    assert settled(monkeypatch, "dit-tiny", "cuda") == "bf16"
    assert settled(monkeypatch, "dit-tiny", "cuda", capability=(7, 5)) == "fp32"
    assert settled(monkeypatch, "dit-1m", "mps", amx=True) == "fp32"


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_was_asked_for_stays(monkeypatch, asked):
    assert settled(monkeypatch, "dit-1m", "cpu", amx=True, asked=asked) == asked


def test_cuda_multiplies_in_tf32_and_a_cpu_does_not(monkeypatch):
    torch.set_float32_matmul_precision("highest")
    settled(monkeypatch, "dit-1m", "cpu", amx=True)
    assert torch.get_float32_matmul_precision() == "highest"
    settled(monkeypatch, "dit-1m", "cuda")
    assert torch.get_float32_matmul_precision() == "high"


def small():
    torch.manual_seed(0)
    model = DiT(DiTConfig(channels=4, text_dim=6, width=16, depth=2, heads=2, adaln_rank=2))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


X, T = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.8])


def test_compiled_blocks_compute_the_same_and_hooks_and_copies_go_on_working():
    plain, model = small(), small()
    compile_blocks(model.blocks, backend="aot_eager")
    copied = copy.deepcopy(model)
    assert copied.blocks[0]._compiled_call_impl is None and set(model.state_dict()) == set(plain.state_dict())
    found = []
    for some in (plain, model, copied):
        with attach(some.blocks, at=0.33) as tap:
            loss = some(X, T).prediction.square().sum() + tap.hidden.square().sum()
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in some.parameters() if p.grad is not None)])
    for other in found[1:]:
        assert len(other) == len(found[0])
        for a, b in zip(found[0], other):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_compiled_ends_in_one_line():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    model = small()
    compile_blocks(model.blocks, backend=broken)
    with pytest.raises(UserError, match=r"train\.compile=true: .*no compiler here.*hint: set train\.compile=false"):
        model(X, T)
