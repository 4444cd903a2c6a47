"""`segue app`: a page in the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import Device


def app(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders that the page may use, with runs, sounds or caches in them; new runs go into the first. "
            "Default: this folder."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 7860,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Also serve the page under a public address, through Gradio's servers: anyone who has it "
            "can use the folders.",
        ),
    ] = False,
    max_upload_mb: Annotated[int, typer.Option(help="Largest upload in MB.", min=1)] = 200,
    device: Device = "auto",
) -> None:
    """Open a page in the browser: generate, edit, upsample, look at runs, train. Ctrl-C ends it; trainings save."""
    from segue.app.server import serve

    def ready(address: str) -> None:
        print(f"segue app: {address}  (uploads up to {max_upload_mb} MB; Ctrl-C ends it)", flush=True)
        if share:
            print("note: the address is public: anyone who has it can use the folders", file=sys.stderr)

    serve(folders or [Path()], port=port, share=share, upload_mb=max_upload_mb, device=device, ready=ready)
