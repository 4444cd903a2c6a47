"""What a run remembers of the data that it was trained on, and whether a cache still holds the same."""

from __future__ import annotations

from segue.data.cache import LatentCache
from segue.data.channels import WORDS, channels_of
from segue.types import UserError


def identity(cache: LatentCache) -> dict:
    """What tells this cache's contents from others', wherever it lies and however it is sharded; JSON-able.

    `contents` is a hash of every row's id, content, stretch, split and captions; the counts are for people.
    """
    splits = {split: len(cache.rows(split)) for split in ("train", "valid", "test")}
    # Named for stereo alone, so that mono caches are what they were.
    stereo = {"audio_channels": 2} if channels_of(cache.meta) == 2 else {}
    return {"contents": cache.contents, "rows": len(cache), "splits": splits, **stereo}


def refuse_other_contents(run: object, then: dict | None, cache: LatentCache) -> None:
    """Refuse to continue a run with other data than it began with.

    Args:
        run: its folder, for the message.
        then: the identity of the cache that it began with; None of a run that did not keep it.

    Raises:
        UserError: the cache holds something else; the line tells what is known of the difference.
    """
    now = identity(cache)
    # Runs of before identities were kept cannot be refused for it.
    if then is not None and channels_of(then) != channels_of(now):
        was, holds = (WORDS[channels_of(data)] for data in (then, now))
        raise UserError(
            f"{run}: trained on {was} sound, and {cache.path} holds {holds}; hint: --data CACHE names a {was} cache, "
            "or start a new run"
        )
    if then is None or all(then.get(name) == now[name] for name in ("contents", "splits")):
        return
    if then.get("splits") != now["splits"]:
        counts = "; ".join(f"{which}: {_counts(of)}" for which, of in (("then", then), ("now", now)))
    else:
        counts = "as many rows, but other ids, sounds or captions"
    raise UserError(
        f"{run}: trained on other data than {cache.path} holds now ({counts}); hint: --data CACHE names the run's own "
        "cache, segue encode makes it again from the same files, or start a new run"
    )


def _counts(of: dict) -> str:
    splits = of.get("splits") or {}
    return ", ".join(f"{count:,} {split}" for split, count in splits.items() if count) or "unknown"
