"""What public backbones have in common behind the call of our own: model(x_t, t, condition, mask) -> ModelOutput.

An adapter is thin: it holds a model of diffusers, scales x_t onto the path that the model was trained on, turns t into
the time that the model knows, and lays out its conditions as the pipeline of diffusers does. Our t stands for a
log-SNR (process/path.py), so "high noise" means the same to every one of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segue.hub import PipelineFolder
from segue.process.cfg import Combine, combine
from segue.process.path import cosine_angle, cosine_norm, expand
from segue.process.timesteps import TimestepDistribution
from segue.types import Condition, ModelOutput, UserError, import_extra

# What a scheduler of diffusers says of the path. A model of the cosine path predicts v, one of the straight path the
# velocity, and each class has its own time.
COSINE = ("CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
STRAIGHT = ("FlowMatchEulerDiscreteScheduler",)


@dataclass(frozen=True)
class AdapterConfig:
    """Shape of an adapter, as a model's card keeps it; with its weights it makes the model again.

    Attributes:
        adapter: class of the model in diffusers, which names the adapter.
        source: folder or hub name that it came from.
        channels: C, latent channels.
        text_dim: E, features of a token of the cached text.
        width: D.
        depth: number of blocks.
        prepended: tokens before those of the clip in a block's output.
        patch_frames: latent frames to a token.
        transformer: configuration of the diffusers model.
        scheduler: configuration of the diffusers scheduler.
        conditions: configurations and sizes of what the conditions are made with.
    """

    adapter: str
    source: str
    channels: int
    text_dim: int
    width: int
    depth: int
    prepended: int
    patch_frames: int
    transformer: dict
    scheduler: dict
    conditions: dict = field(default_factory=dict)

    # What DiTConfig has beside: these models have no known part.
    audio: ClassVar[bool] = False
    known: ClassVar[bool] = False
    audio_skip: ClassVar[int] = 0
    attention_window: ClassVar[int] = 0

    @property
    def predicts(self) -> str:
        """ "v" (of the cosine path) or "velocity", as the scheduler says."""
        return "v" if self.scheduler["_class_name"] in COSINE else "velocity"


@dataclass(frozen=True)
class OwnSampling:
    """How a checkpoint's own pipeline samples where it is told nothing: solver steps and guidance scale."""

    steps: int
    guidance_scale: float


class Adapter(nn.Module):
    """A diffusers model behind our call.

    Subclasses set:
        layers: name of the model's list of blocks.
        depth_key: name of their number in its configuration.
        needs_null: whether the text of an empty caption has to be given (`set_null`), which stands for a dropped one.

    Attributes:
        config: its shape.
        transformer: the diffusers model, which is what is trained; everything else is frozen.
        predicts: kind of `ModelOutput.prediction`: "velocity" or "v".
    """

    layers: ClassVar[str]
    depth_key: ClassVar[str]
    needs_null: ClassVar[bool] = False

    def __init__(self, config: AdapterConfig, transformer: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        self.predicts = config.predicts
        self._checkpointing = False

    # --- what each adapter says ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_config(cls, folder: PipelineFolder) -> AdapterConfig:
        """The shape of the model in a folder."""

    @abstractmethod
    def read_conditions(self, folder: PipelineFolder) -> None:
        """Take over the frozen weights that conditions are made with."""

    @abstractmethod
    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The model on points [B, C, L] of its own path at its own times [B]."""

    @classmethod
    @abstractmethod
    def own_timesteps(cls, config: AdapterConfig) -> TimestepDistribution:
        """The distribution of t that the checkpoint was trained with, as far as its publishers say."""

    @property
    @abstractmethod
    def own_sampling(self) -> OwnSampling:
        """What its pipeline does where it is told nothing."""

    def set_window(self, frames: int) -> None:
        """What it is trained on from here: clips of so many latent frames."""

    def window(self, frames: int) -> int:
        """Latent frames that are generated for a sound of so many frames.

        Raises:
            UserError: more than it can generate.
        """
        return frames

    def longest(self) -> int | None:
        """Most latent frames of one sound; None: as many as one asks for."""
        return None

    def set_null(self, tokens: Tensor, mask: Tensor) -> None:
        """Take over the text of an empty caption: tokens [1, K, E], mask [1, K]; see `needs_null`."""

    def combiner(self) -> Combine:
        """How one sound's sampling combines conditional and unconditional velocity: classifier-free guidance."""
        return combine

    # --- what they share ----------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> nn.ModuleList:
        """The list of transformer blocks, for the tap."""
        return getattr(self.transformer, self.layers)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass (not reentrant)."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        if value != self._checkpointing:
            (
                self.transformer.enable_gradient_checkpointing
                if value
                else self.transformer.disable_gradient_checkpointing
            )()
        self._checkpointing = value

    @property
    def timesteps(self) -> TimestepDistribution:
        """The distribution of t that the checkpoint was trained with: the static baseline of fine-tuning."""
        return self.own_timesteps(self.config)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition | None = None, mask: Tensor | None = None
    ) -> ModelOutput:
        """The prediction [B, C, L], as `predicts` says.

        Args:
            x_t: [B, C, L] noisy latents on the straight path.
            t: [B] times in [0, 1], 1 = noise.
            condition: text, lengths, and which examples are dropped.
            mask: [B, L]; not used: these models know no padding, and were trained on silence in its place.

        Raises:
            ValueError: a condition without text or lengths.
        """
        if condition is None or condition.tokens is None:
            raise ValueError(f"{self.config.adapter} needs a condition with text")
        x = x_t / expand(cosine_norm(t), x_t) if self.predicts == "v" else x_t
        return ModelOutput(self.predict(x, own_time(t, self.config.scheduler), condition))

    def times(self, steps: int) -> Tensor:
        """[steps + 1] descending times, float64, at which the checkpoint's pipeline evaluates the model, and 0."""
        return times_of_sigmas(sigmas_of(self.config.scheduler, steps))

    def start_scale(self, time: float) -> float:
        """What standard normal noise is multiplied by at the first time: its deviation is 1 on the cosine path."""
        return math.hypot(1 - time, time) if self.predicts == "v" else 1.0


def own_time(t: Tensor, scheduler: dict) -> Tensor:
    """Our times [B] as the model of this scheduler knows them.

    sigma = t / (1 - t) is the ratio of noise to data at a log-SNR; the cosine scheduler's time is (2 / pi) atan(sigma),
    the EDM scheduler's is ln(sigma) / 4 (arXiv 2206.00364, table 1), the flow-matching scheduler's is t itself, in
    units of its training steps.
    """
    kind = scheduler["_class_name"]
    if kind == "CosineDPMSolverMultistepScheduler":
        return cosine_angle(t)
    if kind == "EDMDPMSolverMultistepScheduler":
        return torch.log(t / (1 - t)) * 0.25
    return t * scheduler.get("num_train_timesteps", 1000)


def sigmas_of(scheduler: dict, steps: int) -> Tensor:
    """[steps + 1] descending ratios of noise to data, and 0: the grid of a scheduler of the cosine path, float64."""
    low, high = scheduler["sigma_min"], scheduler["sigma_max"]
    if scheduler.get("sigma_schedule", "exponential") == "karras":
        rho = scheduler.get("rho", 7.0)
        ramp = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho
    else:
        ramp = torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()
    last = 0.0 if scheduler.get("final_sigmas_type", "zero") == "zero" else low
    return torch.cat([ramp, torch.tensor([last], dtype=torch.float64)])


def times_of_sigmas(sigmas: Tensor) -> Tensor:
    """Times of ratios of noise to data: t = sigma / (1 + sigma)."""
    return sigmas / (1 + sigmas)


def check_scheduler(folder: PipelineFolder) -> dict:
    """The scheduler's configuration of a folder.

    Raises:
        UserError: the folder has none, or one whose path is not known here.
    """
    scheduler = folder.config("scheduler", "scheduler_config.json")
    kind = scheduler.get("_class_name", folder.kind("scheduler"))
    if kind not in COSINE + STRAIGHT:
        raise UserError(
            f"{folder.option} {folder.name}: the path of its scheduler {kind} is not known here; hint: one with "
            f"{', '.join(COSINE + STRAIGHT)}"
        )
    if kind in COSINE and (scheduler.get("prediction_type") != "v_prediction" or scheduler.get("sigma_data") != 1.0):
        raise UserError(
            f"{folder.option} {folder.name}: its scheduler has prediction_type {scheduler.get('prediction_type')} and "
            f"sigma_data {scheduler.get('sigma_data')}; only v_prediction with sigma_data 1 is known here"
        )
    return {**scheduler, "_class_name": kind}


def plain_config(config: dict) -> dict:
    """A configuration of diffusers without what it says of versions and places."""
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}


def holds_nothing(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values: a model's memory is being counted (training/step_memory.py)."""
    from torch._subclasses.fake_tensor import FakeTensor

    return tensor.is_meta or isinstance(tensor, FakeTensor)


def diffusers_module() -> Any:
    """The diffusers library.

    Raises:
        UserError: it is not installed.
    """
    return import_extra("diffusers", "finetune")
