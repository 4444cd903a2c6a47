"""From a folder of sounds to a trained model and a generated file, in under a minute on a CPU.

The sounds are tones made here, so that the example needs no data; point `folder` at your own (wav, flac, ogg or mp3,
each with a .txt caption beside it) and it works the same.

    python examples/minimal.py
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from segue import (
    Pipeline,
    build_cache,
    load_codec,
    load_conditioner,
    load_manifest,
    load_recipe,
    train,
)

folder = Path(tempfile.mkdtemp(prefix="segue-minimal-"))
RATE_HZ = 16_000
SECONDS = 1.024

# 1. A folder of captioned sounds.
time_sec = np.arange(round(RATE_HZ * SECONDS)) / RATE_HZ
for index in range(120):
    note = "CDEFGAB"[index % 7]
    loudness = ("soft", "loud")[index % 2]
    hz = 220 * 2 ** (index % 7 / 7)
    wave = (0.1, 0.5)[index % 2] * np.sin(2 * np.pi * hz * time_sec) * np.exp(-3 * time_sec)
    soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
    (folder / f"{index}.txt").write_text(f"a {loudness} tone on {note}")

# 2. Waveforms and captions become a cache of latents and text embeddings.
cache = build_cache(
    load_manifest(folder),
    load_codec("spectral", RATE_HZ),
    load_conditioner("minilm"),
    out=folder / "cache",
    seconds=SECONDS,
)

# 3. A recipe is a config: model, optimiser, length, and the policy that drives the run.
config = load_recipe("static-uniform")
config = replace(config, train=replace(config.train, total_examples=640, batch_size=16, validation_clips=4))
result = train(config, cache, folder / "run")
print("validation loss at fixed t:", {t: round(loss, 3) for t, loss in result.validation.items()})

# 4. Captions in, waveforms out.
waves = Pipeline.load(folder / "run").generate(["a loud tone on E", "a soft tone on A"], seed=0)
for index, wave in enumerate(waves):
    soundfile.write(folder / f"generated-{index}.wav", wave.numpy().T, RATE_HZ)
print("wrote", folder / "generated-0.wav", "and", folder / "generated-1.wav")
