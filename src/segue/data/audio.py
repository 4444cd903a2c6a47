"""Moved to segue.audio; these names stay here until nobody asks for them here any more."""

from segue.audio.read import examine, read_header, read_segment, read_wave
from segue.audio.sound import BLOCK_SAMPLES, SUFFIXES, BadAudio, Header, Levels

__all__ = [
    "BLOCK_SAMPLES",
    "SUFFIXES",
    "BadAudio",
    "Header",
    "Levels",
    "examine",
    "read_header",
    "read_segment",
    "read_wave",
]
