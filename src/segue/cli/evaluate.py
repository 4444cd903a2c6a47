"""`segue evaluate`: sets and pairs of sound files measured; every figure with interval, N and metric card."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from rich.console import Console
from rich.table import Table

from segue.cli.origin import command, commit, machine
from segue.data.audio import SUFFIXES, BadAudio, Header, read_header, read_wave
from segue.data.manifest import Clip, load_manifest
from segue.data.progress import track
from segue.files import sha256_of, write_bytes, write_text
from segue.metrics.accuracy import accuracy
from segue.metrics.alignment import similarity_by_clip, text_audio_similarity
from segue.metrics.card import Measure, bootstrap_words, make_measure, mean_over_clips
from segue.metrics.divergence import DIRECTIONS, inception_score, kl_by_pair, paired_kl
from segue.metrics.embeddings import Embedding, EncoderEmbedding, JudgeEmbedding, cached, guided, load_clap
from segue.metrics.frechet import fad_infinity, frechet_measure
from segue.metrics.judge import Judge
from segue.metrics.kernel import SCALES, kernel_audio_distance
from segue.metrics.manifold import manifold_measures, nearest
from segue.metrics.spectral import (
    LSD_PRESETS,
    MULTI_RESOLUTION,
    log_mel_l1,
    lsd,
    lsd_card,
    multi_resolution_stft,
    si_sdr_db,
    snr_db,
    visqol_mos,
)
from segue.report.evaluate import ClipPair, worst_and_best_png
from segue.types import UserError

_SHOWN = 3  # clips at either end of the picture
_KL_FLOOR = 1e-6

Out = Annotated[Path, typer.Option(help="Folder for evaluation.json, files.csv, worst-and-best.png and the cache.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap and of FAD-infinity's subsets.")]
Draws = Annotated[int, typer.Option(help="Bootstrap draws; Frechet takes at most 100, FAD-infinity 50.", min=20)]
Trim = Annotated[bool, typer.Option("--trim", help="Cut pairs of different lengths to the shorter one.")]


@dataclass
class _Findings:
    """What a command has found so far."""

    measures: list[Measure] = field(default_factory=list)
    unprocessed: list[Measure] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_file: dict[str, dict] = field(default_factory=dict)

    def attempt(self, name: str, make: Callable[[], Measure | list[Measure]]) -> None:
        """Add what `make` measures; where it cannot be computed, say why instead."""
        try:
            made = make()
        except UserError as error:
            self.not_computed[name] = str(error)
            return
        self.measures.extend(made if isinstance(made, list) else [made])


def generation(
    gen: Annotated[Path, typer.Argument(metavar="GEN", help="Folder or manifest of generated sounds.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Folder or manifest of real sounds.")],
    captions: Annotated[
        str | None,
        typer.Option(help="What GEN was asked for: a manifest or folder with .txt files, by id; or 'title', as "
                     "`segue generate` wrote it into its files."),
    ] = None,
    embedding: Annotated[
        str, typer.Option(help="judge, compact, a trained teacher's folder, or a hub name (WavLM, CLAP, AST...).")
    ] = "judge",
    layer: Annotated[int | None, typer.Option(help="Hidden layer of it; default: its middle. Not for judge.")] = None,
    crop_seconds: Annotated[float, typer.Option(help="How much of a clip it hears. Not for judge.")] = 10.0,
    text_embedding: Annotated[
        str | None, typer.Option(help="CLAP for --captions: a hub name (laion/clap-htsat-unfused) or local folder.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run that GEN comes from: its teacher may not judge it.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Judge by the teacher that guided the run; the table will say so.")
    ] = False,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Ignore that some ids are in both sets.")] = False,
    k: Annotated[int, typer.Option(help="Neighbours, for precision, recall, density and coverage.", min=1)] = 5,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the embedding; MERT needs it.")
    ] = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:  # fmt: skip
    """Generated against real sounds: Frechet distance, FAD-infinity, KAD, precision, recall, density, coverage.

    With the judge also inception score and, where ids pair, KL both ways; with captions, how well they are met.
    """
    found = _Findings()
    sounds = {"GEN": _sounds(gen), "REF": _sounds(ref)}
    pairs = _pairing(sounds["GEN"], sounds["REF"], unpaired)
    ears = _load_embedding(embedding, layer, crop_seconds, trust_remote_code)
    voice = None if text_embedding is None else load_clap(text_embedding)
    _refuse_guides(sounds["GEN"], run, [e for e in (ears, voice) if e is not None], force, found)
    labels = _captions(captions, sounds["GEN"])
    _refuse_mute_captions(captions, labels, ears, voice)
    heard = {name: _embed(files, ears, out / "embeddings", name) for name, files in sounds.items()}
    x, y = (np.stack([h["embedding"] for h in heard[name].values()]) for name in ("GEN", "REF"))
    about = {"embedding": ears.card(), "seed": seed}
    found.attempt("Frechet distance", lambda: frechet_measure(x, y, draws=min(draws, 100), **about))
    found.attempt("FAD-infinity", lambda: fad_infinity(x, y, draws=min(draws, 50), **about))
    for scale in SCALES:
        found.measures.append(kernel_audio_distance(x, y, scale=scale, draws=draws, **about))
    found.attempt("precision, recall, density, coverage", lambda: manifold_measures(x, y, k=k, draws=draws, **about))
    distances, neighbours = nearest(x, y)
    names = list(sounds["GEN"])
    references = list(sounds["REF"])
    for name, distance, neighbour in zip(names, distances, neighbours):
        found.by_file[name] = {"nearest_reference": references[neighbour], "nearest_distance": float(distance)}
    if isinstance(ears, JudgeEmbedding):
        _judged(found, ears, heard, pairs, labels, draws, about)
    if voice is not None:
        _aligned(found, voice, sounds["GEN"], labels, out / "embeddings", draws, seed)
    ranked = [names[i] for i in np.argsort(-distances, kind="stable")]
    found.warnings.append(f"clips are ranked by the distance to the nearest reference clip in the space of {ears.name}")
    rows = []
    for end, name in _ends(ranked):
        near = found.by_file[name]["nearest_reference"]
        files = ((name, sounds["GEN"][name]), (f"nearest: {near}", sounds["REF"][near]))
        clips = [(label, _read(clip.path, ears.sample_rate_hz)) for label, clip in files]
        rows.append(ClipPair(f"{end}, {found.by_file[name]['nearest_distance']:.3g}", clips, ears.sample_rate_hz))
    _finish(found, out, rows, {"GEN": len(x), "REF": len(y)})


def super_resolution(
    est: Annotated[Path, typer.Argument(metavar="EST", help="Folder or manifest of estimates.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="The true sounds, of the same ids.")],
    cutoff_hz: Annotated[
        float | None,
        typer.Option(help="Half the rate of the input: splits low from high band, and shows the unprocessed row."),
    ] = None,
    visqol: Annotated[bool, typer.Option("--visqol", help="ViSQOL's MOS, too (needs visqol-python; slow).")] = False,
    trim: Trim = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Pairs by id: LSD by every published preset, in full, low and high band, loudness-matched too; SI-SDR and more."""
    found = _Findings()
    pairs = _read_pairs(_sounds(est), _sounds(ref), trim)
    if cutoff_hz is not None and not 0.0 < cutoff_hz < pairs.rate_hz / 2:
        raise UserError(
            f"--cutoff-hz {cutoff_hz:g}: give one between 0 and {pairs.rate_hz / 2:g}, half the files' rate"
        )
    bands = ("full",) if cutoff_hz is None else ("full", "low", "high")
    measures = _lsd_measures(LSD_PRESETS, bands, cutoff_hz, (False, True)) + _signal_measures(visqol)
    _measure_pairs(found, pairs, measures, draws, seed)
    if cutoff_hz is None:
        found.warnings.append("no --cutoff-hz: no low and high band, and no unprocessed row")
    else:
        low = _Findings()
        waves = {i: (_low_passed(r, pairs.rate_hz, cutoff_hz), r) for i, (_, r) in pairs.waves.items()}
        _measure_pairs(low, _Pairs(pairs.rate_hz, waves), measures, draws, seed)
        found.unprocessed = low.measures
        found.warnings.append(f"unprocessed: the reference resampled to {2 * cutoff_hz:g} Hz and back (soxr HQ)")
    _finish_pairs(found, pairs, out, "LSD nuwave2 full", ("estimate", "reference"))


def files(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder or manifest of sounds.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The sounds that they are measured against, of the same ids.")],
    visqol: Annotated[bool, typer.Option("--visqol", help="ViSQOL's MOS, too (needs visqol-python; slow).")] = False,
    trim: Trim = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    out: Out = Path("evaluation"),
) -> None:
    """Pairs by id, for codecs and the like: LSD, log-mel L1, multi-resolution STFT, SI-SDR and SNR of A against B."""
    found = _Findings()
    pairs = _read_pairs(_sounds(a), _sounds(b), trim)
    measures = _lsd_measures(("nuwave2",), ("full",), None, (False,)) + _signal_measures(visqol)
    _measure_pairs(found, pairs, measures, draws, seed)
    _finish_pairs(found, pairs, out, "LSD nuwave2 full", ("A", "B"))


# --- sets of files ---------------------------------------------------------------------------------------------------


def _sounds(source: Path) -> dict[str, Clip]:
    """id -> clip, sorted by id; the id is the path inside the folder without suffix, or what a manifest says.

    Raises:
        UserError: no such folder, no sounds, an id twice, or one clip only.
    """
    if source.is_dir() and not (source / "manifest.jsonl").exists():
        clips = [
            Clip(path.relative_to(source).with_suffix("").as_posix(), path, (), "")
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
        ]
    elif source.is_file() and source.suffix.lower() in SUFFIXES:
        raise UserError(f"{source}: one clip only, which has no interval; name a folder with at least 2 sounds")
    else:
        clips = load_manifest(source, "filename")
    found = {clip.id: clip for clip in sorted(clips, key=lambda clip: clip.id)}
    if len(found) < len(clips):
        twice = sorted({c.id for c in clips if sum(d.id == c.id for d in clips) > 1})
        raise UserError(f"{source}: {twice[0]} is there twice with different suffixes; keep one")
    if not found:
        raise UserError(f"{source}: holds no sounds; put {', '.join(SUFFIXES)} files there, or name another folder")
    if len(found) == 1:
        raise UserError(f"{source}: one clip only, which has no interval; give at least 2")
    return found


def _pairing(first: dict[str, Clip], second: dict[str, Clip], unpaired: bool) -> list[str]:
    """The ids of both sets, where they are all the same; else none.

    Raises:
        UserError: some ids are in both and some are not.
    """
    both = [i for i in first if i in second]
    if unpaired or not both:
        return []
    lacking = sorted(set(first) ^ set(second))
    if lacking:
        raise UserError(
            f"{len(both)} ids are in both sets, {len(lacking)} in one only ({_some(lacking)}); complete the pairs, or "
            "add --unpaired"
        )
    return both


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except BadAudio as error:
        raise UserError(f"{path}: {error.reason}; mend the file, or leave it out and count it as failed") from error


def _refuse_low_rate(path: Path, ears: Embedding) -> None:
    """Upsampled, a file would hold nothing of what the embedding listens for above its own band.

    Raises:
        UserError: the file's rate is below the embedding's.
    """
    has_hz = _header(path).sample_rate_hz
    if has_hz < ears.sample_rate_hz:
        raise UserError(
            f"{path}: {has_hz:,} Hz, but {ears.name} hears at {ears.sample_rate_hz:,} Hz; "
            "take an embedding of a lower rate"
        )


def _read(path: Path, rate_hz: int) -> np.ndarray:
    try:
        return read_wave(path, rate_hz)
    except BadAudio as error:
        raise UserError(f"{path}: {error.reason}; mend the file, or leave it out and count it as failed") from error


# --- generation ------------------------------------------------------------------------------------------------------


def _load_embedding(name: str, layer: int | None, crop_sec: float, trust_remote_code: bool) -> Embedding:
    if name == "judge":
        if layer is not None:
            raise UserError("--layer: the judge's embedding is its penultimate layer; leave --layer away")
        return JudgeEmbedding(Judge.load())
    if name in ("panns", "vggish"):
        raise UserError(
            f"--embedding {name}: not built in: its weights come pickled and its front end cannot be checked here; "
            "take judge, or a hub name such as MIT/ast-finetuned-audioset-10-10-0.4593"
        )
    from segue.ssl import load_teacher

    return EncoderEmbedding(load_teacher(name, layer, trust_remote_code), crop_sec)


def _embed(clips: dict[str, Clip], ears: Embedding, folder: Path, what: str) -> dict[str, dict[str, np.ndarray]]:
    for clip in clips.values():  # all of them before the long work
        _refuse_low_rate(clip.path, ears)
    heard = {}
    for name, clip in track(clips.items(), len(clips), f"{what} by {ears.name}", "clips"):
        content = sha256_of([clip.path])
        heard[name] = cached(folder, content, ears, lambda path=clip.path: _read(path, ears.sample_rate_hz))
    return heard


def _refuse_guides(
    clips: dict[str, Clip], run: Path | None, listeners: list[Embedding], force: bool, found: _Findings
) -> None:
    """An embedding that guided a run may not judge it.

    The run is --run, or what `segue generate` wrote into the files ("RUN seed N"). A cache's teacher counts as a guide
    whether the recipe used it or not.

    Raises:
        UserError: it did, and is not forced; or --run is none.
    """
    runs = [run] if run is not None else _named_runs(clips)
    if not runs:
        found.warnings.append("not checked whether the embedding guided the generator: no run named (--run)")
    for folder in runs:
        teacher = _teacher_of(folder, run is not None, found)
        for ears in listeners:
            if not guided(ears, teacher):
                continue
            line = f"{ears.name} is the teacher of {folder}: an embedding that guided a run may not judge it"
            if not force:
                raise UserError(f"{line}; take another --embedding, or --force")
            found.warnings.append(f"FORCED: {line}; these figures flatter it")


def _teacher_of(run: Path, asked: bool, found: _Findings) -> dict | None:
    try:
        cache = Path(json.loads((run / "config.json").read_text(encoding="utf-8"))["cache"])
        return json.loads((cache / "meta.json").read_text(encoding="utf-8")).get("teacher")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if asked:
            raise UserError(
                f"--run {run}: no run there, or its cache is gone: its teacher cannot be checked; leave --run away, "
                "and the table will say so"
            ) from error
        found.warnings.append(f"not checked whether the embedding guided {run}: the run or its cache is gone")
        return None


def _named_runs(clips: dict[str, Clip]) -> list[Path]:
    named = (re.fullmatch(r"(.+) seed \d+", _tag(clip.path, "comment")) for clip in clips.values())
    return sorted({Path(match.group(1)) for match in named if match})


def _tag(path: Path, tag: str) -> str:
    try:
        with soundfile.SoundFile(path) as file:
            return getattr(file, tag) or ""
    except soundfile.LibsndfileError:
        return ""  # reading the sound complains, with the reason


def _captions(source: str | None, clips: dict[str, Clip]) -> dict[str, Clip]:
    """id -> a clip that carries the caption and what else is known of it.

    Raises:
        UserError: a generated clip has no caption.
    """
    if source is None:
        return {}
    if source == "title":
        found = {i: Clip(i, c.path, (_tag(c.path, "title"),), "") for i, c in clips.items() if _tag(c.path, "title")}
    else:
        found = {clip.id: clip for clip in load_manifest(Path(source))}
    lacking = [i for i in clips if i not in found]
    if lacking:
        raise UserError(f"--captions {source}: none for {len(lacking)} of {len(clips)} clips ({_some(lacking)})")
    return {i: found[i] for i in clips}


def _refuse_mute_captions(source: str | None, labels: dict[str, Clip], ears: Embedding, voice) -> None:
    if voice is not None and source is None:
        raise UserError("--text-embedding needs --captions")
    asks = isinstance(ears, JudgeEmbedding) and any(_asked(labels, kind) for kind in ("pitch", "family", "instrument"))
    if source is not None and voice is None and not asks:
        raise UserError(
            "--captions alone measure nothing here: give --text-embedding laion/clap-htsat-unfused (or a local CLAP), "
            "or a manifest with pitch, family or instrument for --embedding judge"
        )


def _asked(labels: dict[str, Clip], kind: str) -> list[str]:
    return [i for i, clip in labels.items() if clip.fields.get(kind) not in (None, "")]


def _judged(
    found: _Findings,
    ears: JudgeEmbedding,
    heard: dict,
    pairs: list[str],
    labels: dict[str, Clip],
    draws: int,
    about: dict,
) -> None:
    """What the judge's classes tell: inception score, KL between pairs, and whether pitch and instrument are obeyed."""
    gen, ref = heard["GEN"], heard["REF"]
    rows = np.stack([h["instrument"] for h in gen.values()])
    found.attempt("inception score", lambda: inception_score(rows, draws=draws, **about))
    if pairs:
        x, y = (np.stack([h[i]["instrument"] for i in pairs]) for h in (gen, ref))
        for direction in DIRECTIONS:
            found.attempt(
                f"KL({direction})",
                lambda d=direction: paired_kl(x, y, direction=d, floor=_KL_FLOOR, draws=draws, **about),
            )
        for name, value in zip(pairs, kl_by_pair(x, y, floor=_KL_FLOOR)):
            found.by_file[name][f"kl_{DIRECTIONS[0]}"] = float(value)
    else:
        found.not_computed["KL"] = "GEN and REF share no ids, so that no clip has its reference"
    judge = ears.judge
    for name, h in gen.items():
        found.by_file[name] |= {
            "heard_instrument": judge.instruments[int(h["instrument"].argmax())],
            "heard_pitch": judge.pitches[int(h["pitch"].argmax())],
        }
    index = {
        "pitch": (lambda value: judge.pitch_index(int(value)), len(judge.pitches)),
        "family": (judge.family_index, len(judge.families)),
        "instrument": (judge.instrument_index, len(judge.instruments)),
    }
    for kind, (index_of, classes) in index.items():
        asked = _asked(labels, kind)
        if asked:
            got = [int(gen[i][kind].argmax()) for i in asked]
            found.attempt(
                f"{kind} accuracy",
                lambda kind=kind, asked=asked, got=got, index_of=index_of, classes=classes: _accuracy(
                    kind, got, [index_of(labels[i].fields[kind]) for i in asked], classes, draws, about
                ),
            )


def _accuracy(kind: str, got: list[int], asked: list[int], classes: int, draws: int, about: dict) -> Measure:
    right = accuracy(got, asked, classes, draws=draws, seed=about["seed"])
    parameters = {
        "chance": right.chance,
        "chance_is": "expected with shuffled captions",
        "uniform_chance": right.uniform_chance,
        "interval": bootstrap_words(draws, 0.95, about["seed"]),
    }
    return make_measure(
        f"{kind} accuracy", right.value, right.interval, right.n, better="higher", parameters=parameters,
        embedding=about["embedding"],
    )  # fmt: skip


def _aligned(
    found: _Findings, voice, clips: dict[str, Clip], labels: dict[str, Clip], folder: Path, draws: int, seed: int
) -> None:
    sounds = np.stack([h["embedding"] for h in _embed(clips, voice, folder, "GEN").values()])
    texts = np.stack([voice.embed_text(labels[i].captions[0]) for i in clips])
    for name, value in zip(clips, similarity_by_clip(sounds, texts)):
        found.by_file[name] |= {"caption": labels[name].captions[0], "text_similarity": float(value)}
    found.measures.append(text_audio_similarity(sounds, texts, draws=draws, seed=seed, embedding=voice.card()))


# --- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """id -> (estimate [T], reference [T]), all at one rate."""

    rate_hz: int
    waves: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _PairMeasure:
    """One number a pair: `make` maps [1, T], [1, T] and the rate to [1]; `about` maps the rate to its card."""

    name: str
    unit: str
    better: str
    make: Callable
    about: Callable[[int], dict]


def _lsd_measures(presets, bands, cutoff_hz, matched) -> list[_PairMeasure]:
    return [
        _PairMeasure(
            f"LSD {preset} {band}{', loudness-matched' if match else ''}",
            "decades",
            "lower",
            lambda e, r, hz, p=preset, b=band, m=match: lsd(
                e, r, hz, p, band=b, cutoff_hz=cutoff_hz, loudness_matched=m
            ),
            lambda hz, p=preset, b=band, m=match: lsd_card(p, hz, b, None if b == "full" else cutoff_hz, m),
        )
        for preset in presets
        for match in matched
        for band in bands
    ]


def _signal_measures(visqol: bool) -> list[_PairMeasure]:
    mel = {"n_fft": 1024, "hop_samples": 256, "bands": 80, "floor": 1e-5}
    measures = [
        _PairMeasure("log-mel L1", "nepers", "lower", lambda e, r, hz: log_mel_l1(e, r, hz, **mel),
                     lambda hz: {**mel, "mel": "HTK over magnitudes", "sample_rate_hz": hz}),
        _PairMeasure("multi-resolution STFT", "", "lower", lambda e, r, hz: multi_resolution_stft(e, r),
                     lambda hz: {"resolutions (n_fft, hop, window)": MULTI_RESOLUTION, "floor": 1e-5,
                                 "definition": "spectral convergence + log-magnitude L1, mean over resolutions"}),
        _PairMeasure("SI-SDR", "dB", "higher", lambda e, r, hz: si_sdr_db(e, r),
                     lambda hz: {"definition": "Le Roux et al. 2019 eq. 3, no mean removal, float64"}),
        _PairMeasure("SNR", "dB", "higher", lambda e, r, hz: snr_db(e, r), lambda hz: {"definition": "float64"}),
    ]  # fmt: skip
    if visqol:
        about = {"implementation": "visqol-python", "mode": "audio", "rate": "resampled to 48 kHz (soxr HQ)"}
        measures.append(_PairMeasure("ViSQOL", "MOS", "higher", visqol_mos, lambda hz: about))
    return measures


def _read_pairs(first: dict[str, Clip], second: dict[str, Clip], trim: bool) -> _Pairs:
    """Read pairs by id.

    Raises:
        UserError: an id is in one set only, rates or lengths differ, or a file is unusable or silent.
    """
    lacking = [f"{i} only in the {'first' if i in first else 'second'}" for i in sorted(set(first) ^ set(second))]
    if lacking:
        raise UserError(
            f"{len(first)} and {len(second)} sounds do not pair by id: {_some(lacking)}; give both sets the same names"
        )
    headers = {i: (_header(first[i].path), _header(second[i].path)) for i in first}
    rate_hz = headers[next(iter(headers))][1].sample_rate_hz
    for i, (a, b) in headers.items():
        if a.sample_rate_hz != b.sample_rate_hz:
            rates = f"{a.sample_rate_hz:,} and {b.sample_rate_hz:,} Hz"
            raise UserError(f"{first[i].path}: a pair of {rates}; resample one: figures depend on the rate")
        if a.sample_rate_hz != rate_hz:
            raise UserError(
                f"{first[i].path}: {a.sample_rate_hz:,} Hz, others {rate_hz:,} Hz; figures depend on the rate: measure "
                "each rate by itself"
            )
        if a.frames != b.frames and not trim:
            raise UserError(
                f"{first[i].path}: {a.frames:,} samples, its pair {b.frames:,}; cut them alike, or add --trim"
            )
    waves = {}
    for i, (a, b) in track(headers.items(), len(headers), "reading", "pairs"):
        samples = min(a.frames, b.frames)
        waves[i] = tuple(_read(side[i].path, rate_hz)[:samples] for side in (first, second))
    return _Pairs(rate_hz, waves)


def _measure_pairs(found: _Findings, pairs: _Pairs, measures: list[_PairMeasure], draws: int, seed: int) -> None:
    numbers: dict[str, list[float]] = {m.name: [] for m in measures}
    for name, waves in track(pairs.waves.items(), len(pairs.waves), "measuring", "pairs"):
        estimate, reference = (torch.from_numpy(np.ascontiguousarray(w))[None] for w in waves)
        row = found.by_file.setdefault(name, {})
        for m in measures:
            try:
                value = float(m.make(estimate, reference, pairs.rate_hz)[0])
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            numbers[m.name].append(value)
            row[m.name] = value if np.isfinite(value) else ""
    for m in measures:
        about = {"parameters": m.about(pairs.rate_hz), "draws": draws, "seed": seed}
        found.attempt(
            m.name,
            lambda m=m, about=about: mean_over_clips(m.name, numbers[m.name], better=m.better, unit=m.unit, **about),
        )


def _low_passed(wave: np.ndarray, rate_hz: int, cutoff_hz: float) -> np.ndarray:
    import soxr

    back = soxr.resample(soxr.resample(wave, rate_hz, 2 * cutoff_hz), 2 * cutoff_hz, rate_hz)[: len(wave)]
    return np.pad(back, (0, len(wave) - len(back))).astype(np.float32)


def _finish_pairs(found: _Findings, pairs: _Pairs, out: Path, by: str, labels: tuple[str, str]) -> None:
    ranked = sorted(pairs.waves, key=lambda i: -found.by_file[i][by])
    rows = []
    for end, i in _ends(ranked):
        clips = list(zip((f"{i}, {labels[0]}", labels[1]), pairs.waves[i]))
        rows.append(ClipPair(f"{end}, {found.by_file[i][by]:.3g}", clips, pairs.rate_hz))
    found.warnings.append(f"clips are ranked by {by}")
    _finish(found, out, rows, {"pairs": len(pairs.waves)})


# --- what is shown and written ---------------------------------------------------------------------------------------


def _ends(ranked: list[str]) -> list[tuple[str, str]]:
    """("worst" or "best", id) of both ends, worst first; each id once."""
    shown = min(_SHOWN, len(ranked) // 2)
    return [("worst", i) for i in ranked[:shown]] + [("best", i) for i in ranked[-shown:]]


def _finish(found: _Findings, out: Path, rows: list[ClipPair], counts: dict) -> None:
    results = {
        "counts": counts,
        "measures": [m.to_json() for m in found.measures],
        "unprocessed": [m.to_json() for m in found.unprocessed],
        "not_computed": found.not_computed,
        "notes": found.warnings,
        "origin": {"command": command(), "commit": commit(), "machine": machine()},
    }
    picture = worst_and_best_png(rows)
    write_bytes(out / "worst-and-best.png", picture)
    write_text(out / "files.csv", _csv(found.by_file))
    write_text(out / "evaluation.json", json.dumps(results, indent=1, allow_nan=False))
    _print(found, counts)
    print(f"{out}/evaluation.json   {out}/files.csv   {out}/worst-and-best.png")


def _csv(by_file: dict[str, dict]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in by_file.values() for key in row))
    writer = csv.DictWriter(text, ["id", *columns], lineterminator="\n")
    writer.writeheader()
    for name in sorted(by_file):
        writer.writerow({"id": name, **by_file[name]})
    return text.getvalue()


def _print(found: _Findings, counts: dict) -> None:
    title = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    table = Table(title=title, title_justify="left")
    for column in ("measure", "value", "95 % interval", "N", "better", *(["unprocessed"] if found.unprocessed else [])):
        table.add_column(column, justify="left" if column in ("measure", "better") else "right")
    raw = {m.name: f"{m.value:.4g}" for m in found.unprocessed}
    for m in found.measures:
        value = f"{m.value:.4g} {m.unit}".strip()
        cells = [m.name, value, f"{m.interval[0]:.4g} to {m.interval[1]:.4g}", f"{m.n:,}", m.better]
        table.add_row(*cells, *([raw.get(m.name, "–")] if found.unprocessed else []))
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
