"""The rows that a table of super-resolution is read beside: unprocessed input, sinc, band replication, round trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from segue.codecs import load_codec
from segue.codecs.base import Codec
from segue.data.clip import Clip
from segue.evaluation.baselines import band_replication, sinc
from segue.evaluation.folders.sound_sets import header_of, read, some
from segue.progress import track
from segue.types import UserError

Waves = dict[str, tuple[np.ndarray, np.ndarray]]
Way = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """id -> (estimate [T], reference [T]), all at one rate; `sides` has them as [2, T] where all of them are stereo."""

    rate_hz: int
    waves: Waves
    sides: Waves = field(default_factory=dict)


def lows_by_protocol(pairs: Pairs, cutoff_hz: float, protocol: str) -> dict[str, np.ndarray]:
    """id -> the reference without its high band, as a published test takes it away.

    Raises:
        UserError: no such protocol, or one of several filters, of which one clip has only one.
    """
    from segue.tasks import degradation

    by_fft = protocol == "fft"
    # Of a protocol with several filters it is not known which of them each estimate was made from.
    filters = (degradation.Degradation(cutoff_hz, "fft"),) if by_fft else degradation.protocol(protocol, cutoff_hz)
    if len(filters) > 1:
        raise UserError(
            f"--protocol {protocol}: has {len(filters)} filters, and a folder of estimates was made by one; hint: "
            "--input FOLDER, with what the estimates were made of"
        )
    return {
        i: degradation.degrade(torch.from_numpy(r)[None], pairs.rate_hz, filters)[0].numpy()
        for i, (_, r) in pairs.waves.items()
    }


def lows_of(pairs: Pairs, clips: dict[str, Clip]) -> dict[str, np.ndarray]:
    """id -> the input, brought to the pairs' rate and cut to their length.

    Raises:
        UserError: an input is missing or unusable.
    """
    lacking = sorted(set(pairs.waves) - set(clips))
    if lacking:
        raise UserError(f"--input: none for {len(lacking)} of {len(pairs.waves)} pairs ({some(lacking)})")
    lows = {}
    for i, (_, reference) in pairs.waves.items():
        rate_hz = header_of(clips[i].path).sample_rate_hz
        # Interpolated exactly: a resampler's early roll-off would count against every row.
        lows[i] = _fitted(sinc(read(clips[i].path, rate_hz), rate_hz, pairs.rate_hz), len(reference))
    return lows


def rows_beside(
    pairs: Pairs, lows: dict[str, np.ndarray], cutoff_hz: float, codec: str
) -> dict[str, tuple[Waves, str]]:
    """name -> (pairs whose estimates are the row's, what the row is)."""
    rate_hz = pairs.rate_hz
    # The codec first: it may have to be fetched, and refuses early.
    coder = load_codec(codec, rate_hz)
    if coder.sample_rate_hz != rate_hz:
        raise UserError(f"--codec {codec}: is for {coder.sample_rate_hz:,} Hz, and the pairs are at {rate_hz:,} Hz")
    made = {}
    for name, (make, words) in ways_beside(coder, rate_hz, cutoff_hz).items():
        items = track(lows.items(), len(lows), name, "clips")
        waves = {i: (_made(make, low, pairs.waves[i][1]), pairs.waves[i][1]) for i, low in items}
        made[name] = (waves, words)
    return made


def ways_beside(codec: Codec | None, rate_hz: int, cutoff_hz: float) -> dict[str, tuple[Way, str]]:
    """name -> (low [1, T], reference [1, T] -> estimate [1, T]; what the row is); a codec's rate must be `rate_hz`."""
    # Twice the cutoff is the lowest rate that holds the band: down to it and up again is what sinc stands for.
    half_hz = round(2 * cutoff_hz)

    def by_sinc(low: Tensor, reference: Tensor) -> Tensor:
        # float64 there and back, so that the row measures the band's loss and nothing else.
        there_and_back = sinc(sinc(low[0].double().numpy(), rate_hz, half_hz), half_hz, rate_hz)
        return torch.from_numpy(_fitted(there_and_back, low.shape[1]))[None]

    ways: dict[str, tuple[Way, str]] = {
        "unprocessed": (lambda low, reference: low, "the input, at the rate of the pairs"),
        "sinc": (by_sinc, f"the input at {half_hz} Hz, interpolated exactly (segue.evaluation.baselines)"),
        "band replication": (
            lambda low, reference: band_replication(low, rate_hz, cutoff_hz),
            "of the input, blind (segue.evaluation.baselines)",
        ),
    }
    if codec is None:
        return ways
    coder = codec

    @torch.inference_mode()
    def through_codec(low: Tensor, reference: Tensor) -> Tensor:
        sides = reference[:, None].expand(-1, coder.audio_channels, -1)
        return coder.decode(coder.encode(sides), reference.shape[1]).mean(dim=1)

    return ways | {"codec round trip": (through_codec, f"the reference through the codec {coder.name}")}


def _made(make: Way, low: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return make(torch.from_numpy(low)[None], torch.from_numpy(reference)[None])[0].numpy().astype(np.float32)


def _fitted(wave: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(wave[:samples], (0, max(0, samples - len(wave)))).astype(np.float32)
