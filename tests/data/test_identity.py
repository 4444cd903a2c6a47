"""A run goes on with the data that it began with, and with no other, however many rows that has."""

import json
import shutil

import pytest

from segue.data.encoding import build_cache
from segue.data.identity import identity, refuse_other_contents
from segue.data.manifest import load_manifest
from segue.data.open_cache import open_cache
from segue.types import UserError


@pytest.fixture
def build(small_set, fakes, tmp_path):
    def build(name):
        parts = fakes.FakeCodec(), fakes.FakeText(), fakes.FakeTeacher()
        return build_cache(load_manifest(small_set), *parts, out=tmp_path / name, seconds=0.4)

    return build


def test_a_moved_or_packed_cache_is_the_same_data(build, tmp_path):
    cache = build("cache")
    then = json.loads(json.dumps(identity(cache)))
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    refuse_other_contents("run", then, open_cache(tmp_path / "moved"))
    pytest.importorskip("webdataset")
    from segue.data.packing import pack_cache

    packed = pack_cache(open_cache(tmp_path / "moved"), tmp_path / "packed")
    assert identity(packed) == then


def test_as_many_rows_of_something_else_are_refused(build, small_set):
    then = identity(build("one"))
    manifest = small_set / "manifest.jsonl"
    text = manifest.read_text()
    for change, says in (
        (text.replace("number 4", "number four"), "as many rows, but other ids, sounds or captions"),
        (
            text.replace('"split": "test"', '"split": "train"'),
            r"then: 28 train, 10 valid, 7 test; now: 35 train, 10 valid",
        ),
    ):
        manifest.write_text(change)
        with pytest.raises(UserError, match=says) as refused:
            refuse_other_contents("runs/mine", then, build("one"))
        assert "runs/mine: trained on other data than" in str(refused.value) and "--data CACHE" in str(refused.value)
    manifest.write_text(text)
    refuse_other_contents("runs/mine", then, build("one"))
    refuse_other_contents("runs/old", None, build("one"))
