"""What a latent cache will hold, before anything is encoded: its parts, its segments, its shards, and what is refused.

A shard's name is a hash of the contents, codec and settings that its rows depend on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.data.cache import DTYPES, SCHEMA_VERSION
from segue.data.cache_checks import difference, read_json
from segue.data.channels import refuse_other_channels
from segue.data.check import Inspection
from segue.data.clip import Clip
from segue.data.conditions import ConditionField, values_of
from segue.ssl.base import Teacher
from segue.types import TIMES, UserError, printable

CAPTIONS_PER_SHARD = 1024
SHORTEST_REST = 0.1  # of a segment: a shorter rest at the end of a long file is left out
# Of a variant. Small: what the caption says of level and timing shall stay true, and softer never clips.
MOST_VARIANTS = 100
MOST_SOFTER_DB = 3.0
MOST_DELAY_SEC = 0.05
CONTEXT_FRAMES = 16  # on each side of a row of a long file: what a codec looks at around a frame, and more


@dataclass(frozen=True)
class Variant:
    """How a row differs from what was recorded: number 0 is the recording."""

    number: int = 0
    gain_db: float = 0.0
    delay_sec: float = 0.0


RECORDED = Variant()


@dataclass(frozen=True)
class Segment:
    """One row to be: a stretch of a file, as recorded or varied.

    Attributes:
        conditions: what is known of it, by names of fields.
        context_sec: how much of the file before and after it is encoded with it and cut off again, so that the rows of
            a long file are what encoding it whole would give; None: it is encoded alone.
    """

    clip: Clip
    inspection: Inspection
    start_sec: float
    length_sec: float
    frames: int
    variant: Variant = RECORDED
    conditions: dict = field(default_factory=dict)
    context_sec: tuple[float, float] | None = None

    @property
    def key(self) -> tuple:
        """What its row depends on, beside the settings."""
        recorded: tuple = self.inspection.sha256, self.start_sec, self.length_sec
        if self.context_sec is not None:
            recorded = (*recorded, "context", *self.context_sec)
        return recorded if self.variant == RECORDED else (*recorded, self.variant.gain_db, self.variant.delay_sec)


@dataclass(frozen=True)
class Parts:
    """What turns sound and captions into rows.

    Attributes:
        fields: of the manifest, that rows have as conditions.
        timed: whether rows know where in their sound they start and how long that is.
    """

    codec: Codec
    conditioner: TextConditioner
    teacher: Teacher | None
    seconds: float
    dtype: str
    device: str
    variants: int = 1
    fields: tuple[ConditionField, ...] = ()
    timed: bool = False

    @property
    def samples(self) -> int:
        """Of a whole segment, at the codec's rate."""
        return round(self.seconds * self.codec.sample_rate_hz)

    @property
    def frames(self) -> int:
        """Latent frames of a whole segment."""
        return self.codec.latent_frames(self.samples)

    @property
    def rates_hz(self) -> tuple[int, ...]:
        """What files are read at: the codec's rate, and the teacher's own."""
        return tuple(part.sample_rate_hz for part in (self.codec, self.teacher) if part is not None)

    def settings(self) -> dict:
        """What the bytes of the cache depend on, beside the data."""
        settings = {
            "schema_version": SCHEMA_VERSION,
            "codec": self.codec.fingerprint(),
            "text": self.conditioner.fingerprint(),
            # A teacher changes latent shards' names too, since both stand in one file.
            "teacher": None if self.teacher is None else self.teacher.fingerprint(),
            "seconds": self.seconds,
            "dtype": self.dtype,
        }
        if self.variants > 1:  # named only then: caches of before there were any stay what they are
            settings["variants"] = self.variants
        # As it will be read back: tuples become lists, so that comparisons with a file hold.
        return json.loads(json.dumps(settings))


@dataclass(frozen=True)
class Shard:
    """Rows that are encoded and written together; the name is a hash of all that they depend on."""

    file: str
    items: Sequence


def shards_of(items: Sequence, size: int, common: object, key: Callable, what: str) -> list[Shard]:
    """Items in order, about `size` to a shard, half of that to twice that.

    A shard ends behind an item whose own hash says so. An item that comes or goes thus changes the shard that it is in
    and seldom more than the next; all others keep their names, and a cache that is made anew keeps their files.

    Args:
        common, key: what the rows of all items, and that of one, depend on.
    """
    shards: list[Shard] = []
    part: list = []
    digest = sha256()
    for item in items:
        text = json.dumps(key(item), sort_keys=True).encode()
        if not part:
            digest = sha256(json.dumps(common, sort_keys=True).encode())
        part.append(item)
        digest.update(b"\n" + text)
        # An item ends a shard by its own hash, so that where others come or go, cuts stay where they were.
        is_end = int.from_bytes(sha256(text).digest()[:8], "big") % max(1, size // 2) == 0
        # Never below half the size, so that no chain of hash hits makes crumbs; never above twice.
        if len(part) >= 2 * size or (is_end and len(part) >= size // 2):
            shards.append(Shard(f"{what}-{digest.hexdigest()[:32]}.safetensors", part))
            part = []
    if part:
        shards.append(Shard(f"{what}-{digest.hexdigest()[:32]}.safetensors", part))
    return shards


def segments_of(clip: Clip, inspection: Inspection, parts: Parts) -> Iterator[Segment]:
    """The consecutive segments of a clip; a rest shorter than a tenth of one is left out.

    A file to train on comes `parts.variants` times, the first time as recorded. A variant of a long file is cut at
    other places, one of a short file begins up to 50 ms later, and both are up to 3 dB softer; what a variant is
    depends on the file's content and its number alone.
    """
    rate_hz = parts.codec.sample_rate_hz
    whole = parts.samples
    if parts.timed:  # whole frames, so that those of neighbouring rows follow each other without a seam
        whole = max(1, whole // parts.codec.hop_samples) * parts.codec.hop_samples
    values = values_of(clip, parts.fields)
    total = max(1, round(clip.seconds(inspection.seconds) * rate_hz))
    # Only what is trained on is varied: validation and test measure recorded sounds.
    for number in range(parts.variants if clip.split == "train" else 1):
        # Seeded by content and number alone: a variant is the same whatever else is in the set, and in whatever order.
        draw = np.random.default_rng([int(inspection.sha256[:15], 16), number])
        later = round(draw.random() * (whole if total > whole else MOST_DELAY_SEC * rate_hz)) if number else 0
        gain_db = -MOST_SOFTER_DB * round(draw.random(), 3) if number else 0.0
        # A long file is cut elsewhere, a short one begins later: either way other frames hold other sound.
        first, delay = (later, 0) if total > whole else (0, min(later, total - 1))
        stretches = [(start, min(whole - delay, total - start)) for start in range(first, total, whole)]
        # The first segment is kept however short it is: a clip must have a row.
        stretches = [(a, n) for a, n in stretches if a == first or n >= SHORTEST_REST * whole]
        end = sum(stretches[-1])
        margin = CONTEXT_FRAMES * parts.codec.hop_samples if parts.timed and len(stretches) > 1 else 0
        for start, samples in stretches:
            frames = min(parts.frames, parts.codec.latent_frames(delay + samples))
            around = min(margin, start - first) / rate_hz, min(margin, end - start - samples) / rate_hz
            times = (start - first) / rate_hz, (delay + end - first) / rate_hz
            yield Segment(
                clip,
                inspection,
                clip.start_sec + start / rate_hz,
                samples / rate_hz,
                frames,
                Variant(number, gain_db, delay / rate_hz),
                (dict(zip(TIMES, times)) if parts.timed else {}) | values,
                around if margin else None,
            )


def index_of(shards: list[Shard], captions: list[str]) -> list[dict]:
    """Rows of index.jsonl, in the order of the shards."""
    number = {caption: n for n, caption in enumerate(captions)}
    return [
        {
            "id": segment.clip.id,
            "sha256": segment.inspection.sha256,
            "shard": shard.file,
            "row": row,
            "frames": segment.frames,
            "split": segment.clip.split,
            "captions": list(segment.clip.captions),
            "caption_rows": [number[caption] for caption in segment.clip.captions],
            "start_sec": segment.start_sec,
            "length_sec": segment.length_sec,
            # Through JSON, as it will be read back: indices in memory and on disk then compare.
            "fields": json.loads(json.dumps(segment.clip.fields)),
            # Named only then, so that the rows of recordings are what they were before there were variants.
            **({} if segment.variant == RECORDED else {"variant": asdict(segment.variant)}),
            **({"conditions": segment.conditions} if segment.conditions else {}),
        }
        for shard in shards
        for row, segment in enumerate(shard.items)
    ]


def check_arguments(clips: Sequence[Clip], parts: Parts) -> None:
    """Refuse no clips, an unknown dtype, a length that is not positive."""
    if not clips:
        raise UserError("no clips to encode; hint: name a folder that holds sounds")
    if not all(clip.captions for clip in clips):
        raise UserError("clips without captions cannot be encoded; hint: --captions manifest or filename")
    if parts.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {parts.dtype!r}")
    if not parts.samples > 0:
        raise UserError(f"--seconds must be positive, not {parts.seconds}")
    if not 1 <= parts.variants <= MOST_VARIANTS:
        raise UserError(f"--variants must lie between 1 and {MOST_VARIANTS}, not {parts.variants}")


def refuse_other_settings(out: Path, settings: dict) -> None:
    """Refuse a folder that holds anything but a cache, whole or begun, of these settings.

    Where captions are cut may differ: then they alone are embedded anew.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; hint: name a new or empty folder")
    made_with = next((p for p in (out / "meta.json", out / "building.json") if p.exists()), None)
    # A folder with other files is never taken over: it may hold somebody's work.
    if made_with is None:
        if out.exists() and any(p.name != "shards" and p.suffix != ".tmp" for p in out.iterdir()):
            raise UserError(f"{out}: holds files that are not a latent cache; hint: name a new or empty folder")
        return
    # Caches of before variants existed were made with one.
    found = {"variants": 1} | read_json(made_with)
    settings = {"variants": 1} | settings
    refuse_other_channels(out, found, settings)
    # Captions alone are embedded anew then, so that this difference refuses nothing.
    if isinstance(found.get("text"), dict) and "max_tokens" in found["text"] and "max_tokens" in settings["text"]:
        found["text"] = found["text"] | {"max_tokens": settings["text"]["max_tokens"]}
    if any(found.get(name) != value for name, value in settings.items()):
        raise UserError(
            f"{out}: a cache made with other settings ({difference(found, settings)}); "
            "hint: --out another folder, or delete this one"
        )


def earlier_tokens(out: Path | str) -> int | None:
    """Where the captions of a cache in this folder, whole or begun, are cut; None where there is none."""
    for path in (Path(out) / "meta.json", Path(out) / "building.json"):
        if path.exists():
            text = read_json(path).get("text")
            tokens = text.get("max_tokens") if isinstance(text, dict) else None
            return tokens if type(tokens) is int else None
    return None


def changes(found: list[dict], index: list[dict]) -> str:
    """In words, how the rows of an earlier cache differ from those that are wanted.

    Raises:
        UserError: not one content is in both: this is another set.
    """

    def contents(rows: list[dict]) -> dict[str, str]:
        return {row["id"]: row["sha256"] for row in rows}

    then = contents(found)
    now = contents(index)
    new = now.keys() - then.keys()
    gone = then.keys() - now.keys()
    changed = {i for i in now.keys() & then.keys() if now[i] != then[i]}
    counts = [
        f"{len(ids):,} {word} (e.g. {min(ids)})"
        for ids, word in ((changed, "changed"), (new, "new"), (gone, "gone"))
        if ids
    ]
    # Not one common content: somebody named the wrong folder, and updating would delete the right cache.
    if not set(then.values()) & set(now.values()):
        raise UserError("made from other files: " + ", ".join(counts))
    return printable(", ".join(counts) or "captions, splits or fields differ")


def is_same_set(found: list[dict], index: list[dict]) -> bool:
    """Whether two indices describe the same rows alike, whatever shards these are in."""
    # Where a row stands may change with the sizes of shards, and says nothing about the set.
    places = ("shard", "row")

    def without_places(rows: list[dict]) -> list[dict]:
        return [{name: value for name, value in row.items() if name not in places} for row in rows]

    return len(found) == len(index) and without_places(found) == without_places(index)


def bad_files(clips: Sequence[Clip], inspections: Sequence[Inspection], skip_bad: bool) -> list[dict]:
    """What cannot be used, as {id, reason}: refused, or left out and printed."""
    bad = [{"id": c.id, "reason": i.problem} for c, i in zip(clips, inspections) if i.problem is not None]
    if bad and not skip_bad:
        named = [f"{c.path}: {i.problem}" for c, i in zip(clips, inspections) if i.problem is not None]
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{len(bad)} of {len(clips)} files cannot be used ({'; '.join(named[:10])}{more}); "
            "hint: repair them, or --skip-bad to leave them out"
        )
    for entry in bad:
        print(printable(f"left out {entry['id']}: {entry['reason']}"), file=sys.stderr)
    return bad
