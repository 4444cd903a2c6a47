"""An independent, supervised classifier of short notes and drum hits: which family, which instrument, which pitch.

The protocol is that of GANSynth (Engel et al. 2019, section 4): a classifier that took no part in the training
classifies each generated clip, and its answers are compared with the caption. Its penultimate layer is the space of the
Frechet distance. The network and its input are our definition; weights and card are part of the package
(weights/note-classifier/).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segue.evaluation.mel import stft_magnitude, triangular_bands
from segue.types import UserError, first_line

NOTE_RATE_HZ = 16_000
NOTE_SAMPLES = 32_768
EMBEDDING_SIZE = 64
PITCH_LOWEST, PITCH_HIGHEST = 36, 84
NO_PITCH = PITCH_HIGHEST - PITCH_LOWEST + 1  # the class index of "none"
WEIGHTS, CARD = "note-classifier.safetensors", "card.json"
SHIPPED = Path(__file__).parent.parent / "weights" / "note-classifier"

_N_FFT = 2048
_HOP_SAMPLES = 512
_BANDS = 168
_LOWEST_BAND_HZ = 55.0
_BANDS_PER_OCTAVE = 24
_RANGE_DB = 80.0


class NoteFrontEnd(nn.Module):
    """[B, 32768] waveform at 16 kHz -> [B, 1, 168, 64]: dB below the clip's own maximum, 0..-80 mapped to 1..-1.

    Bands are half a semitone apart from 55 Hz, so that a change of pitch is a shift of the picture. Relative to the
    clip's maximum, so that a gain changes nothing.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        steps = torch.arange(-1, _BANDS + 1, dtype=torch.float64) / _BANDS_PER_OCTAVE
        # Made again from constants, so that the weights' file holds what was learned and nothing else.
        self.register_buffer(
            "filters", triangular_bands(_LOWEST_BAND_HZ * 2.0**steps, _N_FFT, NOTE_RATE_HZ), persistent=False
        )

    def forward(self, wave: Tensor) -> Tensor:
        # Centred frames give one more than the picture has columns.
        power = stft_magnitude(wave, _N_FFT, _HOP_SAMPLES)[..., : NOTE_SAMPLES // _HOP_SAMPLES].square()
        bands = self.filters @ power
        # A silent clip has no loudest band to divide by.
        loudest = bands.amax(dim=(1, 2), keepdim=True).clamp(min=1e-10)
        decibels = 10.0 * torch.log10((bands / loudest).clamp(min=10.0 ** (-_RANGE_DB / 10.0)))
        return (1.0 + decibels * (2.0 / _RANGE_DB)).unsqueeze(1)


class NoteNet(nn.Module):
    """A compact CNN over the front end's picture; three heads share one embedding of 64.

    Args:
        families, instruments: sizes of those heads. The pitch head has a class a semitone, MIDI 36 to 84, and "none".
    """

    def __init__(self, families: int, instruments: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_block(1, 24, kernel=5, stride=2), *_block(24, 40), nn.MaxPool2d((1, 2)), *_block(40, 64),
            nn.MaxPool2d(2), *_block(64, 96), nn.MaxPool2d((1, 2)), *_block(96, 32, kernel=1),
        )  # fmt: skip
        # Frequency is kept whole (it is the pitch); time is summed up by its mean and maximum.
        self.hidden = nn.Sequential(nn.Linear(2 * 32 * _BANDS // 4, 256), nn.ReLU(), nn.Dropout(0.2))
        self.embed = nn.Sequential(nn.Linear(256, EMBEDDING_SIZE), nn.ReLU())
        self.family = nn.Linear(EMBEDDING_SIZE, families)
        self.instrument = nn.Linear(EMBEDDING_SIZE, instruments)
        self.pitch = nn.Linear(EMBEDDING_SIZE, NO_PITCH + 1)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, 1, 168, 64] -> logits of family, instrument, pitch, and the embedding [B, 64]."""
        x = self.convolutions(picture)
        embedding = self.embed(self.hidden(torch.cat([x.mean(-1), x.amax(-1)], dim=1).flatten(1)))
        return self.family(embedding), self.instrument(embedding), self.pitch(embedding), embedding


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


@dataclass(frozen=True)
class NotePrediction:
    """What the classifier says of N clips. Indices are into `NoteClassifier.families`, `.instruments`, `.pitches`.

    Attributes:
        family, instrument, pitch: [N] int64, the likeliest class.
        family_probability, instrument_probability, pitch_probability: [N, classes] float32.
        embedding: [N, 64] float32.
    """

    family: np.ndarray
    instrument: np.ndarray
    pitch: np.ndarray
    family_probability: np.ndarray
    instrument_probability: np.ndarray
    pitch_probability: np.ndarray
    embedding: np.ndarray


class NoteClassifier:
    """The trained classifier. It was trained on single notes and drum hits; of chords and sequences it knows nothing.

    Attributes:
        families, instruments: class names, from the manifest that it was trained on.
        pitches: MIDI numbers 36..84, then None (no pitch: a drum).
        card: how it was trained and how accurate it is, from card.json.
    """

    def __init__(self, net: NoteNet, card: dict) -> None:
        # Frozen: a classifier that measures must not change while it does.
        self.net = net.eval().requires_grad_(False)
        self.card = card
        self.front_end = NoteFrontEnd()
        self.families: tuple[str, ...] = tuple(card["families"])
        self.instruments: tuple[str, ...] = tuple(card["instruments"])
        # The order of the classes is part of the weights: pitches from the lowest, "none" last.
        self.pitches: tuple[int | None, ...] = (*range(PITCH_LOWEST, PITCH_HIGHEST + 1), None)

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> NoteClassifier:
        """Load note-classifier.safetensors and card.json, by default those shipped with the package.

        Raises:
            UserError: a file is missing, or the weights are not those that the card describes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        weights, card_file = Path(folder) / WEIGHTS, Path(folder) / CARD
        for file in (weights, card_file):
            if not file.is_file():
                raise UserError(
                    f"{file} is missing; hint: reinstall segue-audio, or train one with `segue-lab classifier train`"
                )
        try:
            # The card holds the hash of the weights: figures must be of these.
            # Read once, so that what is hashed is what is loaded.
            content = weights.read_bytes()
            card = json.loads(card_file.read_text(encoding="utf-8"))
            if hashlib.sha256(content).hexdigest() != card["sha256"]:
                raise UserError(
                    f"{weights} does not match the sha256 in {card_file}; hint: restore both from one training"
                )
            net = NoteNet(len(card["families"]), len(card["instruments"]))
            net.load_state_dict({name: value.float() for name, value in load(content).items()})
            return cls(net, card)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{folder}: not a note classifier ({first_line(error)}); hint: restore both its files from one training"
            ) from error

    @property
    def sha256(self) -> str:
        """Hash of the weight file: name it beside every figure that this classifier gives."""
        return self.card["sha256"]

    def family_index(self, family: str) -> int:
        """Class index of a family name."""
        return _index(self.families, family, "family")

    def instrument_index(self, instrument: str) -> int:
        """Class index of an instrument or drum name."""
        return _index(self.instruments, instrument, "instrument")

    def pitch_index(self, midi_pitch: int | None) -> int:
        """Class index of a MIDI pitch, or of no pitch (None)."""
        return _index(self.pitches, midi_pitch, "MIDI pitch")

    @torch.inference_mode()
    def predict(self, waves: Tensor | np.ndarray, sample_rate_hz: int, *, batch_size: int = 64) -> NotePrediction:
        """Classify [N, T] mono waveforms at any rate. Shorter than 2.048 s is padded with silence, longer is cropped.

        Raises:
            UserError: not [N, T], no clips, or samples that are not finite.
        """
        waves = torch.as_tensor(waves, dtype=torch.float32)
        if waves.ndim != 2 or 0 in waves.shape:
            raise UserError(f"the note classifier takes waveforms [N, T]; got {list(waves.shape)}")
        # One broken clip would give a NaN among figures of others: it is named instead.
        if not torch.isfinite(waves).all():
            broken = (~torch.isfinite(waves)).any(dim=1).nonzero().flatten().tolist()
            raise UserError(
                f"clips {broken[:8]} hold samples that are not finite; hint: leave them out and count them as failed"
            )
        parts = [self._predict_batch(fit(batch, sample_rate_hz)) for batch in waves.split(batch_size)]
        family, instrument, pitch, embedding = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return NotePrediction(
            family.argmax(1), instrument.argmax(1), pitch.argmax(1), family, instrument, pitch, embedding
        )

    def _predict_batch(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        family, instrument, pitch, embedding = self.net(self.front_end(waves))
        return family.softmax(1), instrument.softmax(1), pitch.softmax(1), embedding


def fit(waves: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, T] at any rate -> [B, 32768] at 16 kHz: resampled (soxr), then padded with zeros or cropped at the end."""
    if sample_rate_hz != NOTE_RATE_HZ:
        import soxr

        waves = torch.from_numpy(
            np.stack([soxr.resample(w, sample_rate_hz, NOTE_RATE_HZ).astype(np.float32) for w in waves.numpy()])
        )
    waves = waves[:, :NOTE_SAMPLES]
    return nn.functional.pad(waves, (0, NOTE_SAMPLES - waves.shape[1]))


def _index(names: tuple, name: object, kind: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise UserError(
            f"the note classifier knows no {kind} {name!r}; hint: it knows {', '.join(map(str, names))}"
        ) from None
