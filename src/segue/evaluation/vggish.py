"""VGGish (Hershey et al. 2017, and the AudioSet release): 128 numbers a clip, from weights that the user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.evaluation.embeddings import Embedding, check_crop
from segue.evaluation.weights import check_shape, fill, read_weights
from segue.files import sha256_of
from segue.types import UserError

RATE_HZ = 16_000
PATCH_FRAMES = 96
BANDS = 64
DIM = 128
_WINDOW = 400
_HOP = 160
_N_FFT = 512
_OFFSET = 0.01
PATCH_SAMPLES = (PATCH_FRAMES - 1) * _HOP + _WINDOW
_BATCH = 64
_MATRIX, _MEANS = "pca_eigen_vectors", "pca_means"


def log_mel(wave: Tensor) -> Tensor:
    """[T] at 16 kHz -> [1 + (T - 400) // 160, 64]: ln(mel magnitude + 0.01), 25 ms periodic Hann windows every 10 ms.

    64 HTK bands from 125 to 7500 Hz, triangles in mel; frames lie within the clip, none is padded.
    """
    from transformers.audio_utils import mel_filter_bank

    # As Google's release: triangles in mel, not in Hz, and no area normalisation.
    bank = mel_filter_bank(
        _N_FFT // 2 + 1, BANDS, 125.0, 7500.0, RATE_HZ, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    frames = wave.unfold(0, _WINDOW, _HOP) * torch.hann_window(_WINDOW)
    return (torch.fft.rfft(frames, _N_FFT).abs() @ torch.from_numpy(bank).float() + _OFFSET).log()


class Vggish(nn.Module):
    """The network under the names of torchvggish's checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for outward in (64, None, 128, None, 256, 256, None, 512, 512, None):
            if outward is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, outward, 3, padding=1), nn.ReLU()]
                width = outward
        self.features = nn.Sequential(*layers)
        flat = width * (PATCH_FRAMES // 16) * (BANDS // 16)
        # Google's release ends here; torchvggish adds a ReLU, which cuts half of the embedding (its issue 24).
        self.embeddings = nn.Sequential(
            nn.Linear(flat, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, DIM)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """[B, 96, 64] -> [B, 128]."""
        # The release flattens with channels last, and its weights expect that order.
        return self.embeddings(self.features(patches[:, None]).permute(0, 2, 3, 1).flatten(1))


class VggishEmbedding(Embedding):
    """The mean over a clip's patches of 0.96 s, of its first `crop_sec` seconds."""

    sample_rate_hz = RATE_HZ
    dim = DIM

    def __init__(self, path: Path, *, postprocess: bool = False, crop_sec: float = 10.0) -> None:
        """
        Args:
            path: torchvggish's checkpoint as safetensors.
            postprocess: as AudioSet's features: whitened by the file's `pca_eigen_vectors` [128, 128] and `pca_means`
                [128], cut to +-2, in steps of 0 to 255.

        Raises:
            UserError: no such file, not safetensors, or other tensors than the published ones.
        """
        self.name = "vggish-pca" if postprocess else "vggish"
        option = f"--embedding {self.name}:{path}"
        self.crop_sec = check_crop(crop_sec)
        tensors = read_weights(option, path)
        with torch.device("meta"):
            network = Vggish()
        self.network = fill(option, network, tensors)
        self._sha256 = sha256_of([path])
        self.whitening = _whitening(option, tensors) if postprocess else None

    def card(self) -> dict:
        """See `Embedding.card`."""
        whitened = "" if self.whitening is None else ", PCA, cut to +-2, steps of 0 to 255"
        return {
            "name": self.name,
            "weights": self._sha256,
            "layer": f"last, before any ReLU (as Google's release, unlike torchvggish){whitened}",
            "pooling": f"mean over patches of {PATCH_SAMPLES} samples every {PATCH_FRAMES * _HOP}, a rest left out",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {self.crop_sec:g} s, clips below one patch padded with zeros",
            "preprocessing": f"mean of channels, soxr HQ; ln(mel magnitude + {_OFFSET}), {BANDS} HTK bands 125 to 7500 "
            f"Hz, {_WINDOW}/{_HOP} in {_N_FFT}, periodic Hann",
        }

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        clip = torch.from_numpy(wave[: round(self.crop_sec * RATE_HZ)].astype(np.float32))
        picture = log_mel(F.pad(clip, (0, max(0, PATCH_SAMPLES - len(clip)))))
        # Patches stand side by side; a rest that fills none is left out, as in the release.
        patches = picture.unfold(0, PATCH_FRAMES, PATCH_FRAMES).transpose(1, 2)
        device = next(self.network.parameters()).device
        rows = torch.cat([self.network(part.to(device)).cpu() for part in patches.split(_BATCH)])
        if self.whitening is not None:
            matrix, means = self.whitening
            # AudioSet's features are stored as bytes: whitened, cut, and in steps.
            rows = (((rows - means) @ matrix.T).clamp(-2.0, 2.0) + 2.0).mul(255.0 / 4.0).round()
        return {"embedding": rows.double().mean(dim=0).numpy()}

    def to(self, device: str) -> VggishEmbedding:
        """See `Embedding.to`."""
        self.network.to(device)
        return self


def _whitening(option: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """
    Raises:
        UserError: the file lacks them, or they have other shapes.
    """
    if _MATRIX not in tensors or _MEANS not in tensors:
        raise UserError(
            f"{option}: the file lacks {_MATRIX} or {_MEANS}; hint: convert them with it, or take vggish: without them"
        )
    matrix, means = tensors[_MATRIX].float(), tensors[_MEANS].float().flatten()
    check_shape(option, _MATRIX, matrix, (DIM, DIM))
    check_shape(option, _MEANS, means, (DIM,))
    return matrix, means
