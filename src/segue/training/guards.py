"""Steps that go wrong: found alike on every rank, left out, counted, and named when they do not end.

A bad step moves no weight. Its examples count as seen, so the order of data, noise and times stays what it was, and
what is remembered of faults is in the checkpoint: a resumed run leaves out the same steps.
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
from segue.training.sharding import norm_of, whole
from segue.types import UserError

WINDOW = 64  # good steps that a spike is judged against
FEWEST = 32  # of them, before anything is called a spike
SAME = 1e-12  # relative: trained weights cannot give one discrepancy twice
NAMED = 3  # clips in a diagnosis, where none of them stands out as not finite


@dataclass(frozen=True)
class FaultState:
    """What a run remembers of its faults; plain numbers, exact through JSON.

    Attributes:
        skipped: steps left out so far.
        in_a_row: of them, those since the last good step.
        losses: flow losses of the last good steps, over all ranks.
        probe: the discrepancy read last; None where it was not finite.
        stuck: probes in a row that were not finite or did not move.
    """

    skipped: int = 0
    in_a_row: int = 0
    losses: tuple[float, ...] = ()
    probe: float | None = None
    stuck: int = 0

    @classmethod
    def from_json(cls, data: dict) -> FaultState:
        """The inverse of `dataclasses.asdict`; {} (a checkpoint from before there were any) is a clean start."""
        return cls(**{**data, "losses": tuple(data.get("losses", ()))})


def judge(state: FaultState, loss: float, alignment: float, norm: float, dead: float, spike: float) -> str | None:
    """What is wrong with a step, in words, or None. A pure function of numbers that are the same on every rank.

    A spike (our definition) is a flow loss of more than `spike` robust standard deviations (1.4826 MAD, and never less
    than a tenth of the median) above the median of the last 64 good steps, and of more than twice the highest of them.

    Args:
        loss, alignment, norm: mean flow loss, mean alignment and gradient norm over all ranks.
        dead: above 0 where the teacher's features are dead on some rank.
        spike: 0 = look for none.
    """
    if dead > 0:
        return "the teacher is dead: its features are not finite, or the same in every frame of the batch"
    for name, value in (("flow loss", loss), ("alignment with the teacher", alignment), ("gradient", norm)):
        if not math.isfinite(value):
            return f"the {name} is {value}"
    if spike and len(state.losses) >= FEWEST:
        middle = median(state.losses)
        spread = max(1.4826 * median(abs(x - middle) for x in state.losses), 0.1 * middle)
        # Batches of one or two: the loss follows the times drawn, far beyond any spread of the middle ones.
        if loss > max(middle + spike * spread, 2 * max(state.losses)):
            return f"the flow loss is {loss:.4g}, a spike over the {middle:.4g} of the steps before"
    return None


def next_state(state: FaultState, bad: bool, loss: float) -> FaultState:
    """The state after a step."""
    if bad:
        return replace(state, skipped=state.skipped + 1, in_a_row=state.in_a_row + 1)
    return replace(state, in_a_row=0, losses=(*state.losses, loss)[-WINDOW:])


def note_reading(state: FaultState, value: float) -> FaultState:
    """The state after a reading of the probe."""
    found = value if math.isfinite(value) else None
    still = found is None or (state.probe is not None and math.isclose(found, state.probe, rel_tol=SAME))
    return replace(state, probe=found, stuck=state.stuck + 1 if still else 0)


def is_dead(teacher: tuple[Tensor, Tensor] | None) -> bool:
    """Whether features [B, S, F] under mask [B, S] carry nothing: not finite, or the same in every frame."""
    if teacher is None:
        return False
    features, real = teacher
    # Frames are told apart by their extremes: copying all of them out at every step would cost more than looking.
    extremes = torch.stack(features.aminmax(dim=-1), dim=-1)[real]  # [frames, 2]; NaN and Inf pass through
    if not bool(torch.isfinite(extremes).all()):
        return True
    if len(extremes) < 2 or not bool((extremes == extremes[0]).all()):
        return False
    frames = features[real]
    return bool((frames == frames[0]).all())


class Guard:
    """Watches the steps of one run.

    Attributes:
        state: goes into the checkpoint.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, loader: LatentLoader, accelerator, state: FaultState
    ) -> None:
        """
        Args:
            model: not wrapped.
            loader: names the clips of a batch.
        """
        self.config, self.state = config, state
        self._model, self._loader, self._accelerator = model, loader, accelerator

    @property
    def calm(self) -> bool:
        """Whether the last step was good and every weight is finite: what a checkpoint may be made of."""
        norm = norm_of([p.detach() for p in self._model.parameters()])
        return self.state.in_a_row == 0 and bool(torch.isfinite(norm))

    def judge(
        self, seen: int, sums: Tensor, norm: Tensor, teacher: tuple[Tensor, Tensor] | None, losses: list[Tensor]
    ) -> tuple[Tensor, str | None]:
        """Decide on the step at hand, on all ranks together.

        Args:
            seen: examples before this step.
            sums: [2] this rank's mean flow loss and alignment.
            norm: gradient norm.
            teacher: this rank's features and mask, where the step uses them.
            losses: [B] flow losses of this rank, in pieces.

        Returns:
            sums over all ranks, and None, or what is wrong: kind, clips and part of the model.
        """
        dead = torch.tensor([float(is_dead(teacher))], device=sums.device)
        measured = self._accelerator.reduce(torch.cat([sums, norm.detach().to(sums).reshape(1), dead]), "mean")
        loss, alignment, gradient, any_dead = measured.tolist()
        wrong = judge(self.state, loss, alignment, gradient, any_dead, self.config.spike)
        self.state = next_state(self.state, wrong is not None, loss)
        if wrong is not None:
            # Every rank is here or none: the decision is a function of reduced numbers.
            everyone = self._accelerator.gather(torch.cat(losses).detach())
            wrong = f"{wrong}; {self._where(seen, everyone)}"
        return measured[:2], wrong

    def note_reading(self, seen: int, discrepancy: Reading | None) -> None:
        """Take note of a reading of the probe.

        Raises:
            UserError: it has not moved, or was not finite, too many times in a row.
        """
        if discrepancy is None:
            return
        self.state = note_reading(self.state, discrepancy.value)
        if self.state.stuck >= self.config.patience:
            what = "not finite" if self.state.probe is None else f"frozen at {self.state.probe:.6g}"
            raise UserError(
                f"the discrepancy is {what} on {self.state.stuck} probes in a row, at {seen:,} examples; look at the "
                "teacher and the codec (probe.space=latent does without both); the last checkpoint is kept"
            )

    def skip(self, log: RunLog, meter: Meter, seen: int, wrong: str, learning_rate: float) -> None:
        """Say that the step at `seen` examples was left out, and why.

        Raises:
            UserError: so many steps in a row were bad; with the diagnosis of the last.
        """
        skipped, in_a_row, run_dir = self.state.skipped, self.state.in_a_row, log.path.parent
        log.write("fault", seen, skipped=skipped, in_a_row=in_a_row, reason=wrong)
        meter.say(f"{seen:,} examples: step skipped ({skipped} so far): {wrong}")
        if in_a_row < self.config.patience:
            return
        raise UserError(
            f"{run_dir}: {in_a_row} bad steps in a row, the last at {seen:,} examples: {wrong}. The last good "
            f"checkpoint is kept; hint: look at those clips, or set a lower optim.learning_rate (it is "
            f"{learning_rate:g}) or train.precision fp32 in {run_dir}/config.json, then go on with --resume"
        )

    def _where(self, seen: int, losses: Tensor) -> str:
        """Which batch, which clips, which part of the model."""
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
        for what, tensors in (
            ("weight", {n: p.detach() for n, p in self._model.named_parameters()}),
            ("gradient", {n: p.grad for n, p in self._model.named_parameters() if p.grad is not None}),
        ):
            named = [n for n, x in tensors.items() if bool(whole((~torch.isfinite(x)).sum()))]
            if named:
                return f"; {what} not finite in {named[0]} and {len(named) - 1} more of {len(tensors)} tensors"
        return ""
