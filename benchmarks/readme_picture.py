"""README's picture and the sounds of docs/demo.md, from a finished demo: one prompt, real and generated.

The prompt is a typical one, not the best. Of the demo's single notes it takes the one whose gain of `stage-muon` over
`static-uniform` is the median; the gain is how much nearer to the real clip the spectrogram comes, in dB.

    segue demo --out runs/demo
    python benchmarks/readme_picture.py runs/demo --picture docs/pictures/readme-spectrograms.png --sounds docs/sounds
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue import load_codec, load_manifest

RECIPES = ("static-uniform", "stage-muon")
TITLES = {
    "real": "real clip",
    "codec": "real clip through the codec",
    "static-uniform": "generated, static-uniform",
    "stage-muon": "generated, stage-muon",
}
FLOOR_DB = -70.0  # below the loudest bin of the real clip
WINDOW, HOP = 1024, 128


def spectrogram_db(wave: np.ndarray) -> np.ndarray:
    """Power of windows of 64 ms in dB [frequency, time]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, WINDOW // 2), WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    return 10 * np.log10(power.T + 1e-12)


def distance_db(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two spectrograms, each cut off at the floor."""
    top = spectrogram_db(a).max()
    return float(
        np.abs(np.maximum(spectrogram_db(a), top + FLOOR_DB) - np.maximum(spectrogram_db(b), top + FLOOR_DB)).mean()
    )


def read_demo(demo: Path) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """prompt -> {"real", each recipe} -> waveform, of the prompts that are single notes; and the sample rate."""
    notes = {
        c.captions[0]: c for c in load_manifest(demo / "data") if c.fields["kind"] == "note" and c.split != "train"
    }
    waves: dict[str, dict[str, np.ndarray]] = {}
    rate_hz = 0
    for recipe in RECIPES:
        folder = next(demo.glob(f"*/{recipe}/samples"))
        for sample in json.loads((folder / "samples.json").read_text()):
            if sample["prompt"] in notes:
                wave, rate_hz = soundfile.read(folder / sample["file"], dtype="float32")
                waves.setdefault(sample["prompt"], {})[recipe] = wave
    for prompt, of_prompt in waves.items():
        real, real_rate_hz = soundfile.read(notes[prompt].path, dtype="float32")
        assert real_rate_hz == rate_hz, f"{notes[prompt].path} is at {real_rate_hz} Hz"
        length = len(of_prompt[RECIPES[0]])
        of_prompt["real"] = np.pad(real[:length], (0, max(0, length - len(real))))
    return waves, rate_hz


def typical(waves: dict[str, dict[str, np.ndarray]]) -> str:
    """The prompt whose gain of `stage-muon` over `static-uniform` is the median; prints all of them."""
    gains = {}
    for prompt, of_prompt in waves.items():
        static, stage = (distance_db(of_prompt["real"], of_prompt[recipe]) for recipe in RECIPES)
        gains[prompt] = static - stage
        print(f"{gains[prompt]:+5.1f} dB  static-uniform {static:4.1f}, stage-muon {stage:4.1f}: {prompt}")
    return sorted(gains, key=gains.__getitem__)[len(gains) // 2]


def draw(prompt: str, waves: dict[str, np.ndarray], rate_hz: int, picture: Path) -> None:
    """Spectrograms side by side under the prompt, readable at a width of 800 pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("real", *RECIPES)
    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    figure, axes = pyplot.subplots(1, len(names), figsize=(8, 3), sharey=True, layout="constrained")
    top = spectrogram_db(waves["real"]).max()
    for axis, name in zip(axes, names):
        power = spectrogram_db(waves[name])
        seconds, khz = np.arange(power.shape[1]) * HOP / rate_hz, np.arange(power.shape[0]) * rate_hz / WINDOW / 1000
        axis.pcolormesh(seconds, khz, power, vmin=top + FLOOR_DB, vmax=top, shading="nearest", cmap="magma")
        axis.set(yscale="log", ylim=(0.06, rate_hz / 2000), xlabel="time (s)", title=TITLES[name])
        axis.set_yticks([0.1, 0.25, 0.5, 1, 2, 4, 8], labels=["0.1", "0.25", "0.5", "1", "2", "4", "8"])
        axis.minorticks_off()
    axes[0].set_ylabel("frequency (kHz)")
    figure.suptitle(f'"{prompt}"', fontsize=11)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150, metadata={"Software": None})


def write_sounds(waves: dict[str, np.ndarray], rate_hz: int, folder: Path) -> None:
    """The same sounds as FLAC, and the real one after the codec's round trip."""
    codec = load_codec("autoencoder")
    real = torch.from_numpy(waves["real"])[None]
    round_trip = codec.decode(codec.encode(real[:, None]), real.shape[1])[0, 0].numpy()
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave in {**waves, "codec": round_trip}.items():
        soundfile.write(folder / f"{name}.flac", wave / max(1.0, np.abs(wave).max()), rate_hz, subtype="PCM_16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="Folder of a finished demo.")
    parser.add_argument("--picture", type=Path, required=True, help="PNG to write.")
    parser.add_argument("--sounds", type=Path, help="Folder for the same sounds as FLAC.")
    parser.add_argument("--prompt", help="A prompt of the demo; default: the typical one.")
    options = parser.parse_args()

    waves, rate_hz = read_demo(options.demo)
    prompt = options.prompt or typical(waves)
    print(f"drawn: {prompt}")
    draw(prompt, waves[prompt], rate_hz, options.picture)
    if options.sounds:
        write_sounds(waves[prompt], rate_hz, options.sounds)


if __name__ == "__main__":
    main()
