"""Numbers and labels of clips that a model can be conditioned on: fields of the manifest, and how long sounds are.

A row of a cache has what is known of it under "conditions"; meta.json has the same fields with their ranges over the
training clips and the labels that these have. The model takes them over (models/fields.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from segue.data.clip import Clip
from segue.types import TIMES, UserError, printable

MOST_LABELS = 1000
KEPT_CAPTIONS = 500  # whose lengths a model's card keeps
QUANTILES = 21
OPTION = "--condition field="


@dataclass(frozen=True)
class ConditionField:
    """A field of the manifest that is a condition.

    Attributes:
        name: of the field.
        optional: whether rows may lack it.
        is_label: whether its values are labels; None: as they look.
    """

    name: str
    optional: bool = False
    is_label: bool | None = None

    @classmethod
    def of(cls, text: str) -> ConditionField:
        """From what stands behind --condition: field=NAME, and behind a comma `optional` or `label`.

        Raises:
            UserError: anything else.
        """
        key, equals, rest = text.partition("=")
        name, *options = (part.strip() for part in rest.split(","))
        if key.strip() != "field" or not equals or not name or set(options) - {"optional", "label"}:
            raise UserError(
                f"--condition {printable(text)}: hint: write field=NAME, such as field=bpm; field=bpm,optional where "
                "some rows have none; field=key,label for labels that look like numbers"
            )
        if name in TIMES:
            raise UserError(f"--condition {text}: the length of every sound is known already; hint: leave it away")
        return cls(name, "optional" in options, True if "label" in options else None)


def settled(asked: Sequence[ConditionField], clips: Sequence[Clip]) -> tuple[ConditionField, ...]:
    """The fields, each known as numbers or as labels.

    Raises:
        UserError: a field that no row has, that rows lack without `optional`, or whose values are neither all numbers
            nor all texts.
    """
    twice = [field.name for n, field in enumerate(asked) if field.name in {f.name for f in asked[:n]}]
    if twice:
        raise UserError(f"{OPTION}{twice[0]}: given twice; hint: leave one of them away")
    return tuple(_settled(field, clips) for field in asked)


def _settled(field: ConditionField, clips: Sequence[Clip]) -> ConditionField:
    option = printable(f"{OPTION}{field.name}")
    missing = [clip for clip in clips if _is_missing(clip.fields.get(field.name))]
    there = [clip for clip in clips if not _is_missing(clip.fields.get(field.name))]
    if not there:
        names = sorted({name for clip in clips for name in clip.fields})
        near = difflib.get_close_matches(field.name, names, n=1)
        found = f"did you mean {near[0]}?" if near else f"rows have {', '.join(names)[:200] or 'no fields'}"
        raise UserError(f"{option}: no row has this field; hint: {printable(found)}")
    if missing and not field.optional:
        raise UserError(
            f"{option}: {len(missing):,} of {len(clips):,} rows have none, such as {printable(missing[0].id)}; "
            f"hint: fill it in, or {option},optional to count it as unknown there"
        )
    for clip in there:
        if type(clip.fields[field.name]) not in (str, int, float):
            raise UserError(
                f"{option}: {printable(clip.id)} has {printable(str(clip.fields[field.name]))[:60]}, neither a number "
                "nor a text; hint: write one value a row"
            )
    numbers = [number_of(clip.fields[field.name]) is not None for clip in there]
    is_label = field.is_label
    if is_label is None:
        if any(numbers) and not all(numbers):
            clip = there[numbers.index(False)]
            raise UserError(
                f"{option}: {printable(clip.id)} has {printable(repr(clip.fields[field.name]))}, which is no number, "
                f"as others are; hint: correct it, or {option},label to take all of them as labels"
            )
        is_label = not any(numbers)
    if is_label and len({label_of(clip.fields[field.name]) for clip in there}) > MOST_LABELS:
        raise UserError(f"{option}: more than {MOST_LABELS:,} labels; hint: say such things in captions")
    return ConditionField(field.name, field.optional, is_label)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def number_of(value: object) -> float | None:
    """A finite number, or the text of one; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def label_of(value: object) -> str:
    """A label as it is compared: its text, white space made single."""
    return " ".join(str(value).split())


def values_of(clip: Clip, fields: Sequence[ConditionField]) -> dict[str, float | str]:
    """What is known of a clip, by the names of settled fields."""
    values: dict[str, float | str] = {}
    for field in fields:
        value = clip.fields.get(field.name)
        if not _is_missing(value):
            number = number_of(value)
            values[field.name] = label_of(value) if field.is_label or number is None else number
    return values


def described(index: Sequence[dict], fields: Sequence[ConditionField]) -> dict:
    """Part "conditions" of meta.json: numbers with their ranges, labels with their values, and lengths of sounds.

    Ranges and values are those of the training rows, since no other is trained on; of all rows where none is.
    """
    rows = [row for row in index if row["split"] == "train"] or list(index)
    known: dict[str, list] = {}
    for row in rows:
        for name, value in row.get("conditions", {}).items():
            known.setdefault(name, []).append(value)
    names = [name for name in TIMES if name in known]
    names += [field.name for field in fields if not field.is_label and field.name in known]
    labels = [field.name for field in fields if field.is_label and field.name in known]
    return {
        "numbers": [{"name": name, "low": min(known[name]), "high": max(known[name])} for name in names],
        "labels": [{"name": name, "values": sorted(set(known[name]))} for name in labels],
        "lengths": _lengths(rows) if TIMES[1] in known else {},
    }


def _lengths(rows: Sequence[dict]) -> dict:
    """How long training sounds are: quantiles of all, and the length of one for each of some captions."""
    # A sound counts once, however many rows it has.
    first = [row for row in rows if row["conditions"][TIMES[0]] == 0] or list(rows)
    seconds = sorted(row["conditions"][TIMES[1]] for row in first)
    at = [seconds[round(n * (len(seconds) - 1) / (QUANTILES - 1))] for n in range(QUANTILES)]
    of_caption = {caption: row["conditions"][TIMES[1]] for row in first for caption in row["captions"]}
    every = -(-len(of_caption) // KEPT_CAPTIONS)
    captions = {caption: round(sec, 4) for caption, sec in list(of_caption.items())[::every]}
    return {"quantiles": [round(sec, 4) for sec in at], "captions": captions}


def check_conditions(conditions: dict) -> None:
    """What meta.json says of conditions.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: parts missing, of another kind, or out of range.
    """
    numbers, labels, lengths = (conditions.get(part, []) for part in ("numbers", "labels", "lengths"))
    sane = all(
        isinstance(f["name"], str) and math.isfinite(f["low"]) and f["low"] <= f["high"] < math.inf for f in numbers
    )
    sane = sane and all(isinstance(f["name"], str) and 0 < len(f["values"]) <= MOST_LABELS for f in labels)
    sane = sane and all(isinstance(value, str) for f in labels for value in f["values"])
    seconds = [*lengths["quantiles"], *lengths["captions"].values()] if lengths else []
    if not sane or not all(0 < sec < math.inf for sec in seconds):
        raise ValueError("conditions out of range")


def check_values(values: dict) -> bool:
    """Whether the conditions of a row are finite numbers and texts, by names."""
    return all(isinstance(value, str) or number_of(value) is not None for value in values.values())
