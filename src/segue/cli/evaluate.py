"""`segue evaluate generation`: sets of generated sounds; every figure with interval, N and metric card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from segue.cli.evaluate_common import Draws, Findings, Out, Seed, described, ends, find_sounds, finish, read, some
from segue.cli.evaluate_embeddings import embed, load_embedding, refuse_guides, tag_of
from segue.data.clip import Clip
from segue.data.manifest import load_manifest
from segue.metrics.accuracy import accuracy
from segue.metrics.alignment import similarity_by_clip, text_audio_similarity
from segue.metrics.card import Measure, bootstrap_words, make_measure
from segue.metrics.divergence import DIRECTIONS, inception_score, kl_by_pair, paired_kl
from segue.metrics.embeddings import Embedding, JudgeEmbedding, load_clap
from segue.metrics.frechet import fad_infinity, frechet_measure
from segue.metrics.kernel import SCALES, kernel_audio_distance
from segue.metrics.manifold import manifold_measures, nearest
from segue.report.evaluate import ClipPair
from segue.types import UserError

_KL_FLOOR = 1e-6


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
        typer.Option(help="judge, log-mel, compact, a trained teacher's folder, a hub name (WavLM, CLAP, AST...), or "
                     "weights of your own: panns:FILE, vggish:FILE, vggish-pca:FILE."),
    ] = "judge",
    layer: Annotated[
        int | None, typer.Option(help="Hidden layer of it; default: its middle. Not for judge, log-mel, PANNs, VGGish.")
    ] = None,
    crop_seconds: Annotated[
        float | None, typer.Option(help="How much of a clip it hears; default: 10. Not for judge.")
    ] = None,
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
    sounds = {"GEN": find_sounds(gen), "REF": find_sounds(ref)}
    pairs = _pairing(sounds["GEN"], sounds["REF"], unpaired)
    ears = load_embedding(embedding, layer, crop_seconds, trust_remote_code)
    voice = None if text_embedding is None else load_clap(text_embedding)
    found = Findings({name: described(source, sounds[name]) for name, source in (("GEN", gen), ("REF", ref))})
    refuse_guides(sounds["GEN"], run, [e for e in (ears, voice) if e is not None], force, found)
    labels = _captions(captions, sounds["GEN"])
    _refuse_mute_captions(captions, labels, ears, voice)
    heard = {name: embed(files, ears, out / "embeddings", name) for name, files in sounds.items()}
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
    for end, name in ends(ranked):
        near = found.by_file[name]["nearest_reference"]
        files = ((name, sounds["GEN"][name]), (f"nearest: {near}", sounds["REF"][near]))
        clips = [(label, read(clip.path, ears.sample_rate_hz)) for label, clip in files]
        rows.append(ClipPair(f"{end}, {found.by_file[name]['nearest_distance']:.3g}", clips, ears.sample_rate_hz))
    finish(found, out, rows, {"GEN": len(x), "REF": len(y)})


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
            f"{len(both)} ids are in both sets, {len(lacking)} in one only ({some(lacking)}); complete the pairs, or "
            "add --unpaired"
        )
    return both


def _captions(source: str | None, clips: dict[str, Clip]) -> dict[str, Clip]:
    """id -> a clip that carries the caption and what else is known of it.

    Raises:
        UserError: a generated clip has no caption.
    """
    if source is None:
        return {}
    if source == "title":
        found = {
            i: Clip(i, c.path, (tag_of(c.path, "title"),), "") for i, c in clips.items() if tag_of(c.path, "title")
        }
    else:
        try:
            found = {clip.id: clip for clip in load_manifest(Path(source))}
        except UserError as error:  # it speaks to those who encode
            raise UserError(str(error).split("; mend:")[0] + "; mend: give --captions a complete manifest") from error
    lacking = [i for i in clips if i not in found]
    if lacking:
        raise UserError(f"--captions {source}: none for {len(lacking)} of {len(clips)} clips ({some(lacking)})")
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
    found: Findings,
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
    found: Findings, voice, clips: dict[str, Clip], labels: dict[str, Clip], folder: Path, draws: int, seed: int
) -> None:
    sounds = np.stack([h["embedding"] for h in embed(clips, voice, folder, "GEN").values()])
    texts = np.stack([voice.embed_text(labels[i].captions[0]) for i in clips])
    for name, value in zip(clips, similarity_by_clip(sounds, texts)):
        found.by_file[name] |= {"caption": labels[name].captions[0], "text_similarity": float(value)}
    found.measures.append(text_audio_similarity(sounds, texts, draws=draws, seed=seed, embedding=voice.card()))
