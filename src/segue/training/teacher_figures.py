"""Is a teacher's space semantic? Linear probes and collapse figures, and the card that a shipped one carries.

Labels serve here only: a teacher never sees one.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from segue.data.clip import Clip
from segue.files import sha256_of, write_text
from segue.metrics.mel import mel_magnitude
from segue.ssl.base import Teacher
from segue.ssl.compact import WEIGHTS, CompactEncoder, CompactTeacher, load_compact, normalise, save_teacher
from segue.training.small_run import STATE
from segue.training.teacher.statistics import (
    collapse_figures,
    fit_mel,
    fit_statistics,
    refuse_collapsed,
    some_waves,
)
from segue.training.training_audio import Sounds, clips_of, read_clips, read_sounds
from segue.types import UserError, import_extra

LABELS = ("family", "instrument", "pitch", "word")
HEARD_SEC, FEW = 4, 8


@dataclass(frozen=True)
class Probe:
    """What a linear probe learns from and is asked.

    Attributes:
        name: of the label.
        train, test: indices of clips. labels: of every clip, "" where it has none.
        split: where the test clips come from.
    """

    name: str
    train: list[int]
    test: list[int]
    labels: list[str]
    split: str


def measure_teacher(
    teacher: Teacher, source: Path, *, layers: bool = False, clips: int = 4000, skip_bad: bool = False
) -> dict:
    """Accuracy of linear probes on held-out clips, and collapse figures.

    Features are pooled over a clip's first 4 s (mean and deviation over frames) and standardised; probes are logistic
    regressions on split "train" of the source, asked on "test" (or "valid" where the labelled clips have no test).
    Probed are family, instrument, pitch and word, where manifest.jsonl names at least two of one, each on the
    clips of kind "note" where there are any. Beside the teacher: the same pooling of its log-mel spectrogram (128
    bands), and for one of our own the same network with random weights. A source without such labels gets the collapse
    figures alone.

    Raises:
        UserError: unusable sounds, or scikit-learn is missing.
    """
    sounds = clips_of(source)
    held = [s for s in sounds if s.split == "test"] or [s for s in sounds if s.split == "valid"] or sounds
    some = read_sounds(held[:: max(1, len(held) // 100)][:100], teacher.sample_rate_hz, skip_bad)
    report = {"collapse": _collapse(teacher, some), "clips": len(some), "probes": {}}
    probes, paths = read_probes(source, clips)
    if not probes:
        return report
    clips_read = read_clips([Clip(str(path), path, (), "") for path in paths], teacher.sample_rate_hz, skip_bad)
    heard = clips_read.sounds
    probes = _of_the_read(probes, paths, {clip.path for clip in clips_read.clips})
    ways = {"teacher": teacher.encode, "log_mel_statistics": lambda wave: log_mel(wave, teacher.sample_rate_hz)}
    if isinstance(teacher, CompactTeacher):
        ways["random_weights"] = _random_twin(teacher, heard).encode
    features = {name: pooled(heard, teacher.sample_rate_hz, encode) for name, encode in ways.items()}
    if isinstance(teacher, CompactTeacher) and layers:
        features |= _pooled_layers(heard, teacher)
    for probe in probes:
        figures = {name: round(accuracy(table, probe), 4) for name, table in features.items()}
        told = {"chance": round(_commonest(probe), 4), "test_split": probe.split}
        sizes = {"train_clips": len(probe.train), "test_clips": len(probe.test)}
        report["probes"][probe.name] = {**figures, **told, **sizes}
    return report


def read_probes(source: Path, clips: int) -> tuple[list[Probe], list[Path]]:
    """The probes that a source's manifest allows, and the clips that their indices count."""
    manifest = source / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    rows = [row for row in map(json.loads, lines) if any(row.get(name) is not None for name in LABELS)]
    if any(row.get("kind") == "note" for row in rows):
        rows = [row for row in rows if row.get("kind") == "note"]
    held = next((x for x in ("test", "valid") if any(row.get("split") == x for row in rows)), None)
    training = [row for row in rows if row.get("split") == "train"]
    rows = training[:: max(1, -(-len(training) // clips))] + [row for row in rows if row.get("split") == held]
    probes = []
    for name in LABELS:
        labels = ["" if row.get(name) is None else str(row[name]) for row in rows]
        train = [i for i, row in enumerate(rows) if row["split"] == "train" and labels[i]]
        test = [i for i, row in enumerate(rows) if row["split"] == held and labels[i]]
        if len({labels[i] for i in train}) > 1 and len(test) >= FEW:
            probes.append(Probe(name, train, test, labels, str(held)))
    return probes, [source / row["path"] for row in rows] if probes else []


def _of_the_read(probes: list[Probe], paths: list[Path], read: set[Path]) -> list[Probe]:
    """The probes without the clips that could not be read, which their indices no longer count."""
    place = {index: number for number, index in enumerate(i for i, path in enumerate(paths) if path in read)}
    return [
        replace(
            probe,
            train=[place[i] for i in probe.train if i in place],
            test=[place[i] for i in probe.test if i in place],
            labels=[label for i, label in enumerate(probe.labels) if i in place],
        )
        for probe in probes
    ]


@torch.no_grad()
def pooled(sounds: Sounds, sample_rate_hz: int, encode: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Mean and deviation over frames [N, 2 F] of every sound's first 4 s; encode gives [1, ..., S, F]."""
    rows = []
    for index in range(len(sounds)):
        frames = encode(sounds.wave(index)[None, : HEARD_SEC * sample_rate_hz])[0].float().cpu()
        rows.append(torch.cat([frames.mean(-2), frames.std(-2, correction=0)], dim=-1))
    return torch.stack(rows).numpy()


def _pooled_layers(sounds: Sounds, teacher: CompactTeacher) -> dict[str, np.ndarray]:
    """Every layer in one pass. Statistics are left out: a probe standardises anyway."""
    encoder = teacher.encoder

    def encode(wave: Tensor) -> Tensor:
        outputs = encoder(encoder.mel.patches(encoder.mel(wave.to(encoder.mel.mean.device))))
        return torch.stack([normalise(x) for x in outputs], dim=1)

    table = pooled(sounds, teacher.sample_rate_hz, encode)
    return {f"layer_{k + 1}": table[:, k] for k in range(table.shape[1])}


def log_mel(wave: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, T] -> [B, frames, 128]: natural log of mel power, every 10 ms, windows of about 64 ms."""
    window = 2 ** round(np.log2(0.064 * sample_rate_hz))
    mel = mel_magnitude(wave, sample_rate_hz, n_fft=window, hop_samples=round(sample_rate_hz / 100), bands=128)
    return (mel.square() + 1e-7).log().transpose(1, 2)


def accuracy(features: np.ndarray, probe: Probe) -> float:
    """Share of test clips that a logistic regression (C 0.1) on standardised features names rightly.

    Raises:
        UserError: scikit-learn is missing.
    """
    linear = import_extra("sklearn.linear_model", "evaluate")
    scaling = import_extra("sklearn.preprocessing", "evaluate")
    labels = np.array(probe.labels)
    train, test = np.array(probe.train), np.array(probe.test)
    scaler = scaling.StandardScaler().fit(features[train])
    classifier = linear.LogisticRegression(C=0.1, max_iter=400, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a handful of last iterations changes no figure
        classifier.fit(scaler.transform(features[train]), labels[train])
    return float(classifier.score(scaler.transform(features[test]), labels[test]))


def _commonest(probe: Probe) -> float:
    counts: dict[str, int] = {}
    for i in probe.train:
        counts[probe.labels[i]] = counts.get(probe.labels[i], 0) + 1
    guess = max(sorted(counts), key=lambda label: counts[label])
    return sum(probe.labels[i] == guess for i in probe.test) / len(probe.test)


def _random_twin(teacher: CompactTeacher, sounds: Sounds) -> CompactTeacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CompactEncoder(teacher.config)
    waves = some_waves(sounds, 64, HEARD_SEC * teacher.sample_rate_hz)
    fit_mel(encoder, waves)
    fit_statistics(encoder, waves)
    return CompactTeacher(encoder, "random", teacher.layer)


def _collapse(teacher: Teacher, sounds: Sounds) -> dict[str, float]:
    waves = [sounds.wave(i)[: HEARD_SEC * teacher.sample_rate_hz] for i in range(len(sounds))]
    if isinstance(teacher, CompactTeacher):  # before its statistics make a flat space look like any other
        return collapse_figures(lambda wave: teacher.encoder.features(wave, teacher.layer), waves)
    return collapse_figures(teacher.encode, waves)


def encode_sec_per_sec(teacher: Teacher) -> float:
    """Seconds of sound heard per second, at 64 clips of 2 s a call."""
    wave = 0.1 * torch.randn(64, 2 * teacher.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher.encode(wave[:4])
        began = time.perf_counter()
        teacher.encode(wave)
    return 128 / (time.perf_counter() - began)


def ship_teacher(
    run: Path,
    out: Path,
    measures: dict[str, Path],
    *,
    sources: list[dict],
    command: str,
    commit: str,
    layers: tuple[int, ...] | None = None,
) -> dict:
    """Write the averaged weights of a run in float16, and card.json beside them, into `out`.

    Args:
        run: folder that `train_teacher` left.
        measures: name -> folder of sounds to measure on; labels of its manifest are probed for.
        sources: what it was trained on: {"name", "licence", "hours", ...} each, as the card shall say it.
        command, commit: how it was trained.
        layers: averaged by default from now on; their statistics are fitted anew, on split "train" of the first of
            `measures`. None leaves them.

    Returns:
        The card.

    Raises:
        UserError: no trained teacher there, no such layers, unusable sounds, or a collapsed teacher.
    """
    encoder = load_compact(run).encoder
    if layers:
        encoder = _with_layers(encoder, layers, next(iter(measures.values())))
    figures = _figures(CompactTeacher(encoder, "compact"), measures)
    for name, part in figures.items():
        refuse_collapsed(part["collapse"], f"{run} on {name}")
    with safe_open(run / STATE, "pt") as file:
        state = json.loads(file.metadata()["state"])
    save_teacher(encoder, out, half=True)
    teacher = load_compact(out, name="compact")
    card = {
        "name": "compact",
        "weights": teacher.fingerprint()["weights"],
        "sha256": sha256_of([out / WEIGHTS]),
        "bytes": (out / WEIGHTS).stat().st_size,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "sample_rate_hz": teacher.sample_rate_hz,
        "frame_rate_hz": teacher.frame_rate_hz,
        "features": teacher.dim,
        "default_layers": list(encoder.config.layers),
        "training": {
            "command": command,
            "commit": commit,
            "steps": state["step"],
            "hours": round(state["seconds"] / 3600, 2),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
            "torch": torch.__version__,
            "config": state["config"],
            "sources": sources,
        },
        "figures": figures,
        "encode_sec_per_sec": round(encode_sec_per_sec(teacher), 1),
        "threads": torch.get_num_threads(),
    }
    write_text(out / "card.json", json.dumps(card, indent=2) + "\n")
    return card


def _figures(teacher: CompactTeacher, measures: dict[str, Path]) -> dict:
    """Figures of the weights as they are shipped: rounded to float16 first."""
    teacher.encoder.load_state_dict({k: v.half().float() for k, v in teacher.encoder.state_dict().items()})
    return {name: measure_teacher(teacher, folder, layers=True) for name, folder in measures.items()}


def _with_layers(encoder: CompactEncoder, layers: tuple[int, ...], source: Path) -> CompactEncoder:
    depth = encoder.config.depth
    if not all(1 <= i <= depth for i in layers):
        raise UserError(
            f"--layer {' '.join(map(str, layers))}: there are layers 1 to {depth}; mend: name some of these"
        )
    other = CompactEncoder(replace(encoder.config, layers=layers))
    other.load_state_dict(encoder.state_dict())
    rate_hz = encoder.config.sample_rate_hz
    members = [s for s in clips_of(source) if s.split == "train"]
    fit_statistics(other, some_waves(read_sounds(members[:: max(1, len(members) // 400)], rate_hz), 400, 4 * rate_hz))
    return other
