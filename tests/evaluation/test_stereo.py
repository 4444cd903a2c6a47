"""Widths and views of two channels."""

import json

import numpy as np
import pytest
import soundfile
import torch

from segue.evaluation.stereo import view, width_db, width_error_db


def pair(left, right):
    return torch.stack([left, right])[None]


NOISE = torch.randn(2, 40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_widths_of_known_sounds():
    a, b = NOISE
    for wave, expected in (
        (pair(a, a), -60.0),
        (pair(a, 0 * a), 0.0),
        (pair(a, -a), 60.0),
        (pair(a + 0.1 * b, a - 0.1 * b), -20.0),
        (pair(0 * a, 0 * a), -60.0),
    ):
        assert float(width_db(wave)) == pytest.approx(expected, abs=0.1)
    assert float(width_db(pair(a, b))) == pytest.approx(0.0, abs=0.2)
    assert float(width_error_db(pair(a, a), pair(a, 0 * a))) == pytest.approx(60.0)


def test_views_and_their_order():
    a, b = NOISE
    for name, expected in (("left", a), ("right", b), ("mid", (a + b) / 2), ("side", (a - b) / 2)):
        assert torch.equal(view(pair(a, b), name)[0], expected)


def test_swapped_sides_show_where_the_mean_of_the_channels_does_not(segue, tmp_path):
    generator = np.random.default_rng(0)
    for index in range(3):
        wave = 0.1 * generator.standard_normal((8000, 2)) * (1, 0.2)
        for folder, sides in (("a", wave[:, ::-1]), ("b", wave), ("c", wave.mean(axis=1, keepdims=True))):
            (tmp_path / folder).mkdir(exist_ok=True)
            soundfile.write(tmp_path / folder / f"{index}.wav", sides, 16000, subtype="FLOAT")
    assert (
        segue("evaluate", "files", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--draws", 20).code == 0
    )
    found = {m["name"]: m["value"] for m in json.loads((tmp_path / "out" / "evaluation.json").read_text())["measures"]}
    assert found["LSD nuwave2 full"] < 1e-3 and found["width error"] < 1e-6
    assert min(found["LSD nuwave2 full, left"], found["LSD nuwave2 full, right"]) > 1.0
    assert found["log-mel L1, side"] < 1e-3, "a side that is turned over sounds the same"
    ran = segue("evaluate", "files", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "mono", "--draws", 20)
    assert ran.code == 0 and "sides are not compared: not all of the files are stereo" in ran.out
