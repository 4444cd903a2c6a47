"""Faulty steps: all ranks find the same ones, skip and count them, and stop with a diagnosis if they do not end.

A faulty step moves no weight. Its examples count as seen, so that the order of data, noise and times does not change.
The record of faults is part of the checkpoint: a resumed run skips the same steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from segue.data.loader import LatentLoader
from segue.progress import Meter
from segue.stage.discrepancy import Reading
from segue.training.config import TrainConfig
from segue.training.log import RunLog
from segue.training.sharding import full_tensor, norm_of
from segue.types import UserError

WINDOW = 64  # good steps that a loss is compared with to find a spike
FEWEST = 32  # good steps before a loss can be a spike
SAME = 1e-12  # relative difference of discrepancies that are equal: training never gives the same one twice
NAMED = 3  # clips named in a diagnosis


@dataclass(frozen=True)
class FaultState:
    """The record of faults of a run: numbers, exact through JSON.

    Attributes:
        skipped: steps skipped so far.
        in_a_row: steps skipped since the last good one.
        losses: flow losses of the last good steps, over all ranks.
        probe: the last discrepancy; None where it was not finite.
        stuck: probes in a row that were not finite or did not change.
    """

    skipped: int = 0
    in_a_row: int = 0
    losses: tuple[float, ...] = ()
    probe: float | None = None
    stuck: int = 0

    @classmethod
    def from_json(cls, data: dict) -> FaultState:
        """The inverse of `dataclasses.asdict`; {}, from an older checkpoint, is an empty record."""
        return cls(**{**data, "losses": tuple(data.get("losses", ()))})


def find_fault(state: FaultState, loss: float, alignment: float, norm: float, dead: float, spike: float) -> str | None:
    """What is wrong with a step, as a sentence, or None. A pure function of numbers that are the same on every rank.

    A spike (our definition) is a flow loss of more than `spike` robust standard deviations (1.4826 MAD, and never less
    than a tenth of the median) above the median of the last 64 good steps, and of more than twice the highest of them.

    Args:
        loss, alignment, norm: mean flow loss, mean alignment and gradient norm over all ranks.
        dead: above 0 where the teacher's features carry no information on some rank.
        spike: robust standard deviations; 0 = do not look for spikes.
    """
    if dead > 0:
        return "the teacher is dead: its features are not finite, or the same in every frame of the batch"
    # Before spikes: every comparison with NaN is false, so that none would be found.
    for name, value in (("flow loss", loss), ("alignment with the teacher", alignment), ("gradient", norm)):
        if not math.isfinite(value):
            return f"the {name} is {value}"
    if spike and len(state.losses) >= FEWEST:
        # 1.4826 times the median deviation is the standard deviation, were the losses normal.
        middle = median(state.losses)
        spread = max(1.4826 * median(abs(x - middle) for x in state.losses), 0.1 * middle)
        # In batches of one or two examples the loss varies with the times drawn, far beyond the median deviation.
        if loss > max(middle + spike * spread, 2 * max(state.losses)):
            return f"the flow loss is {loss:.4g}, a spike over the {middle:.4g} of the steps before"
    return None


def next_state(state: FaultState, bad: bool, loss: float) -> FaultState:
    """The record after a step."""
    if bad:
        return replace(state, skipped=state.skipped + 1, in_a_row=state.in_a_row + 1)
    return replace(state, in_a_row=0, losses=(*state.losses, loss)[-WINDOW:])


def note_reading(state: FaultState, value: float) -> FaultState:
    """The record after a measurement of the discrepancy."""
    found = value if math.isfinite(value) else None
    still = found is None or (state.probe is not None and math.isclose(found, state.probe, rel_tol=SAME))
    return replace(state, probe=found, stuck=state.stuck + 1 if still else 0)


def is_dead(teacher: tuple[Tensor, Tensor] | None) -> bool:
    """Whether features [B, S, F] under mask [B, S] carry no information: not finite, or the same in every frame."""
    if teacher is None:
        return False
    features, real = teacher
    # Frames are compared by their extremes first: to copy all real frames at every step would cost more.
    extremes = torch.stack(features.aminmax(dim=-1), dim=-1)[real]  # [frames, 2]; NaN and Inf pass through
    if not bool(torch.isfinite(extremes).all()):
        return True
    if len(extremes) < 2 or not bool((extremes == extremes[0]).all()):
        return False
    frames = features[real]
    return bool((frames == frames[0]).all())


class Guard:
    """Checks the steps of one run.

    Attributes:
        state: the record of faults; it goes into the checkpoint.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, loader: LatentLoader, accelerator, state: FaultState
    ) -> None:
        """
        Args:
            model: the model, not wrapped.
            loader: knows the names of a batch's clips.
        """
        self.config = config
        self.state = state
        self._model = model
        self._loader = loader
        self._accelerator = accelerator

    @property
    def healthy(self) -> bool:
        """Whether the last step was good and every weight is finite, so that a checkpoint may be written."""
        # The norm of all weights is finite only where every weight is, and is the same on all ranks.
        norm = norm_of([p.detach() for p in self._model.parameters()])
        return self.state.in_a_row == 0 and bool(torch.isfinite(norm))

    def check(
        self, seen: int, sums: Tensor, norm: Tensor, teacher: tuple[Tensor, Tensor] | None, losses: list[Tensor]
    ) -> tuple[Tensor, str | None]:
        """Find out whether the current step is faulty, on all ranks together.

        Args:
            seen: examples before this step.
            sums: [2] this rank's mean flow loss and alignment.
            norm: gradient norm.
            teacher: this rank's features and mask, where the step uses them.
            losses: [B] flow losses of this rank, in pieces.

        Returns:
            sums over all ranks, and None or a diagnosis: the kind of fault, the clips and the part of the model.
        """
        # One exchange for all four. A mean is NaN, or above 0, on all ranks where it is on one.
        dead = torch.tensor([float(is_dead(teacher))], device=sums.device)
        measured = self._accelerator.reduce(torch.cat([sums, norm.detach().to(sums).reshape(1), dead]), "mean")
        loss, alignment, gradient, any_dead = measured.tolist()
        fault = find_fault(self.state, loss, alignment, gradient, any_dead, self.config.spike)
        self.state = next_state(self.state, fault is not None, loss)
        if fault is not None:
            # All ranks come here or none, since they decide by the same reduced numbers.
            everyone = self._accelerator.gather(torch.cat(losses).detach())
            fault = f"{fault}; {self._where(seen, everyone)}"
        return measured[:2], fault

    def note_reading(self, seen: int, discrepancy: Reading | None) -> None:
        """Record a measurement of the discrepancy; None: there was none.

        Raises:
            UserError: it did not change, or was not finite, too many times in a row.
        """
        if discrepancy is None:
            return
        self.state = note_reading(self.state, discrepancy.value)
        if self.state.stuck >= self.config.patience:
            what = "not finite" if self.state.probe is None else f"frozen at {self.state.probe:.6g}"
            raise UserError(
                f"the discrepancy is {what} on {self.state.stuck} probes in a row, at {seen:,} examples; hint: check "
                "the teacher and the codec (probe.space=latent uses neither); the last checkpoint is kept"
            )

    def skip(self, log: RunLog, meter: Meter, seen: int, fault: str, learning_rate: float) -> None:
        """Log that the step at `seen` examples was skipped, and why.

        Raises:
            UserError: too many steps in a row were faulty; with the diagnosis of the last.
        """
        skipped = self.state.skipped
        in_a_row = self.state.in_a_row
        run_dir = log.path.parent
        log.write("fault", seen, skipped=skipped, in_a_row=in_a_row, reason=fault)
        meter.say(f"{seen:,} examples: step skipped ({skipped} so far): {fault}")
        if in_a_row < self.config.patience:
            return
        raise UserError(
            f"{run_dir}: {in_a_row} bad steps in a row, the last at {seen:,} examples: {fault}. The last good "
            f"checkpoint is kept; hint: look at those clips, or set a lower optim.learning_rate (it is "
            f"{learning_rate:g}) or train.precision fp32 in {run_dir}/config.json, then go on with --resume"
        )

    def _where(self, seen: int, losses: Tensor) -> str:
        """The batch, its clips and the part of the model, as a sentence."""
        broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        worst = broken[:NAMED] or losses.argsort(descending=True)[:NAMED].tolist()
        ids = self._loader.clips(range(seen, seen + len(losses)))
        clips = ", ".join(f"{ids[i]} ({losses[i]:.3g})" for i in worst)
        if broken:
            clips = f"{len(broken)} of {len(losses)} clips are not finite: {clips}"
        else:
            clips = f"the clips with the highest loss are {clips}"
        return f"batch of examples {seen:,} to {seen + len(losses) - 1:,}; {clips}{self._part()}"

    def _part(self) -> str:
        """The first tensors of the model that are not finite, as a clause; "" where all are finite."""
        for what, tensors in (
            ("weight", {n: p.detach() for n, p in self._model.named_parameters()}),
            ("gradient", {n: p.grad for n, p in self._model.named_parameters() if p.grad is not None}),
        ):
            named = [n for n, x in tensors.items() if bool(full_tensor((~torch.isfinite(x)).sum()))]
            if named:
                return f"; {what} not finite in {named[0]} and {len(named) - 1} more of {len(tensors)} tensors"
        return ""
