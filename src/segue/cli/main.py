"""`segue`, the command line: one file a verb. This one names them and turns a user's mistake into one line, exit 2."""

from __future__ import annotations

import errno
import sys

import typer

from segue.cli import (
    codec,
    compare,
    data,
    demo,
    encode,
    evaluate,
    evaluate_pairs,
    generate,
    judge,
    recipes,
    resolver,
    study,
    taps,
    teacher,
    train,
    upsample,
)
from segue.types import UserError, printable

# The class behind every complaint about the command line. typer has carried a click of its own since 0.20; this finds
# the right one in either case: BadParameter <- UsageError <- ClickException.
UsageProblem = typer.BadParameter.__mro__[2]


def make_app() -> typer.Typer:
    """The table of verbs."""
    options = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}
    app = typer.Typer(help="Train audio diffusion models stage-adaptively; generate with them.", **options)
    app.command("demo")(demo.demo)
    app.command("encode")(encode.encode)
    app.command("train")(train.train)
    app.command("generate")(generate.generate)
    app.command("upsample")(upsample.upsample)
    app.command("recipes")(recipes.recipes)
    app.command("taps")(taps.taps)
    app.command("study")(study.study)
    app.command("compare")(compare.compare)
    groups = {
        "data": (
            "Look at a data set, pack a cache into shards, or render the demo set.",
            {"check": data.check, "pack": data.pack, "render-demo": data.render_demo},
        ),
        "codec": (
            "Train the codec on your own sounds.",
            {"train": codec.train, "refine": codec.refine, "measure": codec.measure, "ship": codec.ship},
        ),
        "teacher": (
            "Train the self-supervised teacher on your own sounds.",
            {"train": teacher.train, "measure": teacher.measure, "ship": teacher.ship},
        ),
        "evaluate": (
            "Measure sounds: every figure with its interval, N and metric card.",
            {
                "generation": evaluate.generation,
                "super-resolution": evaluate_pairs.super_resolution,
                "files": evaluate_pairs.files,
            },
        ),
        "resolver": (
            "Measure or ship a super-resolution model.",
            {"measure": resolver.measure, "ship": resolver.ship},
        ),
        "judge": ("The classifier that listens to notes.", {"train": judge.train, "card": judge.card}),
    }
    for name, (words, verbs) in groups.items():
        group = typer.Typer(help=words, **options)
        for verb, function in verbs.items():
            group.command(verb)(function)
        app.add_typer(group, name=name)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 a mistake that the user can mend, 130 interrupted."""
    try:
        code = make_app()(arguments, standalone_mode=False)
    except UserError as error:
        sys.exit(_complain(str(error), 2))
    except UsageProblem as error:
        sys.exit(_complain(error.format_message(), 2))
    except OSError as error:
        full = " (the disk is full; free some and run the command again)" if error.errno == errno.ENOSPC else ""
        sys.exit(_complain(f"{error.filename or 'file'}: {error.strerror}{full}", 2))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_complain("interrupted", 130))
    sys.exit(code if isinstance(code, int) else 0)


def _complain(line: str, code: int) -> int:
    print(f"segue: {printable(' '.join(line.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
