"""Stable Audio Open (Evans et al. 2407.14358): v of the cosine path, T5 text, seconds of start and end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.hub import PipelineFolder
from segue.models.adapters.base import (
    Adapter,
    AdapterConfig,
    OwnSampling,
    check_scheduler,
    diffusers_module,
    plain_config,
)
from segue.process.timesteps import TimestepDistribution, Uniform, UniformAngle
from segue.types import Condition, UserError


class StableAudioAdapter(Adapter):
    """`StableAudioDiTModel`.

    Text is padded with zeros to a fixed number of tokens, which are attended to, and followed by one token each for the
    start (always 0 here) and the end of the sound; both of these also form the global token before the clip's own. A
    dropped condition has zeros for all tokens and keeps the global one, as in `StableAudioPipeline`.
    """

    layers = "transformer_blocks"
    depth_key = "num_layers"

    def __init__(self, config: AdapterConfig, transformer: nn.Module) -> None:
        super().__init__(config, transformer)
        made = diffusers_module().StableAudioProjectionModel.from_config(config.conditions["projection"])
        # The linear layer on text, where there is one, was applied when the text was cached.
        self.start_number = made.start_number_conditioner.requires_grad_(False)
        self.end_number = made.end_number_conditioner.requires_grad_(False)

    @classmethod
    def read_config(cls, folder: PipelineFolder) -> AdapterConfig:
        transformer = plain_config(folder.config("transformer"))
        projection = plain_config(folder.config("projection_model"))
        width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        tokens = folder.config("tokenizer", "tokenizer_config.json").get("model_max_length", 512)
        return AdapterConfig(
            adapter="StableAudioDiTModel",
            source=folder.name,
            channels=transformer["in_channels"],
            text_dim=projection["conditioning_dim"],
            width=width,
            depth=transformer["num_layers"],
            prepended=1,
            patch_frames=1,
            transformer=transformer,
            scheduler=check_scheduler(folder),
            conditions={"projection": projection, "text_tokens": int(tokens)},
        )

    def read_conditions(self, folder: PipelineFolder) -> None:
        loader = diffusers_module().StableAudioProjectionModel
        loaded = loader.from_pretrained(
            folder.part("projection_model"), local_files_only=True, torch_dtype=torch.float32
        )
        self.start_number.load_state_dict(loaded.start_number_conditioner.state_dict())
        self.end_number.load_state_dict(loaded.end_number_conditioner.state_dict())

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        tokens, mask = condition.text()
        assert condition.seconds is not None
        end = condition.seconds.to(x)
        start = torch.zeros_like(end)
        numbers = [self.start_number(start), self.end_number(end)]  # [B, 1, E] each
        padding = self.config.conditions["text_tokens"] - tokens.shape[1]
        text = nn.functional.pad(tokens * mask[..., None], (0, 0, 0, padding))
        context = torch.cat([text, *numbers], dim=1)
        if condition.drop is not None:
            context = context.masked_fill(condition.drop[:, None, None], 0.0)
        return self.transformer(
            x,
            time,
            encoder_hidden_states=context,
            global_hidden_states=torch.cat(numbers, dim=2),
            rotary_embedding=self._rotary(x.shape[-1] + 1, x.device),
            return_dict=False,
        )[0]

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        half = self.config.transformer["attention_head_dim"] // 2
        cos, sin = get_1d_rotary_pos_embed(half, length, use_real=True, repeat_interleave_real=False)
        return cos.to(device), sin.to(device)

    @classmethod
    def own_timesteps(cls, config: AdapterConfig) -> TimestepDistribution:
        """Uniform in the path's own time: the default of stable-audio-tools, whose settings of it name no other."""
        return UniformAngle() if config.predicts == "v" else Uniform()

    @property
    def own_sampling(self) -> OwnSampling:
        return OwnSampling(steps=100, guidance_scale=7.0)

    def set_window(self, frames: int) -> None:
        # Its pipeline always generates windows of this length, and must do so with what is trained now.
        self.config = replace(self.config, transformer={**self.config.transformer, "sample_size": frames})
        self.transformer.register_to_config(sample_size=frames)

    def longest(self) -> int:
        """Its window."""
        return self.config.transformer["sample_size"]

    def window(self, frames: int) -> int:
        """The model generates windows of one length, and is told where the sound in them ends."""
        most = self.longest()
        if frames > most:
            raise UserError(
                f"--seconds: {frames} latent frames, but this model was trained on windows of {most}; hint: give less"
            )
        return most
