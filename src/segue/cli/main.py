"""`segue`, the command line: the table of its verbs, one file each."""

from __future__ import annotations

from collections.abc import Sequence

from segue._version import __version__
from segue.cli.verbs import Group, Verb, make_command, run_command

# A line must fit beside its verb in 80 columns.
VERBS: dict[str, Verb | Group] = {
    "demo": Verb("segue.cli.demo:demo", "Render sounds, train two recipes on them, compare them."),
    "caption": Verb("segue.cli.caption:caption", "Make captions for a folder of sounds, to edit."),
    "encode": Verb("segue.cli.encode:encode", "Encode a folder of sounds into a cache to train on."),
    "train": Verb("segue.cli.train:train", "Train a model on a cache, or continue a run."),
    "generate": Verb("segue.cli.generate:generate", "Generate sounds from prompts."),
    "export": Verb("segue.cli.export:export", "Save a run's model for other libraries."),
    "push": Verb("segue.cli.push:push", "Share a model: onto the hub, or into a folder."),
    "upsample": Verb("segue.cli.upsample:upsample", "Add the missing upper band to sound files."),
    "app": Verb("segue.cli.app:app", "Do all of this on a page in the browser."),
    "recipes": Verb("segue.cli.recipes:recipes", "List the recipes that `segue train` takes."),
    "compare": Verb("segue.cli.compare:compare", "Compare runs, and how soon each reaches a value."),
    "data": Group(
        "Check a data set, pack a cache, render the demo set.",
        {
            "check": Verb("segue.cli.data:check", "Decode every file, and name those that cannot be used."),
            "pack": Verb("segue.cli.data:pack", "Pack a cache into tar shards that training streams."),
            "render-demo": Verb("segue.cli.data:render_demo", "Render the captioned sounds of the demo."),
        },
    ),
    "codec": Group(
        "Train a codec on your own sounds, or measure one.",
        {
            "train": Verb("segue.cli.codec:train", "Train a codec on a folder of sounds."),
            "refine": Verb("segue.cli.codec:refine", "Train a codec's decoder on; its latents stay valid."),
            "measure": Verb("segue.cli.codec:measure", "Measure a codec on held-out sounds."),
        },
    ),
    "teacher": Group(
        "Train a self-supervised teacher on your own sounds.",
        {
            "train": Verb("segue.cli.teacher:train", "Train a teacher on a folder of sounds."),
            "measure": Verb("segue.cli.teacher:measure", "Measure whether a teacher's space has collapsed."),
        },
    ),
    "evaluate": Group(
        "Measure sounds: every figure with its interval and card.",
        {
            "generation": Verb("segue.cli.evaluate:generation", "Compare generated with real sounds."),
            "super-resolution": Verb("segue.cli.evaluate:super_resolution", "Compare upsampled with true sounds."),
            "files": Verb("segue.cli.evaluate:files", "Compare pairs of files, such as a codec's."),
        },
    ),
    "super-resolution": Group(
        "Train a predictor of upper bands; measure models.",
        {
            "train": Verb("segue.cli.super_resolution:train", "Train a predictor on full-band sounds."),
            "measure": Verb("segue.cli.super_resolution:measure", "Measure a model beside every baseline."),
        },
        former="resolver",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 a mistake that the user can correct, 130 interrupted."""
    command = make_command(
        "Train audio diffusion models stage-adaptively; generate with them.", f"segue {__version__}", VERBS
    )
    run_command(command, "segue", arguments)


if __name__ == "__main__":
    main()
