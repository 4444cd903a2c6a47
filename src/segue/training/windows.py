"""How long the crops of a run are, and the loader that takes them."""

from __future__ import annotations

from segue.data.cache import LatentCache
from segue.data.crops import Crops
from segue.data.loader import LatentLoader
from segue.training.config import RunConfig
from segue.types import TIMES, UserError


def knows_times(cache: LatentCache) -> bool:
    """Whether rows know where in their sound they start, and how long it is."""
    return any(field["name"] in TIMES for field in cache.meta.get("conditions", {}).get("numbers", ()))


def window_seconds(config: RunConfig, cache: LatentCache) -> float:
    """Length of the crops that a run trains on: its own, or that of the cache's rows."""
    return config.train.seconds or cache.meta["seconds"]


def window_frames(config: RunConfig, cache: LatentCache) -> int:
    """The same in latent frames."""
    if not config.train.seconds:
        return cache.frames
    return max(1, round(config.train.seconds * cache.meta["sample_rate_hz"] / cache.meta["hop_samples"]))


def crops_of(config: RunConfig, cache: LatentCache) -> Crops | None:
    """What takes the crops of a run; None where it trains on rows as they are.

    Raises:
        UserError: crops are asked for, and the cache or the task has none.
    """
    asked = bool(config.train.seconds or config.train.buckets)
    if config.train.task != "generation" or config.model.pretrained:
        if asked:
            what = config.model.pretrained or config.train.task
            raise UserError(f"train.seconds and train.buckets: not for {what}; hint: segue encode --seconds sets it")
        return None
    if not asked and not (knows_times(cache) and cache.addressable):
        return None
    crops = Crops(cache)
    return crops if asked or crops.needed else None


def make_loader(config: RunConfig, cache: LatentCache, patch_frames: int, accelerator, on_device: str) -> LatentLoader:
    """The loader of a run on this rank.

    Args:
        patch_frames: latent frames of a token.
        on_device: as --cache-on-device names it.

    Raises:
        UserError: as `LatentLoader` and `crops_of`.
    """
    train, world = config.train, accelerator.num_processes
    return LatentLoader(
        cache,
        "train",
        train.batch_size // world,
        train.seed,
        accelerator.process_index,
        world,
        accelerator.device,
        on_device,
        crops_of(config, cache),
        window_frames(config, cache),
        patch_frames if train.buckets else 0,
    )
