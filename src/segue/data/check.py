"""Look at every file of a data set: what there is, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from segue.audio.folders import is_dangling
from segue.audio.read import examine
from segue.audio.sound import BLOCK_SAMPLES, BadAudio, Header, Levels
from segue.data.clip import SPLITS, Clip
from segue.data.content import content_hash
from segue.data.decoding import FileWorkers
from segue.data.reading import Listing
from segue.data.splits import missing_split_note, split_clips
from segue.memory import resident_bytes
from segue.progress import track

CLIPPED_SHARE = 0.001
BLOCKS_AT_ONCE = 4  # copies of a thread's block: as read, its magnitudes, its mean, the decoder's own
INSPECTION_BYTES = 1500  # header, levels and hash of a file


@dataclass(frozen=True)
class Inspection:
    """One file: the hash of its bytes, header and levels, or ("" and None) what is wrong with it."""

    sha256: str
    header: Header | None
    levels: Levels | None
    problem: str | None

    @property
    def seconds(self) -> float:
        """Length of the file; 0.0 of one that cannot be used."""
        return 0.0 if self.header is None else self.header.seconds


@dataclass(frozen=True)
class CheckReport:
    """What `segue data check` prints; JSON-able through `asdict`.

    Attributes:
        clips, hours: of the files that can be used.
        rates_hz, channels, formats, splits: value -> number of clips.
        captions: count, unique, and shortest, mean and longest length in words.
        bad: {path, reason} of each file, or entry of a list, that cannot be used.
        duplicates: groups of paths with equal content.
        clipped: paths where more than a thousandth of the samples is at full scale.
        notes: what was left out by rule, and what the splits lack, one line each.
    """

    clips: int
    hours: float
    rates_hz: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    splits: dict[str, int]
    captions: dict[str, float]
    bad: list[dict[str, str]]
    duplicates: list[list[str]]
    clipped: list[str]
    notes: list[str] = field(default_factory=list)


def inspect_file(path: Path, channels: int = 1) -> Inspection:
    """Decode and hash one file. What cannot be used is not hashed: it may claim, or be, gigabytes of nothing."""
    try:
        # Dangling links are told apart, since what helps is a fetch and not another file.
        if is_dangling(path):
            return Inspection("", None, None, "a dangling link: the file is elsewhere (git annex get, or dvc pull)")
        header, levels = examine(path, channels)
        digest = content_hash(path)
    except OSError as error:
        return Inspection("", None, None, f"unreadable: {error.strerror}")
    except BadAudio as error:
        return Inspection("", None, None, error.reason)
    return Inspection(digest, header, levels, None)


def inspect_clips(
    clips: Sequence[Clip], workers: int = 4, channels: int = 1, decoders: FileWorkers | None = None
) -> list[Inspection]:
    """One inspection a clip; each file is read once.

    Of a clip that is a stretch of its file, the problem is that the file does not hold it.

    Args:
        workers: threads (decoding releases the interpreter).
        channels: files are judged as they will be read, as mono or as stereo.
        decoders: processes in their place: a file on which a decoder crashes then counts as one that cannot be used.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ExitStack() as stack:
        decoders = decoders or stack.enter_context(FileWorkers(0, workers))
        inspect = partial(inspect_file, channels=channels)
        found_by = decoders.map(inspect, paths, lambda error: Inspection("", None, None, error.reason))
        inspections = list(track(found_by, len(paths), "checking files", "files"))
    by_path = dict(zip(paths, inspections))
    found = []
    for clip in clips:
        inspection = by_path[clip.path]
        # A file's own fault comes before that of one stretch of it.
        problem = inspection.problem or clip.stretch_problem(inspection.seconds)
        found.append(inspection if problem is None else replace(inspection, problem=problem))
    return found


def stated_bytes(clips: int, workers: int) -> int:
    """The peak of a check that is about to begin: files are read in blocks, and a few words of each are kept."""
    return resident_bytes() + workers * BLOCKS_AT_ONCE * 4 * BLOCK_SAMPLES + clips * INSPECTION_BYTES


@dataclass(frozen=True)
class Usable:
    """The clips of a set that can be used, with their splits, and the hash of each one's file."""

    clips: list[Clip]
    contents: list[str]


def check_clips(clips: Sequence[Clip], workers: int = 4) -> CheckReport:
    """Decode every file of a data set and count."""
    return check_listing(Listing(list(clips)), workers)[0]


def check_listing(listing: Listing, workers: int = 4) -> tuple[CheckReport, Usable]:
    """Decode every file of a listing and count; entries that give no clip count as bad."""
    clips = listing.clips
    inspections = inspect_clips(clips, workers)
    good = [(clip, i) for clip, i in zip(clips, inspections) if i.problem is None]
    # What is counted over the usable clips.
    headers = [inspection.header for _, inspection in good if inspection.header is not None]
    contents = [inspection.sha256 for _, inspection in good]
    # Splits are made of usable clips only: a bad file must not move others between splits.
    split = split_clips([clip for clip, _ in good], contents, lambda index: good[index][1].seconds)
    missing = missing_split_note(split.clips)
    # What is counted over captions, and over files: several clips may share one.
    captions = [caption for clip in clips for caption in clip.captions]
    words = [len(caption.split()) for caption in captions]
    # A path once, so that stretches of one file are no duplicates of each other.
    paths = {clip.path: inspection for clip, inspection in good}
    by_content: dict[str, list[str]] = {}
    for path, inspection in paths.items():
        by_content.setdefault(inspection.sha256, []).append(str(path))
    splits = Counter(clip.split for clip in split.clips)
    bad = [{"path": str(c.path), "reason": i.problem} for c, i in zip(clips, inspections) if i.problem is not None]
    report = CheckReport(
        clips=len(good),
        hours=sum(clip.seconds(i.seconds) for clip, i in good) / 3600,
        rates_hz=_counts(header.sample_rate_hz for header in headers),
        channels=_counts(header.channels for header in headers),
        formats=_counts(f"{header.format} {header.subtype}" for header in headers),
        splits={name: splits[name] for name in SPLITS},
        captions={
            "count": len(captions),
            "unique": len(set(captions)),
            "shortest_words": min(words, default=0),
            "mean_words": sum(words) / max(1, len(words)),
            "longest_words": max(words, default=0),
        },
        bad=bad + [{"path": where, "reason": _without(where, words)} for where, words in listing.bad_rows],
        duplicates=[paths for paths in by_content.values() if len(paths) > 1],
        clipped=[str(path) for path, i in paths.items() if i.levels and i.levels.clipped_share > CLIPPED_SHARE],
        notes=[*listing.notes, *split.notes, *([missing] if missing else [])],
    )
    return report, Usable(split.clips, [contents[origin] for origin in split.origins])


def _without(where: str, complaint: str) -> str:
    """A complaint that begins with its place, without it."""
    return complaint.removeprefix(where).lstrip(": ")


def report_lines(report: CheckReport) -> list[str]:
    """The report in words."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{value} ({count:,})" for value, count in counts.items()) or "none"

    captions = report.captions
    lines = [
        f"clips: {report.clips:,}, {report.hours:.2f} hours",
        f"rates in Hz: {listed(report.rates_hz)}",
        f"channels: {listed(report.channels)}",
        f"formats: {listed(report.formats)}",
        f"splits: {listed(report.splits)}",
        f"captions: {captions['count']:,}, {captions['unique']:,} unique, {captions['shortest_words']} to "
        f"{captions['longest_words']} words, {captions['mean_words']:.1f} on average",
    ]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"same content: {', '.join(paths)}" for paths in report.duplicates]
    lines += [f"clipped: {path}" for path in report.clipped]
    lines += [f"BAD {bad['path']}: {bad['reason']}" for bad in report.bad]
    return lines


def report_json(report: CheckReport) -> dict:
    """The report as plain data."""
    return asdict(report)


def _counts(values) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}
