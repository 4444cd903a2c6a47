"""A command line whose verbs are imported when they are run: `--help` must not wait for torch.

Verbs are listed with the line that the help shows. Their functions, with all that those import, are looked up when a
verb is run, asked for its own help, or completed by the shell.
"""

from __future__ import annotations

import errno
import importlib
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from segue.types import UserError, printable

# The class behind every complaint about the command line. typer has carried a click of its own since 0.20; this finds
# the right one in either case: BadParameter <- UsageError <- ClickException.
UsageProblem: Any = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        home: its function, "package.module:function".
        summary: what it does, one line in the list of commands.
    """

    home: str
    summary: str

    def function(self):
        """The function, imported now."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Group:
    """Commands that share a first word.

    Attributes:
        summary: what they are for.
        verbs: their second words.
        former: their earlier first word, which is accepted and not listed.
    """

    summary: str
    verbs: Mapping[str, Verb]
    former: str = ""


class _Checked(TyperCommand):
    """A verb whose options are checked for what no verb can compute with, before it begins."""

    def invoke(self, ctx):
        from segue.cli.options import check_option

        # Before the verb begins: the checks know options by name, and need no code in each verb.
        for parameter in self.params:
            if parameter.name in ctx.params:
                check_option(parameter.opts[0], ctx.params[parameter.name])
        return super().invoke(ctx)


class _Deferred(TyperCommand):
    """A verb in the list of commands, before it is imported."""

    def __init__(self, name: str, verb: Verb) -> None:
        super().__init__(name, help=verb.summary, rich_markup_mode=None)
        self.verb = verb

    def loaded(self):
        """The command itself, with its options."""
        # A small application of its own turns the function's annotations into options.
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(self.name, cls=_Checked)(self.verb.function())
        return typer.main.get_command(app)


class _Verbs(TyperGroup):
    """A group that imports a verb when it is chosen, and prints its help where none is."""

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, _Deferred) else command, rest

    def parse_args(self, ctx, args):
        if not args and not ctx.resilient_parsing:  # typer's own way is an error, exit 2
            print(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def add_verbs(self, verbs: Mapping[str, Verb | Group]) -> None:
        """List verbs, and groups of them."""
        for name, verb in verbs.items():
            if isinstance(verb, Verb):
                self.add_command(_Deferred(name, verb), name)
                continue
            # A former name is a hidden group of the same verbs.
            for called in filter(None, (name, verb.former)):
                group = _Verbs(name=called, help=verb.summary, rich_markup_mode=None, hidden=called != name)
                group.add_verbs(verb.verbs)
                self.add_command(group, called)


def make_command(summary: str, version: str, verbs: Mapping[str, Verb | Group]):
    """A whole command line.

    Args:
        summary: what it is for.
        version: what `--version` prints.
        verbs: name -> verb or group, in the order that the help lists them.
    """

    def print_version(wanted: bool) -> None:
        if wanted:
            print(version)
            raise typer.Exit

    def root(
        version: bool = typer.Option(
            False, "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        pass

    app = typer.Typer(cls=_Verbs, help=summary, rich_markup_mode=None)
    app.callback()(root)
    command = typer.main.get_command(app)
    assert isinstance(command, _Verbs)
    command.add_verbs(verbs)
    return command


def run_command(command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 a mistake that the user can correct in one line, 130 interrupted."""
    _quiet_libraries()
    try:
        # standalone_mode=False hands errors to us: typer would print boxes of its own.
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except UserError as error:
        sys.exit(_complain(name, str(error), 2))
    except UsageProblem as error:
        line = error.format_message()
        helps = "hint:" in line or "Did you mean" in line
        sys.exit(_complain(name, line if helps else f"{line.rstrip('.')}; hint: {_what_to_type(error, name)}", 2))
    except OSError as error:
        full = " (the disk is full; free some and run the command again)" if error.errno == errno.ENOSPC else ""
        sys.exit(_complain(name, f"{error.filename or 'file'}: {error.strerror}{full}", 2))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_complain(name, "interrupted", 130))
    sys.exit(code if isinstance(code, int) else 0)


def _what_to_type(error: Any, name: str) -> str:
    """The command with an argument that was written as an option (--recipe stage), or its help."""
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{name} --help"
    option = (getattr(error, "option_name", None) or "").lstrip("-")
    for parameter in context.command.params:
        if option and parameter.param_type_name == "argument" and parameter.name == option:
            return f"{context.command_path} {parameter.metavar or option.upper()}, without --{option}"
    return f"{context.command_path} --help"


def _quiet_libraries() -> None:
    """Leave out what other libraries say of themselves at each start: it would stand before our own line."""
    # bitsandbytes' kernels that nobody asked for, and a form of weight norm that Oobleck's files are in.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*weight_norm.*is deprecated", category=FutureWarning)


def _complain(name: str, line: str, code: int) -> int:
    print(f"{name}: {printable(' '.join(line.split()))}", file=sys.stderr)
    return code
