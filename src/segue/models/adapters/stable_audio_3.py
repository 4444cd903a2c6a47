"""Stable Audio 3 (2605.17991): velocity of the straight path, T5Gemma text, seconds of the whole sound."""

from __future__ import annotations

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
from segue.process.timesteps import Shifted, TimestepDistribution, Uniform
from segue.types import Condition

TEXT_TOKENS = 256  # the pipeline cuts and pads text there, whatever the tokenizer allows
LOG_SNR_MIN, LOG_SNR_MAX = -6.2, 2.0  # of the pipeline's grid of times


class StableAudio3Adapter(Adapter):
    """`StableAudio3DiTModel`.

    Text is padded to a fixed number of tokens, where the model puts its learned padding, and followed by a token for
    the length of the sound, which also modulates all blocks. A dropped condition has the text of an empty caption and
    keeps the length, as in `StableAudio3Pipeline`.
    """

    layers = "transformer_blocks"
    depth_key = "depth"
    needs_null = True
    null_tokens: Tensor
    null_mask: Tensor

    def __init__(self, config: AdapterConfig, transformer: nn.Module) -> None:
        super().__init__(config, transformer)
        made = diffusers_module().StableAudio3DurationEmbedder.from_config(config.conditions["duration"])
        self.duration = made.requires_grad_(False)
        # What reads a known part of the sound (inpainting) takes no part here, and would never get a gradient.
        for block in self.blocks:
            block.get_submodule("to_local_embed").requires_grad_(False)
        # Numbers, not bools: the average of weights is moved by arithmetic.
        self.register_buffer("null_tokens", torch.zeros(self.text_tokens, config.text_dim))
        self.register_buffer("null_mask", torch.zeros(self.text_tokens))

    @property
    def text_tokens(self) -> int:
        """K that text is padded to."""
        return self.config.conditions["text_tokens"]

    @classmethod
    def read_config(cls, folder: PipelineFolder) -> AdapterConfig:
        transformer = plain_config(folder.config("transformer"))
        tokens = folder.config("tokenizer", "tokenizer_config.json").get("model_max_length", TEXT_TOKENS)
        return AdapterConfig(
            adapter="StableAudio3DiTModel",
            source=folder.name,
            channels=transformer["io_channels"],
            text_dim=transformer["cond_token_dim"],
            width=transformer["embed_dim"],
            depth=transformer["depth"],
            prepended=transformer["num_memory_tokens"],
            patch_frames=transformer["patch_size"],
            transformer=transformer,
            scheduler=check_scheduler(folder),
            conditions={
                "duration": plain_config(folder.config("duration_embedder")),
                "text_tokens": int(min(tokens, TEXT_TOKENS)),
            },
        )

    def read_conditions(self, folder: PipelineFolder) -> None:
        loader = diffusers_module().StableAudio3DurationEmbedder
        loaded = loader.from_pretrained(
            folder.part("duration_embedder"), local_files_only=True, torch_dtype=torch.float32
        )
        self.duration.load_state_dict(loaded.state_dict())

    def set_null(self, tokens: Tensor, mask: Tensor) -> None:
        """The text of an empty caption: tokens [1, K, E], mask [1, K]."""
        self.null_tokens.zero_()
        self.null_mask.zero_()
        self.null_tokens[: tokens.shape[1]] = tokens[0]
        self.null_mask[: mask.shape[1]] = mask[0]

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        tokens, mask = condition.text()
        assert condition.seconds is not None
        padding = self.text_tokens - tokens.shape[1]
        tokens = nn.functional.pad(tokens, (0, 0, 0, padding)).to(x)
        mask = nn.functional.pad(mask, (0, padding))
        if condition.drop is not None:
            tokens = torch.where(condition.drop[:, None, None], self.null_tokens.to(x), tokens)
            mask = torch.where(condition.drop[:, None], self.null_mask.bool(), mask)
        length = self.duration(condition.seconds)  # [B, E]
        return self.transformer(
            x,
            time,
            encoder_hidden_states=torch.cat([tokens, length[:, None].to(tokens)], dim=1),
            global_hidden_states=length,
            encoder_attention_mask=torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
            return_dict=False,
        )[0]

    @classmethod
    def own_timesteps(cls, config: AdapterConfig) -> TimestepDistribution:
        """Uniform: that of its own fine-tuning script; shifted where the scheduler is."""
        shift = config.scheduler.get("shift", 1.0)
        return Uniform() if shift == 1.0 else Shifted(Uniform(), shift)

    @property
    def own_sampling(self) -> OwnSampling:
        # A distilled checkpoint has its guidance in its weights and takes eight steps.
        return OwnSampling(8 if self.config.scheduler.get("stochastic_sampling") else 100, 1.0)

    def times(self, steps: int) -> Tensor:
        """Evenly spaced in log-SNR, as the pipeline has them, then shifted where the scheduler is."""
        value = torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, steps + 1, dtype=torch.float64)
        t = torch.sigmoid(-value)  # its log-SNR is ln((1 - t) / t), half of ours
        t[0] = 1.0
        shift = self.config.scheduler.get("shift", 1.0)
        t = shift * t / (1 + (shift - 1) * t)
        t[-1] = 0.0
        return t
