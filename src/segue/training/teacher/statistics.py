"""What a teacher keeps of the sounds that it was trained on, and whether its space has collapsed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.ssl.compact import CompactEncoder, normalise
from segue.training.small_run import add_up
from segue.training.training_audio import Sounds
from segue.types import UserError

COLLAPSED_STD, COLLAPSED_RANK = 0.05, 1.5  # a constant: 0 and 1; plain decaying tones reach a rank of 2


@torch.no_grad()
def fit_mel(encoder: CompactEncoder, waves: list[Tensor]) -> None:
    """Store mean and deviation of the log-mel bands over these sounds."""
    device = encoder.mel.mean.device
    columns = torch.cat([encoder.mel(w[None].to(device))[0] for w in waves]).double()
    encoder.mel.mean.copy_(columns.mean(0))
    # A band that hardly moves must not be blown up.
    encoder.mel.std.copy_(columns.std(0).clamp_min(0.1))


@torch.no_grad()
def fit_statistics(encoder: CompactEncoder, waves: list[Tensor]) -> None:
    """Store mean and deviation of every layer's features, and of the default mixture's, over these sounds."""
    device = encoder.mel.mean.device
    depth = encoder.config.depth
    chosen = [i - 1 for i in encoder.config.layers]
    rows: list[list[Tensor]] = [[] for _ in range(depth + 1)]
    for wave in waves:
        # Normalised as they will be compared, and in float64 over all frames.
        outputs = [normalise(x)[0] for x in encoder(encoder.mel.patches(encoder.mel(wave[None].to(device))))]
        rows[0].append(add_up(outputs[i] for i in chosen) / len(chosen))
        for row, x in zip(rows[1:], outputs, strict=True):
            row.append(x)
    frames = [torch.cat(row).double() for row in rows]
    mean = torch.stack([x.mean(0) for x in frames])
    std = torch.stack([x.std(0) for x in frames])
    encoder.statistics.copy_(torch.stack([mean, std.clamp_min(1e-3)]))


def some_waves(sounds: Sounds, count: int, samples: int) -> list[Tensor]:
    """The starts of some sounds, the same ones every time."""
    chosen = torch.randperm(len(sounds), generator=torch.Generator().manual_seed(0))[:count]
    return [sounds.wave(i)[:samples] for i in chosen.tolist()]


@torch.no_grad()
def collapse_figures(encode: Callable[[Tensor], Tensor], waves: list[Tensor]) -> dict[str, float]:
    """Has a space collapsed? Of the frames [1, S, F] that `encode` gives of every [1, T], not yet standardised:

    feature_std: mean over dimensions of the deviation over frames (each frame of our own has unit variance itself).
    effective_rank: exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007), 1 to F.
    clip_cosine: mean cosine between the time means of two sounds; near 1 all sounds are one.
    """
    clips = [encode(w[None])[0].double().cpu() for w in waves]
    frames = torch.cat(clips)
    # Rounding can make an eigenvalue of a flat space slightly negative.
    share = torch.linalg.eigvalsh(torch.cov(frames.T)).clamp_min(0)
    share = share / share.sum().clamp_min(1e-12)
    means = F.normalize(torch.stack([x.mean(0) for x in clips]), dim=1)
    cosines = means @ means.T
    count = max(1, len(clips) * (len(clips) - 1))
    return {
        "feature_std": round(frames.std(0).mean().item(), 4),
        "effective_rank": round(torch.special.entr(share).sum().exp().item(), 2),
        "clip_cosine": round(((cosines.sum() - cosines.diagonal().sum()) / count).item(), 4),
    }


def refuse_collapsed(figures: dict[str, float], where: Path | str) -> None:
    """Raises UserError where these figures are those of a collapsed space."""
    if figures["feature_std"] < COLLAPSED_STD or figures["effective_rank"] < COLLAPSED_RANK:
        raise UserError(
            f"{where}: this teacher has collapsed (feature std {figures['feature_std']}, effective rank "
            f"{figures['effective_rank']}): it says the same of every sound; "
            "hint: train longer, or on more varied sounds"
        )
