"""Training of the note classifier: supervised, on single notes and drum hits, made robust to damaged sound.

It measures and never generates, so it may train on every split. What it must not know by heart is the set that its card
is measured on: that is rendered from another seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segue.audio.read import read_wave
from segue.audio.sound import BadAudio
from segue.data.manifest import load_manifest
from segue.evaluation.accuracy import accuracy
from segue.evaluation.note_classifier import (
    EMBEDDING_SIZE,
    NOTE_RATE_HZ,
    PITCH_HIGHEST,
    PITCH_LOWEST,
    NoteClassifier,
    NoteFrontEnd,
    NoteNet,
    fit,
)
from segue.files import write_bytes, write_text
from segue.progress import Meter
from segue.types import UserError


@dataclass(frozen=True)
class NoteTraining:
    """How the classifier is trained. Figures that these settings reach stand in the card of the shipped weights.

    Attributes:
        epochs: passes over the notes and drum hits of the manifest.
        damaged_share: share of each batch that is damaged before it is classified.
    """

    epochs: int = 9
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    damaged_share: float = 0.75
    seed: int = 0


@dataclass(frozen=True)
class LabelledNotes:
    """Notes and drum hits in memory.

    Attributes:
        waves: [N, 32768] int16 at 16 kHz (half the memory of float).
        family, instrument, pitch: [N] int64 class indices.
        families, instruments: class names.
    """

    waves: Tensor
    family: Tensor
    instrument: Tensor
    pitch: Tensor
    families: tuple[str, ...]
    instruments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.waves)


def load_notes(
    source: Path,
    families: Sequence[str] | None = None,
    instruments: Sequence[str] | None = None,
    limit: int | None = None,
) -> LabelledNotes:
    """Read the rows of kind "note" and "drum" of a manifest that has the demo set's fields.

    Args:
        source: folder or manifest.
        families, instruments: class names to index into; by default those that the manifest names, sorted, drums last.
        limit: read only the first so many.

    Raises:
        UserError: no such rows, a field missing, or a class that is not in the given names.
    """
    clips = [c for c in load_manifest(Path(source)) if c.fields.get("kind") in ("note", "drum")][:limit]
    if not clips:
        raise UserError(f'{source}: no rows of kind "note" or "drum"; hint: a manifest of `segue data render-demo`')
    # All rows are checked before any sound is read.
    for clip in clips:
        missing = [name for name in ("family", "instrument") if not clip.fields.get(name)]
        if missing or not _known_pitch(clip.fields.get("kind"), clip.fields.get("pitch")):
            wrong = ", ".join(missing) or f"a pitch between {PITCH_LOWEST} and {PITCH_HIGHEST}"
            raise UserError(f"{source}: clip {clip.id} needs {wrong}")
    # Class names, drums last, unless the caller has them already.
    named = sorted({(c.fields["family"] == "drum", c.fields["family"], c.fields["instrument"]) for c in clips})
    families = tuple(families or dict.fromkeys(family for _, family, _ in named))
    instruments = tuple(instruments or dict.fromkeys(instrument for _, _, instrument in named))
    for clip in clips:
        if clip.fields["family"] not in families or clip.fields["instrument"] not in instruments:
            raise UserError(
                f"{source}: clip {clip.id} is {clip.fields['instrument']!r}, which this classifier was never trained on"
            )
    # Drums have no pitch: a class of its own, the last one.
    pitches = [clip.fields.get("pitch") for clip in clips]
    none = PITCH_HIGHEST - PITCH_LOWEST + 1
    return LabelledNotes(
        waves=torch.stack([_read(clip.path) for clip in clips]),
        family=torch.tensor([families.index(c.fields["family"]) for c in clips]),
        instrument=torch.tensor([instruments.index(c.fields["instrument"]) for c in clips]),
        pitch=torch.tensor([none if p is None else p - PITCH_LOWEST for p in pitches]),
        families=families,
        instruments=instruments,
    )


@torch.random.fork_rng(devices=[])  # weights and dropout draw from the global generator; the caller's stays as it was
def train_classifier(notes: LabelledNotes, config: NoteTraining | None = None) -> NoteNet:
    """Train from scratch: cross-entropy of the three heads, AdamW under a one-cycle rate, damaged sound mixed in."""
    config = config or NoteTraining()
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    front_end = NoteFrontEnd()
    # channels_last: convolutions on a CPU are faster in this layout.
    net = NoteNet(len(notes.families), len(notes.instruments)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = math.ceil(len(notes) / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=batches * config.epochs, pct_start=0.2
    )
    meter = Meter("classifier", len(notes) * config.epochs)
    seen = 0
    for epoch in range(config.epochs):
        loss_sum = 0.0
        right = torch.zeros(3)
        for rows in torch.randperm(len(notes), generator=generator).split(config.batch_size):
            # Damaged as generated sounds are, so that the classifier does not go by recording quality.
            waves = damaged_at_random(notes.waves[rows].float() / 32768.0, config.damaged_share, generator)
            picture = masked_at_random(front_end(waves), generator).contiguous(memory_format=torch.channels_last)
            labels = (notes.family[rows], notes.instrument[rows], notes.pitch[rows])
            logits = net(picture)[:3]
            loss = sum(nn.functional.cross_entropy(guess, label) for guess, label in zip(logits, labels))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            # What the log says of the epoch.
            seen += len(rows)
            loss_sum += loss.item() * len(rows)
            right += torch.stack([(g.argmax(1) == label).float().sum() for g, label in zip(logits, labels)])
            meter.update(seen, f"loss {loss.item():.2f}")
        family, instrument, pitch = (right / len(notes)).tolist()
        accuracies = f"family {family:.3f}, instrument {instrument:.3f}, pitch {pitch:.3f}"
        loss_mean = loss_sum / len(notes)
        meter.say(f"epoch {epoch + 1}/{config.epochs}: loss {loss_mean:.3f}, on damaged training clips {accuracies}")
    meter.close()
    return net.eval()


# Damage. Each takes [B, T] float waveforms at 16 kHz and a generator, and returns as many.


def damaged_at_random(waves: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """What generators and codecs do to sound, at random strength, to a random `share` of the batch; the rest is shifted
    in time only. In order: shift up to 20 ms, phase and magnitude noise, equaliser and lowpass, additive noise."""
    waves = shifted(waves, round(0.02 * NOTE_RATE_HZ), generator)
    chosen = _uniform(len(waves), 0.0, 1.0, generator) < share
    some = waves[chosen]
    if len(some) == 0:
        return waves
    n = len(some)
    spectral = _uniform(n, 0.0, 1.0, generator) < 0.6
    if spectral.any():
        count = int(spectral.sum())
        n_fft = 512 << int(torch.randint(3, (), generator=generator))
        phase_rad = _uniform(count, 0.0, 3.2, generator)
        magnitude_db = _uniform(count, 0.0, 8.0, generator)
        some[spectral] = spectrally_blurred(some[spectral], phase_rad, magnitude_db, generator, n_fft=n_fft)
    cutoff_hz = torch.where(_uniform(n, 0, 1, generator) < 0.4, _uniform(n, 1500.0, 8000.0, generator), 8000.0)
    some = equalised(some, _uniform(n, 0.0, 6.0, generator), cutoff_hz, generator)
    snr_db = torch.where(_uniform(n, 0, 1, generator) < 0.6, _uniform(n, 5.0, 50.0, generator), 80.0)
    waves[chosen] = noisy(some, snr_db, generator, colour=_uniform(n, 0.0, 1.0, generator))
    return waves


def shifted(waves: Tensor, most_samples: int, generator: torch.Generator) -> Tensor:
    """Each clip moved by up to `most_samples` either way, silence moved in."""
    padded = nn.functional.pad(waves, (most_samples, most_samples))
    offsets = torch.randint(2 * most_samples + 1, (len(waves), 1), generator=generator)
    return padded.gather(1, offsets + torch.arange(waves.shape[1]))


def spectrally_blurred(
    waves: Tensor, phase_rad: Tensor, magnitude_db: Tensor, generator: torch.Generator, *, n_fft: int = 1024
) -> Tensor:
    """Gaussian noise on every STFT bin: on its phase (deviation phase_rad [B]) and on its level (magnitude_db [B])."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(waves, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    phase = torch.randn(spectrum.shape, generator=generator) * phase_rad[:, None, None]
    gain = 10.0 ** (torch.randn(spectrum.shape, generator=generator) * magnitude_db[:, None, None] / 20.0)
    return torch.istft(spectrum * torch.polar(gain, phase), n_fft, n_fft // 4, window=window, length=waves.shape[1])


def equalised(waves: Tensor, spread_db: Tensor, cutoff_hz: Tensor, generator: torch.Generator) -> Tensor:
    """A random smooth response (8 gains drawn with standard deviation spread_db [B], interpolated over log frequency),
    and a lowpass of 48 dB per octave above cutoff_hz [B] (8000 passes everything)."""
    spectrum = torch.fft.rfft(waves)
    frequency_hz = torch.linspace(0.0, NOTE_RATE_HZ / 2.0, spectrum.shape[1])
    # Eight gains, an octave apart from 60 Hz on; the last place stays below the eighth gain.
    places = ((frequency_hz.clamp(min=60.0) / 60.0).log2()).clamp(max=6.999)
    left = places.long()
    points = torch.randn(len(waves), 8, generator=generator) * spread_db[:, None]
    response_db = points[:, left].lerp(points[:, left + 1], (places - left).expand(len(waves), -1))
    octaves_above = (frequency_hz.clamp(min=1.0) / cutoff_hz[:, None]).log2().clamp(min=0.0)
    return torch.fft.irfft(spectrum * 10.0 ** ((response_db - 48.0 * octaves_above) / 20.0), n=waves.shape[1])


def noisy(waves: Tensor, snr_db: Tensor, generator: torch.Generator, *, colour: Tensor | None = None) -> Tensor:
    """Gaussian noise added at snr_db [B] over the whole clip; amplitude falls as frequency**-colour ([B], 0 white)."""
    noise = torch.randn(waves.shape, generator=generator)
    if colour is not None:
        spectrum = torch.fft.rfft(noise)
        frequency = torch.arange(1, spectrum.shape[1] + 1) / spectrum.shape[1]
        noise = torch.fft.irfft(spectrum * frequency ** -colour[:, None], n=waves.shape[1])
    # The level follows the clip's own power, so that soft clips keep their ratio.
    wanted = waves.square().mean(1) * 10.0 ** (-snr_db / 10.0)
    return waves + noise * (wanted / noise.square().mean(1)).sqrt()[:, None]


def masked_at_random(picture: Tensor, generator: torch.Generator) -> Tensor:
    """SpecAugment (Park et al. 2019): one band of up to 16 rows and one stretch of up to 8 frames set to -1."""
    bands, frames = picture.shape[-2:]
    height, width = (int(torch.randint(most + 1, (), generator=generator)) for most in (16, 8))
    top = int(torch.randint(bands - height, (), generator=generator))
    start = int(torch.randint(frames - width, (), generator=generator))
    picture[..., top : top + height, :] = -1.0
    picture[..., start : start + width] = -1.0
    return picture


def _constant(waves: Tensor, value: float) -> Tensor:
    return torch.full((len(waves),), value)


# Fixed damage that the card is measured on: name -> function of (waves, generator). "codec-like" is all of it together.
DAMAGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "clean": lambda w, g: w,
    "noise 20 dB": lambda w, g: noisy(w, _constant(w, 20.0), g),
    "lowpass 3 kHz": lambda w, g: equalised(w, _constant(w, 0.0), _constant(w, 3000.0), g),
    "random phase": lambda w, g: spectrally_blurred(w, _constant(w, 10.0), _constant(w, 0.0), g),
    "magnitude noise 6 dB": lambda w, g: spectrally_blurred(w, _constant(w, 0.0), _constant(w, 6.0), g),
    "codec-like": lambda w, g: noisy(
        equalised(
            spectrally_blurred(w, _constant(w, 1.0), _constant(w, 4.0), g), _constant(w, 2.0), _constant(w, 5000.0), g
        ),
        _constant(w, 25.0),
        g,
    ),
}


def measure_classifier(classifier: NoteClassifier, notes: LabelledNotes, seed: int = 0) -> dict:
    """Accuracies on clean and on damaged clips: damage -> {"family": ..., "instrument": ..., "pitch": ...}.

    Pitch is measured on melodic notes only: that a drum has none is easier.
    """
    figures = {}
    melodic = (notes.pitch < PITCH_HIGHEST - PITCH_LOWEST + 1).numpy()
    for name, damage in DAMAGES.items():
        # The same damage for every classifier that is measured.
        generator = torch.Generator().manual_seed(seed)
        parts = [
            classifier.predict(damage(part.float() / 32768.0, generator), NOTE_RATE_HZ)
            for part in notes.waves.split(64)
        ]
        predicted = {
            head: np.concatenate([getattr(p, head) for p in parts]) for head in ("family", "instrument", "pitch")
        }
        figures[name] = {
            "family": _figure(predicted["family"], notes.family.numpy(), len(notes.families)),
            "instrument": _figure(predicted["instrument"], notes.instrument.numpy(), len(notes.instruments)),
            "pitch": _figure(predicted["pitch"][melodic], notes.pitch.numpy()[melodic], len(classifier.pitches)),
        }
    return figures


def save_classifier(net: NoteNet, card: dict, folder: Path) -> NoteClassifier:
    """Write note-classifier.safetensors (float16) and card.json (`card` plus sha256), each whole or not at all."""
    from safetensors.torch import save

    # In float16: the weights travel with the package.
    content = save({name: _half(value) for name, value in net.state_dict().items()})
    write_bytes(folder / "note-classifier.safetensors", content)
    card = card | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    write_text(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    # Loaded again, so that what is measured is what was written.
    return NoteClassifier.load(folder)


_WHAT = (
    "Classifier of family, instrument and pitch of single notes and drum hits; it measures, and takes part in no "
    "training."
)
_LIMITS = (
    "Knows the sounds of one sound font, and is measured on other renders of the same sounds (another seed: other "
    "velocities, lengths and order), not on other recordings. Of chords and sequences it knows nothing. A clip unlike "
    "everything it was trained on still gets some class: read its accuracy beside chance."
)


def make_classifier(
    source: Path, out: Path, card_source: Path | None, config: NoteTraining, origin: dict
) -> NoteClassifier:
    """Train on `source`, measure on `card_source`, write weights and card to `out`.

    Args:
        origin: what only the caller knows and the card should say (command, commit, machine).
    """
    notes = load_notes(source)
    # Read before the training: a missing set must not show after twenty minutes.
    held = load_notes(card_source, notes.families, notes.instruments) if card_source else None
    start = time.monotonic()
    net = train_classifier(notes, config)
    card = {
        "what": _WHAT,
        "limits": _LIMITS,
        **origin,
        "data": _provenance(source, notes) | {"use": "training: all splits, kinds note and drum"},
        "training": asdict(config) | {"minutes": round((time.monotonic() - start) / 60.0, 1)},
        "parameters": sum(p.numel() for p in net.parameters()),
        "embedding": EMBEDDING_SIZE,
        "preprocessing": " ".join((NoteFrontEnd.__doc__ or "").split()),
        "families": list(notes.families),
        "instruments": list(notes.instruments),
        "pitches": [*range(PITCH_LOWEST, PITCH_HIGHEST + 1), None],
    }
    # Written once without figures: measuring takes the saved weights.
    classifier = save_classifier(net, card, out)
    if held is None:
        return classifier
    figures = {"figures_data": _provenance(card_source, held), "figures": measure_classifier(classifier, held)}
    return save_classifier(net, card | figures, out)


def _provenance(source: Path, notes: LabelledNotes) -> dict:
    settings = Path(source) / "demo.json" if Path(source).is_dir() else Path(source).with_name("demo.json")
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return {"clips": len(notes), "demo_set": known}


def _figure(predicted: np.ndarray, labels: np.ndarray, classes: int) -> dict:
    measured = accuracy(predicted, labels, classes)
    low, high = measured.interval
    return {
        "accuracy": round(measured.value, 4),
        "interval": [round(low, 4), round(high, 4)],
        "chance": round(measured.chance, 4),
        "n": measured.n,
    }


def _half(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _known_pitch(kind: str, pitch: object) -> bool:
    if kind == "drum":
        return pitch is None
    return isinstance(pitch, int) and PITCH_LOWEST <= pitch <= PITCH_HIGHEST


def _read(path: Path) -> Tensor:
    try:
        wave = torch.from_numpy(np.asarray(read_wave(path, NOTE_RATE_HZ)))
    except BadAudio as error:
        raise UserError(f"{error}; hint: replace the file, or take its row out of the manifest") from error
    # int16 halves the memory of the set.
    return (fit(wave[None], NOTE_RATE_HZ)[0] * 32767.0).round().clamp(-32768, 32767).to(torch.int16)
