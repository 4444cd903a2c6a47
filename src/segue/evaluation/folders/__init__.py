"""Figures of folders of sounds: what `segue evaluate` computes. The files above this folder know nothing of files."""
