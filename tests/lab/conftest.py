"""A tiny cache of notes that the note classifier knows by name, so that a whole study runs in seconds."""

import json

import numpy as np
import pytest
import soundfile

RATE_HZ, SECONDS = 8000, 0.256


@pytest.fixture(scope="session")
def notes(tmp_path_factory):
    """(cache, manifest): 30 notes, 20 to train on, 6 held in, 4 of held-out pairs."""
    from segue.codecs import load_codec
    from segue.conditioners import load_conditioner
    from segue.data.encoding import build_cache
    from segue.data.manifest import load_manifest
    from segue.evaluation.note_classifier import NoteClassifier

    folder = tmp_path_factory.mktemp("notes")
    family = NoteClassifier.load().families[0]
    rows = []
    for index in range(30):
        pitch = 60 + index % 12
        wave = 0.3 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * np.arange(round(RATE_HZ * SECONDS)) / RATE_HZ)
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
        split = "train" if index < 20 else "valid" if index < 26 else "test"
        fields = {"kind": "note", "family": family, "instrument": "any", "pitch": pitch}
        rows.append({"id": f"{index:02d}", "path": f"{index}.wav", "caption": f"note {pitch}", "split": split} | fields)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    codec, text = load_codec("spectral", RATE_HZ), load_conditioner("minilm")
    return build_cache(load_manifest(manifest), codec, text, out=folder / "cache", seconds=SECONDS), manifest


@pytest.fixture
def description(notes):
    """A study file's contents: two variants, two seeds, 64 examples, evaluated twice."""
    cache, manifest = notes
    return {
        "name": "tiny",
        "data": {"cache": str(cache.path), "manifest": str(manifest)},
        "examples": 64,
        "variants": [
            "static-uniform",
            {"recipe": "static-semantic", "name": "decayed", "set": ["optim.weight_decay=0.1"]},
        ],
        "seeds": [0, 1],
        "set": ["model.preset=dit-tiny", "train.batch_size=8", "train.validation_clips=4"],
        "evaluate_at": [0.5, 1.0],
        "clips": 9,
        "steps": 2,
    }
