"""ACE-Step 1.5 (2602.00744): velocity of the straight path; text, lyrics and timbre in one sequence of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segue.hub import PipelineFolder
from segue.models.adapters.base import (
    Adapter,
    AdapterConfig,
    OwnSampling,
    check_scheduler,
    holds_nothing,
    plain_config,
)
from segue.process.cfg import Combine
from segue.process.timesteps import LogitNormal, Shifted, TimestepDistribution
from segue.types import Condition, UserError

SHIFT = 3.0  # of the pipeline's grid of times


class AceStepAdapter(Adapter):
    """`AceStepTransformer1DModel`.

    The cached tokens are those that the checkpoint's condition encoder makes of lyrics, timbre (of silence, where no
    reference is given) and text. The model sees beside its latents those of silence and a mask of ones: nothing of the
    sound is known. A dropped condition has the learned null for all tokens, as in `AceStepPipeline`.

    The model attends to padding of shorter captions, which would make an example depend on the others of its batch.
    Here padding is masked, so that each example gets what it would get alone.
    """

    layers = "layers"
    depth_key = "num_hidden_layers"
    null_condition: Tensor
    silence: Tensor

    def __init__(self, config: AdapterConfig, transformer: Any) -> None:
        super().__init__(config, transformer)
        self.register_buffer("null_condition", torch.zeros(1, 1, config.text_dim))
        self.register_buffer("silence", torch.zeros(1, config.conditions["silence_frames"], config.channels))
        for block in self.blocks:
            cross: Any = block.get_submodule("cross_attn")
            cross.set_processor(_masked_processor())

    @classmethod
    def read_config(cls, folder: PipelineFolder) -> AdapterConfig:
        transformer = plain_config(folder.config("transformer"))
        encoder = plain_config(folder.config("condition_encoder"))
        return AdapterConfig(
            adapter="AceStepTransformer1DModel",
            source=folder.name,
            channels=transformer["audio_acoustic_hidden_dim"],
            text_dim=encoder["hidden_size"],
            width=transformer["hidden_size"],
            depth=transformer["num_hidden_layers"],
            prepended=0,
            patch_frames=transformer["patch_size"],
            transformer=transformer,
            scheduler=check_scheduler(folder),
            conditions={"silence_frames": _tensor(folder, "silence_latent").shape[1]},
        )

    def read_conditions(self, folder: PipelineFolder) -> None:
        self.null_condition.copy_(_tensor(folder, "null_condition_emb"))
        self.silence.copy_(_tensor(folder, "silence_latent"))

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        tokens, mask = condition.text()
        if condition.drop is not None:
            tokens = torch.where(condition.drop[:, None, None], self.null_condition.to(tokens), tokens)
        # Without a mask attention takes the faster kernel, and gives what the pipeline's gives, bit for bit.
        context_mask = None if holds_nothing(mask) or bool(mask.all()) else mask[:, None, None]
        for block in self.blocks:
            cross: Any = block.get_submodule("cross_attn")
            cross.context_mask = context_mask
        frames = x.shape[-1]
        repeats = -(-frames // self.silence.shape[1])
        silence = self.silence.repeat(1, repeats, 1)[:, :frames].expand(len(x), -1, -1).to(x)
        found = self.transformer(
            hidden_states=x.transpose(1, 2),
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=tokens.to(x),
            context_latents=torch.cat([silence, torch.ones_like(silence)], dim=-1),
            return_dict=False,
        )[0]
        return found.transpose(1, 2)

    @classmethod
    def own_timesteps(cls, config: AdapterConfig) -> TimestepDistribution:
        """Logit-normal(-0.4, 1), as the forward pass of its publishers' training draws them; shifted where the
        scheduler is (the shift of 3 in the pipeline belongs to sampling)."""
        own = LogitNormal(-0.4, 1.0)
        shift = config.scheduler.get("shift", 1.0)
        return own if shift == 1.0 else Shifted(own, shift)

    @property
    def _is_turbo(self) -> bool:
        return bool(self.config.transformer.get("is_turbo")) or self.config.transformer.get("model_version") == "turbo"

    @property
    def own_sampling(self) -> OwnSampling:
        # Guidance is in the weights of turbo checkpoints, which take eight steps; the others need more than the eight
        # that the pipeline takes by itself.
        return OwnSampling(8, 1.0) if self._is_turbo else OwnSampling(50, 7.0)

    def combiner(self) -> Combine:
        """Adaptive projected guidance (arXiv 2410.02416), with what its pipeline sets it to."""
        from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

        momentum = MomentumBuffer(momentum=-0.75)

        def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
            return normalized_guidance(
                conditional, unconditional, scale - 1.0, momentum, eta=0.0, norm_threshold=2.5,
                use_original_formulation=True, norm_dim=(2,),
            )  # fmt: skip

        return combine

    def times(self, steps: int) -> Tensor:
        """Evenly spaced, shifted by 3 toward noise, as the pipeline has them."""
        t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        return SHIFT * t / (1 + (SHIFT - 1) * t)


def _masked_processor() -> nn.Module | Any:
    """The model's own processor of cross-attention, with the mask that the adapter has left at the layer."""
    from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0

    class Masked(AceStepAttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
            mask = getattr(attn, "context_mask", None)
            return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)

    return Masked()


def _tensor(folder: PipelineFolder, name: str) -> Tensor:
    """One tensor of the condition encoder's files.

    Raises:
        UserError: they do not hold it.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.part("condition_encoder").glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                if name in file.keys():
                    return file.get_tensor(name).float()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder.option} {folder.name}: {path.name} cannot be read ({error}); fetch it anew"
            ) from error
    raise UserError(
        f"{folder.option} {folder.name}: its condition_encoder holds no {name}; hint: convert the checkpoint again"
    )
