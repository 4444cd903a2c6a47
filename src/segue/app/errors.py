"""Errors as red messages in the page, one line each; a traceback is shown to nobody."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import TypeVar

from segue import UserError
from segue.app.ui import gr
from segue.audio.sound import BadAudio
from segue.types import first_line

Function = TypeVar("Function", bound=Callable)


def told(function: Function) -> Function:
    """The function of an event, whose errors become messages in the page."""
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*values, **named):
            try:
                yield from function(*values, **named)
            except Exception as error:
                raise message(error) from None

        return generator  # type: ignore[return-value]

    @wraps(function)
    def plain(*values, **named):
        try:
            return function(*values, **named)
        except Exception as error:
            raise message(error) from None

    return plain  # type: ignore[return-value]


def message(error: Exception) -> gr.Error:
    """What a visitor is told; what nobody foresaw is printed in the terminal, too."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, BadAudio):
        # A visitor knows an upload by its name, not by where the server keeps it.
        line = f"{getattr(error.path, 'name', error.path)}: {error.reason}"
    elif isinstance(error, (UserError, OSError)):
        line = " ".join(str(error).split())
    elif isinstance(error, RuntimeError) and "memory" in str(error):
        line = f"out of memory ({first_line(error)}); hint: fewer seconds, or end other work"
    else:
        line = f"this did not work ({type(error).__name__}: {first_line(error)})"
        print(f"segue app: {line}", file=sys.stderr)
    return gr.Error(escape(line, quote=False), duration=None, print_exception=False, title="Not done")
