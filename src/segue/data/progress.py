"""Moved to segue.progress; the name stays here until nobody asks for it here any more."""

from segue.progress import track

__all__ = ["track"]
