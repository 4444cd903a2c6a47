"""The method in a Lightning trainer: a callback that counts, measures, logs and is kept in the trainer's checkpoints.

    module.stage = Stage(module.net.blocks, total_examples=N, measure=measure, targets=features)
    Trainer(callbacks=[SegueCallback(module.stage)]).fit(module, loader)

The module's training_step asks `stage.timesteps` and adds `stage.alignment`, as in any loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from segue.stage.condition_gain import ConditionGain
from segue.stage.discrepancy import Discrepancy
from segue.stage.stage import Stage
from segue.types import UserError, import_extra

__all__ = ["ConditionGain", "Discrepancy", "SegueCallback", "Stage", "batch_size_of"]

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = import_extra("lightning.pytorch", "lightning").Callback


def batch_size_of(batch: Any) -> int:
    """Examples in a batch: the length of the first tensor in it.

    Raises:
        UserError: no tensor in the batch.
    """
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return len(part)
    raise UserError("SegueCallback: cannot tell the size of this batch; give batch_size=")


class SegueCallback(Callback):
    """Runs a `Stage` beside a LightningModule.

    The projector becomes the module's submodule `segue_projector` before the optimisers are made, so that
    `self.parameters()` holds it, devices move it and checkpoints keep it.
    """

    def __init__(self, stage: Stage, batch_size: Callable[[Any], int] = batch_size_of) -> None:
        """
        Args:
            stage: made with the blocks of the module that is trained.
            batch_size: examples in one rank's batch.
        """
        self.method = stage  # in a callback, `stage` is Lightning's word for fit or validate
        self._batch_size = batch_size

    def setup(self, trainer, pl_module, stage: str) -> None:
        """Hand the projector to the module."""
        if self.method.projector is not None:
            pl_module.segue_projector = self.method.projector

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        """Count the examples of all ranks, and log the decision in force."""
        self.method.after_step(self._batch_size(batch) * trainer.world_size)
        # The first access after a step measures what has become due.
        decision = self.method.decision
        numbers = {"regime": decision.regime.regime, "alignment_weight": decision.alignment_weight}
        pl_module.log_dict({f"segue/{name}": value for name, value in numbers.items()})

    def state_dict(self) -> dict:
        """Saved with the trainer's checkpoint."""
        return self.method.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Restored with the trainer's checkpoint."""
        self.method.load_state_dict(state_dict)
