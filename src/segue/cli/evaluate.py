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

from segue.evaluation.folders.generation import measure_generation
from segue.evaluation.folders.pairs import measure_files, measure_super_resolution
from segue.evaluation.folders.sets import Findings
from segue.files import write_bytes, write_text
from segue.provenance import command, commit, machine
from segue.report.evaluate import worst_and_best_png

Out = Annotated[Path, typer.Option(help="Folder for evaluation.json, files.csv, worst-and-best.png and the cache.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap and of FAD-infinity's subsets.")]
Draws = Annotated[int, typer.Option(help="Bootstrap draws; Frechet takes at most 100, FAD-infinity 50.", min=20)]
Visqol = Annotated[bool, typer.Option("--visqol", help="Measure ViSQOL's MOS, too (needs visqol-python; slow).")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out sounds that cannot be used, of pairs both, and list them.")
]
Trim = Annotated[bool, typer.Option("--trim", help="Cut pairs of different lengths to the shorter one.")]


def generation(
    gen: Annotated[Path, typer.Argument(metavar="GEN", help="Folder or manifest of generated sounds.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Folder or manifest of real sounds.")],
    captions: Annotated[
        str | None,
        typer.Option(help="What GEN was asked for: a manifest or folder with .txt files, by id; or 'title', as "
                     "`segue generate` wrote it into its files."),
    ] = None,
    embedding: Annotated[
        str,
        typer.Option(help="note-classifier, log-mel, compact, a trained teacher's folder, a hub name (WavLM, CLAP, "
                     "AST...), or weights of your own: panns:FILE, vggish:FILE, vggish-pca:FILE."),
    ] = "note-classifier",
    layer: Annotated[
        int | None,
        typer.Option(help="Hidden layer of it; default: its middle. Not for note-classifier, log-mel, PANNs, VGGish."),
    ] = None,
    crop_seconds: Annotated[
        float | None, typer.Option(help="Seconds of a clip that it takes; default: 10. Not for note-classifier.")
    ] = None,
    text_embedding: Annotated[
        str | None, typer.Option(help="CLAP for --captions: a hub name (laion/clap-htsat-unfused) or local folder.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run that GEN comes from: its teacher may not measure it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure by the teacher of the run all the same; the table will say so.")
    ] = False,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Ignore that some ids are in both sets.")] = False,
    k: Annotated[int, typer.Option(help="Neighbours, for precision, recall, density and coverage.", min=1)] = 5,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the embedding; MERT needs it.")
    ] = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:  # fmt: skip
    """Generated against real sounds: Frechet distance, FAD-infinity, KAD, precision, recall, density, coverage.

    With the note classifier also inception score and, where ids pair, KL both ways; with captions, prompt accuracy.
    """
    found = measure_generation(
        gen, ref, out / "embeddings", captions=captions, embedding=embedding, layer=layer, crop_seconds=crop_seconds,
        text_embedding=text_embedding, run=run, force=force, unpaired=unpaired, k=k,
        trust_remote_code=trust_remote_code, draws=draws, seed=seed, skip_bad=skip_bad,
    )  # fmt: skip
    _write(found, out)


def super_resolution(
    est: Annotated[Path, typer.Argument(metavar="EST", help="Folder or manifest of estimates.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="The true sounds, of the same ids.")],
    cutoff_hz: Annotated[
        float | None,
        typer.Option(help="Where the input's band ends: splits low from high band, and shows the rows beside."),
    ] = None,
    low: Annotated[
        Path | None,
        typer.Option("--input", help="What EST was made of, for the rows; default: made from REF by --protocol."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="nuwave2, nuwave2-poly or fft: how REF loses its top.")] = "nuwave2",
    codec: Annotated[str, typer.Option(help="Codec of the round trip's row: a name or folder.")] = "spectral",
    visqol: Visqol = False,
    trim: Trim = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Pairs by id: LSD by every published preset, in full, low and high band, loudness-matched too; SI-SDR and more.

    With --cutoff-hz beside each: the unprocessed input, sinc, band replication, and the reference through a codec.
    """
    found = measure_super_resolution(
        est, ref, cutoff_hz=cutoff_hz, low=low, protocol=protocol, codec=codec, visqol=visqol, trim=trim,
        draws=draws, seed=seed, skip_bad=skip_bad,
    )  # fmt: skip
    _write(found, out)


def files(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder or manifest of sounds.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The sounds that they are measured against, of the same ids.")],
    visqol: Visqol = False,
    trim: Trim = False,
    skip_bad: SkipBad = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Pairs by id, for codecs and the like: LSD, log-mel L1, multi-resolution STFT, SI-SDR and SNR of A against B."""
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
    picture = worst_and_best_png(found.examples)
    write_bytes(out / "worst-and-best.png", picture)
    write_text(out / "files.csv", _csv(found.by_file))
    write_text(out / "evaluation.json", json.dumps(results, indent=1, allow_nan=False))
    _print(found)
    print(f"{out}/evaluation.json   {out}/files.csv   {out}/worst-and-best.png")


def _csv(by_file: dict[str, dict]) -> str:
    text = io.StringIO()
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
    beside = [{m.name: f"{m.value:.4g}" for m in measures} for measures in found.rows.values()]
    for m in found.measures:
        value = f"{m.value:.4g} {m.unit}".strip()
        cells = [m.name, value, f"{m.interval[0]:.4g} to {m.interval[1]:.4g}", f"{m.n:,}", m.better]
        table.add_row(*cells, *(values.get(m.name, "–") for values in beside))
    console = Console()
    # Into a file or a pipe: no cut columns.
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    for name, why in found.not_computed.items():
        print(f"not computed: {name}: {why}")
    for m in found.measures:
        if "r2" in m.card:
            print(f"{m.name}: R2 of the fit {m.card['r2']:.3f}")
    for line in found.warnings:
        print(f"note: {line}")
