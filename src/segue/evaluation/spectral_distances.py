"""Signal distances between an estimate and its reference: from pairs [B, T] to one number a clip, [B]."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from segue.evaluation.mel import mel_magnitude, stft_magnitude
from segue.types import UserError, first_line


def log_mel_l1(
    estimate: Tensor,
    reference: Tensor,
    sample_rate_hz: int,
    *,
    n_fft: int = 1024,
    hop_samples: int = 256,
    bands: int = 80,
    floor: float = 1e-5,
) -> Tensor:
    """Mean over frames and bands of |ln max(mel(estimate), floor) - ln max(mel(reference), floor)|; nepers, 0 is equal.

    mel: HTK bands over STFT magnitudes (`mel_magnitude`). Not scale-invariant: a gain of g adds ln g where nothing is
    below the floor. The figure belongs to its parameters; never compare it with another toolkit's.
    """
    _check_pair(estimate, reference)
    logs = (
        mel_magnitude(x, sample_rate_hz, n_fft=n_fft, hop_samples=hop_samples, bands=bands).clamp(min=floor).log()
        for x in (estimate, reference)
    )
    return (next(logs) - next(logs)).abs().mean(dim=(1, 2))


def log_spectral_distance(
    estimate: Tensor, reference: Tensor, *, n_fft: int = 2048, hop_samples: int = 512, floor: float = 1e-8
) -> Tensor:
    """LSD = mean over frames of sqrt(mean over bins of (log10 |reference|^2 / |estimate|^2)^2), in decades of power.

    The defaults are the preset of NU-Wave 2, AP-BWE and AERO: 2048/512, squared magnitudes clamped at 1e-8. Not
    scale-invariant; never compare across presets or papers.
    """
    _check_pair(estimate, reference)
    power = [stft_magnitude(x, n_fft, hop_samples).square().clamp(min=floor) for x in (estimate, reference)]
    return (power[1].log10() - power[0].log10()).square().mean(dim=1).sqrt().mean(dim=1)


@dataclass(frozen=True)
class LsdPreset:
    """One published LSD. Frames are centred, zero-padded and Hann-windowed in all of them.

    Attributes:
        n_fft, hop_samples: of the STFT; its window is as long as n_fft.
        floor: of power.
        floor_is: "clamp": log10 max(|T|^2, floor) - log10 max(|E|^2, floor); "added":
            log10(|T|^2 / (|E| + floor)^2 + floor), as ssr_eval has it.
    """

    n_fft: int
    hop_samples: int
    floor: float
    floor_is: str = "clamp"


LSD_PRESETS = ("ssr_eval", "nuwave2", "universr")


def lsd_preset(name: str, sample_rate_hz: int) -> LsdPreset:
    """A published LSD's parameters: "ssr_eval" (with the rate), "nuwave2" (AP-BWE and AERO, too), "universr".

    Raises:
        UserError: no such preset.
    """
    if name == "ssr_eval":
        return LsdPreset(int(2048 * sample_rate_hz / 44100), sample_rate_hz // 100, 1e-12, "added")
    if name == "nuwave2":
        return LsdPreset(2048, 512, 1e-8)
    if name == "universr":
        return LsdPreset(1024, 256, 1e-6)
    raise UserError(f"LSD has the presets {', '.join(LSD_PRESETS)}; got {name!r}")


def lsd(
    estimate: Tensor,
    reference: Tensor,
    sample_rate_hz: int,
    preset: str,
    *,
    band: str = "full",
    cutoff_hz: float | None = None,
    loudness_matched: bool = False,
) -> Tensor:
    """LSD by a published preset, in decades of power, float64: mean over frames of the root mean square over bins.

    Args:
        estimate, reference: [B, T].
        preset: a name of `LSD_PRESETS`.
        band: "full", "low" (bins up to cutoff_hz, inclusive) or "high" (bins above it).
        cutoff_hz: where low ends; super-resolution: half the rate of the input.
        loudness_matched: scale each estimate to its reference's root mean square first.

    Raises:
        UserError: shapes that differ, an unknown preset or band, a band without bins, a silent estimate to be matched.
    """
    _check_pair(estimate, reference)
    estimate = estimate.double()
    reference = reference.double()
    form = lsd_preset(preset, sample_rate_hz)
    bins_hz = torch.arange(form.n_fft // 2 + 1, dtype=torch.float64) * sample_rate_hz / form.n_fft
    inside = _band(band, cutoff_hz, bins_hz)
    # Matched before the STFT, on the whole wave: the band must not decide the level.
    if loudness_matched:
        estimate = match_loudness(estimate, reference)
    # Bins are picked once for both, so that high and low band split the same spectrum.
    e, r = (stft_magnitude(x, form.n_fft, form.hop_samples)[:, inside] for x in (estimate, reference))
    if form.floor_is == "added":
        logs = (r.square() / (e + form.floor).square() + form.floor).log10()
    else:
        logs = r.square().clamp(min=form.floor).log10() - e.square().clamp(min=form.floor).log10()
    return logs.square().mean(dim=1).sqrt().mean(dim=1)


def lsd_card(preset: str, sample_rate_hz: int, band: str, cutoff_hz: float | None, loudness_matched: bool) -> dict:
    """The parameters of `lsd`, for a metric card."""
    about = {"preset": preset, **asdict(lsd_preset(preset, sample_rate_hz)), "sample_rate_hz": sample_rate_hz}
    return about | {
        "band": band,
        "cutoff_hz": cutoff_hz,
        "loudness_matched": loudness_matched,
        "frames": "centred, zeros",
    }


def match_loudness(estimate: Tensor, reference: Tensor) -> Tensor:
    """[B, T] estimates, each scaled to its reference's root mean square (our definition of loudness-matched).

    Raises:
        UserError: a silent estimate.
    """
    levels = [x.square().mean(-1, keepdim=True).sqrt() for x in (estimate, reference)]
    if (levels[0] == 0).any():
        raise UserError("a silent estimate has no loudness to match; hint: leave it out and count it as failed")
    return estimate * (levels[1] / levels[0])


def _band(band: str, cutoff_hz: float | None, bins_hz: Tensor) -> Tensor:
    if band == "full":
        return torch.ones_like(bins_hz, dtype=torch.bool)
    if band not in ("low", "high") or cutoff_hz is None:
        raise UserError(f"a band is full, or low or high of a cutoff in Hz; got {band!r} with cutoff {cutoff_hz}")
    inside = bins_hz <= cutoff_hz if band == "low" else bins_hz > cutoff_hz
    if cutoff_hz <= 0 or not inside.any():
        raise UserError(
            f"the {band} band of cutoff {cutoff_hz:g} Hz is empty; hint: give one between 0 and half the rate"
        )
    return inside


MULTI_RESOLUTION = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window (Yamamoto et al. 2020)


def multi_resolution_stft(estimate: Tensor, reference: Tensor, *, floor: float = 1e-5) -> Tensor:
    """Mean over three resolutions of spectral convergence + log-magnitude L1 (Yamamoto et al. 2020, eq. 4-6), float64.

    Convergence: ||R - E||_F / ||R||_F of magnitudes; L1: mean |ln max(R, floor) - ln max(E, floor)|, in nepers.

    Raises:
        UserError: shapes that differ, or a silent reference.
    """
    _check_pair(estimate, reference)
    if (reference == 0).all(dim=-1).any():
        raise UserError("a silent reference has no spectral convergence; hint: leave it out and count it")
    total = torch.zeros(len(reference), dtype=torch.float64)
    for n_fft, hop, window in MULTI_RESOLUTION:
        hann = torch.hann_window(window, dtype=torch.float64)
        e, r = (
            torch.stft(
                x.double(), n_fft, hop, window, hann, center=True, pad_mode="constant", return_complex=True
            ).abs()
            for x in (estimate, reference)
        )
        # Spectral convergence and log-magnitude L1, summed over resolutions.
        convergence = (r - e).square().sum(dim=(1, 2)).sqrt() / r.square().sum(dim=(1, 2)).sqrt()
        total += convergence + (r.clamp(min=floor).log() - e.clamp(min=floor).log()).abs().mean(dim=(1, 2))
    return total / len(MULTI_RESOLUTION)


def visqol_mos(estimate: Tensor, reference: Tensor, sample_rate_hz: int, *, speech: bool = False) -> Tensor:
    """ViSQOL's MOS-LQO [B] of pairs [B, T], in 1 to 5, by the visqol-python port (Chinen et al. 2020 describe v3).

    Audio mode resamples to 48 kHz, speech mode to 16 kHz.

    Raises:
        UserError: visqol-python is not installed, or it refuses a clip.
    """
    _check_pair(estimate, reference)
    # Imported only where it is asked for, since it is an extra.
    try:
        import soxr
        from visqol import VisqolApi
    except ModuleNotFoundError as error:
        raise UserError(
            f"ViSQOL needs {error.name}; hint: pip install visqol-python, or leave --visqol away"
        ) from error
    rate_hz = 16_000 if speech else 48_000
    api = VisqolApi()
    api.create(mode="speech" if speech else "audio")
    scores = []
    for e, r in zip(estimate.double().numpy(), reference.double().numpy()):
        e, r = (x if sample_rate_hz == rate_hz else soxr.resample(x, sample_rate_hz, rate_hz) for x in (e, r))
        try:
            scores.append(float(api.measure_from_arrays(r, e, sample_rate=rate_hz).moslqo))
        except Exception as error:  # a foreign library's own errors; a figure must not stand for them
            raise UserError(f"ViSQOL cannot measure this pair: {first_line(error)}") from error
    return torch.tensor(scores, dtype=torch.float64)


def snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """10 log10(|reference|^2 / |estimate - reference|^2) in dB, computed in float64; infinite where they are equal."""
    _check_pair(estimate, reference)
    estimate = estimate.double()
    reference = reference.double()
    return 10.0 * torch.log10(reference.square().sum(-1) / (estimate - reference).square().sum(-1))


def si_sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 3), in float64, without mean removal.

    The reference is scaled by <estimate, reference> / |reference|^2 before the ratio is taken.
    """
    _check_pair(estimate, reference)
    estimate = estimate.double()
    reference = reference.double()
    # The projection of the estimate on the reference: what a gain alone explains is no distortion.
    scale = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = scale * reference
    return 10.0 * torch.log10(target.square().sum(-1) / (estimate - target).square().sum(-1))


def _check_pair(estimate: Tensor, reference: Tensor) -> None:
    if estimate.ndim != 2 or estimate.shape != reference.shape:
        raise UserError(
            f"expected two batches [B, T] of equal shape; got {list(estimate.shape)} and {list(reference.shape)}"
        )
