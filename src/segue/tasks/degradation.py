"""Low resolution, simulated: zero-phase low-pass filters of five families, resampling, telephones and lossy codes.

A filter is applied as its zero-phase response |H|^2 to the spectra of a whole batch: what scipy.signal.sosfiltfilt does
away from the edges, at a fraction of its time. What is drawn is a function of numbers that the training step draws for
a whole batch (process/noise.py): a clip meets the same filter on one rank or eight, resumed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
import torch
from torch import Tensor

from segue.audio.recode import CODINGS, recoded
from segue.types import UserError, import_extra, without_deleted

FAMILIES = ("chebyshev1", "butterworth", "bessel", "elliptic", "fft")
RESAMPLING = ("fft", "poly", "none")
STOP_DB = 60.0  # of elliptic filters
DELETED = {"noise_share": 0.0, "noise_min_db": 30.0, "noise_max_db": 60.0, "companded_share": 0.0}  # older settings
UNIFORMS = 5  # numbers that a degradation is drawn from
CODING_UNIFORMS = 3  # and its coding
TELEPHONE_HZ = (300.0, 3400.0)  # ITU-T G.712
TELEPHONE_CODINGS = ("alaw", "mulaw", "gsm")
FILE_CODINGS = ("opus", "mp3")
_LOW_ORDER = 4  # of the high-pass at the low end of a telephone band
RINGING_SAMPLES = 4096  # of silence behind a clip, so that a filter's ringing does not come round to its start


@dataclass(frozen=True)
class Degradation:
    """One way to lose the top of a spectrum.

    Attributes:
        cutoff_hz: where the filter's band ends; half the rate of the simulated input.
        family: of FAMILIES; "fft" sets bins above the cutoff to zero and has neither order nor ripple.
        order: of the filter; forwards and backwards it acts as one of twice that.
        ripple_db: in the band, of Chebyshev and elliptic filters.
        resample: what going down to twice the cutoff and up again does: "fft" (nothing above the cutoff remains,
            nothing below changes), "poly" (scipy.signal.resample_poly both ways, with its droop, images and aliases) or
            "none" (the filter's skirt stays).
        low_hz: where the band begins: a Butterworth high-pass of order 4, forwards and backwards; 0: at 0.
        coding: lossy code that it is stored in, of `audio.recode.CODINGS`, at the lowest rate that holds the cutoff;
            "": none.
    """

    cutoff_hz: float
    family: str = "chebyshev1"
    order: int = 8
    ripple_db: float = 0.05
    resample: str = "fft"
    low_hz: float = 0.0
    coding: str = ""

    def __post_init__(self) -> None:
        if self.coding and self.coding not in CODINGS:
            raise UserError(f"coding '{self.coding}'; use one of {', '.join(CODINGS)}")
        if not 0 <= self.low_hz < self.cutoff_hz:
            raise UserError(f"a band from {self.low_hz:g} to {self.cutoff_hz:g} Hz; give a lower end below the cutoff")
        if self.family not in FAMILIES:
            raise UserError(f"filter family '{self.family}'; use one of {', '.join(FAMILIES)}")
        if self.resample not in RESAMPLING:
            raise UserError(f"resampling '{self.resample}'; use one of {', '.join(RESAMPLING)}")
        if self.cutoff_hz <= 0 or not 1 <= self.order <= 12 or self.ripple_db <= 0:
            raise UserError(
                f"a filter of order {self.order}, ripple {self.ripple_db:g} dB and cutoff {self.cutoff_hz:g} Hz; give "
                "an order of 1 to 12, and a positive ripple and cutoff"
            )


# The fixed filters of published tests; `protocol` puts the cutoff in. NU-Wave 2 (arXiv 2206.08545) filters, then
# resamples with resample_poly, whose droop alone costs 0.1 to 0.2 of low-band LSD: "nuwave2" is its filter with exact
# resampling, "nuwave2-poly" its code's whole way. ssr_eval: FFT zeroing, and four families at three orders.
PROTOCOLS: dict[str, tuple[Degradation, ...]] = {
    "nuwave2": (Degradation(1.0),),
    "nuwave2-poly": (Degradation(1.0, resample="poly"),),
    "ssr-eval": (
        Degradation(1.0, "fft"),
        *(
            Degradation(1.0, family, order)
            for family in ("chebyshev1", "butterworth", "bessel", "elliptic")
            for order in (3, 6, 9)
        ),
    ),
}


def protocol(name: str, cutoff_hz: float) -> tuple[Degradation, ...]:
    """The filters of a named test at a cutoff; a clip of the test meets each of them.

    Raises:
        UserError: no such protocol.
    """
    if name not in PROTOCOLS:
        raise UserError(f"no test protocol '{name}'; use one of {', '.join(PROTOCOLS)}")
    return tuple(replace(filter_, cutoff_hz=cutoff_hz) for filter_ in PROTOCOLS[name])


@dataclass(frozen=True)
class DegradationConfig:
    """What training clips lose: the range that degradations are drawn from.

    Attributes:
        families: names of FAMILIES, with commas.
        order_min, order_max: orders, evenly drawn.
        ripple_min_db, ripple_max_db: ripples, drawn evenly in logarithm.
        cutoff_min_hz, cutoff_max_hz: cutoffs, evenly drawn.
        top_share: of clips with exactly the highest cutoff, which is what files of that rate have.
        held_out_cutoff_hz: of probe and validation, by the protocol "nuwave2"; 0 = cutoff_max_hz.
        telephone_share: of clips that come from a telephone: 300 to 3,400 Hz, in A-law, mu-law or GSM.
        coded_share: of clips that come from an MP3 or Opus file, of whatever cutoff was drawn.
        predictor: folder of a one-pass predictor, or "shipped"; the model then starts from its guess of what is
            missing, and generates what the guess lacks. "" = it starts from nothing.
    """

    families: str = ",".join(FAMILIES)
    order_min: int = 2
    order_max: int = 10
    ripple_min_db: float = 0.001
    ripple_max_db: float = 1.0
    cutoff_min_hz: float = 3400.0
    cutoff_max_hz: float = 4000.0
    top_share: float = 0.5
    held_out_cutoff_hz: float = 0.0
    telephone_share: float = 0.0
    coded_share: float = 0.0
    # Written where it is set: the name that a study gives a run without it stays what it was.
    predictor: str = field(default="", metadata={"later": True})

    @classmethod
    def from_json(cls, data: dict) -> DegradationConfig:
        """The config that a run's JSON or a model's card holds, of whichever version.

        Raises:
            UserError: it was trained under noise or companding, which are gone.
        """
        # Settings of older versions are dropped where they were at their defaults, and refused where not.
        return cls(**without_deleted(data, DELETED, "degradation."))

    def __post_init__(self) -> None:
        unknown = [family for family in self.families.split(",") if family not in FAMILIES]
        if unknown:
            raise UserError(f"degradation.families: no '{unknown[0]}'; use some of {', '.join(FAMILIES)}")
        for low, high in (("order_min", "order_max"), ("ripple_min_db", "ripple_max_db"),
                          ("cutoff_min_hz", "cutoff_max_hz")):  # fmt: skip
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise UserError(f"degradation.{low} must lie above 0 and not above degradation.{high}")
        for name in ("top_share", "telephone_share", "coded_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"degradation.{name} is {getattr(self, name)}; give a share from 0 to 1")
        if self.telephone_share + self.coded_share > 1:
            raise UserError(
                f"degradation.telephone_share {self.telephone_share:g} and degradation.coded_share "
                f"{self.coded_share:g}: hint: give shares that add up to at most 1"
            )

    @property
    def codes(self) -> bool:
        """Whether some clips go through a lossy code."""
        return self.telephone_share + self.coded_share > 0

    @property
    def held_out(self) -> Degradation:
        """What probe and validation clips lose."""
        return protocol("nuwave2", self.held_out_cutoff_hz or self.cutoff_max_hz)[0]


def drawn_from(config: DegradationConfig, u: Sequence[float]) -> Degradation:
    """The degradation that UNIFORMS numbers, evenly drawn from [0, 1), stand for; each decides one setting."""
    families = config.families.split(",")
    top = u[0] < config.top_share
    span = config.cutoff_max_hz - config.cutoff_min_hz
    return Degradation(
        cutoff_hz=config.cutoff_max_hz if top else config.cutoff_min_hz + u[1] * span,
        family=families[int(u[2] * len(families))],
        order=config.order_min + int(u[3] * (config.order_max - config.order_min + 1)),
        # Evenly in the logarithm: ripples of different sizes are equally likely.
        ripple_db=config.ripple_min_db * (config.ripple_max_db / config.ripple_min_db) ** u[4],
    )


def with_coding(degradation: Degradation, config: DegradationConfig, u: Sequence[float]) -> Degradation:
    """What CODING_UNIFORMS numbers, evenly drawn from [0, 1), add to a degradation: a telephone, a file, nothing."""
    if u[0] < config.telephone_share:
        low_hz, cutoff_hz = TELEPHONE_HZ
        coding = TELEPHONE_CODINGS[int(u[1] * len(TELEPHONE_CODINGS))]
        # The filters of telephones differ: their edge lies up to 100 Hz to either side.
        return replace(degradation, cutoff_hz=cutoff_hz + 200.0 * (u[2] - 0.5), low_hz=low_hz, coding=coding)
    if u[0] < config.telephone_share + config.coded_share:
        return replace(degradation, coding=FILE_CODINGS[int(u[1] * len(FILE_CODINGS))])
    return degradation


def degrade(wave: Tensor, sample_rate_hz: int, degradations: Sequence[Degradation]) -> Tensor:
    """Full-band waves [B, T] or [B, A, T] -> what is left of them, in the same shape and at the same rate.

    Args:
        wave: at `sample_rate_hz`.
        degradations: one for each row.

    Raises:
        UserError: a cutoff at or above half the rate.
    """
    samples = wave.shape[-1]
    for degradation in degradations:
        if degradation.cutoff_hz >= sample_rate_hz / 2:
            raise UserError(
                f"cutoff {degradation.cutoff_hz:g} Hz of sound at {sample_rate_hz:,} Hz: nothing would be missing; "
                f"give one below {sample_rate_hz / 2:g}"
            )
    # Room for the filter's ringing, then up to a length that the FFT is fast at.
    size = import_extra("scipy.fft", "train").next_fast_len(samples + RINGING_SAMPLES, real=True)
    bins_hz = np.arange(size // 2 + 1) * (sample_rate_hz / size)
    gain = torch.from_numpy(np.stack([response(d, bins_hz, sample_rate_hz) for d in degradations]))
    # Both sides of a row lose the same.
    gain = gain if wave.ndim == 2 else gain[:, None]
    low = _filtered(wave.float(), gain.to(wave.device), size)
    # Rows with resample_poly or a code one by one, since each has another ratio.
    for row, degradation in enumerate(degradations):
        if degradation.resample == "poly":
            low[row] = _down_and_up(low[row], degradation.cutoff_hz, sample_rate_hz)
        if degradation.coding:
            low[row] = _through_a_code(low[row], degradation, sample_rate_hz)
    return low


def response(degradation: Degradation, bins_hz: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Zero-phase gain |H|^2 at each frequency, float32: the filter forwards and backwards; zero above the cutoff where
    resampling is "fft"."""
    cutoff_hz = degradation.cutoff_hz
    family = degradation.family
    order = degradation.order
    below = bins_hz <= cutoff_hz
    # A Butterworth high-pass in its closed form, squared for both directions.
    above = 1 / (1 + (degradation.low_hz / bins_hz.clip(min=1e-9)) ** (2 * _LOW_ORDER)) if degradation.low_hz else 1.0
    if family == "fft":
        return (below * above).astype(np.float32)
    signal = import_extra("scipy.signal", "train")
    if family == "chebyshev1":
        sos = signal.cheby1(order, degradation.ripple_db, cutoff_hz, fs=sample_rate_hz, output="sos")
    elif family == "butterworth":
        sos = signal.butter(order, cutoff_hz, fs=sample_rate_hz, output="sos")
    elif family == "bessel":
        # "mag": the cutoff is where the level has fallen by 3 dB, as it is of Butterworth's filters.
        sos = signal.bessel(order, cutoff_hz, fs=sample_rate_hz, output="sos", norm="mag")
    else:
        sos = signal.ellip(order, degradation.ripple_db, STOP_DB, cutoff_hz, fs=sample_rate_hz, output="sos")
    # |H|^2 of each section from cosines: real arithmetic, and half the work of a complex response.
    cosine = np.cos(2 * np.pi * bins_hz / sample_rate_hz)
    double = 2 * cosine**2 - 1
    gain = np.ones_like(cosine)
    for b0, b1, b2, a0, a1, a2 in sos:
        upper = b0**2 + b1**2 + b2**2 + 2 * (b0 * b1 + b1 * b2) * cosine + 2 * b0 * b2 * double
        gain *= upper / (a0**2 + a1**2 + a2**2 + 2 * (a0 * a1 + a1 * a2) * cosine + 2 * a0 * a2 * double)
    # Rounding can leave a tiny negative power in the stop band.
    return (gain.clip(min=0) * above * (below if degradation.resample == "fft" else 1.0)).astype(np.float32)


def _filtered(wave: Tensor, gain: Tensor, size: int) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(wave, size) * gain, size)[..., : wave.shape[-1]]


def _down_and_up(low: Tensor, cutoff_hz: float, sample_rate_hz: int) -> Tensor:
    # Twice the cutoff is the rate at which such a file would have been stored.
    rate_hz = 2 * round(cutoff_hz)
    common = gcd(rate_hz, sample_rate_hz)
    up, down = rate_hz // common, sample_rate_hz // common
    signal = import_extra("scipy.signal", "train")
    there = signal.resample_poly(low.double().cpu().numpy(), up, down, axis=-1)
    back = signal.resample_poly(there, down, up, axis=-1)[..., : low.shape[-1]]
    missing = [(0, 0)] * (back.ndim - 1) + [(0, low.shape[-1] - back.shape[-1])]
    return torch.from_numpy(np.pad(back, missing)).to(low)


def _through_a_code(low: Tensor, degradation: Degradation, sample_rate_hz: int) -> Tensor:
    """[T] or [A, T], each channel stored in the degradation's code and read again."""
    sides = low.reshape(-1, low.shape[-1]).cpu().numpy()
    made = [recoded(side, sample_rate_hz, degradation.coding, degradation.cutoff_hz) for side in sides]
    return torch.from_numpy(np.stack(made)).to(low).reshape(low.shape)
