"""Training of the note classifier: reading labels, damage with known strength, learning, saving."""

import json

import numpy as np
import pytest
import soundfile
import torch

from segue.evaluation.note_classifier import NO_PITCH, NOTE_SAMPLES, NoteFrontEnd, NoteNet
from segue.evaluation.spectral_distances import snr_db
from segue.types import UserError
from segue_lab.note_classifier_training import (
    DAMAGES,
    NoteTraining,
    damaged_at_random,
    equalised,
    load_notes,
    make_classifier,
    masked_at_random,
    noisy,
    shifted,
    spectrally_blurred,
    train_classifier,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def waves():
    return 0.1 * torch.randn(4, NOTE_SAMPLES, generator=generator(9))


def write_set(folder, rows=24):
    """A tiny set of two instruments and a drum, told apart by their spectra."""
    (folder / "audio").mkdir(parents=True)
    t, lines, rng = np.arange(16000) / 16000, [], np.random.default_rng(0)
    for index in range(rows):
        kind = ("note", "note", "drum", "chord")[index % 4]
        pitch = 48 + 12 * (index % 3)
        f0 = 440 * 2 ** ((pitch - 69) / 12)
        tone = np.sin(2 * np.pi * f0 * t) + (0.8 * np.sin(6 * np.pi * f0 * t) if index % 4 else 0)
        wave = rng.standard_normal(16000) * np.exp(-20 * t) if kind == "drum" else tone * np.exp(-2 * t)
        soundfile.write(folder / "audio" / f"{index}.flac", 0.2 * wave, 16000)
        name = {"drum": "snare drum"}.get(kind, "reed organ" if index % 4 else "flute")
        family = {"snare drum": "drum", "reed organ": "organ", "flute": "flute"}[name]
        row = {"id": str(index), "path": f"audio/{index}.flac", "caption": "x", "kind": kind}
        lines.append(row | {"instrument": name, "family": family, "pitch": None if kind == "drum" else pitch})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture(scope="module")
def notes_dir(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("classifier") / "set")


def test_labels_come_from_the_manifest(notes_dir):
    notes = load_notes(notes_dir)
    assert notes.families == ("flute", "organ", "drum") and notes.instruments == ("flute", "reed organ", "snare drum")
    assert len(notes) == 18 and notes.waves.shape == (18, NOTE_SAMPLES) and notes.waves.dtype == torch.int16
    assert (notes.pitch[notes.family == 2] == NO_PITCH).all()
    assert notes.pitch[0] == 48 - 36


def test_refuses_labels_that_it_cannot_use(notes_dir, tmp_path):
    with pytest.raises(UserError, match="never trained on"):
        load_notes(notes_dir, families=("flute",), instruments=("flute",))
    write_set(tmp_path / "bad", rows=4)
    manifest = tmp_path / "bad" / "manifest.jsonl"
    for change in ({"family": None}, {"pitch": 20}, {"pitch": None}):
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        broken = [rows[0] | change, *rows[1:]]
        (tmp_path / "bad" / "broken.jsonl").write_text("".join(json.dumps(x) + "\n" for x in broken))
        with pytest.raises(UserError, match="clip 0 needs"):
            load_notes(tmp_path / "bad" / "broken.jsonl")
    chords = [json.loads(line) | {"kind": "chord"} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(x) + "\n" for x in chords))
    with pytest.raises(UserError, match="no rows of kind"):
        load_notes(tmp_path / "bad")


def test_noise_has_the_asked_ratio(waves):
    wanted = torch.tensor([0.0, 10.0, 20.0, 40.0])
    for colour in (None, torch.tensor([0.0, 0.5, 1.0, 1.0])):
        found = snr_db(noisy(waves, wanted, generator(), colour=colour), waves)
        torch.testing.assert_close(found, wanted.double(), atol=1e-2, rtol=0)


def test_blur_of_zero_strength_is_the_identity(waves):
    zero = torch.zeros(4)
    same = spectrally_blurred(waves, zero, zero, generator())
    torch.testing.assert_close(same, waves, atol=1e-5, rtol=0)


def test_lowpass_takes_48_db_an_octave(waves):
    flat = torch.zeros(4)
    low = equalised(waves, flat, torch.full((4,), 2000.0), generator())
    ratio = (torch.fft.rfft(low).abs() / torch.fft.rfft(waves).abs())[0]
    bin_of = lambda hz: round(hz * NOTE_SAMPLES / 16000)  # noqa: E731
    assert ratio[bin_of(1000)] == pytest.approx(1.0, abs=1e-3)
    assert 20 * torch.log10(ratio[bin_of(4000)]).item() == pytest.approx(-48.0, abs=0.3)
    torch.testing.assert_close(equalised(waves, flat, torch.full((4,), 8000.0), generator()), waves, atol=1e-5, rtol=0)


def test_shift_moves_and_keeps_the_length(waves):
    moved = shifted(waves, 320, generator())
    assert moved.shape == waves.shape
    for before, after in zip(waves, moved):
        lags = [k for k in range(-320, 321) if torch.equal(after[400:800], before[400 + k : 800 + k])]
        assert len(lags) == 1


def test_damage_repeats_stays_finite_and_spares_its_input(waves):
    kept = waves.clone()
    one, other = (damaged_at_random(waves, 1.0, generator(3)) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.isfinite(one).all() and not torch.equal(one, waves)
    assert torch.equal(waves, kept)
    silent = damaged_at_random(torch.zeros(8, NOTE_SAMPLES), 1.0, generator())
    assert torch.isfinite(NoteFrontEnd()(silent)).all()


@pytest.mark.parametrize("name", DAMAGES)
def test_fixed_damage_is_finite_and_changes_all_but_clean(waves, name):
    damaged = DAMAGES[name](waves, generator())
    assert damaged.shape == waves.shape and torch.isfinite(damaged).all()
    assert torch.equal(damaged, waves) == (name == "clean")


def test_mask_covers_at_most_one_band_and_one_stretch():
    picture = torch.ones(2, 1, 168, 64)
    masked = masked_at_random(picture, generator(1))
    hidden = masked[0, 0] == -1.0
    assert hidden.all(dim=1).sum() <= 16 and hidden.all(dim=0).sum() <= 8


def test_training_repeats_and_leaves_the_callers_generator_alone(notes_dir):
    notes, config = load_notes(notes_dir), NoteTraining(epochs=1, batch_size=16)
    before = torch.random.get_rng_state()
    one, other = (train_classifier(notes, config).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_learns_saves_and_loads(notes_dir, tmp_path):
    config = NoteTraining(epochs=14, batch_size=6, damaged_share=0.0)
    classifier = make_classifier(notes_dir, tmp_path / "classifier", notes_dir, config, {"command": "x"})
    assert sorted(p.name for p in (tmp_path / "classifier").iterdir()) == ["card.json", "note-classifier.safetensors"]
    assert classifier.card["command"] == "x" and classifier.card["data"]["clips"] == 18
    figures = classifier.card["figures"]
    assert set(figures) == set(DAMAGES) and figures["clean"]["pitch"]["n"] == 12
    assert figures["clean"]["family"]["accuracy"] > figures["clean"]["family"]["chance"] + 0.3
    assert classifier.families == ("flute", "organ", "drum")


def test_network_is_small():
    assert sum(p.numel() for p in NoteNet(12, 45).parameters()) <= 1_200_000
