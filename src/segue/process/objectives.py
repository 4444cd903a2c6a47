"""Per-example losses [B], so that weights and logs can be applied by time."""

from __future__ import annotations

from torch import Tensor

from segue.process.path import velocity_target


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, L] -> [B]: mean over channels and real frames.

    Args:
        mask: [B, L] bool, True where a frame is real; None where all are. An example without a real frame gives 0.
    """
    if mask is None:
        return values.flatten(1).mean(1)
    real = values.masked_fill(~mask[:, None], 0.0)  # a product would let a NaN in the padding through
    return real.sum((1, 2)) / (mask.sum(1) * values.shape[1]).clamp(min=1)


def velocity_loss(velocity: Tensor, x_0: Tensor, eps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared velocity error [B] over real frames (flow matching, arXiv 2210.02747, eq. 9).

    Args:
        velocity: [B, C, L] prediction.
        x_0, eps: [B, C, L] clean sample and noise.
        mask: [B, L] bool; padding counts for nothing.
    """
    return masked_mean((velocity - velocity_target(x_0, eps)).square(), mask)


def min_snr_weight(t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight [B] of the velocity loss under min-SNR-gamma (arXiv 2303.09556), derived for this path.

    Min-SNR weighs the clean-sample error by min(SNR, gamma). Here SNR = (1 - t)^2 / t^2, and since
    x_0_hat - x_0 = -t (v_hat - v), a velocity error counts t^2 times in the clean sample. So the weight is
    t^2 min(SNR, gamma) = min((1 - t)^2, gamma t^2).
    """
    return ((1 - t) ** 2).minimum(gamma * t**2)
