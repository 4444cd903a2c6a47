"""The backbone: a diffusion transformer over latent frames, with cross-attention to text.

    latent frames [B, C, L] -> patches -> tokens [B, N, D] -> depth x Block -> patches -> prediction [B, C, L]

Each block is self-attention (rotary positions, qk-norm), cross-attention to the caption, and an MLP. Time, the pooled
caption, numbers and labels modulate it by adaLN-zero: one projection that all blocks share, plus a low-rank part and a
bias of each block. Sharing saves most of the parameters; without the parts of each block it was reported to be unstable
(EzAudio, arXiv 2409.10819).

Padded tokens are masked as keys of attention, and padded frames of the output are zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from segue.models.attention import CrossAttention, LayerNorm, SelfAttention, multiply_add, token_bias
from segue.models.audio_skip import add_skip, register_fitted
from segue.models.fields import FieldEmbedding, LabelField, NumberField, fields_of
from segue.models.positions import Tables, as_bias, rotary_tables, sinusoid_frequencies, sinusoidal
from segue.types import Condition, ModelOutput, UserError


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT.

    Attributes:
        channels: C, latent channels.
        text_dim: E, features of a text token.
        width: D.
        depth: number of blocks.
        heads: attention heads; width / heads must be even (rotary pairs).
        mlp_ratio: hidden width of the MLP over D.
        patch_frames: latent frames per token. Where C * patch_frames exceeds `width`, use predicts="clean".
        adaln_rank: rank of the part of the modulation that each block has of its own.
        predicts: "velocity", or "clean" (the clean sample, converted to velocity outside the model).
        audio: whether the model is conditioned on Condition.audio and Condition.cutoff (super-resolution).
        audio_skip: number of first channels that are also predicted from those of the audio by one convolution
            (models/audio_skip.py); needs predicts="clean".
        guessed: whether missing channels of the audio hold a predictor's guess (tasks/super_resolution.py).
        attention_window: tokens on each side that a token attends to; 0 = all. A token then depends on
            depth * attention_window tokens on each side, so that long sounds can be computed in chunks.
        value_residual: whether each block's attention also gets the first block's values (arXiv 2410.17897).
        known: whether frames of the sound may be given by Condition.audio, and the rest generated to fit them.
        numbers, labels: what the model is conditioned on beside the caption (models/fields.py); given as objects, or as
            a file has them.
    """

    channels: int = 32
    text_dim: int = 384
    width: int = 160
    depth: int = 8
    heads: int = 5
    mlp_ratio: float = 4.0
    patch_frames: int = 1
    adaln_rank: int = 16
    predicts: str = "velocity"
    audio: bool = False
    audio_skip: int = 0
    guessed: bool = False
    attention_window: int = 0
    value_residual: bool = False
    known: bool = False
    numbers: tuple[NumberField, ...] = ()
    labels: tuple[LabelField, ...] = ()

    def __post_init__(self) -> None:
        numbers, labels = fields_of({"numbers": map(_plain, self.numbers), "labels": map(_plain, self.labels)})
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "labels", labels)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(f"model.width {self.width} over model.heads {self.heads} must be a whole, even number")
        if self.audio_skip and not (self.audio and self.predicts == "clean"):
            raise UserError("a skip from the audio needs model.predicts=clean")
        if self.audio and self.known:
            raise UserError("model.known is for generation; a model with audio (super-resolution) knows channels")
        if self.predicts not in ("velocity", "clean"):
            raise UserError(f"model.predicts is '{self.predicts}'; use 'velocity' or 'clean'")


def _plain(field: NumberField | LabelField | dict) -> dict:
    return field if isinstance(field, dict) else asdict(field)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP; adaLN-zero modulates and gates the first and the last."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        hidden = int(width * config.mlp_ratio)
        self.norm_attention = LayerNorm(width)
        self.attention = SelfAttention(width, config.heads, config.value_residual)
        self.norm_cross = LayerNorm(width, affine=True)
        self.cross = CrossAttention(width, config.heads)
        self.norm_mlp = LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.adaln_down = nn.Linear(width, config.adaln_rank, bias=False)
        self.adaln_up = nn.Linear(config.adaln_rank, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        shared: Tensor,
        context: Tensor,
        context_bias: Tensor | None,
        bias: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        first: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, D], condition [B, D], shared [B, 6D], context [B, K, D], biases [B, 1, 1, keys] -> [B, N, D]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(condition, shared)
        h = multiply_add(shift_a, 1 + scale_a, self.norm_attention(x))
        x = multiply_add(x, gate_a, self.attention(h, bias, rotary, first))
        x = x + self.cross(self.norm_cross(x), context, context_bias)
        h = multiply_add(shift_m, 1 + scale_m, self.norm_mlp(x))
        return multiply_add(x, gate_m, self.mlp_out(F.silu(self.mlp_in(h))))

    def values(self, x: Tensor, condition: Tensor, shared: Tensor) -> Tensor:
        """The values that this block's attention has of tokens x [B, N, D]: [B, N, heads, head_dim]."""
        shift, scale = self._modulation(condition, shared)[:2]
        return self.attention.values(multiply_add(shift, 1 + scale, self.norm_attention(x)))

    def _modulation(self, condition: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
        # adaLN-zero (arXiv 2212.09748): what all blocks share, and this block's low-rank part (arXiv 2409.10819).
        return (shared + self.adaln_up(self.adaln_down(condition)))[:, None].chunk(6, dim=-1)


class DiT(nn.Module):
    """The diffusion transformer.

    Attributes:
        blocks: the list of blocks; the alignment taps one of them.
        predicts: kind of `ModelOutput.prediction`: "velocity" or "clean".
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    skip_weight: Tensor
    skip_bias: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.predicts = config.predicts
        self.gradient_checkpointing = False
        self._tables = Tables()
        width = config.width
        token = config.channels * config.patch_frames
        self.patch_in = nn.Linear(token, width)
        self.time_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.text_in = nn.Linear(config.text_dim, width)
        self.text_norm = LayerNorm(width, affine=True)
        self.pooled_in = nn.Linear(width, width)
        self.null = nn.Parameter(torch.empty(1, 1, config.text_dim))
        self.adaln_shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = LayerNorm(width)
        self.adaln_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, token)
        if config.audio:  # made last, so that the initial values of all other weights do not depend on it
            # The part of the first layer that reads audio, if x_t and audio were concatenated.
            self.audio_in = nn.Linear(token, width)
            self.audio_null = nn.Parameter(torch.zeros(width))
            self.cutoff_mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        register_fitted(self, config.audio_skip, config.channels if config.guessed else 0)
        self._initialise()
        if config.known:  # reads known latents and which frames they are; zero, so that it begins as a model without
            self.known_in = nn.Parameter(torch.zeros(width, token + config.patch_frames))
        if config.numbers or config.labels:  # behind all initial values, so that these do not depend on it
            self.fields = FieldEmbedding(config.numbers, config.labels, width)

    def _initialise(self) -> None:
        # Without memory behind it, a draw would import torch's compiler: two CPU seconds at the start of a command.
        if self.null.is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Each of q and kv has the bounds of a layer of its own, as it is one but for the speed.
                rows = [self.config.width, 2 * self.config.width] if name.endswith("qkv") else [module.out_features]
                for part in module.weight.split(rows):
                    nn.init.xavier_uniform_(part)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.null, std=0.02)
        # adaLN-zero: every gated branch and the output start at zero (DiT, arXiv 2212.09748, section 3.2).
        # Cross-attention has no gate, so its own output projection starts there.
        zeros: list[nn.Module] = [self.adaln_shared, self.adaln_out, self.patch_out]
        for block in self.blocks:
            zeros += [block.get_submodule("adaln_up"), block.get_submodule("cross.out")]
        for layer in zeros:
            nn.init.zeros_(layer.get_parameter("weight"))

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition | None = None, mask: Tensor | None = None
    ) -> ModelOutput:
        """The prediction [B, C, L], as `predicts` says.

        Args:
            x_t: [B, C, L] noisy latents.
            t: [B] times in [0, 1], 1 = noise.
            condition: text tokens, audio, and which examples are dropped; None drops all.
            mask: [B, L] bool, True where a frame is real; None where all are.
        """
        # Tokens: patches of latent frames. What is known is not generated: its noise is removed.
        batch, _, frames = x_t.shape
        patch = self.config.patch_frames
        missing = None
        if condition is not None and condition.audio is not None:
            missing = ~condition.known_audio()[1]
            x_t = x_t * missing
        x = self.patch_in(self._patchify(x_t))
        if self.config.known and missing is not None and condition is not None and condition.audio is not None:
            given = torch.cat([condition.audio * ~missing, (~missing).to(x_t.dtype)], dim=1)
            x = x + F.linear(self._patchify(given), self.known_in)
        real = None if mask is None else F.pad(mask, (0, -frames % patch)).view(batch, -1, patch).any(-1)
        bias = token_bias(real, x, self.config.attention_window, self._tables)

        # Condition: caption tokens to attend to, and for the modulation a vector c of time, pooled caption, cutoff and
        # fields.
        context, seen = self._context(condition, batch)
        # No row of the mask is empty: without a caption the null is attended to.
        pooled = context[:, 0] if seen is None else (context * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        context_bias = None if seen is None else as_bias(seen, x.dtype)[:, None, None]
        c = self.time_mlp(self._sinusoidal(t, 256).to(x.dtype)) + self.pooled_in(pooled)
        if self.config.audio:
            audio, cutoff = self._audio(condition, x)
            x = x + audio
            c = c + cutoff
        if self.config.numbers or self.config.labels:
            c = c + self.fields(condition, x)
        c = F.silu(c)
        shared = self.adaln_shared(c)
        head = self.config.width // self.config.heads
        rotary = self._tables.get(rotary_tables, x.shape[1], head, x.device, x.dtype)
        first = cast(Block, self.blocks[0]).values(x, c, shared) if self.config.value_residual else None
        arguments = (c, shared, context, context_bias, bias, rotary, first)

        # The blocks, and back to latent frames.
        for block in self.blocks:
            # Not reentrant: tokens that a hook takes would lose their graph.
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, *arguments, use_reentrant=False)
            else:
                x = block(x, *arguments)
        shift, scale = self.adaln_out(c)[:, None].chunk(2, dim=-1)
        out = self._unpatchify(self.patch_out(multiply_add(shift, 1 + scale, self.norm_out(x))), frames)
        if missing is not None and condition is not None:
            if self.config.audio_skip:
                out = add_skip(out, condition, self.skip_weight, self.skip_bias)
            out = out * missing
        return ModelOutput(out if mask is None else out * mask[:, None])

    def _context(self, condition: Condition | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """Text as tokens [B, 1 + K, D] and mask [B, 1 + K]: the learned null is first, attended to only when dropped.

        So no row of the mask is ever empty, and dropping a caption changes a mask, not a shape. Without text there is
        the null alone, and no mask.
        """
        null = self.null.expand(batch, 1, -1)
        if condition is None or condition.tokens is None:
            return self.text_norm(self.text_in(null)), None
        tokens, tokens_mask = condition.text()
        # A caption without a single token counts as dropped.
        drop = ~tokens_mask.any(1)
        drop = drop if condition.drop is None else drop | condition.drop
        seen = torch.cat([drop[:, None], tokens_mask & ~drop[:, None]], dim=1)
        return self.text_norm(self.text_in(torch.cat([null.to(tokens.dtype), tokens], dim=1))), seen

    def _audio(self, condition: Condition | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """The audio's part of tokens x [B, N, D] and of the modulation [B, D]; the learned null where it is dropped."""
        if condition is None or condition.audio is None or condition.cutoff is None:
            return self.audio_null, torch.zeros_like(x[:, 0])
        audio = self.audio_in(self._patchify(condition.audio))
        if condition.drop is not None:
            audio = torch.where(condition.drop[:, None, None], self.audio_null, audio)
        return audio, self.cutoff_mlp(self._sinusoidal(condition.cutoff, 64).to(x.dtype))

    def _sinusoidal(self, t: Tensor, dim: int) -> Tensor:
        return sinusoidal(t, self._tables.get(sinusoid_frequencies, dim, t.device))

    def _patchify(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, N, C * patch], zero-padded to whole patches."""
        patch = self.config.patch_frames
        x = F.pad(x, (0, -x.shape[-1] % patch))
        batch, channels, frames = x.shape
        return x.view(batch, channels, frames // patch, patch).permute(0, 2, 1, 3).flatten(2)

    def _unpatchify(self, tokens: Tensor, frames: int) -> Tensor:
        """[B, N, C * patch] -> [B, C, frames]."""
        batch, count, _ = tokens.shape
        patch = self.config.patch_frames
        x = tokens.view(batch, count, self.config.channels, patch).permute(0, 2, 1, 3)
        return x.reshape(batch, self.config.channels, count * patch)[..., :frames]
