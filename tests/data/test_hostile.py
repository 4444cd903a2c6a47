"""Manifests, caches, weights and sounds that somebody made to hurt: refused in one line, or read."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from segue.audio.read import examine, read_header, read_segment, read_wave
from segue.audio.sound import BadAudio
from segue.codecs import load_codec
from segue.data.cache import LatentCache
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.types import UserError, printable

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def hostile():
    path = Path(__file__).parents[1] / "torture" / "hostile.py"
    spec = importlib.util.spec_from_file_location("segue_hostile", path)
    module = importlib.util.module_from_spec(spec)

    sys.modules["segue_hostile"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cache(small_set, fakes, tmp_path):
    out = tmp_path / "cache"
    build_cache(
        load_manifest(small_set), fakes.FakeCodec(), fakes.FakeText(), fakes.FakeTeacher(), out=out, seconds=0.5
    )
    return out


def test_what_must_be_bad_is_refused_with_a_reason(hostile, tmp_path):
    for name, data in hostile.certainly_bad().items():
        path = tmp_path / name
        path.write_bytes(data)
        for read in (examine, lambda p: read_wave(p, 8000)):
            with pytest.raises(BadAudio) as refused:
                read(path)
            assert len(refused.value.reason) > 5 and "\n" not in refused.value.reason, name


@QUICK
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(("wav", "flac", "ogg", "mp3")))
def test_mutated_sound_is_read_or_refused(hostile, tmp_path, seed, kind):
    generator = np.random.default_rng(seed)
    path = tmp_path / f"sound.{kind}"
    path.write_bytes(hostile.mutated(hostile.clean_sound(kind, generator), generator))
    try:
        header, levels = examine(path)
    except BadAudio as error:
        assert error.reason.strip() and "\n" not in error.reason
    else:
        assert header.frames > 0 and np.isfinite(levels.peak)
        assert np.isfinite(read_wave(path, 8000)).all()


@QUICK
@given(data=st.binary(max_size=400))
def test_any_bytes_as_a_sound_are_refused(tmp_path, data):
    path = tmp_path / "any.wav"
    path.write_bytes(data)
    with pytest.raises(BadAudio):
        read_header(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROW = st.fixed_dictionaries(
    {"path": st.just("a.wav") | st.text(max_size=30) | JSON},
    optional={
        "caption": st.text() | JSON,
        "captions": JSON,
        "id": JSON,
        "split": JSON,
        "start": st.floats() | JSON,
        "end": st.floats() | JSON,
        "more": JSON,
    },
)


@pytest.fixture
def one_file(tmp_path, write_sine):
    write_sine("a.wav")
    return tmp_path / "manifest.jsonl"


@QUICK
@given(row=ROW)
def test_any_row_is_read_or_refused_in_a_line(one_file, row):
    one_file.write_text(json.dumps(row) + "\n")
    _read_or_refused(one_file)


@QUICK
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_manifest_are_read_or_refused_in_a_line(one_file, data):
    for suffix in (".jsonl", ".csv", ".tsv", ".json"):
        path = one_file.with_suffix(suffix)
        for before in (b"", b"path,caption,start,end\n", b'[{"path": "a.wav", "caption": "x"},', b"\xff\xfe"):
            path.write_bytes(before + data)
            _read_or_refused(path)


@QUICK
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_beside_a_sound_are_captions_or_refused_in_a_line(one_file, data):
    for suffix in (".txt", ".json"):
        path = one_file.with_name(f"a{suffix}")
        path.write_bytes(data)
        _read_or_refused(one_file.parent)
        path.unlink()


def _read_or_refused(manifest: Path) -> None:
    try:
        clips = load_manifest(manifest)
    except UserError as error:
        assert len(str(error)) < 6000
    else:
        for clip in clips:
            json.dumps([clip.id, clip.captions, clip.fields], ensure_ascii=True)
            assert printable(clip.id) == clip.id.replace("\xa0", printable("\xa0")) or not clip.id.isprintable()
            assert all(c.strip() and "\x1b" not in c for c in clip.captions)
            root = manifest if manifest.is_dir() else manifest.parent
            assert clip.path.resolve().is_relative_to(root.resolve())
            assert clip.start_sec >= 0 and (clip.length_sec is None or clip.length_sec > 0)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"path": "a.wav", "caption": "red \\u001b[31m"}', r"line 1: the caption holds the control character U\+001B"),
        ('{"path": "a.wav", "caption": "half \\ud800"}', r"U\+D800"),
        ('{"path": "a.wav", "caption": "x", "id": "\\u0007"}', r"the id holds the control character U\+0007"),
        ('{"path": "a\\u0000.wav", "caption": "x"}', "no path"),
        ('{"path": "../a.wav", "caption": "x"}', "leads out of"),
        ('{"path": "%s", "caption": "x"}' % ("a" * 5000), "a path of 5,000 characters"),
        ('{"path": "%s", "caption": "x"}' % ("a" * 300), "does not exist"),
        ("[" * 200_000, "not JSON"),
        ('{"path": "a.wav", "caption": "%s"}' % ("word " * 2000), "a caption of 10,000 characters"),
        ('{"path": "a.wav", "caption": "%s"}' % ("x" * 10_000_000), "longer than 1,048,576 bytes"),
    ],
)
def test_a_hostile_row_is_named(one_file, row, says):
    one_file.write_text(row)
    with pytest.raises(UserError, match=says) as refused:
        load_manifest(one_file)
    assert len(str(refused.value)) < 6000


def test_a_caption_file_of_two_gigabytes_is_not_read(tmp_path, write_sine):
    text = write_sine("a.wav", caption="a tone").with_suffix(".txt")
    with text.open("r+b") as file:
        file.truncate(2 << 30)
    with pytest.raises(UserError, match="longer than 1,048,576 bytes"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.tgz"])
def test_an_archive_is_not_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match="an archive; these are not unpacked"):
        load_manifest(tmp_path / name)


def test_terminal_commands_are_escaped():
    assert printable("a\x1b[2Jb\x07 \u202e é 音") == "a\\x1b[2Jb\\x07 \\u202e é 音"


def _paths(value, at=()):
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(inner, (*at, key))


def test_any_entry_of_a_cache_changed_is_refused_or_harmless(cache):
    """Each entry of meta.json and of the first index row, put to some of these: a UserError, or all rows still read."""
    evil = [None, -1, 10**12, "../../etc/passwd", [], {}, float("nan"), True]
    meta, index = json.loads((cache / "meta.json").read_text()), (cache / "index.jsonl").read_text().splitlines()
    refused = 0
    for which, original in (("meta.json", meta), ("index.jsonl", json.loads(index[0]))):
        for number, path in enumerate(_paths(original)):
            if not path:
                continue
            for value in evil[number % 4 :: 4]:
                changed = json.loads(json.dumps(original))
                inner = changed
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = value
                lines = [json.dumps(changed)] + (index[1:] if which == "index.jsonl" else [])
                (cache / which).write_text("\n".join(lines) + "\n")
                try:
                    opened = LatentCache.open(cache)
                    rows = list(range(len(opened)))
                    opened.latents(rows), opened.text(rows), opened.teacher(rows), opened.statistics
                except UserError:
                    refused += 1
        (cache / "meta.json").write_text(json.dumps(meta))
        (cache / "index.jsonl").write_text("\n".join(index) + "\n")
    assert refused > 40
    assert len(LatentCache.open(cache)) > 0


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_a_cache_of_another_version_is_refused(cache, version):
    meta = json.loads((cache / "meta.json").read_text())
    (cache / "meta.json").write_text(json.dumps(meta | {"schema_version": version}))
    with pytest.raises(UserError, match="cache format"):
        LatentCache.open(cache)


def test_a_shard_of_other_shapes_is_refused(cache):
    shard = next((cache / "shards").glob("latents-*"))
    tensors = load_file(shard)
    size = shard.stat().st_size
    swapped = tensors["latents"].transpose(1, 2).contiguous()
    save_file({"latents": swapped}, shard)
    if shard.stat().st_size != size:
        meta = json.loads((cache / "meta.json").read_text())
        meta["shards"][0]["bytes"] = shard.stat().st_size
        (cache / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"other tensors than meta.json says"):
        LatentCache.open(cache).latents([0])


def _retold(source: Path, out: Path, key: str, change) -> Path:
    """A copy of a safetensors file whose metadata tell something else."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        metadata = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    metadata[key] = json.dumps(change(json.loads(metadata[key])))
    save_file(tensors, out, metadata)
    return out


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**9},
        {"width": 10**7},
        {"width": -4},
        {"depth": "two"},
        {"surprise": 1},
        {"heads": 0},
        {"width": None},
    ],
)
def test_weights_that_claim_another_size_are_refused_before_memory_is_taken(tmp_path, change):
    from segue.models.dit import DiT, DiTConfig
    from segue.models.files import ModelCard, load_model, save_model
    from segue.ssl.compact import SHIPPED, WEIGHTS, load_compact

    model = DiT(DiTConfig(channels=4, width=16, depth=1, heads=2))
    card = ModelCard(vars(model.config), {}, "spectral", {}, 1.0, 0, "none")
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    save_model(tmp_path / "good", model.state_dict(), ema, torch.zeros(4, 1), torch.ones(4, 1), card)
    assert load_model(tmp_path / "good").card.recipe == "none"
    evil = _retold(tmp_path / "good", tmp_path / "evil", "segue", lambda c: c | {"model": c["model"] | change})
    with pytest.raises(UserError, match=r"do not fit|model.width"):
        load_model(evil)
    teacher = _retold(SHIPPED / WEIGHTS, tmp_path / "teacher", "config", lambda c: c | change)
    with pytest.raises(UserError, match="do not fit"):
        load_compact(teacher)


@pytest.mark.parametrize("change", [{"encoder_width": 10**7}, {"encoder_blocks": [10**9, 1]}, {"channels": "many"}])
def test_a_codec_that_claims_another_size_is_refused(tmp_path, change):
    from segue.codecs import SHIPPED
    from segue.codecs.autoencoder import WEIGHTS

    evil = _retold(SHIPPED / WEIGHTS, tmp_path / "codec.safetensors", "config", lambda c: c | change)
    with pytest.raises(UserError, match="configuration"):
        load_codec(str(evil))


def test_a_note_classifier_of_other_files_is_refused(tmp_path):
    from segue.evaluation.note_classifier import SHIPPED, NoteClassifier

    for text in ("{}", "[]", "not json", '{"families": 3, "instruments": []}'):
        shutil.copy(SHIPPED / "note-classifier.safetensors", tmp_path)
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(UserError, match="not a note classifier"):
            NoteClassifier.load(tmp_path)


def test_a_file_that_turns_bad_while_it_is_encoded_is_left_out_or_named(small_set, fakes, tmp_path, monkeypatch):
    """Some damaged MP3 decode differently each time."""
    from segue.data import encode_rows

    def fickle(path, *rest):
        if path.name == "tone07.wav":
            raise BadAudio(path, "non-finite: NaN or infinite samples")
        return read_segment(path, *rest)

    monkeypatch.setattr(encode_rows, "read_segment", fickle)
    clips = load_manifest(small_set)
    parts = {"out": tmp_path / "cache", "seconds": 0.5}
    with pytest.raises(UserError, match=r"tone07\.wav: non-finite.*--skip-bad"):
        build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), **parts)
    left = build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), **parts, skip_bad=True)
    assert [entry["id"] for entry in left.meta["skipped"]] == ["tone07"]
    assert left.meta["counts"]["clips"] == len(clips) - 1
