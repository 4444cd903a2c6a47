"""The memory of a run, counted before the first step: what it keeps throughout, and the most that it adds to that."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import nn

from segue import memory
from segue.data.cache import LatentCache
from segue.data.loader import AHEAD
from segue.memory import RUNTIME_BYTES, format_bytes, resident_bytes
from segue.models.backbone import BackboneConfig
from segue.models.gpu_fit import GAPS
from segue.models.step_memory import ADAM as MOMENTS
from segue.models.step_memory import StepKind, memory_need
from segue.stage.alignment import Projector
from segue.training import features
from segue.training.config import RunConfig
from segue.training.windows import window_frames, window_seconds

FLOAT = 4
MOMENTS_8_BIT = 2  # bytes of a weight's two moments
WORKSPACE = 64 * 2**20  # of matrix products on a GPU, which torch takes from the same memory
ADAM = 4  # copies of a weight: itself, its gradient, two moments


@dataclass(frozen=True)
class RunNeed:
    """Bytes that a run needs in addition to what its process holds at its start.

    Attributes:
        weights: of model, averaged model and heads, with gradients and optimiser.
        activations: what a step keeps for its backward pass, without the allocator's gaps.
        batch: examples, noise, captions and teacher features of a step, and those read ahead; the held-out ones of the
            probe and validation.
        fit: of the regression that turns latents into features, before the first step.
        frozen: of `weights`, those that are not trained.
    """

    weights: int
    activations: int
    batch: int
    fit: int
    frozen: int = 0

    @property
    def total(self) -> int:
        """The peak; the fit is over when the first step begins."""
        return self.weights + self.batch + max(round((1 + GAPS) * self.activations), self.fit)


def run_need(config: RunConfig, cache: LatentCache, dit: BackboneConfig) -> RunNeed:
    """Count it for one process. A cache's rows are read, not mapped: they count where they are used, as batches."""
    train = config.train
    alignment = config.policy.alignment
    # The model: weights and optimiser, and the activations of one piece of a batch.
    piece = ceil(train.batch_size / train.accumulation)
    window = max(cache.frames, window_frames(config, cache))
    model = memory_need(dit, piece, window, cache.text_tokens, step_kind(config))
    weights = model.weights
    activations = model.activations

    # The data: of a batch, and of the validation set.
    latent = FLOAT * cache.channels * window
    longest = max(cache.meta["seconds"], window_seconds(config, cache))
    frames = ceil(longest * (cache.meta["teacher_frame_rate_hz"] or 0))
    taught = FLOAT * frames * (cache.meta["teacher_dim"] or 0)
    text = 0 if dit.audio else FLOAT * cache.text_tokens * cache.text_dim
    # Latents, x_0 and noise of the whole batch, audio twice; x_t, prediction, error and their gradients of a piece.
    whole = (5 if dit.audio else 3) + (1 if train.contrastive else 0)
    batch = train.batch_size * (whole * latent + text) + 5 * piece * latent
    batch += train.validation_clips * (3 * latent + text)

    # The batches that are read ahead, as they are stored.
    aligned = taught if alignment.weight > 0 and alignment.target == "teacher" else 0
    batch += AHEAD * train.batch_size * (latent + text + aligned) * cache.dtype.itemsize // FLOAT

    # The alignment: targets of the batch, a projector for each tap and its activations.
    if alignment.weight > 0:
        tokens = ceil(window / dit.patch_frames)
        targets, dim = {
            "teacher": (taught, cache.meta["teacher_dim"] or 1),
            "latents": (latent, cache.channels),
            "self": (FLOAT * tokens * dit.width, dit.width),
        }[alignment.target]
        batch += train.batch_size * targets
        if alignment.space == "hidden":
            taps = 2 if alignment.second_tap else 1
            with torch.device("meta"):
                projector = Projector(dit.width, dim)
            weights += taps * ADAM * FLOAT * sum(p.numel() for p in projector.parameters())
            widths = sum(layer.out_features for layer in projector.modules() if isinstance(layer, nn.Linear))
            activations += taps * piece * (FLOAT * tokens * 2 * widths + 5 * targets)

    # The discrepancy: its probe set, and the regression onto features.
    fit = 0
    if config.policy.probes or config.policy.probes_gain:
        batch += config.policy.probe.clips * (4 * latent + text + 4 * taught)
        fit = features.fit_bytes(cache) if config.policy.probe.space == "latent" else 0
    return RunNeed(weights, activations, batch, fit, model.frozen)


def in_parts(need: RunNeed) -> str:
    """A need's weights in words."""
    if not need.frozen:
        return f"{format_bytes(need.weights)} weights and optimiser"
    return f"{format_bytes(need.frozen)} frozen, {format_bytes(need.weights - need.frozen)} trained and optimiser"


def step_kind(config: RunConfig) -> StepKind:
    """How the steps of a run are computed, as far as memory is concerned."""
    # Two moments of a byte each, with a scale for every 256 of them: 2.03, and small tensors are exact.
    moments = MOMENTS_8_BIT if config.optim.kind == "adamw-8bit" else MOMENTS
    return StepKind(
        checkpointing=config.model.gradient_checkpointing,
        bfloat16=config.train.precision == "bf16",
        lora=config.lora if config.lora.rank else None,
        moments=moments + (FLOAT if config.optim.pull > 0 else 0),
    )


def stated_bytes(need: RunNeed, device: torch.device) -> int:
    """The peak of a run that is about to begin in this process, as `peak_bytes` will measure it."""
    return need.total + WORKSPACE if device.type == "cuda" else resident_bytes() + RUNTIME_BYTES + need.total


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free for a run; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory.free_bytes() if device.type == "cpu" else None


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the accelerator, or resident where there is none."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.peak_bytes()
