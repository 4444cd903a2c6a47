"""Numbers and labels that a model is conditioned on beside the caption: when a sound ends, its tempo, its key.

Each number is embedded by sinusoids and a small network, each label by a table, and their sum is added to the vector
that modulates all blocks. The seconds at which a crop starts and that its sound lasts are the timing conditions of
Stable Audio (Evans et al., arXiv 2402.04825), which embeds them likewise; the scale of seconds is our definition.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.models.positions import Tables, sinusoid_frequencies, sinusoidal
from segue.types import TIMES, Condition, UserError

Values = Mapping[str, "float | str"]  # name of a field -> what a clip or a user says of it

SINUSOIDS = 64
FINEST = 0.1  # of the fastest sinusoid of a time t: neighbours a hundredth of the range apart are told from each other
SHORTEST_SEC = 0.05  # below it, the scale of seconds is even; above it, it goes by ratios


@dataclass(frozen=True)
class NumberField:
    """A number that a model knows.

    Attributes:
        name: of the manifest's field, or one of TIMES.
        low, high: least and greatest over the training clips; what lies beyond counts as these.
    """

    name: str
    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value lies in the range, 0 to 1: evenly, and of seconds by the logarithm of 1 + s / 0.05."""
        value = min(max(value, self.low), self.high)
        if self.name in TIMES:
            low, high, value = (math.log1p(x / SHORTEST_SEC) for x in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low) if high > low else 0.0


@dataclass(frozen=True)
class LabelField:
    """A label that a model knows.

    Attributes:
        name: of the manifest's field.
        values: that the training clips have.
    """

    name: str
    values: tuple[str, ...]


def fields_of(described: Mapping) -> tuple[tuple[NumberField, ...], tuple[LabelField, ...]]:
    """Number and label fields as meta.json of a cache, or a model's card, has them."""
    numbers = tuple(NumberField(f["name"], float(f["low"]), float(f["high"])) for f in described.get("numbers", ()))
    return numbers, tuple(LabelField(f["name"], tuple(f["values"])) for f in described.get("labels", ()))


def field_tensors(
    numbers: Sequence[NumberField], labels: Sequence[LabelField], values: Sequence[Values]
) -> dict[str, Tensor]:
    """`numbers`, `numbers_known` and `labels` of a Condition, from what is known of each example.

    Args:
        values: of each example, by the names of fields. What is missing, or no label of training, counts as unknown.
    """
    places = [[f.place(float(v[f.name])) if f.name in v else 0.0 for f in numbers] for v in values]
    known = [[f.name in v for f in numbers] for v in values]
    numbered = [{label: n for n, label in enumerate(f.values, 1)} for f in labels]
    chosen = [[number.get(str(v.get(f.name)), 0) for f, number in zip(labels, numbered)] for v in values]
    return {
        "numbers": torch.tensor(places, dtype=torch.float32).reshape(len(values), len(numbers)),
        "numbers_known": torch.tensor(known, dtype=torch.bool).reshape(len(values), len(numbers)),
        "labels": torch.tensor(chosen, dtype=torch.int64).reshape(len(values), len(labels)),
    }


class FieldEmbedding(nn.Module):
    """What a model makes of its numbers and labels: [B, D] for its modulation.

    A field that is unknown has a learned vector of its own. Where a condition is dropped, everything but the times is
    unknown: classifier-free guidance strengthens what was asked for, and both of its evaluations end with the sound.
    """

    is_time: Tensor

    def __init__(self, numbers: Sequence[NumberField], labels: Sequence[LabelField], width: int) -> None:
        super().__init__()
        self._tables = Tables()
        self.numbers = nn.ModuleList(
            nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width)) for _ in numbers
        )
        self.unknown = nn.Parameter(torch.zeros(len(numbers), width))
        # Row 0 is that of the unknown label.
        self.labels = nn.ModuleList(nn.Embedding(len(field.values) + 1, width) for field in labels)
        self.register_buffer("is_time", torch.tensor([f.name in TIMES for f in numbers], dtype=torch.bool), False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)

    def begin_at_nothing(self) -> None:
        """Make its sum zero, so that a trained model that had no such fields begins as it was."""
        for network in self.numbers:
            nn.init.zeros_(network.get_submodule("2").get_parameter("weight"))
        for table in self.labels:
            nn.init.zeros_(table.get_parameter("weight"))

    def forward(self, condition: Condition | None, x: Tensor) -> Tensor:
        """[B, D] for tokens x [B, N, D] under a condition; without one, everything is unknown."""
        batch = len(x)
        given = condition or Condition()
        places, known, labels = given.numbers, given.numbers_known, given.labels
        if places is None or known is None:
            places = x.new_zeros(batch, len(self.numbers), dtype=torch.float32)
            known = torch.zeros_like(places, dtype=torch.bool)
        if labels is None:
            labels = torch.zeros(batch, len(self.labels), dtype=torch.int64, device=x.device)
        if given.drop is not None:
            known = known & (self.is_time | ~given.drop[:, None])
            labels = labels.masked_fill(given.drop[:, None], 0)
        total = x.new_zeros(batch, x.shape[-1])
        frequencies = self._tables.get(sinusoid_frequencies, SINUSOIDS, x.device)
        for n, network in enumerate(self.numbers):
            embedded = network(sinusoidal(FINEST * places[:, n], frequencies).to(x.dtype))
            total = total + torch.where(known[:, n, None], embedded, self.unknown[n].to(embedded.dtype))
        for n, table in enumerate(self.labels):
            total = total + table(labels[:, n])
        return total


def asked_values(
    numbers: Sequence[NumberField], labels: Sequence[LabelField], asked: Mapping[str, float | str]
) -> tuple[dict[str, float | str], list[str]]:
    """What a user asks for by the names of fields, as values; and notes on numbers that training had none of.

    Raises:
        UserError: a field that the model does not know, no number, or no label of training.
    """
    fields: list[NumberField | LabelField] = [*numbers, *labels]
    by_name = {field.name: field for field in fields}
    known = [name for name in by_name if name not in TIMES]
    values: dict[str, float | str] = {}
    notes = []
    for name, value in asked.items():
        option = f"--condition {name}={value}"
        field = by_name.get(name)
        if name in TIMES:
            raise UserError(f"{option}: hint: --seconds says how long the sound shall be")
        if field is None:
            hint = f"it knows {', '.join(known)}" if known else "segue encode --condition field=NAME gives it some"
            raise UserError(f"{option}: the model knows no {name}; hint: {hint}")
        if isinstance(field, LabelField):
            values[name] = _label(option, field, str(value))
            continue
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not math.isfinite(number):
            raise UserError(f"{option}: not a number; hint: {field.low:g} to {field.high:g} were trained on")
        values[name] = number
        if not field.low <= number <= field.high:
            notes.append(
                f"{option}: training clips have {field.low:g} to {field.high:g}; what lies beyond counts as these"
            )
    return values, notes


def _label(option: str, field: LabelField, value: str) -> str:
    value = " ".join(value.split())
    if value in field.values:
        return value
    near = [known for known in field.values if known.lower() == value.lower()]
    near = near or difflib.get_close_matches(value, field.values, n=1)
    some = ", ".join(field.values[:10]) + (", ..." if len(field.values) > 10 else "")
    raise UserError(f"{option}: no such label; hint: {f'did you mean {near[0]}?' if near else f'it knows {some}'}")
