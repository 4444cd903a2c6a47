"""The demo on recordings: clips of held-out captions from both variants, beside what was recorded under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.audio.read import read_header, read_segment
from segue.audio.write import write_wav
from segue.cli.demo_common import Trained, keep_sounds, say, training_figures
from segue.cli.demo_generation import STEPS
from segue.codecs.base import Codec
from segue.data.clip import Clip
from segue.evaluation.notes import spread
from segue.evaluation.recordings import caption_distance, described, set_distances, statistics_of
from segue.pipeline import Pipeline, Sampling
from segue.report import PromptClip, VariantPage, write_demo_report, write_summary
from segue.types import UserError
from segue.workflows.recordings import new_captions

CODEC = "stereo-44k"
SECONDS = 2.0  # of a cached row; three quarters of the default package's effects are shorter than 1.2 s
MEASURED = 96
MOST = 2000  # recordings
ROWS = 900  # about so many, by varied versions of the training recordings where these are few
PLAYED = (5, 3)  # prompts of the page: of captions that were trained on, and of captions that were not


def report_cost(measured: int) -> float:
    """In training examples: a generated clip costs steps x 2 evaluations, each a third of an example."""
    return measured * STEPS * 2 / 3


def variants_of(clips: Sequence[Clip]) -> int:
    """How many versions of each training recording are encoded."""
    return max(1, min(4, ROWS // len(clips)))


def row_seconds(codec: Codec, seconds: float) -> float:
    """A length of whole latent frames: what is cut to it fills one row, and leaves no rest for a second one."""
    return codec.latent_frames(round(seconds * codec.sample_rate_hz)) / codec.frame_rate_hz


def write_report(demo: Trained) -> list[str]:
    """Generate, measure, and write summary.json, report.html and what was measured; returns lines to close with.

    Raises:
        UserError: fewer than two held-out recordings.
    """
    codec = demo.codec
    rate_hz = codec.sample_rate_hz
    skipped = {entry["id"] for entry in demo.cache.meta["skipped"]}
    usable = [clip for clip in demo.everything if clip.id not in skipped]
    asked = spread([clip for clip in usable if clip.split != "train"], demo.plan.measured)
    if len(asked) < 2:
        raise UserError(f"--sounds {demo.plan.sounds}: {len(asked)} held-out recordings; hint: name a larger folder")
    captions = [clip.captions[0] for clip in asked]

    # References: other recordings, and the held-out ones after the codec.
    say("    measuring the recordings themselves")
    seconds = demo.cache.meta["seconds"]
    real = waves_of(asked, codec, seconds)
    recorded = statistics_of(real, rate_hz)
    others = _others(usable, asked)
    other_waves = waves_of(others, codec, seconds)
    other_statistics = statistics_of(other_waves, rate_hz)
    round_trip = torch.cat([codec.decode(codec.encode(part), part.shape[-1]) for part in real.split(16)])
    rows = {
        "held-out recordings": {"sounds": described(real, rate_hz)},
        "other recordings": _same_caption(others, other_statistics, asked, recorded)
        | set_distances(other_statistics, recorded)
        | {"sounds": described(other_waves, rate_hz)},
        "codec round trip": _measured(round_trip, recorded, captions, rate_hz),
    }
    _keep(demo.out / "measured", real, captions, rate_hz)

    # One model at a time in memory.
    sampling = Sampling(steps=STEPS)
    new = new_captions(usable)
    played = _played(asked, new)
    columns = {"recording": real, "after the codec": round_trip}
    for name, result in demo.results.items():
        say(f"    generating with {name}")
        made = Pipeline.load(result.run_dir).generate(captions, sampling=sampling)
        columns[name] = made
        rows[name] = _measured(made, recorded, captions, rate_hz)
        _keep(result.run_dir / "measured", made, captions, rate_hz)
        keep_sounds(result.run_dir, [asked[i] for i in played], made[played], rate_hz)

    def clips(waves: Tensor) -> list[PromptClip]:
        return [PromptClip(captions[i], captions[i] in new, waves[i].numpy(), rate_hz, "") for i in played]

    shown = {name: clips(waves) for name, waves in columns.items()}
    splits = {split: sum(c.split == split for c in usable) for split in ("train", "valid", "test")}
    summary = demo.summary(
        asdict(sampling),
        task="recordings",
        dataset={
            "sounds": demo.plan.sounds,
            "clips": len(usable),
            "hours": sum(_seconds(clip) for clip in usable) / 3600,
            "captions": len({clip.captions[0] for clip in usable}),
            "held_out_captions": len(new),
            **splits,
        },
        rows=rows,
        variants={name: training_figures(name, result) for name, result in demo.results.items()},
        prompts=[{"prompt": captions[i], "held_out": captions[i] in new} for i in played],
    )
    write_summary(demo.out / "summary.json", summary)
    pages = {name: VariantPage(result.run_dir, shown[name]) for name, result in demo.results.items()}
    write_demo_report(demo.out, summary, pages, columns=shown)
    return _closing(demo, rows)


def waves_of(clips: Sequence[Clip], codec: Codec, seconds: float) -> Tensor:
    """Recordings [N, A, T] as a codec takes them, cut or padded to a length."""
    samples = round(seconds * codec.sample_rate_hz)
    waves = []
    for clip in clips:
        header = read_header(clip.path)
        length_sec = min(clip.seconds(header.seconds), seconds)
        wave = read_segment(
            clip.path, header, clip.start_sec, length_sec, (codec.sample_rate_hz,), codec.audio_channels
        )[0][:, :samples]
        waves.append(np.pad(wave, ((0, 0), (0, samples - wave.shape[1]))))
    return torch.from_numpy(np.stack(waves).astype(np.float32))


def _seconds(clip: Clip) -> float:
    return clip.seconds(read_header(clip.path).seconds)


def _others(clips: Sequence[Clip], asked: Sequence[Clip]) -> list[Clip]:
    """As many training recordings as were asked for: each with the same caption where there is one, else any."""
    left = [clip for clip in clips if clip.split == "train"]
    chosen: list[Clip | None] = []
    for clip in asked:
        same = next((other for other in left if other.captions[0] == clip.captions[0]), None)
        if same is not None:
            left.remove(same)
        chosen.append(same)
    # Evenly spaced in what is left, so that one folder or letter does not stand for all.
    rest = iter(spread(left, sum(one is None for one in chosen)))
    filled = [one or next(rest, None) for one in chosen]
    return [one for one in filled if one is not None]


def _same_caption(others: Sequence[Clip], statistics: np.ndarray, asked: Sequence[Clip], recorded: np.ndarray) -> dict:
    """The distance of two recordings of one caption, where there are enough pairs."""
    first = {clip.captions[0]: i for i, clip in reversed(list(enumerate(others)))}
    pairs = [(first[clip.captions[0]], i) for i, clip in enumerate(asked) if clip.captions[0] in first]
    if len(pairs) < 2:
        return {}
    mine, theirs = (list(side) for side in zip(*pairs))
    names = [asked[i].captions[0] for i in theirs]
    return {"caption_distance": caption_distance(statistics[mine], recorded[theirs], names)}


def _measured(waves: Tensor, recorded: np.ndarray, captions: Sequence[str], rate_hz: int) -> dict:
    found = statistics_of(waves, rate_hz)
    return {
        "caption_distance": caption_distance(found, recorded, captions),
        **set_distances(found, recorded),
        "sounds": described(waves, rate_hz),
    }


def _played(asked: Sequence[Clip], new: set[str]) -> list[int]:
    """Positions of the clips that the page plays, each caption once."""
    first = {clip.captions[0]: i for i, clip in reversed(list(enumerate(asked)))}
    trained = sorted(i for caption, i in first.items() if caption not in new)
    unseen = sorted(i for caption, i in first.items() if caption in new)
    return [*spread(trained, PLAYED[0]), *spread(unseen, PLAYED[1])]


def _keep(folder: Path, waves: Tensor, captions: Sequence[str], rate_hz: int) -> None:
    """What was measured, as files of equal names in each folder: for `segue evaluate generation`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (wave, caption) in enumerate(zip(waves, captions)):
        write_wav(folder / f"{index:03d}.flac", wave.numpy(), rate_hz, caption)


def _closing(demo: Trained, rows: dict) -> list[str]:
    """The figures in a few words, and what to do next."""
    words = [f"{name} {rows[name]['caption_distance']['value']:.1f}" for name in ("codec round trip", *demo.results)]
    chance = [rows[name]["caption_distance"].get("chance") for name in demo.results]
    by_chance = f" (chance {max(c for c in chance if c is not None):.1f})" if any(c is not None for c in chance) else ""
    run = list(demo.results.values())[-1].run_dir
    return [
        f"dB from the recording of the same caption, lower is better: {', '.join(words)}{by_chance}; one seed",
        f"by another embedding: segue evaluate generation {run}/measured {demo.out}/measured --embedding NAME",
    ]
