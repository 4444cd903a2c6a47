"""Has a teacher's space collapsed?"""

from __future__ import annotations

from pathlib import Path

from segue.data.reading import DataSource
from segue.ssl.base import Teacher
from segue.ssl.compact import CompactTeacher
from segue.training.teacher.statistics import collapse_figures
from segue.training.training_audio import clips_of, read_sounds

POOLED_SEC = 4
MOST_CLIPS = 100


def measure_teacher(teacher: Teacher, source: Path | DataSource, *, skip_bad: bool = False) -> dict:
    """Collapse figures on held-out sounds: split "test", else "valid", else all; 100 clips at most, 4 s of each.

    Args:
        skip_bad: leave unusable files out, and name them.

    Returns:
        "collapse": what `collapse_figures` gives; "clips": how many were measured.

    Raises:
        UserError: unusable sounds.
    """
    clips = clips_of(source, skip_bad)
    # Never the training split, where there is any other.
    held_out = [c for c in clips if c.split == "test"] or [c for c in clips if c.split == "valid"] or clips
    chosen = held_out[:: max(1, len(held_out) // MOST_CLIPS)][:MOST_CLIPS]
    read = read_sounds(chosen, teacher.sample_rate_hz, skip_bad)
    waves = [read.wave(i)[: POOLED_SEC * teacher.sample_rate_hz] for i in range(len(read))]
    if isinstance(teacher, CompactTeacher):  # before its statistics make a flat space look like any other
        return {"collapse": collapse_figures(lambda wave: teacher.encoder.features(wave, teacher.layer), waves),
                "clips": len(read)}  # fmt: skip
    return {"collapse": collapse_figures(teacher.encode, waves), "clips": len(read)}
