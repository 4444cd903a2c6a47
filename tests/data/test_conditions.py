"""Numbers and labels of clips: read from manifest fields, kept in the cache, refused with one line."""

from pathlib import Path

import pytest

from segue.data.cache_checks import check_meta
from segue.data.clip import Clip
from segue.data.conditions import ConditionField, described, settled, values_of
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.types import UserError


def clips(**columns):
    count = max(map(len, columns.values()))
    rows = [{name: values[n] for name, values in columns.items() if values[n] is not None} for n in range(count)]
    return [Clip(f"c{n}", Path("x.wav"), ("a",), "train", row) for n, row in enumerate(rows)]


def test_the_option():
    assert ConditionField.of("field=bpm") == ConditionField("bpm")
    assert ConditionField.of(" field = key , label,optional") == ConditionField("key", True, True)
    for text in ("bpm", "field=", "field=bpm,maybe", "column=bpm", "field=seconds_total"):
        with pytest.raises(UserError, match="hint"):
            ConditionField.of(text)


def test_numbers_and_labels():
    some = clips(bpm=["120", 90, None], key=["C", " A  minor ", "C"], take=["1", "2", "1"])
    asked = [ConditionField("bpm", optional=True), ConditionField("key"), ConditionField("take", is_label=True)]
    fields = settled(asked, some)
    assert [values_of(clip, fields) for clip in some] == [
        {"bpm": 120.0, "key": "C", "take": "1"},
        {"bpm": 90.0, "key": "A minor", "take": "2"},
        {"key": "C", "take": "1"},
    ]
    index = [
        {"split": split, "captions": ["a"], "conditions": values_of(clip, fields)}
        for split, clip in zip(("train", "valid", "train"), some)
    ]
    found = described(index, fields)
    assert found["numbers"] == [{"name": "bpm", "low": 120.0, "high": 120.0}] and found["lengths"] == {}
    assert found["labels"] == [{"name": "key", "values": ["C"]}, {"name": "take", "values": ["1"]}]


def test_what_clips_do_not_have_is_one_line():
    some = clips(bpm=["120", "fast", "90"], key=["C", None, "D"], many=[[1], "a", "b"])
    for field, line in (
        (ConditionField("bmp"), "no row has this field; hint: did you mean bpm"),
        (ConditionField("bpm"), "c1 has 'fast', which is no number"),
        (ConditionField("key"), "1 of 3 rows have none, such as c1; hint: .*field=key,optional"),
        (ConditionField("many"), "c0 has .1., neither a number nor a text"),
    ):
        with pytest.raises(UserError, match=line):
            settled([field], some)
    with pytest.raises(UserError, match="given twice"):
        settled([ConditionField("key", True)] * 2, some)
    assert settled([ConditionField("bpm", is_label=True)], some)[0].is_label


def test_a_cache_keeps_them_and_is_brought_up_to_date(fakes, small_set, tmp_path):
    def encode(**options):
        made = (load_manifest(small_set), fakes.FakeCodec(), fakes.FakeText())
        return build_cache(*made, out=tmp_path / "cache", seconds=0.6, **options)

    plain = encode()
    assert "conditions" not in plain.meta and "conditions" not in plain.row(0) and plain.batch([0]).conditions is None
    shards = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").iterdir()}
    cache = encode(conditions=["field=number"])
    assert shards == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").iterdir()}
    train = [cache.row(i)["fields"]["number"] for i in cache.rows("train")]
    assert cache.meta["conditions"]["numbers"] == [{"name": "number", "low": min(train), "high": max(train)}]
    assert cache.batch([3, 5]).conditions == [{"number": float(cache.row(i)["fields"]["number"])} for i in (3, 5)]
    assert encode(conditions=["field=number,label"]).meta["conditions"]["labels"]


def test_made_up_conditions_are_refused(fakes, small_set, tmp_path):
    made = (load_manifest(small_set), fakes.FakeCodec(), fakes.FakeText())
    meta = build_cache(*made, out=tmp_path / "cache", seconds=0.6, timed=True).meta
    check_meta(meta)
    for part in (
        {"numbers": [{"name": "bpm", "low": 2.0, "high": 1.0}]},
        {"numbers": [{"name": "bpm", "low": float("nan"), "high": 1.0}]},
        {"labels": [{"name": "key", "values": [1]}]},
        {"lengths": {"quantiles": [0.0], "captions": {}}},
        {"lengths": {"quantiles": [1.0]}},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            check_meta(meta | {"conditions": part})
