"""How far a stereo codec's prediction is from the analysis of the sound, on mid and side and on left and right.

As in codec_losses.py, nothing is differentiated through a synthesis. The power of the left side follows from what is
predicted, |left|^2 = m^2 + s^2 + 2 m s cos(turn), and that of the right with a minus.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segue.codecs.mid_side import MONO_WIDTH, MidSideAnalysis, MidSideAutoencoder
from segue.evaluation.mel import mel_edges_hz, mel_magnitude, triangular_bands

_ITERATIONS = 3  # of Griffin-Lim, where the decoded sound is compared
_WINDOWS = ((1024, 80), (512, 40))  # samples of a window, bands
_NOISE = 1e-4  # about what rounding to 16 bits leaves in a band


class MidSideLoss:
    """Distances between an analysis and its prediction, each of order one."""

    def __init__(self, network: MidSideAutoencoder, device: torch.device | str) -> None:
        c = network.config
        self.network = network
        self.floor = c.floor
        edges_hz = mel_edges_hz(80, 0.0, c.sample_rate_hz / 2)
        bins = triangular_bands(edges_hz, network.window_samples, c.sample_rate_hz)
        # A band of several bins counts as many times.
        counts = network.spread(torch.eye(network.bands)).sum(-1)
        self.mel = (network.pool(bins) * counts).to(device).T.contiguous()

    def __call__(self, predicted: MidSideAnalysis, target: MidSideAnalysis) -> dict[str, Tensor]:
        """Scalar losses by name."""
        assert target.weight is not None  # an analysis of sound has one, a prediction has none
        # Clamped, since exp of a young network's output could overflow.
        logs = torch.stack([predicted.mid, predicted.side]).clamp(max=3)
        wanted_logs = torch.stack([target.mid, target.side])
        a, b = logs.exp(), wanted_logs.exp()
        sides_a, sides_b = (self._sides(x, y.turn.real) for x, y in ((a, predicted), (b, target)))
        error = (logs - wanted_logs).abs()
        # What is decoded as mono needs no side.
        is_stereo = (target.given[..., 1:] > MONO_WIDTH).repeat_interleave(2, dim=1)
        error = torch.stack([error[0], error[1] * is_stereo])
        mels = [(torch.cat(x) @ self.mel + self.floor).log() for x in ((a, sides_a), (b, sides_b))]
        # One ratio a crop, of mid and side together: a faint side is not to count like a loud one.
        convergence = _norm(a - b) / (_norm(b) + 0.02)
        advance, turn = (
            torch.view_as_real(x - y).square().sum(-1)
            for x, y in ((predicted.advance, target.advance), (predicted.turn, target.turn))
        )
        return {
            # Side counts half: where it is faint, left and right hardly change with it.
            "log_magnitude": error[0].mean() + 0.5 * error[1].mean(),
            "loud_log_magnitude": _weighted(error.flatten(0, 1), b.flatten(0, 1).sqrt()),
            "convergence": convergence.mean(),
            "log_mel": 1.5 * (mels[0] - mels[1]).abs().mean(),
            "advance": _weighted(advance, target.weight[0].sqrt()),
            "turn": 0.5 * _weighted(turn, target.weight[1].sqrt()),
        }

    def decoded(self, predicted: MidSideAnalysis, wave: Tensor) -> Tensor:
        """Log-mel distance of the decoded sound from the waveform [B, 2, T], in short windows; as `log_mel_l1`.

        Magnitudes alone get a gradient: phases are those that a few Griffin-Lim iterations give to them.
        """
        magnitude, phase = self.network.spectra(predicted)
        with torch.no_grad():
            estimate = self.network.consistent(magnitude, phase, _ITERATIONS)
            turned = estimate / estimate.abs().clamp_min(1e-12)
        mid, side = self.network.istft(magnitude * turned)[:, : wave.shape[-1]].chunk(2)
        found = torch.stack([mid + side, mid - side], dim=1).flatten(0, 1)
        rate_hz = self.network.config.sample_rate_hz
        distances = []
        for n_fft, bands in _WINDOWS:
            logs = [
                (mel_magnitude(x, rate_hz, n_fft=n_fft, hop_samples=n_fft // 4, bands=bands) + _NOISE).log()
                for x in (found, wave.flatten(0, 1))
            ]
            distances.append((logs[0] - logs[1]).abs().mean())
        return (distances[0] + distances[1]) / 2

    def _sides(self, magnitudes: Tensor, cosine: Tensor) -> Tensor:
        """Magnitudes of mid and side [2, B, frames, bands] -> of left and right, plus the floor."""
        mid, side = magnitudes
        power = mid.square() + side.square()
        cross = 2 * mid * side * cosine.clamp(-1, 1)
        # Left and right that cancel have no level: the floor keeps their gradients finite.
        return (torch.stack([power + cross, power - cross]).clamp_min(0) + self.floor**2).sqrt() + self.floor


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    """Mean over a crop by weight, then over crops; crops without sound count little."""
    return ((weight * x).sum((1, 2)) / (weight.sum((1, 2)) + 1)).mean()


def _norm(x: Tensor) -> Tensor:
    """[2, B, frames, bands] -> [B]."""
    return (x.square().sum((0, 2, 3)) + 1e-12).sqrt()
