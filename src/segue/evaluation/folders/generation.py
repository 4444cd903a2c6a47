"""Sets of generated sounds against sets of real ones: every figure with interval, N and metric card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segue.data.clip import Clip
from segue.evaluation.accuracy import accuracy
from segue.evaluation.card import Measure, bootstrap_words, make_measure
from segue.evaluation.divergence import DIRECTIONS, inception_score, kl_by_pair, paired_kl
from segue.evaluation.embeddings import ClapEmbedding, Embedding, NoteEmbedding, load_clap
from segue.evaluation.folders.embedding_spaces import embed, load_embedding, refuse_training_teachers, tag_of
from segue.evaluation.folders.sound_sets import (
    ClipPair,
    Findings,
    described,
    ends,
    find_sounds,
    held_out_sounds,
    listed_clips,
    read,
    some,
    usable_of,
)
from segue.evaluation.frechet import fad_infinity, frechet_measure
from segue.evaluation.kernel import SCALES, kernel_audio_distance
from segue.evaluation.manifold import manifold_measures, nearest
from segue.evaluation.note_classifier import NoteClassifier
from segue.evaluation.text_similarity import similarity_by_clip, text_audio_similarity
from segue.types import UserError

_KL_FLOOR = 1e-6


def measure_generation(
    gen: Path,
    ref: Path,
    folder: Path,
    *,
    captions: str | None,
    embedding: str,
    layer: int | None,
    crop_seconds: float | None,
    text_embedding: str | None,
    run: Path | None,
    force: bool,
    unpaired: bool,
    k: int,
    trust_remote_code: bool,
    draws: int,
    seed: int,
    skip_bad: bool = False,
    held_out: bool = False,
    device: str = "cpu",
) -> Findings:
    """Generated against real sounds; the keyword arguments are the options of `segue evaluate generation`.

    Args:
        folder: of the cached embeddings.

    Raises:
        UserError: a set is unusable, an option does not fit, or the embedding took part in the run's training.
    """
    # What is asked for, and whether it can be had: before the long work.
    # The two sets, and what may measure them.
    sounds = {"GEN": find_sounds(gen), "REF": held_out_sounds(ref) if held_out else find_sounds(ref)}
    pairs = _pairing(sounds["GEN"], sounds["REF"], unpaired)
    left_out: list[str] = []
    if skip_bad:
        sounds, left_out = usable_of(sounds, paired=bool(pairs))
        pairs = [i for i in pairs if i in sounds["GEN"]]
    # Loaded before the clips are read: a wrong name is told at once.
    by_sound = load_embedding(embedding, layer, crop_seconds, trust_remote_code).to(device)
    by_text = None if text_embedding is None else load_clap(text_embedding).to(device)
    about_sets = {name: described(source, sounds[name]) for name, source in (("GEN", gen), ("REF", ref))}
    found = Findings(about_sets, warnings=left_out)
    found.warnings.append(_about_reference(ref, len(sounds["REF"]), held_out))
    refuse_training_teachers(sounds["GEN"], run, [e for e in (by_sound, by_text) if e is not None], force, found)
    labels = _captions(captions, sounds["GEN"])
    _refuse_idle_captions(captions, labels, by_sound, by_text)

    # Distances between the two clouds of embeddings.
    embedded = {name: embed(files, by_sound, folder, name) for name, files in sounds.items()}
    x, y = (np.stack([e["embedding"] for e in embedded[name].values()]) for name in ("GEN", "REF"))
    about: dict[str, Any] = {"embedding": by_sound.card(), "seed": seed}
    found.counts = {"GEN": len(x), "REF": len(y)}
    # Fewer draws for the dearer figures: each of theirs needs eigenvalues of the whole covariance.
    found.attempt("Frechet distance", frechet_measure, x, y, draws=min(draws, 100), **about)
    found.attempt("FAD-infinity", fad_infinity, x, y, draws=min(draws, 50), **about)
    for scale in SCALES:
        found.measures.append(kernel_audio_distance(x, y, scale=scale, draws=draws, **about))
    found.attempt("precision, recall, density, coverage", manifold_measures, x, y, k=k, draws=draws, **about)

    # Each generated clip beside its nearest neighbour among the real ones.
    # The distance to the nearest real clip ranks the clips for the picture, too.
    distances, neighbours = nearest(x, y)
    names = list(sounds["GEN"])
    references = list(sounds["REF"])
    for name, distance, neighbour in zip(names, distances, neighbours):
        found.by_file[name] = {"nearest_reference": references[neighbour], "nearest_distance": float(distance)}

    # What clips are, and whether that was asked for.
    if isinstance(by_sound, NoteEmbedding):
        found.warnings.append(
            f"{by_sound.name} knows notes of the demo's instruments; hint: for other sounds take --embedding log-mel, "
            "compact or CLAP"
        )
        _classified(found, by_sound, embedded, pairs, labels, draws, about)
    if by_text is not None:
        _compared_with_text(found, by_text, sounds["GEN"], labels, folder, draws, seed)

    # The clips farthest from the real ones and nearest to them, for the picture.
    # A stable sort: clips of equal distance stay in the order of their ids.
    ranked = [names[i] for i in np.argsort(-distances, kind="stable")]
    found.warnings.append(
        f"clips are ranked by the distance to the nearest reference clip in the space of {by_sound.name}"
    )
    for end, name in ends(ranked):
        near = found.by_file[name]["nearest_reference"]
        files = ((name, sounds["GEN"][name]), (f"nearest: {near}", sounds["REF"][near]))
        clips = [(label, read(clip.path, by_sound.sample_rate_hz)) for label, clip in files]
        title = f"{end}, {found.by_file[name]['nearest_distance']:.3g}"
        found.examples.append(ClipPair(title, clips, by_sound.sample_rate_hz))
    return found


def _about_reference(ref: Path, count: int, held_out: bool) -> str:
    """Which clips the generated ones are compared with."""
    if held_out:
        return f"compared with the {count:,} held-out clips of {ref} (splits test and valid)"
    return f"compared with all clips of {ref}; hint: --held-out leaves out what a training on it saw"


def _pairing(first: dict[str, Clip], second: dict[str, Clip], unpaired: bool) -> list[str]:
    """The ids of both sets, where they are all the same; else none.

    Raises:
        UserError: some ids are in both and some are not.
    """
    # No common id at all means unpaired sets; some common ids and some not, a mistake.
    both = [i for i in first if i in second]
    if unpaired or not both:
        return []
    lacking = sorted(set(first) ^ set(second))
    if lacking:
        raise UserError(
            f"{len(both)} ids are in both sets, {len(lacking)} in one only ({some(lacking)}); hint: complete the "
            "pairs, or add --unpaired"
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
        # `segue generate` writes the prompt as the title.
        found = {
            i: Clip(i, c.path, (tag_of(c.path, "title"),), "") for i, c in clips.items() if tag_of(c.path, "title")
        }
    else:
        try:
            found = {clip.id: clip for clip in listed_clips(Path(source))}
        except UserError as error:  # its words are those of `segue encode`
            raise UserError(str(error).split("; hint:")[0] + "; hint: give --captions a complete manifest") from error
    lacking = [i for i in clips if i not in found]
    if lacking:
        raise UserError(f"--captions {source}: none for {len(lacking)} of {len(clips)} clips ({some(lacking)})")
    return {i: found[i] for i in clips}


def _refuse_idle_captions(
    source: str | None, labels: dict[str, Clip], by_sound: Embedding, by_text: ClapEmbedding | None
) -> None:
    if by_text is not None and source is None:
        raise UserError("--text-embedding needs --captions")
    # Captions without a measure that reads them are an option in vain, and told.
    asks = isinstance(by_sound, NoteEmbedding) and any(
        _asked(labels, kind) for kind in ("pitch", "family", "instrument")
    )
    if source is not None and by_text is None and not asks:
        raise UserError(
            "--captions alone measure nothing here: give --text-embedding laion/clap-htsat-unfused (or a local CLAP), "
            "or a manifest with pitch, family or instrument for --embedding note-classifier"
        )


def _asked(labels: dict[str, Clip], kind: str) -> list[str]:
    return [i for i, clip in labels.items() if clip.fields.get(kind) not in (None, "")]


def _classified(
    found: Findings,
    embedding: NoteEmbedding,
    embedded: dict,
    pairs: list[str],
    labels: dict[str, Clip],
    draws: int,
    about: dict,
) -> None:
    """What the note classifier says: inception score, KL between pairs, and prompt accuracy of pitch and instrument."""
    gen = embedded["GEN"]
    ref = embedded["REF"]
    rows = np.stack([clip["instrument"] for clip in gen.values()])
    found.attempt("inception score", inception_score, rows, draws=draws, **about)
    # KL needs a reference clip for each generated one.
    if pairs:
        x, y = (np.stack([side[i]["instrument"] for i in pairs]) for side in (gen, ref))
        for direction in DIRECTIONS:
            options = {"direction": direction, "floor": _KL_FLOOR, "draws": draws}
            found.attempt(f"KL({direction})", paired_kl, x, y, **options, **about)
        for name, value in zip(pairs, kl_by_pair(x, y, floor=_KL_FLOOR)):
            found.by_file[name][f"kl_{DIRECTIONS[0]}"] = float(value)
    else:
        found.not_computed["KL"] = "GEN and REF share no ids, so that no clip has its reference"
    classifier = embedding.classifier
    for name, clip in gen.items():
        found.by_file[name] |= {
            "classified_instrument": classifier.instruments[int(clip["instrument"].argmax())],
            "classified_pitch": classifier.pitches[int(clip["pitch"].argmax())],
        }
    # Prompt accuracy, for whatever the captions ask for.
    for kind in ("pitch", "family", "instrument"):
        asked = _asked(labels, kind)
        if asked:
            found.attempt(f"{kind} accuracy", _accuracy, kind, classifier, gen, labels, asked, draws, about)


def _accuracy(
    kind: str, classifier: NoteClassifier, gen: dict, labels: dict[str, Clip], asked: list[str], draws: int, about: dict
) -> Measure:
    """Prompt accuracy of one kind of label.

    Raises:
        UserError: a label that the classifier does not know, or too few clips.
    """
    wanted = [labels[i].fields[kind] for i in asked]
    if kind == "pitch":
        index, classes = [classifier.pitch_index(int(value)) for value in wanted], len(classifier.pitches)
    elif kind == "family":
        index, classes = [classifier.family_index(value) for value in wanted], len(classifier.families)
    else:
        index, classes = [classifier.instrument_index(value) for value in wanted], len(classifier.instruments)
    got = [int(gen[i][kind].argmax()) for i in asked]
    right = accuracy(got, index, classes, draws=draws, seed=about["seed"])
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


def _compared_with_text(
    found: Findings,
    embedding: ClapEmbedding,
    clips: dict[str, Clip],
    labels: dict[str, Clip],
    folder: Path,
    draws: int,
    seed: int,
) -> None:
    # Through the same cache as other embeddings, under the text model's own key.
    sounds = np.stack([e["embedding"] for e in embed(clips, embedding, folder, "GEN").values()])
    # The first caption alone: others are further wordings of the same sound.
    texts = np.stack([embedding.embed_text(labels[i].captions[0]) for i in clips])
    for name, value in zip(clips, similarity_by_clip(sounds, texts)):
        found.by_file[name] |= {"caption": labels[name].captions[0], "text_similarity": float(value)}
    found.measures.append(text_audio_similarity(sounds, texts, draws=draws, seed=seed, embedding=embedding.card()))
