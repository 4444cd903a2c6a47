"""Releases: the weights that are kept, their cards, and one line for a mistake."""

import json

import numpy as np
import pytest
import soundfile

from segue.codecs.spectral import SpectralCodec
from segue.types import UserError
from segue_lab.release.codec import classified_round_trip

SHORT = ["model.preset=dit-tiny", "train.batch_size=8", "train.tensorboard=false", "probe.space=latent",
         "probe.clips=8"]  # fmt: skip


def tone(pitch):
    time_sec = np.arange(48000) / 16000
    return 0.4 * np.exp(-2 * time_sec) * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time_sec)


def test_an_exact_codec_changes_nothing_of_what_is_classified(tmp_path):
    rows = []
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.flac", tone(48 + index), 16000)
        label = {"kind": "note", "family": "guitar", "instrument": "nylon guitar", "pitch": 48 + index}
        row = {"id": str(index), "path": f"{index}.flac", "caption": "a note", "split": "test"}
        rows.append(json.dumps({**row, **label}) + "\n")
    (tmp_path / "manifest.jsonl").write_text("".join(rows))
    found = classified_round_trip(SpectralCodec(16000), tmp_path)
    assert found["clips"] == 4
    assert {k: found[k] for k in ("family", "instrument", "pitch")} == found["real_clips"]
    (tmp_path / "manifest.jsonl").write_text("".join(rows).replace('"test"', '"train"'))
    with pytest.raises(UserError, match="no test notes"):
        classified_round_trip(SpectralCodec(16000), tmp_path)


def test_a_super_resolution_model_is_released_with_its_figures(segue, lab, recordings, tmp_path):
    cache, run, out = tmp_path / "cache", tmp_path / "run", tmp_path / "released"
    segue("encode", recordings, "--codec", "gain-shape", "--captions", "filename", "--seconds", "0.512", "--out", cache)
    changes = [word for change in SHORT for word in ("--set", change)]
    assert segue("train", "sr-demo-static", "--data", cache, "--out", run, "--examples", "16", "--samples", "0",
                 "--device", "cpu", *changes).code == 0  # fmt: skip
    sources = tmp_path / "sources.json"
    sources.write_text('[{"name": "recordings", "licence": "none", "hours": 0.01}]')
    ran = lab("release", "super-resolution", run, "--out", out, "--measure", f"named={recordings}", "--sources", sources,
                "--command", "segue train", "--commit", "abc", "--steps", "1,2", "--clips", "4")  # fmt: skip
    assert ran.code == 0, ran.err
    card = json.loads((out / "card.json").read_text())
    rows = card["figures"]["named"]["rows"]
    assert {"unprocessed", "model, 1 steps", "model, 2 steps"} < set(rows)
    assert rows["codec round trip"]["lsd full"]["mean"] < 0.01 < rows["model, 1 steps"]["lsd full"]["mean"]
    assert card["training"]["examples"] == 16 and card["bytes"] == (out / "model.safetensors").stat().st_size
    figures = out / "figures.json"
    again = segue("super-resolution", "measure", out / "model.safetensors", recordings, "--steps", "1", "--clips", "4",
                  "--all", "--json", figures)  # fmt: skip
    assert json.loads(figures.read_text())["rows"]["model, 1 steps"] == rows["model, 1 steps"]
    shown = next(line for line in again.out.splitlines() if "model, 1 steps" in line)
    assert f"{rows['model, 1 steps']['lsd full']['mean']:.3f} (" in shown
    again = lab("release", "super-resolution", run, "--out", out, "--measure", f"named={recordings}", "--sources", sources,
                  "--command", "segue train", "--commit", "abc", "--steps", "four")  # fmt: skip
    assert again.code == 2 and "--steps four" in again.line


@pytest.mark.parametrize("kind", ["codec", "teacher", "super-resolution"])
@pytest.mark.parametrize(("measure", "says"), [("x", "NAME=FOLDER"), ("x=y", "not a readable JSON file")])
def test_a_mistake_gets_one_line_and_nothing_is_written(lab, tmp_path, kind, measure, says):
    ran = lab("release", kind, tmp_path, "--out", tmp_path / "o", "--measure", measure, "--sources", tmp_path / "none",
              "--command", "c", "--commit", "0")  # fmt: skip
    assert ran.code == 2 and says in ran.line and "hint: " in ran.line
    assert not (tmp_path / "o").exists()
