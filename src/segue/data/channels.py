"""Rate and channels on the way into a cache: what becomes of a set's sound, in words, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segue.audio.sound import Header
from segue.codecs.base import Codec
from segue.types import UserError

WORDS = {1: "mono", 2: "stereo"}


def what_becomes(headers: Sequence[Header], codec: Codec) -> list[str]:
    """What a codec makes of these files: one line on rate and channels, and one for each thing that is lost.

    Args:
        headers: of the usable files, at least one.
    """
    rate_hz = codec.sample_rate_hz
    counts = Counter((header.sample_rate_hz, header.channels) for header in headers)
    kinds = [
        _kind(*kind) + (f" ({count:,} file{'s' * (count > 1)})" if len(counts) > 1 else "")
        for kind, count in counts.most_common()
    ]
    verb = "becomes" if len(kinds) == 1 else "become"
    lines = [f"{', '.join(kinds)} {verb} {_kind(rate_hz, codec.audio_channels)}"]
    # What is lost on the way, of how many of the files.
    sided = sum(count for (_, channels), count in counts.items() if channels > codec.audio_channels)
    higher = sum(count for (hz, _), count in counts.items() if hz > rate_hz)
    alone = sum(count for (_, channels), count in counts.items() if channels < codec.audio_channels)
    if sided:
        lines.append(
            f"lost: left and right of {_share(sided, headers)}, which are mixed to mono; hint: a stereo codec keeps "
            "them (--codec stereo-44k, or segue codec train --channels 2)"
        )
    if higher:
        most_hz = max(hz for hz, _ in counts)
        option = "stereo-44k" if most_hz == 44100 else f"spectral --sample-rate-hz {most_hz}"
        lines.append(
            f"lost: all above {_khz(rate_hz // 2)} of {_share(higher, headers)}; hint: a codec for {_khz(most_hz)} "
            f"keeps it (--codec {option}, or segue codec train --rate {most_hz})"
        )
    if alone:
        lines.append(f"mono sound of {_share(alone, headers)} goes on both sides, which stay alike")
    return lines


def refuse_other_channels(out: Path, found: dict, settings: dict) -> None:
    """Refuse to go on with a cache of another channel count.

    Args:
        found, settings: of the cache that is there, and of the one that is wanted.

    Raises:
        UserError: it is of mono sound and the codec is stereo, or the reverse.
    """
    there, here = (channels_of(meta) for meta in (found, settings))
    if there != here:
        raise UserError(
            f"{out}: a cache of {WORDS[there]} sound, and the codec is {WORDS[here]}; hint: --out another folder, or a "
            f"{WORDS[there]} codec (--channels {there} where a codec takes either)"
        )


def channels_of(meta: dict) -> int:
    """Audio channels of a cache, by its meta.json or its settings; caches of before there were two are mono."""
    codec = meta.get("codec")
    found = meta.get("audio_channels") or (codec.get("audio_channels") if isinstance(codec, dict) else None)
    return 2 if found == 2 else 1


def _kind(rate_hz: int, channels: int) -> str:
    return f"{_khz(rate_hz)} {WORDS.get(channels, f'of {channels} channels')}"


def _khz(rate_hz: int) -> str:
    return f"{rate_hz / 1000:g} kHz"


def _share(count: int, headers: Sequence[Header]) -> str:
    return f"{count:,} of {len(headers):,} files" if len(headers) > 1 else "the file"
