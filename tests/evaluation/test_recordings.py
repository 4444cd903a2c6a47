"""Figures of recordings, on sounds whose figures are known."""

import numpy as np
import pytest
import torch

from segue.evaluation.recordings import (
    caption_distance,
    described,
    set_distances,
    sounding_sec,
    statistics_of,
    treble_db,
)
from segue.types import UserError

RATE_HZ = 44100


def tones(lengths_sec, frequency_hz=1000.0):
    time_sec = torch.arange(RATE_HZ) / RATE_HZ
    wave = 0.5 * torch.sin(2 * torch.pi * frequency_hz * time_sec)
    return torch.stack([torch.stack([wave * (time_sec < n)] * 2) for n in lengths_sec])


def test_a_sound_ends_where_it_ends():
    waves = torch.cat([tones([0.1, 0.5, 1.0]), torch.zeros(1, 2, RATE_HZ)])
    assert sounding_sec(waves, RATE_HZ).tolist() == pytest.approx([0.1, 0.5, 1.0, 0.0], abs=0.011)
    # 50 dB below its loudest part, a tail is none of the sound; 30 dB below, it is.
    tail = tones([0.5]) + tones([1.0]) * 10 ** (-50 / 20)
    assert sounding_sec(tail, RATE_HZ).item() == pytest.approx(0.5, abs=0.011)
    assert sounding_sec(tones([0.5]) + tones([1.0]) * 10 ** (-30 / 20), RATE_HZ).item() == pytest.approx(1.0, abs=0.02)


def test_what_sounds_are():
    found = described(tones([0.5, 0.5, 0.5]), RATE_HZ)
    assert found["level_db"] == pytest.approx([-9.0] * 3, abs=0.3)  # a sine of .5
    assert found["width_db"] == [-60.0] * 3 and found["treble_db"][1] < -50
    assert treble_db(tones([1.0], 12000.0), RATE_HZ).item() == pytest.approx(0.0, abs=0.1)
    assert set(described(tones([0.5])[:, :1, ::2], RATE_HZ // 4)) == {"length_sec", "level_db"}


def test_the_distance_to_the_own_caption_is_below_chance_only_where_captions_matter():
    real = statistics_of(torch.cat([tones([0.2 + 0.1 * i], 300.0 * (1 + i)) for i in range(6)]), RATE_HZ)
    captions = [f"tone {i}" for i in range(6)]
    same = caption_distance(real, real, captions)
    assert same["value"] == 0 and same["chance"] > 1 and same["n"] == 6
    shifted = caption_distance(np.roll(real, 1, axis=0), real, captions)
    assert shifted["interval"][0] <= shifted["value"] <= shifted["interval"][1] and shifted["value"] > 1
    assert "chance" not in caption_distance(real, real, ["tone"] * 6)
    with pytest.raises(UserError, match="at least 2"):
        caption_distance(real[:1], real[:1], captions[:1])


def test_sets_of_one_kind_are_near_and_small_ones_have_no_frechet_distance():
    draw = np.random.default_rng(0).standard_normal
    near, far = set_distances(draw((70, 64)), draw((70, 64))), set_distances(draw((70, 64)) + 1, draw((70, 64)))
    assert near["kernel_distance"] < 1 < far["kernel_distance"] and near["frechet_distance"] < far["frechet_distance"]
    assert "frechet_distance" not in set_distances(draw((40, 64)), draw((70, 64)))
