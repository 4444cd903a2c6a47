"""Length, tempo and key from the command line: encoded from a list, trained, and asked for."""

import json

import numpy as np
import pytest
import soundfile

from segue.audio.tags import read_settings
from segue.cli.main import main
from segue.data.open_cache import open_cache

TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")
CODEC = ("--codec", "spectral", "--sample-rate-hz", 8000, "--teacher", "none", "--seconds", 0.5)


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """A list of 16 sounds of two lengths with tempo and key; one has no key."""
    folder = tmp_path_factory.mktemp("loops")
    rows = []
    for n in range(16):
        wave = 0.3 * np.sin(2 * np.pi * 20 * (n + 5) * np.arange(800 if n % 2 else 8000) / 8000)
        soundfile.write(folder / f"{n}.wav", wave, 8000)
        row = {"path": f"{n}.wav", "caption": "short hit" if n % 2 else "long pad", "bpm": str(80 + n)}
        rows.append(
            row | {"mood": f"m{n % 3}"} | ({"key": "CDE"[n % 3]} if n != 7 else {}) | {"pace": "fast" if n == 3 else n}
        )
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def trained(loops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    fields = ("--condition", "field=bpm", "--condition", "field=key,optional")
    for words in (
        ("encode", loops, "--out", folder / "cache", *CODEC, *fields),
        ("train", "static-uniform", "--data", folder / "cache", "--out", folder / "run", "--examples", 8, *TINY,
         "--device", "cpu", "--samples", 1, "--set", "train.seconds=0.8"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert not stopped.value.code
    return folder / "run"


def test_lengths_and_conditions_reach_the_model_and_the_file(segue, trained, tmp_path):
    generate = ("generate", trained, "--steps", 2, "--device", "cpu")
    asked = ("--condition", "bpm=90", "--condition", "key=D")
    assert segue(*generate, "long pad", "--out", tmp_path / "a", "--seconds", 1.25, *asked).code == 0
    (path,) = (tmp_path / "a").iterdir()
    assert soundfile.info(path).frames == 10000
    assert read_settings(path)["conditions"] == {"bpm": 90.0, "key": "D"} and read_settings(path)["seconds"] == 1.25
    assert segue("generate", trained, "--like", path, "--out", tmp_path / "b", "--device", "cpu").code == 0
    assert next((tmp_path / "b").iterdir()).read_bytes() == path.read_bytes()
    assert segue(*generate, "long pad", "--out", tmp_path / "c", "--seconds", 1.25).code == 0
    assert next((tmp_path / "c").iterdir()).read_bytes() != path.read_bytes()
    # Without --seconds a file is as long as the crops; how long the sound in it is, follows from its caption.
    ran = segue(*generate, "short hit", "--out", tmp_path / "d", "--condition", "bpm=300")
    assert ran.code == 0 and "to 95; what lies beyond counts as these" in ran.err
    (path,) = (tmp_path / "d").iterdir()
    assert soundfile.info(path).frames == 6400 and "seconds" not in read_settings(path)
    assert segue("generate", trained, "--like", path, "--out", tmp_path / "e", "--device", "cpu").code == 0
    assert next((tmp_path / "e").iterdir()).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--condition", "tempo=3"), "the model knows no tempo; hint: it knows bpm, key"),
        (("--condition", "bpm=quick"), "to 95 were trained on"),
        (("--condition", "key=H"), "no such label; hint: it knows C, D, E"),
        (("--condition", "bpm"), "hint: write NAME=VALUE"),
        (("--condition", "seconds_total=3"), "hint: --seconds"),
    ],
)
def test_what_a_model_does_not_know(segue, trained, tmp_path, words, says):
    ran = segue("generate", trained, "x", "--out", tmp_path / "out", "--device", "cpu", *words)
    assert ran.code == 2 and says in ran.line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("field=key", "1 of 16 rows have none, such as 7; hint: fill it in, or --condition field=key,optional"),
        ("field=bmp", "no row has this field; hint: did you mean bpm?"),
        ("field=pace", "3 has 'fast', which is no number, as others are; hint: correct it, or --condition field=pace,l"),
        ("bpm", "hint: write field=NAME"),
    ],
)  # fmt: skip
def test_fields_that_rows_do_not_have(segue, loops, tmp_path, field, says):
    ran = segue("encode", loops, "--out", tmp_path / "cache", *CODEC, "--condition", field)
    assert ran.code == 2 and says in ran.line and not (tmp_path / "cache").exists()


def test_a_cache_gets_other_conditions_without_encoding_sounds_again(segue, trained, loops):
    cache = trained.parent / "cache"
    before = {p.name: p.stat().st_mtime_ns for p in (cache / "shards").iterdir()}
    fields = ("--condition", "field=bpm", "--condition", "field=key,optional", "--condition", "field=mood")
    assert segue("encode", loops, "--out", cache, *CODEC, *fields).code == 0
    assert {p.name: p.stat().st_mtime_ns for p in (cache / "shards").iterdir()} == before
    assert [f["name"] for f in open_cache(cache).meta["conditions"]["labels"]] == ["key", "mood"]
