"""`segue-lab`, the command line of the laboratory: the table of its verbs."""

from __future__ import annotations

from collections.abc import Sequence

from segue._version import __version__
from segue.cli.verbs import Group, Verb, make_command, run_command

# A line must fit beside its verb in 80 columns.
VERBS: dict[str, Verb | Group] = {
    "study": Verb("segue_lab.cli.study:study", "Train variants by seeds, evaluate them, make tables."),
    "block-ablation": Verb(
        "segue_lab.cli.block_ablation:block_ablation", "Find the block that drives a prediction most."
    ),
    "classifier": Group(
        "Train the note classifier, or show its card.",
        {
            "train": Verb("segue_lab.cli.classifier:train", "Train a note classifier and write its card."),
            "card": Verb("segue_lab.cli.classifier:card", "Show how a classifier was trained and how accurate it is."),
        },
    ),
    "teacher": Group(
        "Measure a teacher by linear probes.",
        {"measure": Verb("segue_lab.cli.teacher:measure", "Compare a teacher with log-mel and random features.")},
    ),
    "release": Group(
        "Turn trained weights into released ones, with a card.",
        {
            "codec": Verb("segue_lab.cli.release:codec", "Halve a codec's weights, measure it, write its card."),
            "teacher": Verb("segue_lab.cli.release:teacher", "Halve a teacher's weights, measure it, write its card."),
            "text-to-audio": Verb(
                "segue_lab.cli.release:text_to_audio", "Keep a demo's averaged weights, with its figures."
            ),
            "super-resolution": Verb(
                "segue_lab.cli.release:super_resolution", "Keep a model's averaged weights, and measure it."
            ),
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit as `segue` does."""
    summary = "Studies, the note classifier, releases: what makes segue's own figures."
    run_command(make_command(summary, f"segue-lab {__version__}", VERBS), "segue-lab", arguments)


if __name__ == "__main__":
    main()
