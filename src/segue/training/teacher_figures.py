"""Has a teacher's space collapsed?"""

from __future__ import annotations

from pathlib import Path

from segue.ssl.base import Teacher
from segue.ssl.compact import CompactTeacher
from segue.training.sounds import list_sounds, read_sounds
from segue.training.teacher import collapse_figures

POOLED_SEC = 4
MOST_CLIPS = 100


def measure_teacher(teacher: Teacher, source: Path) -> dict:
    """Collapse figures on held-out sounds: split "test", else "valid", else all; 100 clips at most, 4 s of each.

    Returns:
        "collapse": what `collapse_figures` gives; "clips": how many were measured.

    Raises:
        UserError: unusable sounds.
    """
    sounds = list_sounds(source)
    held_out = [s for s in sounds if s.split == "test"] or [s for s in sounds if s.split == "valid"] or sounds
    chosen = held_out[:: max(1, len(held_out) // MOST_CLIPS)][:MOST_CLIPS]
    read = read_sounds(chosen, teacher.sample_rate_hz)
    waves = [read.wave(i)[: POOLED_SEC * teacher.sample_rate_hz] for i in range(len(read))]
    if isinstance(teacher, CompactTeacher):  # before its statistics make a flat space look like any other
        return {"collapse": collapse_figures(lambda wave: teacher.encoder.features(wave, teacher.layer), waves),
                "clips": len(read)}  # fmt: skip
    return {"collapse": collapse_figures(teacher.encode, waves), "clips": len(read)}
