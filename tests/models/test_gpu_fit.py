"""What a size needs is counted as autograd keeps it, in either precision, and the batch that fits is the largest."""

import pytest
import torch

from segue.models.dit import DiT
from segue.models.gpu_fit import CUDA_BYTES, GAPS, fit_of
from segue.models.presets import preset
from segue.models.step_memory import StepKind, kept_bytes, memory_need
from segue.types import Condition


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_count_is_what_a_real_forward_pass_keeps(precision):
    config = preset("dit-1m", channels=8, text_dim=16)
    kept = {}

    def pack(saved):
        kept[saved.untyped_storage()._cdata] = saved.untyped_storage()
        return saved

    model = DiT(config)
    mask, drop = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    condition = Condition(torch.zeros(3, 5, 16), mask, drop)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), autocast:
        output = model(torch.zeros(3, 8, 40), torch.full((3,), 0.5), condition, torch.ones(3, 40, dtype=torch.bool))
    for weight in model.parameters():
        kept.pop(weight.untyped_storage()._cdata, None)
    real = sum(storage.nbytes() for storage in kept.values())
    assert output.prediction.requires_grad
    kind = StepKind(bfloat16=precision == "bf16")
    counted = kept_bytes(config, 3, 40, 5, kind, False)
    assert counted == pytest.approx(real, rel=0.03)


def test_the_batch_that_fits_is_the_largest():
    config = preset("dit-3m", channels=32, text_dim=384)
    fit = fit_of(config, 64, sizes_gib=(1, 4))

    def bytes_of(batch):
        need = memory_need(config, batch, 64, kind=StepKind(bfloat16=True))
        return need.weights + (1 + GAPS) * need.activations + CUDA_BYTES

    assert fit.batches[1] == 0 and fit.weights == 20 * sum(p.numel() for p in DiT(config).parameters())
    assert bytes_of(fit.batches[4] - 1) < 4 * 2**30 < bytes_of(fit.batches[4] + 2)
