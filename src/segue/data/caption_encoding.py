"""The text part of a latent cache: captions into shards of token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from segue.data.cache import DTYPES
from segue.data.cache_layout import Parts, Shard
from segue.files import write_bytes
from segue.progress import track

CAPTIONS_AT_ONCE = 64


def encode_captions(out: Path, parts: Parts, shards: list[Shard]) -> None:
    """Write shards of token embeddings, each as wide as its longest caption."""
    plan = [(shard, batch) for shard in shards for batch in caption_batches(shard.items, CAPTIONS_AT_ONCE)]
    total = sum(len(shard.items) for shard in shards)
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for shard, batch in track(plan, total, "embedding captions", "captions", size=lambda b: len(b[1])):
        tokens, mask = embed(parts, [shard.items[i] for i in batch])
        rows |= {i: (tokens[b], mask[b]) for b, i in enumerate(batch)}
        if len(rows) == len(shard.items):
            # The shard is as wide as its longest caption, not as the encoder's limit.
            longest = max(int(mask.sum()) for _, mask in rows.values())
            tokens = torch.zeros(len(rows), longest, parts.conditioner.dim, dtype=DTYPES[parts.dtype])
            mask = torch.zeros(len(rows), longest, dtype=torch.bool)
            for i in sorted(rows):
                t, m = rows.pop(i)
                kept = min(longest, len(m))
                tokens[i, :kept] = t[:kept]
                mask[i, :kept] = m[:kept]
            write_bytes(out / "shards" / shard.file, save({"tokens": tokens, "mask": mask}))


@torch.inference_mode()
def embed(parts: Parts, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens [n, K, E] as the cache stores them, zero where the mask [n, K] is False."""
    tokens, mask = (x.cpu() for x in parts.conditioner.encode(captions))
    # Tokens behind the mask are zero, so that equal captions give equal bytes whatever they were batched with.
    return (tokens.float() * mask[..., None]).to(DTYPES[parts.dtype]), mask


def caption_batches(captions: Sequence[str], batch_size: int) -> list[list[int]]:
    """Batches of captions of like length: little padding, little waste."""
    order = sorted(range(len(captions)), key=lambda i: (len(captions[i]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
