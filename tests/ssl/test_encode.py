"""`segue encode --teacher`: features beside latents, at the teacher's own rate."""

import re

import numpy as np
import pytest
import soundfile
import torch
import transformers as tf

from segue.data.open_cache import open_cache
from segue.ssl import load_teacher


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    config = tf.WavLMConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, conv_dim=[8, 8],
        conv_kernel=[10, 4], conv_stride=[20, 4], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    tf.WavLMModel(config).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(sampling_rate=4000, do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for n, length in enumerate((1.0, 0.6, 1.0)):
        wave = 0.3 * np.sin(2 * np.pi * 220 * (n + 1) * np.arange(round(8000 * length)) / 8000)
        soundfile.write(folder / f"tone {n}.wav", wave, 8000)
        (folder / f"tone {n}.txt").write_text(f"a tone {n}")
    return folder


def encode(*arguments):
    from segue.cli.main import main

    with pytest.raises(SystemExit) as stopped:
        settings = ["--codec", "spectral", "--sample-rate-hz", "8000", "--seconds", "1", "--dtype", "float32"]
        main(["encode", *map(str, arguments), *settings])
    return stopped.value.code or 0


def test_features_are_cached_beside_latents(sounds, teacher_folder, tmp_path, capsys):
    out = tmp_path / "cache"
    assert encode(sounds, "--out", out, "--teacher", teacher_folder, "--teacher-layer", 3) == 0
    said = capsys.readouterr().err
    assert "layer 3 of 4" in said and "carries nothing above 2,000 Hz, the codec nothing above 4,000 Hz" in said
    assert re.search(r"encoding about [\d.,]+ clips/s: 3 clips", said)
    cache, teacher = open_cache(out), load_teacher(str(teacher_folder), 3)
    assert cache.meta["teacher"] == teacher.fingerprint()
    # Latents and features of a second, each in four bytes.
    per_sec = 4 * (cache.channels * cache.frames + 50 * 16)
    assert f"{per_sec * 3600 / 1e6:,.1f} MB per hour of sound" in said
    features, mask = cache.teacher(range(3))
    assert features.shape == (3, 50, 16) and mask.sum(1).tolist() == [50, 30, 50]
    row = next(i for i in range(3) if cache.row(i)["captions"] == ["a tone 0"])
    tone = 0.3 * torch.sin(2 * torch.pi * 220 * torch.arange(4000) / 4000)
    direct = teacher.encode(tone[None])[0]
    # Read at 4 kHz from a file at 8 kHz: equal but for the resampler's edges.
    assert torch.nn.functional.cosine_similarity(features[row], direct, dim=-1)[5:-5].min() > 0.99


def test_another_layer_is_refused(sounds, teacher_folder, tmp_path, capsys):
    out = tmp_path / "cache"
    assert encode(sounds, "--out", out, "--teacher", teacher_folder) == 0
    capsys.readouterr()
    assert encode(sounds, "--out", out, "--teacher", teacher_folder, "--teacher-layer", 3) == 2
    assert "teacher.layer 2 there, 3 here" in capsys.readouterr().err
    assert encode(sounds, "--out", out, "--teacher", teacher_folder, "--teacher-layer", 9) == 2
    assert "layers 1 to 4" in capsys.readouterr().err


def test_a_layer_without_a_teacher_is_refused(sounds, tmp_path, capsys):
    assert encode(sounds, "--out", tmp_path / "cache", "--teacher", "none", "--teacher-layer", 3) == 2
    assert "--teacher-layer needs a --teacher" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
