"""PANNs' Cnn14 (Kong et al. 2020, arXiv 1912.10211, table 1): 2048 numbers a clip, from weights that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.evaluation.embeddings import Embedding, check_crop
from segue.evaluation.weights import check_shape, fill, read_weights
from segue.files import sha256_of
from segue.types import UserError

_MEL = "logmel_extractor.melW"
_WINDOW = "spectrogram_extractor.stft.conv_real.weight"
_BANDS = 64
_WIDTHS = (1, 64, 128, 256, 512, 1024, 2048)
_LEAST_FRAMES = 32  # five poolings by two


@dataclass(frozen=True)
class PannsFrontEnd:
    """Log-mel picture of one published variant: power, periodic Hann window, reflected edges, Slaney's mel, 64 bands.

    Attributes:
        f_max_hz: upper edge of the highest band; the lowest begins at 50 Hz.
    """

    sample_rate_hz: int
    n_fft: int
    hop_samples: int
    f_max_hz: float

    def filters(self) -> Tensor:
        """[n_fft/2+1, 64], triangles of equal area."""
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(
            self.n_fft // 2 + 1, _BANDS, 50.0, self.f_max_hz, self.sample_rate_hz, norm="slaney", mel_scale="slaney"
        )
        return torch.from_numpy(bank).float()

    def log_mel(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, 1 + T // hop, 64] in dB of power, at least -100."""
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(
            wave, self.n_fft, self.hop_samples, window=window, pad_mode="reflect", return_complex=True
        )
        return 10.0 * (spectrum.abs().square().transpose(1, 2) @ self.filters()).clamp(min=1e-10).log10()


FRONT_ENDS = (PannsFrontEnd(32_000, 1024, 320, 14_000.0), PannsFrontEnd(16_000, 512, 160, 8_000.0))


class Cnn14(nn.Module):
    """The network under the names of its checkpoints, without its classifier."""

    # Under the names of the published checkpoint, so that its weights load as they are.
    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(_BANDS)
        for index, (inward, outward) in enumerate(zip(_WIDTHS, _WIDTHS[1:]), start=1):
            block = {
                "conv1": nn.Conv2d(inward, outward, 3, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(outward),
                "conv2": nn.Conv2d(outward, outward, 3, padding=1, bias=False),
                "bn2": nn.BatchNorm2d(outward),
            }
            self.add_module(f"conv_block{index}", nn.ModuleDict(block))
        self.fc1 = nn.Linear(_WIDTHS[-1], _WIDTHS[-1])

    def forward(self, log_mel: Tensor) -> Tensor:
        """[B, frames, 64] -> [B, 2048], what the classifier is given."""
        # The first normalisation runs over mel bands, which therefore stand in the channels' place.
        x = self.bn0(log_mel.transpose(1, 2)[..., None]).permute(0, 3, 2, 1)
        for index in range(1, len(_WIDTHS)):
            block = cast(nn.ModuleDict, self.get_submodule(f"conv_block{index}"))
            x = block["bn1"](block["conv1"](x)).relu()
            x = block["bn2"](block["conv2"](x)).relu()
            # The last block is not pooled in the original, either.
            x = F.avg_pool2d(x, 2) if index < len(_WIDTHS) - 1 else x
        x = x.mean(dim=3)
        return self.fc1(x.amax(dim=2) + x.mean(dim=2)).relu()


class PannsEmbedding(Embedding):
    """The layer before Cnn14's classifier, of the first `crop_sec` seconds of a clip."""

    dim = _WIDTHS[-1]

    def __init__(self, path: Path, crop_sec: float = 10.0) -> None:
        """
        Args:
            path: a published Cnn14 or Cnn14_16k checkpoint as safetensors; its filter bank says which.

        Raises:
            UserError: no such file, not safetensors, or other tensors than the published ones.
        """
        option = f"--embedding panns:{path}"
        self.crop_sec = check_crop(crop_sec)
        tensors = read_weights(option, path)
        self.front_end = _front_end(option, tensors)
        # On the meta device no weights are drawn that the file replaces anyway.
        with torch.device("meta"):
            network = Cnn14()
        self.network = fill(option, network, tensors)
        self._sha256 = sha256_of([path])
        self.sample_rate_hz = self.front_end.sample_rate_hz
        self.name = f"panns-cnn14-{self.sample_rate_hz // 1000}k"

    def card(self) -> dict:
        """See `Embedding.card`."""
        form = self.front_end
        least = (_LEAST_FRAMES - 1) * form.hop_samples
        return {
            "name": self.name,
            "weights": self._sha256,
            "layer": "before the classifier (fc1, ReLU)",
            "pooling": "the network's own: maximum plus mean over time",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {self.crop_sec:g} s, shorter clips whole (below {least} samples padded with zeros)",
            "preprocessing": f"mean of channels, soxr HQ; log-mel in dB, 64 Slaney bands 50 to {form.f_max_hz:g} Hz, "
            f"{form.n_fft}/{form.hop_samples}, periodic Hann, reflected edges",
        }

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        clip = torch.from_numpy(wave[: round(self.crop_sec * self.sample_rate_hz)].astype(np.float32))
        clip = F.pad(clip, (0, max(0, (_LEAST_FRAMES - 1) * self.front_end.hop_samples - len(clip))))
        picture = self.front_end.log_mel(clip[None]).to(next(self.network.parameters()).device)
        return {"embedding": self.network(picture)[0].cpu().double().numpy()}

    def to(self, device: str) -> PannsEmbedding:
        """See `Embedding.to`."""
        self.network.to(device)
        return self


def _front_end(option: str, tensors: dict[str, Tensor]) -> PannsFrontEnd:
    """The variant that a checkpoint was trained with, by its own filter bank and window.

    Raises:
        UserError: they are missing, or those of no variant that is known here.
    """
    # The front end's own tensors identify the variant; without them a 16 kHz network could be fed at 32.
    if _MEL not in tensors or _WINDOW not in tensors:
        raise UserError(f"{option}: the file lacks {_MEL} or {_WINDOW}; hint: convert the whole published checkpoint")
    for form in FRONT_ENDS:
        if tensors[_MEL].shape == (form.n_fft // 2 + 1, _BANDS):
            check_shape(option, _WINDOW, tensors[_WINDOW], (form.n_fft // 2 + 1, 1, form.n_fft))
            window = torch.hann_window(form.n_fft)  # the transform's first row, of frequency 0, is its window
            same = torch.allclose(tensors[_WINDOW][0, 0].float(), window, atol=1e-5)
            if same and torch.allclose(tensors[_MEL].float(), form.filters(), atol=1e-6):
                return form
    raise UserError(f"{option}: its front end is not Cnn14's at 32 kHz nor Cnn14_16k's; hint: take one of these two")
