"""`segue-lab`, the command line of the laboratory: what makes the project's own figures and weights."""

from __future__ import annotations

import typer

from segue.cli.main import run_app
from segue_lab.cli import block_ablation, classifier, release, study, teacher


def make_app() -> typer.Typer:
    """The table of verbs."""
    options = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}
    app = typer.Typer(help="Studies, releases and the note classifier: what makes segue's own figures.", **options)
    app.command("study")(study.study)
    app.command("block-ablation")(block_ablation.block_ablation)
    groups = {
        "classifier": (
            "Train the note classifier, or show its card.",
            {"train": classifier.train, "card": classifier.card},
        ),
        "teacher": ("Measure a teacher by linear probes.", {"measure": teacher.measure}),
        "release": (
            "Halve trained weights to float16, measure them, and write their card.",
            {"codec": release.codec, "teacher": release.teacher, "super-resolution": release.super_resolution},
        ),
    }
    for name, (words, verbs) in groups.items():
        group = typer.Typer(help=words, **options)
        for verb, function in verbs.items():
            group.command(verb)(function)
        app.add_typer(group, name=name)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit as `segue` does."""
    run_app(make_app(), "segue-lab", arguments)


if __name__ == "__main__":
    main()
