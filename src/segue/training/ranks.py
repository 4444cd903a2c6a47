"""What ranks do together: exchange gradients once a step, and notice that one is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from segue.types import UserError, first_line


def sync_only(accelerator, model: nn.Module, last: bool):
    """Exchange gradients between ranks only with the last piece of an accumulated batch."""
    return torch.enable_grad() if last else accelerator.no_sync(model)


@contextmanager
def lost_ranks(run_dir: Path, world: int) -> Iterator[None]:
    """Around work that ranks do together: the runtime's words for a rank that is gone become one line.

    Raises:
        UserError: another rank ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        # A lost rank shows as a RuntimeError like any other; its words tell.
        words = str(error).lower()
        if world > 1 and any(w in words for w in ("connection", "gloo", "nccl", "peer", "timed out", "process group")):
            raise UserError(
                f"{run_dir}: another rank is gone ({first_line(error)[:160]}); the newest checkpoint is whole; look at "
                "that rank (its own last line says what it met), then start all of them again with --resume"
            ) from error
        raise
