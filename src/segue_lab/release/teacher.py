"""The release of a teacher: weights in float16, and a card with figures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from segue.files import sha256_of
from segue.ssl.base import Teacher
from segue.ssl.compact import WEIGHTS, CompactEncoder, CompactTeacher, load_compact, save_teacher
from segue.training.small_run import read_meta
from segue.training.teacher.statistics import fit_statistics, refuse_collapsed, some_waves
from segue.training.training_audio import clips_of, read_sounds
from segue.types import UserError
from segue_lab.release.card import training_card, write_card
from segue_lab.teacher_probes import probe_teacher


def encode_sec_per_sec(teacher: Teacher) -> float:
    """Seconds of sound encoded per second, at 64 clips of 2 s a call."""
    wave = 0.1 * torch.randn(64, 2 * teacher.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Once for nothing: the first call allocates and plans.
        teacher.encode(wave[:4])
        began = time.perf_counter()
        teacher.encode(wave)
    return 128 / (time.perf_counter() - began)


def release_teacher(
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
        sources: what it was trained on: {"name", "licence", "hours", ...} each, as the card says it.
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
        # Before the figures: they are of the mixture that is released.
        encoder = _with_layers(encoder, layers, next(iter(measures.values())))
    figures = _figures(CompactTeacher(encoder, "compact"), measures)
    # A collapsed teacher is not released, whatever its probes say.
    for name, part in figures.items():
        refuse_collapsed(part["collapse"], f"{run} on {name}")
    save_teacher(encoder, out, half=True)
    name = "compact" if encoder.config.sample_rate_hz == 16000 else f"compact-{encoder.config.sample_rate_hz // 1000}k"
    teacher = load_compact(out, name=name)
    card = {
        "name": name,
        "weights": teacher.fingerprint()["weights"],
        "sha256": sha256_of([out / WEIGHTS]),
        "bytes": (out / WEIGHTS).stat().st_size,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "sample_rate_hz": teacher.sample_rate_hz,
        "frame_rate_hz": teacher.frame_rate_hz,
        "features": teacher.dim,
        "default_layers": list(encoder.config.layers),
        "training": training_card(read_meta(run), sources=sources, command=command, commit=commit),
        "figures": figures,
        "encode_sec_per_sec": round(encode_sec_per_sec(teacher), 1),
        "threads": torch.get_num_threads(),
    }
    return write_card(out, card)


def _figures(teacher: CompactTeacher, measures: dict[str, Path]) -> dict:
    """Figures of the weights as they are released: rounded to float16 first."""
    # Rounded as the file will be, so that figures fit what is loaded from it.
    teacher.encoder.load_state_dict({k: v.half().float() for k, v in teacher.encoder.state_dict().items()})
    return {name: probe_teacher(teacher, folder, layers=True) for name, folder in measures.items()}


def _with_layers(encoder: CompactEncoder, layers: tuple[int, ...], source: Path) -> CompactEncoder:
    depth = encoder.config.depth
    if not all(1 <= i <= depth for i in layers):
        raise UserError(
            f"--layer {' '.join(map(str, layers))}: there are layers 1 to {depth}; hint: name some of these"
        )
    other = CompactEncoder(replace(encoder.config, layers=layers))
    other.load_state_dict(encoder.state_dict())
    rate_hz = encoder.config.sample_rate_hz
    # Statistics come from training clips alone.
    members = [s for s in clips_of(source) if s.split == "train"]
    fit_statistics(other, some_waves(read_sounds(members[:: max(1, len(members) // 400)], rate_hz), 400, 4 * rate_hz))
    return other
