"""Look at every file of a data set: what there is, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from segue.data.audio import BLOCK_SAMPLES, BadAudio, Header, Levels, examine
from segue.data.clip import SPLITS, Clip
from segue.data.progress import track
from segue.memory import resident_bytes

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


@dataclass(frozen=True)
class CheckReport:
    """What `segue data check` prints; JSON-able through `asdict`.

    Attributes:
        clips, hours: of the files that can be used.
        rates_hz, channels, formats, splits: value -> number of clips.
        captions: count, unique, and shortest, mean and longest length in words.
        bad: {path, reason} of each file that cannot be used.
        duplicates: groups of paths with equal content.
        clipped: paths where more than a thousandth of the samples is at full scale.
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


def inspect_file(path: Path) -> Inspection:
    """Decode and hash one file. What cannot be used is not hashed: it may claim, or be, gigabytes of nothing."""
    try:
        header, levels = examine(path)
        digest = sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return Inspection("", None, None, f"unreadable: {error.strerror}")
    except BadAudio as error:
        return Inspection("", None, None, error.reason)
    return Inspection(digest.hexdigest(), header, levels, None)


def inspect_clips(clips: Sequence[Clip], workers: int = 4) -> Iterator[Inspection]:
    """One inspection a clip, in order, on `workers` threads (decoding and hashing release the interpreter)."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from track(
                pool.map(inspect_file, [clip.path for clip in clips]), len(clips), "checking files", "files"
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def stated_bytes(clips: int, workers: int) -> int:
    """The peak of a check that is about to begin: files are read in blocks, and a few words of each are kept."""
    return resident_bytes() + workers * BLOCKS_AT_ONCE * 4 * BLOCK_SAMPLES + clips * INSPECTION_BYTES


def check_clips(clips: Sequence[Clip], workers: int = 4) -> CheckReport:
    """Decode every file of a data set and count."""
    inspections = list(inspect_clips(clips, workers))
    good = [(clip, i) for clip, i in zip(clips, inspections) if i.problem is None]
    captions = [caption for clip in clips for caption in clip.captions]
    words = [len(caption.split()) for caption in captions]
    by_content: dict[str, list[str]] = {}
    for clip, inspection in good:
        by_content.setdefault(inspection.sha256, []).append(str(clip.path))
    splits = Counter(clip.split for clip, _ in good)
    return CheckReport(
        clips=len(good),
        hours=sum(i.header.seconds for _, i in good) / 3600,
        rates_hz=_counts(i.header.sample_rate_hz for _, i in good),
        channels=_counts(i.header.channels for _, i in good),
        formats=_counts(f"{i.header.format} {i.header.subtype}" for _, i in good),
        splits={split: splits[split] for split in SPLITS},
        captions={
            "count": len(captions),
            "unique": len(set(captions)),
            "shortest_words": min(words, default=0),
            "mean_words": sum(words) / max(1, len(words)),
            "longest_words": max(words, default=0),
        },
        bad=[{"path": str(c.path), "reason": i.problem} for c, i in zip(clips, inspections) if i.problem is not None],
        duplicates=[paths for paths in by_content.values() if len(paths) > 1],
        clipped=[str(clip.path) for clip, i in good if i.levels.clipped_share > CLIPPED_SHARE],
    )


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
    lines += [f"same content: {', '.join(paths)}" for paths in report.duplicates]
    lines += [f"clipped: {path}" for path in report.clipped]
    lines += [f"BAD {bad['path']}: {bad['reason']}" for bad in report.bad]
    return lines


def report_json(report: CheckReport) -> dict:
    """The report as plain data."""
    return asdict(report)


def _counts(values) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}
