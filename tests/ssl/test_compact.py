from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.evaluation.mel import mel_edges_hz, triangular_bands
from segue.ssl import compact, load_teacher
from segue.types import UserError

CONFIG = compact.CompactConfig(
    hop_samples=80, window_samples=256, bands=24, width=16, depth=3, heads=2, expansion=2, layers=(2, 3)
)


@pytest.fixture
def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = compact.CompactEncoder(CONFIG)
        encoder.statistics.copy_(torch.rand_like(encoder.statistics) + 0.5)
        # Small weights would hide what the positions do.
        for parameter in encoder.blocks.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def noise(batch, samples, seed=0):
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def test_frames_cover_every_sample(encoder):
    teacher = compact.CompactTeacher(encoder)
    assert (teacher.sample_rate_hz, teacher.frame_rate_hz, teacher.dim) == (16000, 50.0, 16)
    for samples in (1, 319, 320, 321, 8000):
        features = teacher.encode(noise(2, samples))
        assert features.shape == (2, math.ceil(samples / 320), 16)
        assert features.dtype == torch.float32 and features.isfinite().all()
    with pytest.raises(UserError, match="0 samples"):
        teacher.encode(torch.zeros(1, 0))


def test_rates_keep_the_frame_rate():
    for rate_hz in (8000, 16000, 44100, 48000, 96000):
        config = compact.CompactConfig.for_rate(rate_hz)
        assert rate_hz / config.frame_samples == pytest.approx(25)
        assert 0.04 < config.window_samples / rate_hz < 0.1
        assert config.window_samples >= config.hop_samples


def test_mel_bands_are_those_of_the_metrics():
    ours = compact.mel_bands(40, 1024, 16000)
    theirs = triangular_bands(mel_edges_hz(40, 0.0, 8000.0), 1024, 16000).T
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert (ours.sum(0) > 0).all()


def test_a_full_scale_sine_reads_about_one():
    mel = compact.LogMel(compact.CompactConfig())
    time_sec = torch.arange(16000) / 16000
    columns = mel(torch.sin(2 * math.pi * 1000 * time_sec)[None])[0]
    assert columns.shape == (100, 128)
    assert columns[20:80].max().item() == pytest.approx(0, abs=0.7)
    assert mel(torch.zeros(1, 640)).max().item() == pytest.approx(math.log(compact.FLOOR), abs=1e-4)


def test_a_column_is_centred_on_its_hop():
    mel = compact.LogMel(CONFIG)
    wave = torch.zeros(1, 3200)
    wave[0, 1640] = 1.0
    level = mel(wave)[0].mean(1)
    assert level.argmax() == 1640 // 80
    torch.testing.assert_close(level[19], level[21], atol=1e-3, rtol=0)


def test_positions_are_relative(encoder):
    """Rotary positions: the same patches later in time give the same features."""
    patches = torch.randn(1, 6, CONFIG.patch_frames * CONFIG.bands, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = encoder(patches, torch.tensor([[0, 1, 2]]))[-1]
        # Frames 3 to 5 hold the same patches as 0 to 2.
        shifted = torch.cat([patches[:, 3:], patches[:, :3]], dim=1)
        later = encoder(shifted, torch.tensor([[3, 4, 5]]))[-1]
        swapped = encoder(patches[:, [1, 0, 2, 3, 4, 5]], torch.tensor([[0, 1, 2]]))[-1]
    torch.testing.assert_close(first, later, atol=1e-5, rtol=1e-4)
    assert (swapped[:, [1, 0, 2]] - first).abs().max() > 1e-2, "but their order counts"


def test_masked_frames_are_not_used(encoder):
    patches = torch.randn(2, 5, CONFIG.patch_frames * CONFIG.bands, generator=torch.Generator().manual_seed(1))
    visible = torch.tensor([[0, 3], [1, 4]])
    with torch.no_grad():
        before = encoder(patches, visible)[-1]
        patches[0, [1, 2, 4]] = 7.0
        patches[1, [0, 2, 3]] = -7.0
        after = encoder(patches, visible)[-1]
        everything = torch.arange(5)[None].expand(2, -1)
        torch.testing.assert_close(encoder(patches, everything)[-1], encoder(patches)[-1])
    assert torch.equal(before, after)


def test_clips_do_not_depend_on_their_batch(encoder):
    teacher = compact.CompactTeacher(encoder)
    wave = noise(3, 4000)
    together = teacher.encode(wave)
    torch.testing.assert_close(together[1:2], teacher.encode(wave[1:2]), atol=1e-5, rtol=1e-4)


def test_default_is_the_mean_of_its_layers_and_statistics_standardise(encoder):
    wave = noise(2, 4000)
    raw = encoder.features(wave)
    torch.testing.assert_close(raw, (encoder.features(wave, 2) + encoder.features(wave, 3)) / 2)
    for layer in (None, 1, 2, 3):
        mean, std = encoder.statistics[:, layer or 0]
        features = compact.CompactTeacher(encoder, layer=layer).encode(wave)
        torch.testing.assert_close(features * std + mean, encoder.features(wave, layer), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="--teacher-layer 4: mine has layers 1 to 3"):
        compact.CompactTeacher(encoder, "mine", 4)


def test_gradients_reach_the_waveform_and_not_the_weights(encoder):
    teacher = compact.CompactTeacher(encoder)
    wave = noise(1, 2000).requires_grad_(True)
    teacher.encode(wave).square().sum().backward()
    assert wave.grad.abs().sum() > 0 and wave.grad.isfinite().all()
    assert all(p.grad is None for p in encoder.parameters())


def test_saved_and_loaded_by_folder_or_file(encoder, tmp_path):
    path = compact.save_teacher(encoder, tmp_path)
    ours = compact.CompactTeacher(encoder)
    wave = noise(1, 3000)
    for name in (str(tmp_path), str(path)):
        loaded = load_teacher(name)
        assert torch.equal(loaded.encode(wave), ours.encode(wave))
        assert loaded.fingerprint() == ours.fingerprint()
        assert "mean of layers 2, 3" in loaded.describe()
    assert load_teacher(str(tmp_path), 1).fingerprint() != ours.fingerprint()
    half = compact.save_teacher(encoder, tmp_path / "half", half=True)
    assert half.stat().st_size < 0.65 * path.stat().st_size
    torch.testing.assert_close(load_teacher(str(half)).encode(wave), ours.encode(wave), atol=0.05, rtol=0.05)
    json.dumps(ours.fingerprint())


def test_the_hash_follows_the_weights(encoder):
    teacher = compact.CompactTeacher(encoder)
    before = teacher.fingerprint()["weights"]
    encoder.enter.weight.data[0, 0] += 1
    assert teacher.fingerprint()["weights"] != before


def test_unfit_weights_names_the_hint(encoder, tmp_path):
    path = compact.save_teacher(encoder, tmp_path)
    tensors = load_file(path)
    metadata = {"format": compact.FORMAT, "config": json.dumps(replace_config(width=32))}
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match="do not fit"):
        load_teacher(str(tmp_path))
    save_file(tensors, path, {"format": "segue-teacher-0"})
    with pytest.raises(UserError, match=r"segue-teacher-0.*retrain"):
        load_teacher(str(tmp_path))
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_teacher(str(tmp_path))
    with pytest.raises(UserError, match="no trained teacher there"):
        load_teacher(str(tmp_path / "nowhere" / "teacher.safetensors"))


def replace_config(**changes):
    return replace(CONFIG, **changes).__dict__


def test_missing_shipped_weights_names_the_hint(monkeypatch, tmp_path):
    monkeypatch.setattr(compact, "SHIPPED", tmp_path)
    monkeypatch.setattr(compact, "SHIPPED_WIDE", tmp_path)
    for name in ("compact", "compact-44k"):
        with pytest.raises(UserError, match=f"--teacher {name}: .*segue teacher train"):
            load_teacher(name)


def test_the_shipped_wide_teacher_is_the_one_of_its_card():
    teacher = load_teacher("compact-44k")
    card = json.loads((compact.SHIPPED_WIDE / "card.json").read_text())
    assert teacher.fingerprint()["weights"] == card["weights"] and teacher.sample_rate_hz == 44100
    assert (compact.SHIPPED_WIDE / compact.WEIGHTS).stat().st_size <= 16_000_000
    assert all(source["licence"] for source in card["training"]["sources"])
    features = teacher.encode(0.1 * torch.randn(2, 44100, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, 25, teacher.dim) and bool(features.isfinite().all())
