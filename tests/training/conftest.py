"""A small real cache: tones through the spectral codec, captions through an encoder that needs no weights."""

import hashlib
import json

import numpy as np
import pytest
import soundfile
import torch

from segue.codecs import load_codec
from segue.conditioners.base import TextConditioner
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.recipes import load_recipe
from segue.ssl.base import Teacher
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


class Bands(Teacher):
    """Log energies of eight bands in frames of 32 ms: deterministic, and different for each pitch."""

    name, sample_rate_hz, frame_rate_hz, dim = "bands", RATE_HZ, 31.25, 8

    def encode(self, wave):
        frames = torch.nn.functional.pad(wave, (0, -wave.shape[1] % 64)).unflatten(1, (-1, 64))
        power = torch.fft.rfft(frames)[..., :32].abs().square().unflatten(-1, (8, 4)).sum(-1)
        return (power + 1e-4).log()

    def fingerprint(self):
        return {"name": self.name}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The tones without a teacher."""
    return tones(tmp_path_factory.mktemp("tones"), None)


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """The tones with a teacher's features."""
    return tones(tmp_path_factory.mktemp("taught"), Bands())


@pytest.fixture(scope="session")
def hisses(tmp_path_factory):
    """Tones with harmonics and noise up to half the rate, as gain and shape, with a teacher's features."""
    return tones(tmp_path_factory.mktemp("hisses"), Bands(), "gain-shape")


@pytest.fixture(scope="session")
def takes(tmp_path_factory):
    """24 tones of 0.15 to 2 s in rows of half a second that know where they stand, with tempo and key; and features."""
    folder = tmp_path_factory.mktemp("takes")
    rows = []
    for n in range(24):
        samples = round(RATE_HZ * (0.15 if n % 2 else 0.3 + 0.07 * n))
        wave = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (n % 5 / 5) * np.arange(samples) / RATE_HZ)
        soundfile.write(folder / f"{n}.wav", wave, RATE_HZ)
        split = "valid" if n % 4 == 0 else "train"
        rows.append(
            {"path": f"{n}.wav", "caption": f"tone {n % 5}", "split": split, "bpm": 60 + n, "key": "CDE"[n % 3]}
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = (load_manifest(folder), load_codec("spectral", RATE_HZ), Letters(), Bands())
    fields = ["field=bpm", "field=key"]
    return build_cache(*made, out=folder / "cache", seconds=SECONDS, conditions=fields, timed=True)


def tones(folder, teacher, codec="spectral"):
    """48 clips of two lengths, 40 to train on: captions name the pitch."""
    for index in range(48):
        samples = round(RATE_HZ * SECONDS * (1.0 if index % 3 else 0.6))
        wave = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (index % 5 / 5) * np.arange(samples) / RATE_HZ)
        if codec == "gain-shape":
            hiss = np.random.default_rng(index).normal(size=samples)
            wave = np.sign(wave) * 0.1 + 0.02 * (1 + index % 5) * hiss
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
    rows = [
        f'{{"path": "{i}.wav", "caption": "tone {i % 5}", "split": "{"valid" if i % 6 == 0 else "train"}"}}\n'
        for i in range(48)
    ]
    (folder / "manifest.jsonl").write_text("".join(rows))
    clips = load_manifest(folder)
    return build_cache(clips, load_codec(codec, RATE_HZ), Letters(), teacher, out=folder / "cache", seconds=SECONDS)


SHORT = ["model.preset=dit-tiny", "model.patch_frames=2", "train.total_examples=80", "train.batch_size=8",
         "train.checkpoint_every=32", "train.validation_clips=4", "train.tensorboard=false"]  # fmt: skip


@pytest.fixture
def config():
    """Ten steps of a tiny model; a checkpoint every four."""
    return override(load_recipe("semantic-timesteps"), SHORT)


@pytest.fixture
def recipe():
    """The same ten steps of any recipe, probed by ears on latents."""
    probe = ["probe.clips=8", "probe.space=latent", "probe.spacing=1.3", "probe.first=0.1"]

    def make(name, *changes):
        return override(load_recipe(name), [*SHORT, *probe, *changes])

    return make
