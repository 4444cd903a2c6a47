"""`segue push`: a trained model onto the hub, or into a folder of the same form."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import finite
from segue.hub import check_may_send, send_folder
from segue.types import UserError
from segue.workflows.share import Statement, write_shared


def push(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or model.safetensors.")],
    name: Annotated[
        str | None, typer.Argument(help="Name on the Hugging Face hub, OWNER/NAME; what is there is replaced.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="New folder to write the same files into; nothing is sent.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the model on the hub public; without it a new one is private.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Licence of the weights, for the card, such as cc-by-4.0.")
    ] = "",
    data: Annotated[str, typer.Option(help="What the model was trained on, in words, for the card.")] = "",
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Figures for the card: evaluation.json of `segue evaluate`, or what `segue super-resolution measure "
            "--json` wrote."
        ),
    ] = None,
    sounds: Annotated[int, typer.Option(help="Number of the run's own samples that go along; 0: none.")] = 4,
) -> None:
    """Share a trained model: averaged weights, config, codec and text encoder, sounds, and a model card.

    `segue generate OWNER/NAME PROMPT` and segue.Pipeline.load("OWNER/NAME") use it then, a folder of --to as well.
    """
    if (name is None) == (to is None):
        raise UserError("give OWNER/NAME to send it to the hub, or --to FOLDER to write it here; hint: one of the two")
    finite("--sounds", sounds, 0)
    about = partial(Statement, data=data, licence=licence, figures=figures, sounds=sounds)
    if to is not None:
        write_shared(run, to, about(to.name))
        _say_what_is_missing(licence, data)
        print(f"{to}: use it with: segue generate {to} PROMPT")
        return
    assert name is not None
    # Before the work: a name that is none, no token, or a public place of that name.
    check_may_send(name, public)
    with tempfile.TemporaryDirectory(prefix="segue-push-") as place:
        folder = Path(place) / "model"
        files = write_shared(run, folder, about(name))
        _say_what_is_missing(licence, data)
        size = sum((folder / file).stat().st_size for file in files)
        print(f"sending {len(files)} files ({size / 1e6:.1f} MB) to {name}:", file=sys.stderr)
        for file in files:
            print(f"  {file.as_posix()}", file=sys.stderr)
        print(send_folder(folder, name, public))


def _say_what_is_missing(licence: str, data: str) -> None:
    for option, value in (("--licence", licence), ("--data", data)):
        if not value:
            print(f"note: no {option}: the card says that it is not stated", file=sys.stderr)
