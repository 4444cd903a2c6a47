"""Is a teacher's space semantic? Linear probes for labels that no teacher ever sees in its training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.data.clip import Clip
from segue.evaluation.mel import mel_magnitude
from segue.ssl.base import Teacher
from segue.ssl.compact import CompactEncoder, CompactTeacher, normalise
from segue.training.teacher.collapse import POOLED_SEC, measure_teacher
from segue.training.teacher.statistics import fit_mel, fit_statistics, some_waves
from segue.training.training_audio import Sounds, read_clips
from segue.types import import_extra

LABELS = ("family", "instrument", "pitch", "word")
FEW = 8  # test clips; a probe of fewer is left out


@dataclass(frozen=True)
class Probe:
    """What a linear probe is fitted on and tested on.

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


def probe_teacher(
    teacher: Teacher, source: Path, *, layers: bool = False, clips: int = 4000, skip_bad: bool = False
) -> dict:
    """Collapse figures (`measure_teacher`), and under "probes" the accuracy of linear probes on held-out clips.

    Features are pooled over a clip's first 4 s (mean and deviation over frames) and standardised; probes are logistic
    regressions on split "train" of the source, tested on "test" (or "valid" where the labelled clips have no test).
    The labels are family, instrument, pitch and word, where manifest.jsonl names at least two of one, each on the
    clips of kind "note" where there are any. Beside the teacher: the same pooling of its log-mel spectrogram (128
    bands), and for one of our own the same network with random weights. A source without such labels has no probes.

    Raises:
        UserError: unusable sounds, or scikit-learn is missing.
    """
    report = measure_teacher(teacher, source, skip_bad=skip_bad) | {"probes": {}}
    probes, paths = read_probes(source, clips)
    if not probes:
        return report
    read = read_clips([Clip(str(path), path, (), "") for path in paths], teacher.sample_rate_hz, skip_bad)
    # Unusable files are left out of all probes alike.
    sounds = read.sounds
    probes = _of_the_read(probes, paths, {clip.path for clip in read.clips})
    encoders = {"teacher": teacher.encode, "log_mel_statistics": lambda wave: log_mel(wave, teacher.sample_rate_hz)}
    # The same network before training: what its features tell is no merit of the training.
    if isinstance(teacher, CompactTeacher):
        encoders["random_weights"] = _random_twin(teacher, sounds).encode
    features = {name: pooled(sounds, teacher.sample_rate_hz, encode) for name, encode in encoders.items()}
    if isinstance(teacher, CompactTeacher) and layers:
        features |= _pooled_layers(sounds, teacher)
    for probe in probes:
        figures = {name: round(accuracy(table, probe), 4) for name, table in features.items()}
        about = {"chance": round(_commonest(probe), 4), "test_split": probe.split}
        sizes = {"train_clips": len(probe.train), "test_clips": len(probe.test)}
        report["probes"][probe.name] = {**figures, **about, **sizes}
    return report


def read_probes(source: Path, clips: int) -> tuple[list[Probe], list[Path]]:
    """The probes that a source's manifest allows, and the clips that their indices count."""
    manifest = source / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    rows = [row for row in map(json.loads, lines) if any(row.get(name) is not None for name in LABELS)]
    if any(row.get("kind") == "note" for row in rows):
        # Of chords and sequences the labels describe only a part.
        rows = [row for row in rows if row.get("kind") == "note"]
    # The first held-out split that labelled clips have.
    held = next((x for x in ("test", "valid") if any(row.get("split") == x for row in rows)), None)
    training = [row for row in rows if row.get("split") == "train"]
    rows = training[:: max(1, -(-len(training) // clips))] + [row for row in rows if row.get("split") == held]
    probes = []
    for name in LABELS:
        labels = ["" if row.get(name) is None else str(row[name]) for row in rows]
        train = [i for i, row in enumerate(rows) if row["split"] == "train" and labels[i]]
        test = [i for i, row in enumerate(rows) if row["split"] == held and labels[i]]
        # A label that all clips share, or hardly any test clip has, tells nothing.
        if len({labels[i] for i in train}) > 1 and len(test) >= FEW:
            probes.append(Probe(name, train, test, labels, str(held)))
    return probes, [source / row["path"] for row in rows] if probes else []


def _of_the_read(probes: list[Probe], paths: list[Path], read: set[Path]) -> list[Probe]:
    """The probes without the clips that could not be read, which their indices no longer count."""
    # From the place among all paths to the place among those that were read.
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
        frames = encode(sounds.wave(index)[None, : POOLED_SEC * sample_rate_hz])[0].float().cpu()
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
    linear = import_extra("sklearn.linear_model", "lab")
    scaling = import_extra("sklearn.preprocessing", "lab")
    labels = np.array(probe.labels)
    train = np.array(probe.train)
    test = np.array(probe.test)
    scaler = scaling.StandardScaler().fit(features[train])
    classifier = linear.LogisticRegression(C=0.1, max_iter=400, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a handful of last iterations changes no figure
        classifier.fit(scaler.transform(features[train]), labels[train])
    return float(classifier.score(scaler.transform(features[test]), labels[test]))


def _commonest(probe: Probe) -> float:
    counts: dict[str, int] = {}
    # What always naming the commonest label of the training clips gets right.
    for i in probe.train:
        counts[probe.labels[i]] = counts.get(probe.labels[i], 0) + 1
    # Sorted first, so that of equally common labels always the same one is taken.
    guess = max(sorted(counts), key=lambda label: counts[label])
    return sum(probe.labels[i] == guess for i in probe.test) / len(probe.test)


def _random_twin(teacher: CompactTeacher, sounds: Sounds) -> CompactTeacher:
    # A fixed seed, without touching anybody's random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CompactEncoder(teacher.config)
    waves = some_waves(sounds, 64, POOLED_SEC * teacher.sample_rate_hz)
    # Its front end and statistics are fitted as the trained one's were.
    fit_mel(encoder, waves)
    fit_statistics(encoder, waves)
    return CompactTeacher(encoder, "random", teacher.layer)
