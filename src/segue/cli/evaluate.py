"""`segue evaluate`: folders of sounds; every figure with interval, N and metric card."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from segue.cli.options import Device
from segue.devices import announced_device
from segue.evaluation.folders.generation import measure_generation
from segue.evaluation.folders.pairs import measure_files, measure_super_resolution
from segue.evaluation.folders.sound_sets import Findings
from segue.files import write_bytes, write_text
from segue.provenance import command, commit, machine
from segue.report.worst_and_best import worst_and_best_png

Out = Annotated[Path, typer.Option(help="Folder for evaluation.json, files.csv, worst-and-best.png and the cache.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap and of the subsets of FAD-infinity.")]
Draws = Annotated[
    int, typer.Option(help="Number of bootstrap draws; Frechet distance takes at most 100, FAD-infinity 50.", min=20)
]
Visqol = Annotated[bool, typer.Option("--visqol", help="Measure the MOS of ViSQOL, too (needs visqol-python; slow).")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out sounds that cannot be used (both of a pair), and list them.")
]
Trim = Annotated[bool, typer.Option("--trim", help="Cut pairs of different lengths to the shorter one.")]


def generation(
    gen: Annotated[Path, typer.Argument(metavar="GEN", help="Folder or manifest of generated sounds.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Folder or manifest of real sounds.")],
    captions: Annotated[
        str | None,
        typer.Option(help="Prompts of GEN: a manifest, or a folder with .txt files, by id; or 'title', as "
                          "`segue generate` "
                     "writes it into its files."),
    ] = None,
    embedding: Annotated[
        str,
        typer.Option(help="Embedding: note-classifier, log-mel, compact, folder of a trained teacher, hub name (WavLM, "
                     "CLAP, AST...), or your own weights: panns:FILE, vggish:FILE, vggish-pca:FILE."),
    ] = "note-classifier",
    layer: Annotated[
        int | None,
        typer.Option(help="Hidden layer of the embedding; default: the middle one. Not for note-classifier, "
                          "log-mel, PANNs, VGGish."),
    ] = None,
    crop_seconds: Annotated[
        float | None, typer.Option(help="Length in seconds of a clip that is embedded; default: 10. Not for "
                                        "note-classifier.")
    ] = None,
    text_embedding: Annotated[
        str | None, typer.Option(help="CLAP model for --captions: a hub name (laion/clap-htsat-unfused) or a "
                                      "local folder.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run that GEN comes from; its teacher is refused as --embedding.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept the teacher of the run as --embedding; the table says so.")
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Compare with the held-out clips of REF alone, which `segue encode` "
                                              "keeps out of training.")
    ] = False,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Ignore that some ids are in both sets.")] = False,
    k: Annotated[int, typer.Option(help="Number of neighbours, for precision, recall, density and "
                                        "coverage.", min=1)] = 5,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the embedding; MERT needs it.")
    ] = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = Path("evaluation"),
) -> None:  # fmt: skip
    """Generated against real sounds: Frechet distance, FAD-infinity, KAD, precision, recall, density, coverage.

    With the note classifier also inception score and, where ids pair, KL both ways; with captions, prompt accuracy.
    """
    found = measure_generation(
        gen, ref, out / "embeddings", captions=captions, embedding=embedding, layer=layer, crop_seconds=crop_seconds,
        text_embedding=text_embedding, run=run, force=force, unpaired=unpaired, k=k,
        trust_remote_code=trust_remote_code, draws=draws, seed=seed, skip_bad=skip_bad,
        held_out=held_out, device=announced_device(device),
    )  # fmt: skip
    _write(found, out)


def super_resolution(
    est: Annotated[Path, typer.Argument(metavar="EST", help="Folder or manifest of estimates.")],
    ref: Annotated[
        Path, typer.Argument(metavar="REF", help="Folder or manifest of the true sounds, with the same ids.")
    ],
    cutoff_hz: Annotated[
        float | None,
        typer.Option(
            help="Frequency in Hz where the input's band ends: it splits low from high band, and adds the baselines."
        ),
    ] = None,
    low: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Folder or manifest of the inputs of EST, for the baselines; default: made from REF by --protocol.",
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Protocol by which REF loses its high band: nuwave2, nuwave2-poly or fft.")
    ] = "nuwave2",
    codec: Annotated[str, typer.Option(help="Codec of the round-trip baseline: a name or a folder.")] = "spectral",
    visqol: Visqol = False,
    trim: Trim = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Compare pairs by id: LSD by every published preset (full, low, high band, loudness-matched), SI-SDR and more.

    --cutoff-hz adds the baselines: unprocessed input, sinc, band replication, and the reference through a codec.
    """
    found = measure_super_resolution(
        est, ref, cutoff_hz=cutoff_hz, low=low, protocol=protocol, codec=codec, visqol=visqol, trim=trim,
        draws=draws, seed=seed, skip_bad=skip_bad,
    )  # fmt: skip
    _write(found, out)


def files(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder or manifest of sounds.")],
    b: Annotated[
        Path,
        typer.Argument(metavar="B", help="Folder or manifest of the sounds to measure against, with the same ids."),
    ],
    visqol: Visqol = False,
    trim: Trim = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Compare pairs by id, such as a codec's: LSD, log-mel L1, multi-resolution STFT, SI-SDR and SNR of A against B."""
    _write(measure_files(a, b, visqol=visqol, trim=trim, draws=draws, seed=seed, skip_bad=skip_bad), out)


def _write(found: Findings, out: Path) -> None:
    """Write evaluation.json, files.csv and worst-and-best.png, and print the table."""
    results = {
        "counts": found.counts,
        "sets": found.sets,
        "measures": [m.to_json() for m in found.measures],
        "rows": {name: [m.to_json() for m in measures] for name, measures in found.rows.items()},
        "not_computed": found.not_computed,
        "notes": found.warnings,
        "origin": {"command": command(), "commit": commit(), "machine": machine()},
    }
    # Drawn before the first file is written: what fails here leaves no half evaluation.
    picture = worst_and_best_png(found.examples)
    write_bytes(out / "worst-and-best.png", picture)
    write_text(out / "files.csv", _csv(found.by_file))
    # allow_nan=False: a figure that is not finite has no place in JSON.
    write_text(out / "evaluation.json", json.dumps(results, indent=1, allow_nan=False))
    _print(found)
    print(f"{out}/evaluation.json   {out}/files.csv   {out}/worst-and-best.png")


def _csv(by_file: dict[str, dict]) -> str:
    text = io.StringIO()
    # Clips may have different figures: every column that any of them has.
    columns = list(dict.fromkeys(key for row in by_file.values() for key in row))
    writer = csv.DictWriter(text, ["id", *columns], lineterminator="\n")
    writer.writeheader()
    for name in sorted(by_file):
        writer.writerow({"id": name, **by_file[name]})
    return text.getvalue()


def _print(found: Findings) -> None:
    title = ", ".join(f"{n:,} {name}" for name, n in found.counts.items())
    table = Table(title=title, title_justify="left")
    for column in ("measure", "value", "95 % interval", "N", "better", *found.rows):
        table.add_column(column, justify="left" if column in ("measure", "better") else "right")
    # Rows beside hold their values alone; intervals of all of them would not fit a line.
    beside = [{m.name: f"{m.value:.4g}" for m in measures} for measures in found.rows.values()]
    for m in found.measures:
        value = f"{m.value:.4g} {m.unit}".strip()
        cells = [m.name, value, f"{m.interval[0]:.4g} to {m.interval[1]:.4g}", f"{m.n:,}", m.better]
        table.add_row(*cells, *(values.get(m.name, "–") for values in beside))
    console = Console()
    # Into a file or a pipe: no cut columns.
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    # Below the table: what is missing there, how well lines fitted, and what limits the figures.
    for name, why in found.not_computed.items():
        print(f"not computed: {name}: {why}")
    for m in found.measures:
        if "r2" in m.card:
            print(f"{m.name}: R2 of the fit {m.card['r2']:.3f}")
    for line in found.warnings:
        print(f"note: {line}")
