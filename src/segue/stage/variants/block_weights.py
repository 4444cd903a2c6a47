"""A block's projections from the residual stream (in_proj) and to it (out_proj), and the signature of their weights.

docs/method.md, section 5. That input projections should be compared in their input space and output projections in
their output space is reported in arXiv 2501.16650; every formula here is our definition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from segue.types import UserError

# Conditioning and modulation inside a block: they have the residual width, and neither read nor write the stream.
_OTHER = re.compile(r"norm|^ada|modulat|^(img|txt)_mod$|emb|^time|^cond|scale|shift|context|(^|_)add(ed)?_")
_CROSS = re.compile(r"cross|^attn2$|^multihead_attn$|^encoder_attn")
_KEY_VALUE = re.compile(r"(^|_)(k|v|kv|wk|wv|key|value)(_|$)")
# A square matrix is told by its name alone.
_WRITES = re.compile(r"(^|_)(out|o|wo|down|fc2|w2|linear2)(_|$)|^(c_)?proj$")
_READS = re.compile(r"(^|_)(q|k|v|kv|qk|qkv|wq|wk|wv|query|key|value|in|up|gate|fc1|w1|w3|linear1)(_|$)")


@dataclass(frozen=True)
class BlockWeights:
    """A block's projections from and to the residual stream. They share memory with its parameters, without autograd.

    Attributes:
        in_proj: [rows, D] each: query, key, value of self-attention, query of cross-attention, first MLP layer.
        out_proj: [D, columns] each: attention outputs, last MLP layer.
        scales: of each of in_proj: [D] factor of its input (adaLN's 1 + scale, a norm's weight), or None for 1.
    """

    in_proj: tuple[Tensor, ...]
    out_proj: tuple[Tensor, ...]
    scales: tuple[Tensor | None, ...]

    @property
    def all(self) -> tuple[Tensor, ...]:
        """in_proj, then out_proj."""
        return self.in_proj + self.out_proj


def block_weights(block: nn.Module, in_proj: Sequence[str] = (), out_proj: Sequence[str] = ()) -> BlockWeights:
    """Find the weights of `block` that read and that write the residual stream, by shape and name.

    The residual width D is the commonest side of the block's linear layers. A layer D -> other reads, other -> D
    writes, D -> D is told by its name (q, k, v, in, ... or out, o, proj, ...). Keys and values of cross-attention read
    the context, and modulation reads the condition: left out. Knows our Block, diffusers' names (to_q, to_out.0,
    ff.net.0.proj, ff.net.2), stable-audio-tools' (to_qkv, ff.ff.0.proj) and torch.nn's MultiheadAttention.

    Args:
        in_proj, out_proj: module names inside the block that settle the matter instead, both or neither.

    Raises:
        UserError: a named module is missing or has no weight matrix; a square layer's name tells nothing; the block
            has no projection from the stream, or none to it.
    """
    kind = type(block).__name__
    if bool(in_proj) != bool(out_proj):
        raise UserError("structure.in_proj and structure.out_proj go together: name both or neither")
    if in_proj:
        found = ([(n, _named(block, n)) for n in in_proj], [(n, _named(block, n)) for n in out_proj])
    else:
        found = _by_shape(block, kind)
    for role, part in zip(("reads", "writes"), found):
        if not part:
            raise UserError(
                f"block {kind}: no linear layer {role} the residual stream; name them in structure.in_proj and "
                "structure.out_proj (module names inside a block, separated by commas)"
            )
    return BlockWeights(
        tuple(w for _, w in found[0]), tuple(w for _, w in found[1]), tuple(_scale(block, n) for n, _ in found[0])
    )


def _named(block: nn.Module, name: str) -> Tensor:
    try:
        weight = block.get_submodule(name).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UserError(
            f"structure.in_proj / structure.out_proj: '{name}' is no linear layer of {type(block).__name__}; "
            f"it has {', '.join(n for n, m in block.named_modules() if isinstance(m, nn.Linear))}"
        )
    return weight.detach()


def _by_shape(block: nn.Module, kind: str) -> tuple[list, list]:
    linear = []
    for name, module in block.named_modules():
        *path, last = name.split(".")
        cross = any(_is_cross(block, path[: i + 1]) for i in range(len(path)))
        if any(_OTHER.search(part) for part in (*path, last)):
            continue
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            joint = module.in_proj_weight.detach()
            # Of a cross-attention's joint projection only the queries read the stream.
            linear.append((f"{name}.qkv", joint[: module.embed_dim] if _is_cross(block, [*path, last]) else joint))
        elif isinstance(module, nn.Linear) and not (cross and _KEY_VALUE.search(last)):
            linear.append((name, module.weight.detach()))
    sides = Counter(side for _, weight in linear for side in weight.shape)
    # The commonest side; of sides equally common, the smallest.
    width = min(sides, key=lambda side: (-sides[side], side)) if sides else 0
    in_proj: list[tuple[str, Tensor]] = []
    out_proj: list[tuple[str, Tensor]] = []
    for name, weight in linear:
        rows, columns = weight.shape
        if rows == columns == width:
            # The last part that is no index: "to_out.0" is told by "to_out".
            word = next(part for part in reversed(name.split(".")) if not part.isdigit())
            if not (_WRITES.search(word) or _READS.search(word)):
                raise UserError(
                    f"block {kind}: cannot tell whether the square layer '{name}' reads or writes the residual stream; "
                    "name them in structure.in_proj and structure.out_proj"
                )
            (out_proj if _WRITES.search(word) else in_proj).append((name, weight))
        elif columns == width:
            in_proj.append((name, weight))
        elif rows == width:
            out_proj.append((name, weight))
    return in_proj, out_proj


def _is_cross(block: nn.Module, path: list[str]) -> bool:
    """Whether the module at `path` attends to a context: by diffusers' own attribute, else by name."""
    declared = getattr(block.get_submodule(".".join(path)), "is_cross_attention", None)
    return bool(_CROSS.search(path[-1])) if declared is None else bool(declared)


def _scale(block: nn.Module, layer: str) -> Tensor | None:
    """[D] factor that our own Block applies before `layer`: the bias part of its adaLN scale, or its norm's weight.

    What adaLN adds by condition, and the bias that all blocks share, are not of one block's weights and are left out.
    """
    up = getattr(block, "adaln_up", None)
    norm_cross = getattr(block, "norm_cross", None)
    if not isinstance(up, nn.Linear) or norm_cross is None:
        return None
    if layer.startswith("cross."):
        return norm_cross.weight.detach()
    _, scale_attention, _, _, scale_mlp, _ = up.bias.detach().chunk(6)
    return 1 + (scale_mlp if layer.startswith("mlp_in") else scale_attention)


def folded(weights: BlockWeights) -> tuple[list[Tensor], list[Tensor]]:
    """in_proj with their scales multiplied in, and out_proj, in float32 or wider."""
    in_proj = [_wide(w) if s is None else _wide(w) * _wide(s) for w, s in zip(weights.in_proj, weights.scales)]
    return in_proj, [_wide(w) for w in weights.out_proj]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def centred_grams(weights: BlockWeights) -> Tensor:
    """[2, D, D]: R'R summed over in_proj and BB' over out_proj, each less its trace's share of the identity."""
    in_proj, out_proj = folded(weights)
    read = [w.mT @ w for w in in_proj]
    written = [w @ w.mT for w in out_proj]
    grams = torch.stack([reduce(torch.add, read), reduce(torch.add, written)])
    grams.diagonal(dim1=1, dim2=2).sub_(grams.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True))
    return grams


def normalised(grams: Tensor) -> tuple[Tensor, Tensor]:
    """Signature [2, D, D] of Frobenius norm 1 (1 / sqrt 2 each half), and the halves' norms [2, 1, 1] before."""
    # A block of zero weights has the signature 0, not NaN.
    norms = grams.flatten(1).norm(dim=1)[:, None, None].clamp(min=torch.finfo(grams.dtype).tiny)
    return grams / (norms * 2**0.5), norms


def signatures(weights: Sequence[BlockWeights]) -> Tensor:
    """Signatures [L, 2, D, D] of L blocks: trace-centred, normalised Gram matrices of in_proj and of out_proj.

    Each lies in the basis of the residual stream. So it does not change when hidden units or heads are permuted, nor
    when the rows of an input projection (or columns of an output projection) turn by any orthogonal matrix; it depends
    on the directions of the stream that a block reads and writes, and how strongly. Our definition.

    Raises:
        UserError: the blocks differ in width.
    """
    widths = {w.in_proj[0].shape[1] for w in weights}
    if len(widths) != 1:
        raise UserError(f"block signatures need blocks of one residual width; got {sorted(widths)}")
    return torch.stack([normalised(centred_grams(w))[0] for w in weights])
