"""Gradio, imported late: a line names the extra where it is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segue.types import import_extra

if TYPE_CHECKING:
    import gradio as gr
else:
    gr = import_extra("gradio", "app")

__all__ = ["gr"]
