"""How long a chunk may be, so that the whole stays below a memory limit."""

from __future__ import annotations

import re

from segue.types import UserError

CHUNK_SEC = 10.0
_LEAST_SEC = 1.0
_BYTES_PER_VALUE = 400  # at work for every sample of every channel of a window; measured, with room (docs/log.md)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_memory(text: str) -> int:
    """ "1.5GB", "800M" or a number of bytes -> bytes.

    Raises:
        UserError: nothing of the kind.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise UserError(f"--max-memory {text}: give a size such as 1.5GB or 800MB")
    return int(size)


def chunk_samples(limit: int | None, in_use: int, context: int, channels: int, sample_rate_hz: int) -> int:
    """Samples of a chunk's core: 10 s, or less where `limit` bytes, of which `in_use` are taken, do not allow that.

    Raises:
        UserError: the limit is too low for chunks of a second.
    """
    wanted = round(CHUNK_SEC * sample_rate_hz)
    if limit is None:
        return wanted
    # Either side of a core needs its context, which takes memory but gives no output.
    fit = (limit - in_use) // (_BYTES_PER_VALUE * channels) - 2 * context
    least = round(_LEAST_SEC * sample_rate_hz)
    if fit < least:
        need = in_use + _BYTES_PER_VALUE * channels * (least + 2 * context)
        raise UserError(f"--max-memory: this model needs {need / (1 << 20):.0f}MB for chunks of {_LEAST_SEC:g} s")
    return min(wanted, fit)
