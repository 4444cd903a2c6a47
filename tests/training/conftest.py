"""A small real cache: tones through the spectral codec, captions through an encoder that needs no weights."""

import hashlib

import numpy as np
import pytest
import soundfile
import torch

from segue.codecs import load_codec
from segue.conditioners.base import TextConditioner
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.recipes import load_recipe
from segue.training.config import override

RATE_HZ, SECONDS = 2000, 0.512


class Letters(TextConditioner):
    """One token a word, drawn from the word's hash."""

    name, dim, max_tokens = "letters", 8, 6

    def encode(self, captions):
        tokens = torch.zeros(len(captions), self.max_tokens, self.dim)
        mask = torch.zeros(len(captions), self.max_tokens, dtype=torch.bool)
        for row, caption in enumerate(captions):
            for column, word in enumerate(caption.split()[: self.max_tokens]):
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
                tokens[row, column] = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
                mask[row, column] = True
        return tokens, mask

    def fingerprint(self):
        return {"name": self.name, "max_tokens": self.max_tokens}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """48 clips of two lengths, 40 to train on: captions name the pitch."""
    folder = tmp_path_factory.mktemp("tones")
    for index in range(48):
        samples = round(RATE_HZ * SECONDS * (1.0 if index % 3 else 0.6))
        wave = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (index % 5 / 5) * np.arange(samples) / RATE_HZ)
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
    rows = [
        f'{{"path": "{i}.wav", "caption": "tone {i % 5}", "split": "{"valid" if i % 6 == 0 else "train"}"}}\n'
        for i in range(48)
    ]
    (folder / "manifest.jsonl").write_text("".join(rows))
    clips = load_manifest(folder)
    return build_cache(clips, load_codec("spectral", RATE_HZ), Letters(), out=folder / "cache", seconds=SECONDS)


@pytest.fixture
def config():
    """Ten steps of a tiny model; a checkpoint every four."""
    changes = ["model.preset=dit-tiny", "model.patch_frames=2", "train.total_examples=80", "train.batch_size=8",
               "train.checkpoint_every=32", "train.validation_clips=4", "train.tensorboard=false"]  # fmt: skip
    return override(load_recipe("static-semantic"), changes)
