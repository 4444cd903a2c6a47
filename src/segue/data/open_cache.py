"""Open a cache in either form: as `segue encode` made it, or packed into tar shards."""

from __future__ import annotations

from pathlib import Path

from segue.data.cache import LatentCache, is_packed
from segue.data.cache_parts import refuse_parts
from segue.data.streaming import StreamedCache


def open_cache(
    path: Path | str, codec_fingerprint: dict | None = None, text_fingerprint: dict | None = None
) -> LatentCache:
    """Open a finished cache, or what `segue data pack` made of one, in a folder or at an address.

    Args:
        path: folder of the cache or of the shards, or the address of the shards.
        codec_fingerprint, text_fingerprint: where given, what the cache must have been made with.

    Raises:
        UserError: no cache, an unfinished or damaged one, another version, or other fingerprints.
    """
    if not is_packed(path):
        refuse_parts(Path(path))
    # Neither form needs to know of the other; this file alone knows both.
    form = StreamedCache if is_packed(path) else LatentCache
    return form.open(path, codec_fingerprint, text_fingerprint)
