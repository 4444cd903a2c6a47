"""The backbone: a diffusion transformer over latent frames, with cross-attention to text.

    latent frames [B, C, L] -> patches -> tokens [B, N, D] -> depth x Block -> patches -> prediction [B, C, L]

Each block is self-attention (rotary positions, qk-norm), cross-attention to the caption, and an MLP. Time and the
pooled caption modulate it by adaLN-zero: one projection that all blocks share, plus a low-rank part and a bias of each
block. Sharing saves most of the parameters; without the parts of each block it was reported to be unstable (EzAudio,
arXiv 2409.10819).

Padded tokens are masked as keys of attention, and padded frames of the output are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from segue.models.audio_skip import add_skip, empty_skip
from segue.models.positions import rotary_tables, rotate, sinusoidal
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
        audio: whether the model is conditioned on Condition.audio and Condition.cutoff.
        audio_skip: number of first channels that are also predicted from those of the audio by one convolution
            (models/audio_skip.py); needs predicts="clean".
        attention_window: tokens on each side that a token attends to; 0 = all. A token then depends on
            depth * attention_window tokens on each side, so that long sounds can be computed in chunks.
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
    attention_window: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(f"model.width {self.width} over model.heads {self.heads} must be a whole, even number")
        if self.audio_skip and not (self.audio and self.predicts == "clean"):
            raise UserError("a skip from the audio needs model.predicts=clean")
        if self.predicts not in ("velocity", "clean"):
            raise UserError(f"model.predicts is '{self.predicts}'; use 'velocity' or 'clean'")


def layer_norm(dim: int, affine: bool = False) -> nn.Module:
    """Layer norm; not affine where adaLN supplies scale and shift."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=affine)


def _windowed(key_mask: Tensor | None, tokens: int, window: int, device: torch.device) -> Tensor:
    """Bool [B or 1, 1, N, N], True = attend: to real keys at most `window` tokens away, and to the token itself."""
    position = torch.arange(tokens, device=device)
    apart = (position[:, None] - position).abs()
    near = (apart <= window)[None, None]
    return near if key_mask is None else (near & key_mask) | (apart == 0)  # softmax over an empty row is NaN


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention where a `context` is given; q and k are normalised by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = layer_norm(width // heads, affine=True)
        self.k_norm = layer_norm(width // heads, affine=True)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x [B, N, D], context [B, K, D], key_mask bool [B, 1, 1, keys] (True = attend) -> [B, N, D]."""
        batch, tokens, width = x.shape
        source = x if context is None else context
        q = self.q(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        k, v = self.kv(source).view(batch, source.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        # Under autocast layer norms may return float32 where v is bfloat16; attention wants one type.
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=key_mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP; adaLN-zero modulates and gates the first and the last."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        hidden = int(width * config.mlp_ratio)
        self.norm_attention = layer_norm(width)
        self.attention = Attention(width, config.heads)
        self.norm_cross = layer_norm(width, affine=True)
        self.cross = Attention(width, config.heads)
        self.norm_mlp = layer_norm(width)
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
        context_mask: Tensor,
        key_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """x [B, N, D], condition [B, D], shared [B, 6D], context [B, K, D], masks [B, 1, 1, keys] -> [B, N, D]."""
        # adaLN-zero (arXiv 2212.09748): what all blocks share, and this block's low-rank part (arXiv 2409.10819).
        modulation = shared + self.adaln_up(self.adaln_down(condition))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=-1)
        h = self.norm_attention(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(h, key_mask=key_mask, rotary=rotary)
        x = x + self.cross(self.norm_cross(x), context=context, key_mask=context_mask)
        h = self.norm_mlp(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(F.silu(self.mlp_in(h)))


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
        width = config.width
        token = config.channels * config.patch_frames
        self.patch_in = nn.Linear(token, width)
        self.time_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.text_in = nn.Linear(config.text_dim, width)
        self.text_norm = layer_norm(width, affine=True)
        self.pooled_in = nn.Linear(width, width)
        self.null = nn.Parameter(torch.empty(1, 1, config.text_dim))
        self.adaln_shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = layer_norm(width)
        self.adaln_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, token)
        if config.audio:  # made last, so that the initial values of all other weights do not depend on it
            # The part of the first layer that reads audio, if x_t and audio were concatenated.
            self.audio_in = nn.Linear(token, width)
            self.audio_null = nn.Parameter(torch.zeros(width))
            self.cutoff_mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        if config.audio_skip:
            weight, bias = empty_skip(config.audio_skip)
            self.register_buffer("skip_weight", weight)
            self.register_buffer("skip_bias", bias)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
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
        # Tokens: patches of latent frames. Channels that are known are not generated: their noise is removed.
        batch, _, frames = x_t.shape
        patch = self.config.patch_frames
        missing = None
        if condition is not None and condition.audio is not None:
            missing = ~condition.known_audio()[1][..., None]
            x_t = x_t * missing
        x = self.patch_in(self._patchify(x_t))
        key_mask = None
        if mask is not None:
            padded = F.pad(mask, (0, -frames % patch))
            key_mask = padded.view(batch, -1, patch).any(-1)[:, None, None]
        if self.config.attention_window:
            key_mask = _windowed(key_mask, x.shape[1], self.config.attention_window, x.device)

        # Condition: caption tokens to attend to, and a vector c of time, pooled caption and cutoff for the modulation.
        context, context_mask = self._context(condition, batch, x.device)
        # No row of the mask is empty: without a caption the null is attended to.
        pooled = (context * context_mask[..., None]).sum(1) / context_mask.sum(1, keepdim=True)
        c = self.time_mlp(sinusoidal(t, 256).to(x.dtype)) + self.pooled_in(pooled)
        if self.config.audio:
            audio, cutoff = self._audio(condition, x)
            x = x + audio
            c = c + cutoff
        c = F.silu(c)
        shared = self.adaln_shared(c)
        rotary = rotary_tables(x.shape[1], self.config.width // self.config.heads, x.device)
        arguments = (c, shared, context, context_mask[:, None, None], key_mask, rotary)

        # The blocks, and back to latent frames.
        for block in self.blocks:
            # Not reentrant: tokens that a hook takes would lose their graph.
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, *arguments, use_reentrant=False)
            else:
                x = block(x, *arguments)
        shift, scale = self.adaln_out(c)[:, None].chunk(2, dim=-1)
        out = self._unpatchify(self.patch_out(self.norm_out(x) * (1 + scale) + shift), frames)
        if missing is not None and condition is not None:
            if self.config.audio_skip:
                out = add_skip(out, condition, self.skip_weight, self.skip_bias)
            out = out * missing
        return ModelOutput(out if mask is None else out * mask[:, None])

    def _context(self, condition: Condition | None, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Text as tokens [B, 1 + K, D] and mask [B, 1 + K]: the learned null is first, attended to only when dropped.

        So no row of the mask is ever empty, and dropping a caption changes a mask, not a shape.
        """
        null = self.null.expand(batch, 1, -1)
        if condition is None or condition.tokens is None:
            seen = torch.ones(batch, 1, dtype=torch.bool, device=device)
            return self.text_norm(self.text_in(null)), seen
        tokens, tokens_mask = condition.text()
        drop = condition.drop if condition.drop is not None else torch.zeros(batch, dtype=torch.bool, device=device)
        # A caption without a single token counts as dropped.
        drop = drop | ~tokens_mask.any(1)
        seen = torch.cat([drop[:, None], tokens_mask & ~drop[:, None]], dim=1)
        return self.text_norm(self.text_in(torch.cat([null.to(tokens.dtype), tokens], dim=1))), seen

    def _audio(self, condition: Condition | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """The audio's part of tokens x [B, N, D] and of the modulation [B, D]; the learned null where it is dropped."""
        if condition is None or condition.audio is None or condition.cutoff is None:
            return self.audio_null, torch.zeros_like(x[:, 0])
        audio = self.audio_in(self._patchify(condition.audio))
        if condition.drop is not None:
            audio = torch.where(condition.drop[:, None, None], self.audio_null, audio)
        return audio, self.cutoff_mlp(sinusoidal(condition.cutoff, 64).to(x.dtype))

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
