"""Faulty steps: left out on the device, on all ranks or on none, counted and named; too many of them end the run.

A faulty step is an update of zero: weights, moments and averages stay as they are. Its examples count as seen, so that
the order of data, noise and times does not change. The verdict is made and used on the device, so that no step waits
for one; the host reads it LAG steps later, and all that are left before a line of the log or a checkpoint. The record
of faults is part of the checkpoint: a resumed run leaves out the same steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segue.data.loader import LatentLoader
from segue.stage.condition_gain import ROUNDING
from segue.stage.decision import Observation
from segue.training.config import OptimConfig, TrainConfig
from segue.training.sharding import full_tensor, norm_of
from segue.types import UserError

if TYPE_CHECKING:
    from segue.training.journal import Journal

LAG = 2  # steps after which a verdict is read: by then a device has made it, and the host need not wait
WINDOW = 64  # good steps that a loss is compared with to find a spike
FEWEST = 32  # good steps before a loss can be a spike
SAME = 1e-12  # relative difference of discrepancies that are equal: training never gives the same one twice
ALIKE = 1e-6  # of a frame's norm: rounding of a sum over features
SOME_FRAMES = 4  # one of so many frames is looked at
NAMED = 3  # clips named in a diagnosis
# Kinds of faults by number; 0 is none. Where several are found, the first counts.
GOOD, DEAD_TEACHER, LOSS, ALIGNMENT, GRADIENT, SPIKE = range(6)


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


def find_fault(history: Tensor, numbers: Tensor, spike: float) -> Tensor:
    """What is wrong with a step, [2]: the kind of fault, and the median loss of the steps before it. It does not wait.

    A spike (our definition) is a flow loss of more than `spike` robust standard deviations (1.4826 MAD, and never less
    than a tenth of the median) above the median of the last 64 good steps, and of more than twice the highest of them.

    Args:
        history: [WINDOW] flow losses of the last good steps; NaN where there are fewer.
        numbers: [4] mean flow loss, mean alignment and gradient norm over all ranks, and whether the teacher is dead
            (above 0: on some rank); the same on every rank.
        spike: robust standard deviations; 0 = do not look for spikes.
    """
    loss, _, _, dead = numbers.unbind()
    count = (~history.isnan()).sum()
    middle = _median(history, count)
    # 1.4826 times the median deviation is the standard deviation, were the losses normal.
    spread = torch.maximum(1.4826 * _median((history - middle).abs(), count), 0.1 * middle)
    # In batches of one or two examples the loss varies with the times drawn, far beyond the median deviation.
    limit = torch.maximum(middle + spike * spread, 2 * history.nan_to_num(-math.inf).max())
    is_spike = (loss > limit) & (count >= FEWEST) & (spike > 0)
    # In the order of the numbers; every comparison with NaN is false, so that what is not finite is no spike as well.
    flags = torch.stack([dead > 0, *~torch.isfinite(numbers[:3]), is_spike])
    first = flags.int().argmax() + 1
    return torch.stack([torch.where(flags.any(), first, GOOD).to(middle.dtype), middle])


def _median(values: Tensor, count: Tensor) -> Tensor:
    """Median of the `count` values that are not NaN; NaN where there is none."""
    # NaN sorts behind all numbers.
    ordered = values.sort().values
    places = torch.stack([(count - 1).clamp(min=0) // 2, count // 2])
    return ordered.gather(0, places.clamp(max=len(values) - 1)).mean()


def in_words(kind: int, loss: float, alignment: float, norm: float, middle: float) -> str | None:
    """A kind of fault as a sentence; None of a good step."""
    if kind == SPIKE:
        return f"the flow loss is {loss:.4g}, a spike over the {middle:.4g} of the steps before"
    return {
        GOOD: None,
        DEAD_TEACHER: "the teacher is dead: its features are not finite, or the same in every frame of the batch",
        LOSS: f"the flow loss is {loss}",
        ALIGNMENT: f"the alignment with the teacher is {alignment}",
        GRADIENT: f"the gradient is {norm}",
    }[kind]


def next_state(state: FaultState, bad: bool, loss: float) -> FaultState:
    """The record after a step."""
    if bad:
        return replace(state, skipped=state.skipped + 1, in_a_row=state.in_a_row + 1)
    return replace(state, in_a_row=0, losses=(*state.losses, loss)[-WINDOW:])


def note_reading(state: FaultState, value: float) -> FaultState:
    """The record after a measurement of the discrepancy or the condition gain."""
    found = value if math.isfinite(value) else None
    still = found is None or (state.probe is not None and math.isclose(found, state.probe, rel_tol=SAME))
    return replace(state, probe=found, stuck=state.stuck + 1 if still else 0)


def is_dead(teacher: tuple[Tensor, Tensor] | None) -> Tensor | None:
    """Whether features [B, S, F] under mask [B, S] carry no information: not finite, or the same in every frame.

    A bool on the features' device; None without a teacher.
    """
    if teacher is None:
        return None
    # Some of the frames tell: the alignment itself shows where one that it compares is not finite.
    features, real = (x[:, ::SOME_FRAMES] for x in teacher)
    # One number a frame, by a fixed direction that no teacher knows: equal frames have equal ones, up to rounding.
    direction = torch.arange(1, features.shape[-1] + 1, device=features.device).cos()
    along = features.float() @ direction
    first = features.flatten(0, 1).index_select(0, real.flatten().int().argmax()[None])
    low = along.masked_fill(~real, math.inf).min()
    high = along.masked_fill(~real, -math.inf).max()  # NaN passes through both
    same = (high - low <= ALIKE * first.float().norm() * direction.norm()) & (real.sum() > 1)
    return (same | ~torch.isfinite(high - low)) & real.any()


@dataclass(frozen=True)
class _Step:
    """A step whose verdict the host has not read.

    Attributes:
        seen: examples before it.
        numbers: [7] flow loss, alignment, gradient norm, dead teacher, requests to stop, kind of fault, median loss.
        copied: on CUDA, when `numbers` has arrived in the host's memory.
        losses: [B] flow losses of this rank; on the device.
        norms: of each gradient; on the device.
        names: of the weights that have these gradients.
    """

    seen: int
    numbers: Tensor
    copied: torch.cuda.Event | None
    losses: Tensor
    norms: Tensor
    names: list[str]


class Guard:
    """Checks the steps of one run.

    Attributes:
        state: the record of faults among the steps that were read; it goes into the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        optim: OptimConfig,
        model: nn.Module,
        loader: LatentLoader,
        accelerator,
        state: FaultState,
    ) -> None:
        """
        Args:
            optim: with the learning rate, for the diagnosis.
            model: the model, not wrapped.
            loader: knows the names of a batch's clips.
        """
        self.config = config
        self.state = state
        self._optim = optim
        self._model = model
        self._named = list(model.named_parameters())
        self._loader = loader
        self._accelerator = accelerator
        self._pending: deque[_Step] = deque()
        self._stopping = False
        past = [math.nan] * (WINDOW - len(state.losses)) + list(state.losses)
        self._history = torch.tensor(past, device=accelerator.device)

    @property
    def healthy(self) -> bool:
        """Whether the last step was good and every weight is finite, so that a checkpoint may be written."""
        # The norm of all weights is finite only where every weight is, and is the same on all ranks.
        norm = norm_of([p.detach() for p in self._model.parameters()])
        return self.state.in_a_row == 0 and bool(torch.isfinite(norm))

    def stopping(self, journal: Journal) -> bool:
        """Whether the run was told to end; the same on every rank, since ranks that leave apart would wait forever."""
        return journal.stop_requested if self._accelerator.num_processes == 1 else self._stopping

    def check(
        self,
        journal: Journal,
        seen: int,
        sums: Tensor,
        norm: Tensor,
        norms: Tensor,
        teacher: tuple[Tensor, Tensor] | None,
        losses: Sequence[Tensor],
    ) -> Tensor:
        """Find out whether the current step is faulty, on all ranks together and without waiting for the device.

        Args:
            journal: knows whether this rank was told to end.
            seen: examples before this step.
            sums: [2] this rank's mean flow loss and alignment.
            norm, norms: gradient norm, of all weights and of each tensor.
            teacher: this rank's features and mask, where the step uses them.
            losses: [B] flow losses of this rank, in pieces.

        Returns:
            1.0 where the step must move nothing, else 0.0; a number on the device.
        """
        # One exchange for all of them. A mean is NaN, or above 0, on all ranks where it is on one.
        dead = is_dead(teacher)
        dead = torch.zeros_like(sums[0]) if dead is None else dead.to(sums)
        # Filled, not copied from the host: a copy would wait for the device.
        stop = torch.full_like(dead, float(journal.stop_requested))
        numbers = self._accelerator.reduce(torch.stack([*sums, norm.detach().to(sums), dead, stop]), "mean")
        found = find_fault(self._history, numbers[:4], self.config.spike)
        bad = found[0] != GOOD
        moved = torch.cat([self._history[1:], numbers[:1]])
        self._history = torch.where(bad, self._history, moved)

        # The copy to the host begins now and is read later.
        numbers = torch.cat([numbers, found])
        copied = None
        if numbers.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        names = [name for name, weight in self._named if weight.grad is not None]
        self._pending.append(_Step(seen, numbers, copied, torch.cat(list(losses)).detach(), norms, names))
        return bad.float()

    def read(self, journal: Journal, keep: int = LAG) -> None:
        """Read the verdicts of all but the last `keep` steps into the record and the journal. All ranks must call this.

        Raises:
            UserError: too many steps in a row were faulty; with the diagnosis of the last.
        """
        while len(self._pending) > keep:
            step = self._pending.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            loss, alignment, norm, _, stop, kind, middle = step.numbers.tolist()
            self._stopping |= stop > 0
            fault = in_words(int(kind), loss, alignment, norm, middle)
            self.state = next_state(self.state, fault is not None, loss)
            if fault is None:
                journal.note_step(loss, alignment, norm)
            else:
                # All ranks come here or none, since they decide by the same numbers.
                everyone = self._accelerator.gather(step.losses)
                self._skip(journal, step.seen, f"{fault}; {self._where(step, everyone)}")

    def note_reading(self, seen: int, found: Observation) -> None:
        """Record the discrepancy or the condition gain, where one was measured.

        Raises:
            UserError: it did not change, or was not finite, too many times in a row.
        """
        reading = found.discrepancy or found.condition_gain
        # A model without conditions gains nothing from them, probe after probe.
        if reading is None or (reading is found.condition_gain and abs(reading.value) < ROUNDING):
            return
        name = "discrepancy" if reading is found.discrepancy else "condition gain"
        self.state = note_reading(self.state, reading.value)
        if self.state.stuck >= self.config.patience:
            what = "not finite" if self.state.probe is None else f"frozen at {self.state.probe:.6g}"
            raise UserError(
                f"the {name} is {what} on {self.state.stuck} probes in a row, at {seen:,} examples; hint: check "
                "the teacher and the codec (probe.space=latent uses neither); the last checkpoint is kept"
            )

    def _skip(self, journal: Journal, seen: int, fault: str) -> None:
        """Log that the step at `seen` examples was left out, and why; stop a run that has too many of them."""
        skipped = self.state.skipped
        in_a_row = self.state.in_a_row
        run_dir = journal.log.path.parent
        journal.log.write("fault", seen, skipped=skipped, in_a_row=in_a_row, reason=fault)
        journal.meter.say(f"{seen:,} examples: step skipped ({skipped} so far): {fault}")
        if in_a_row < self.config.patience:
            return
        raise UserError(
            f"{run_dir}: {in_a_row} bad steps in a row, the last at {seen:,} examples: {fault}. The last good "
            f"checkpoint is kept; hint: look at those clips, or set a lower optim.learning_rate (it is "
            f"{self._optim.learning_rate:g}) or train.precision fp32 in {run_dir}/config.json, then go on with --resume"
        )

    def _where(self, step: _Step, losses: Tensor) -> str:
        """The batch, its clips and the part of the model, as a sentence.

        Args:
            losses: of all ranks.
        """
        broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        worst = broken[:NAMED] or losses.argsort(descending=True)[:NAMED].tolist()
        ids = self._loader.clips(range(step.seen, step.seen + len(losses)))
        clips = ", ".join(f"{ids[i]} ({losses[i]:.3g})" for i in worst)
        if broken:
            clips = f"{len(broken)} of {len(losses)} clips are not finite: {clips}"
        else:
            clips = f"the clips with the highest loss are {clips}"
        return f"batch of examples {step.seen:,} to {step.seen + len(losses) - 1:,}; {clips}{self._part(step)}"

    def _part(self, step: _Step) -> str:
        """The first tensors of the model that are not finite, as a clause; "" where all are finite."""
        weights = [n for n, x in self._named if bool(full_tensor((~torch.isfinite(x.detach())).sum()))]
        # Of a sharded gradient a rank knows its own part.
        of_ranks = self._accelerator.reduce((~torch.isfinite(step.norms)).float(), "sum").tolist()
        gradients = [name for name, count in zip(step.names, of_ranks) if count]
        for what, named, of in (("weight", weights, self._named), ("gradient", gradients, step.names)):
            if named:
                return f"; {what} not finite in {named[0]} and {len(named) - 1} more of {len(of)} tensors"
        return ""
