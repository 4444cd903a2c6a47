"""How well a codec reconstructs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segue.codecs.base import Codec
from segue.data.clip import Clip
from segue.data.reading import DataSource
from segue.evaluation.mel import stft_magnitude
from segue.evaluation.spectral_distances import log_mel_l1, log_spectral_distance, si_sdr_db
from segue.evaluation.stereo import width_error_db
from segue.training.training_audio import clips_of, decode, kind_of, refuse_bad
from segue.types import UserError

MEASURES = (
    "log_mel_l1",
    "lsd",
    "convergence",
    "si_sdr_db",
    "high_band_db",
    "flatness_db",
    "width_error_db",
    "log_mel_l1_50ms",
)


@torch.inference_mode()
def measure_codec(
    codec: Codec, source: Path | DataSource, *, clips: int = 200, noise: float = 0.1, skip_bad: bool = False
) -> dict:
    """Reconstruction of held-out sounds by kind: split "test" where the kind has one, else "valid", else all of it.

    Waveforms are rounded to 16 bit before they are compared, as they are in a file. By kind: clips, the means of
    log-mel L1, LSD, spectral convergence (2048/512), SI-SDR (dB, at most 120; silent clips left out), level above a
    quarter of the sample rate and spectral flatness, both in dB against the original (our definitions: below 0 is
    dull, above 0 is blurred), and the same after noise of standard deviation `noise` was added to standardised
    latents. A codec that keeps no absolute phase has an SI-SDR far below zero however good it sounds.
    "log_mel_l1_50ms" is the log-mel L1 in windows of about 50 ms whatever the rate (1024 samples at 16 kHz, 2048 at
    44.1 kHz), since 1024 samples are short at high rates. Of a stereo codec all are means over left and right, and
    the width error is how far the level of side against mid comes back wrong, in dB. Beside them: moments of the
    latents, and decoding speed in seconds of sound per second, at 2 s a call.
    """
    generator = torch.Generator().manual_seed(0)
    report: dict = {"latent_noise": noise, "kinds": {}}
    latents = []
    decoded_sec = 0.0
    spent_sec = 0.0
    for kind, (split, members) in held_out(clips_of(source, skip_bad)).items():
        # Evenly spaced over the kind: neighbours in a list are often alike.
        some = members[:: max(1, len(members) // clips)][:clips]
        read = decode(some, codec.sample_rate_hz, codec.audio_channels)
        refuse_bad(read.bad, skip_bad)
        waves = read.sounds
        if not len(waves):
            continue
        # Each sound: decoded as it is (timed), and from latents with noise added.
        rows = []
        for index in range(len(waves)):
            wave = torch.atleast_2d(waves.wave(index)[..., : 2 * codec.sample_rate_hz])
            z = codec.encode(wave[None])
            # Timed without the encoder, since generation never runs it.
            began = time.perf_counter()
            estimate = codec.decode(z, wave.shape[-1])[0]
            spent_sec += time.perf_counter() - began
            decoded_sec += wave.shape[-1] / codec.sample_rate_hz
            noisy = codec.decode(z + noise * torch.randn(z.shape, generator=generator).to(z), wave.shape[-1])[0]
            rows.append([*_distances(estimate, wave, codec), *_distances(noisy, wave, codec)])
            latents.append(z[0].double().cpu())
        table = torch.tensor(rows, dtype=torch.float64)
        # Silent clips have no SI-SDR: their rows are left out whole, so that all means are of the same clips.
        means = table[torch.isfinite(table).all(1)].mean(0).tolist()
        names = (*MEASURES, *(f"noisy_{name}" for name in MEASURES))
        told = {name: value for name, value in zip(names, means, strict=True) if math.isfinite(value)}
        if codec.audio_channels == 1:
            # A mono sound has no width that could be wrong.
            told = {name: value for name, value in told.items() if not name.endswith("width_error_db")}
        figures = {name: round(value, 3) for name, value in told.items()}
        report["kinds"][kind] = {"split": split, "clips": len(rows), **figures}
    if not latents:
        raise UserError(f"{source}: none of its sounds can be used; hint: segue data check says why")
    # What a diffusion model meets: the scale and the smoothness of the latents.
    frames = torch.cat(latents, dim=1)
    report["latents"] = {
        "mean_abs": round(frames.mean(1).abs().mean().item(), 4),
        "std_min": round(frames.std(1).min().item(), 3),
        "std_max": round(frames.std(1).max().item(), 3),
        "lag1_correlation": round(_lag_correlation(latents), 3),
    }
    report["decode_sec_per_sec"] = round(decoded_sec / max(spent_sec, 1e-9), 1)
    report["threads"] = torch.get_num_threads()
    return report


@torch.inference_mode()
def round_trips(
    codecs: dict[str, Codec], source: Path | DataSource, *, per_kind: int = 3, skip_bad: bool = False
) -> list[tuple[str, str, dict]]:
    """A few held-out sounds of each kind, at most 4 s: (kind, file name, label -> wave), the original first.

    Waves are [T] of a mono codec, [2, T] of a stereo one; all codecs are of the same rate and channels.
    """
    trips = []
    first = next(iter(codecs.values()))
    rate_hz = first.sample_rate_hz
    for kind, (_, members) in held_out(clips_of(source, skip_bad)).items():
        members = members[:: max(1, len(members) // per_kind)][:per_kind]
        read = decode(members, rate_hz, first.audio_channels)
        refuse_bad(read.bad, skip_bad)
        for index, clip in enumerate(read.clips):
            wave = torch.atleast_2d(read.sounds.wave(index)[..., : 4 * rate_hz])[None]
            decoded = {k: c.decode(c.encode(wave), wave.shape[-1])[0].cpu() for k, c in codecs.items()}
            waves = {"original": wave[0], **decoded}
            trips.append((kind, clip.path.name, {k: (w if len(w) > 1 else w[0]).numpy() for k, w in waves.items()}))
    return trips


def held_out(clips: Sequence[Clip]) -> dict[str, tuple[str, list[Clip]]]:
    """kind -> its split "test", else "valid", else "all" of it, and the clips of that."""
    chosen = {}
    # Kind by kind: sets of different kinds may have been split in different ways.
    for kind in sorted({kind_of(clip) for clip in clips}):
        members = [clip for clip in clips if kind_of(clip) == kind]
        split = next((x for x in ("test", "valid") if any(clip.split == x for clip in members)), "all")
        chosen[kind] = split, [clip for clip in members if split in ("all", clip.split)]
    return chosen


def _distances(estimate: Tensor, wave: Tensor, codec: Codec) -> list[float]:
    """Of one sound [A, T], in the order of MEASURES."""
    estimate = (estimate.cpu().clamp(-1, 32767 / 32768) * 32768).round() / 32768
    found, truth = (stft_magnitude(x, 2048, 512) for x in (estimate, wave))
    # As long in time as 1024 samples are at 16 kHz, or nearly.
    n_fft = 2 ** round(math.log2(0.055 * codec.sample_rate_hz))
    # A side of digital silence has no SI-SDR, and the other one still has.
    sounding = wave.any(dim=1) if bool(wave.any()) else torch.ones(len(wave), dtype=torch.bool)
    return [
        log_mel_l1(estimate, wave, codec.sample_rate_hz).mean().item(),
        log_spectral_distance(estimate, wave).mean().item(),
        ((found - truth).norm() / truth.norm()).item(),
        si_sdr_db(estimate[sounding], wave[sounding]).clamp(max=120).mean().item(),
        _high_band_db(found) - _high_band_db(truth),
        _flatness_db(found, truth) - _flatness_db(truth, truth),
        width_error_db(estimate[None], wave[None]).item() if len(wave) == 2 else 0.0,
        log_mel_l1(estimate, wave, codec.sample_rate_hz, n_fft=n_fft, hop_samples=n_fft // 4).mean().item(),
    ]


def _high_band_db(magnitude: Tensor) -> float:
    """Level of the upper half of the bins [B, bins, frames]; the floor is about that of 16-bit silence."""
    return 10 * (magnitude[:, magnitude.shape[1] // 2 :].double().square().mean() + 1e-7).log10().item()


def _flatness_db(magnitude: Tensor, truth: Tensor) -> float:
    """Geometric over arithmetic mean of the bins' power, over frames where the truth sounds: 0 is white."""
    power = magnitude.double().square() + 1e-7
    # Flatness of pauses says nothing about the sound.
    level = truth.square().sum(1)
    flatness = 10 * (power.log10().mean(1) - power.mean(1).log10())
    return flatness[level > 1e-4 * level.max()].mean().item()


def _lag_correlation(latents: list[Tensor]) -> float:
    """Correlation of standardised latents with themselves one frame later: 1 is smooth, 0 is white."""
    pairs = [(z[:, :-1], z[:, 1:]) for z in latents if z.shape[1] > 1]
    product = sum((a * b).sum() for a, b in pairs)
    energy = sum((a.square().sum() + b.square().sum()) / 2 for a, b in pairs)
    return float(product / energy)
