"""The release of a codec: weights in float16, and a card with figures."""

from __future__ import annotations

from pathlib import Path

import torch

from segue.codecs.autoencoder import WEIGHTS, load_autoencoder, save_codec
from segue.codecs.base import Codec
from segue.data.manifest import load_manifest
from segue.evaluation.note_classifier import NoteClassifier
from segue.training.codec.figures import measure_codec
from segue.training.small_run import read_meta
from segue.training.training_audio import read_sounds
from segue.types import UserError
from segue_lab.release.card import training_card, write_card


@torch.inference_mode()
def classified_round_trip(codec: Codec, source: Path, *, clips: int = 300) -> dict:
    """What the note classifier says of notes of split "test", as they are and after the codec.

    Args:
        source: a data set whose manifest names family, instrument and pitch of its notes, as the demo set's does.

    Raises:
        UserError: no such notes, or classes that the classifier does not know.
    """
    classifier = NoteClassifier.load()
    wanted = ("family", "instrument", "pitch")
    # Notes of split "test" were not trained on by the codec.
    notes = [c for c in load_manifest(source) if c.split == "test" and c.fields.get("kind") == "note"]
    notes = [c for c in notes if all(c.fields.get(k) is not None for k in wanted)]
    if not notes:
        raise UserError(f"{source}: no test notes with {', '.join(wanted)} in its manifest; hint: name a demo set")
    notes = notes[:: max(1, len(notes) // clips)][:clips]
    sounds = read_sounds(notes, codec.sample_rate_hz)
    places = (classifier.family_index, classifier.instrument_index, classifier.pitch_index)
    right = torch.zeros(2, 3, dtype=torch.float64)
    for index, note in enumerate(notes):
        wave = sounds.wave(index)[None]
        # The same note twice, as it is and after the codec: the difference is the codec's.
        for row, sound in enumerate((wave, codec.decode(codec.encode(wave[:, None]), wave.shape[-1])[:, 0])):
            answer = classifier.predict(sound.cpu(), codec.sample_rate_hz)
            for column, (name, place) in enumerate(zip(wanted, places, strict=True)):
                right[row, column] += int(getattr(answer, name)[0]) == place(note.fields[name])
    shares = (right / len(notes)).tolist()
    real, after = ({name: round(x, 3) for name, x in zip(wanted, row, strict=True)} for row in shares)
    return {"clips": len(notes), "split": "test notes", **after, "real_clips": real}


def release_codec(
    run: Path,
    out: Path,
    measures: dict[str, Path],
    *,
    sources: list[dict],
    command: str,
    commit: str,
    classify_on: Path | None = None,
) -> dict:
    """Write the averaged weights of a run in float16, and card.json beside them, into `out`.

    Args:
        run: folder that `train_codec` left.
        measures: name -> folder of sounds to measure on.
        sources: what it was trained on: {"name", "licence", "hours", ...} each, as the card says it.
        command, commit: how it was trained.
        classify_on: a demo set, to say how accurate the note classifier is after the codec.

    Returns:
        The card.
    """
    # Halved first, then measured: figures are of the weights that are released.
    save_codec(load_autoencoder(run).network, out, half=True)
    codec = load_autoencoder(out)
    state = read_meta(run)
    training = training_card(state, sources=sources, command=command, commit=commit)
    # A refined codec was trained before; its card tells of both.
    stages = {"training": state["origin"], "refinement": training} if "origin" in state else {"training": training}
    card = {
        "name": codec.name,
        "weights_sha256": codec.weights_sha256(),
        "latents_sha256": codec.weights_sha256(latents_only=True),
        "bytes": (out / WEIGHTS).stat().st_size,
        "parameters": sum(p.numel() for p in codec.network.parameters()),
        "latent_frame_rate_hz": codec.frame_rate_hz,
        **stages,
        "figures": {name: measure_codec(codec, folder, clips=40) for name, folder in measures.items()},
    }
    if classify_on is not None:
        card["note_classifier_after_round_trip"] = classified_round_trip(codec, classify_on)
    return write_card(out, card)
