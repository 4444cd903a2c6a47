"""When a run writes its log, validates and saves, in examples."""

from __future__ import annotations

from segue.training.config import RunConfig


def intervals(config: RunConfig) -> tuple[int, int, int]:
    """Examples between log lines, validations and checkpoints, with the defaults filled in."""
    train = config.train
    return (
        train.log_every or max(1, train.total_examples // 100),
        train.validate_every or max(1, train.total_examples // 10),
        train.checkpoint_every or max(1, train.total_examples // 4),
    )


def crossed(seen: int, before: int, every: int) -> bool:
    """True when a multiple of `every` lies in (before, seen]."""
    return seen // every > before // every
