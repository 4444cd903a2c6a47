"""WebDataset tars: read in place as a folder is, and what somebody may have made of one."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.audio.read import read_wave
from segue.data import encoding
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.data.tars import read_spans, tar_members
from segue.types import UserError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sound(n: int = 0, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    wave = 0.5 * np.sin(2 * np.pi * (200 + 40 * n) * np.arange(4000) / 8000)
    soundfile.write(file, wave, 8000, format=kind)
    return file.getvalue()


@pytest.fixture
def shards(small_set, tmp_path, write_tar):
    """The small set as two tars, captions as .txt and .json, and as members that are no samples."""
    rows = [json.loads(line) for line in (small_set / "manifest.jsonl").read_text().splitlines()]
    for number, part in enumerate((rows[:12], rows[12:])):
        members = [("notes/README.md", b"nothing"), (".hidden.wav", b"nothing")]
        for row in part:
            key = f"./deep/{row['path'].removesuffix('.wav')}"
            members.append((f"{key}.wav", (small_set / row["path"]).read_bytes()))
            members.append((f"{key}.json", json.dumps({k: v for k, v in row.items() if k != "path"}).encode()))
        write_tar(tmp_path / f"clips-{number:02d}.tar", members)
    return str(tmp_path / "clips-{00..01}.tar")


def test_tars_are_what_their_files_are(shards, small_set, fakes, tmp_path):
    clips, plain = load_manifest(shards), load_manifest(small_set)
    assert [c.id for c in clips] == [f"deep/{c.id}" for c in plain]
    for name in ("captions", "split", "fields"):
        assert [getattr(c, name) for c in clips] == [getattr(c, name) for c in plain]
    settings = {"seconds": 0.4}
    streamed = build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), out=tmp_path / "a", **settings)
    unpacked = build_cache(plain, fakes.FakeCodec(), fakes.FakeText(), out=tmp_path / "b", **settings)
    rows = list(range(len(unpacked)))
    assert [streamed.row(i)["sha256"] for i in rows] == [unpacked.row(i)["sha256"] for i in rows]
    assert (streamed.latents(rows)[0] == unpacked.latents(rows)[0]).all()
    assert {p.name for p in tmp_path.iterdir()} == {"set", "a", "b", "clips-00.tar", "clips-01.tar"}


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_each_format_is_heard_inside_a_tar(tmp_path, kind, write_tar):
    name = f"a.{kind.lower()}"
    write_tar(
        tmp_path / "x.tar", [("before.txt", b"x" * 700), (name, sound(kind=kind)), ("a.txt", b"a tone\n\na note")]
    )
    (tmp_path / name).write_bytes(sound(kind=kind))
    with pytest.raises(UserError, match=r"before\.txt: no sound with key 'before'"):
        load_manifest(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", [("pad.bin", b"x" * 700), (name, sound(kind=kind)), ("a.txt", b"a tone\n\na note")])
    (clip,) = load_manifest(tmp_path / "x.tar")
    assert clip.captions == ("a tone", "a note") and clip.id == "a"
    assert np.array_equal(read_wave(clip.path, 8000), read_wave(tmp_path / name, 8000))


def test_a_killed_build_from_tars_goes_on(shards, fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS_PER_SHARD", 8)
    parts = {"out": tmp_path / "cache", "seconds": 0.4}
    calls = []

    class Dies(fakes.FakeCodec):
        def encode(self, wave):
            calls.append(1)
            if len(calls) > 14:  # the round trip takes 9 of them, the first shard 3
                raise KeyboardInterrupt
            return super().encode(wave)

    with pytest.raises(KeyboardInterrupt):
        build_cache(load_manifest(shards), Dies(), fakes.FakeText(), **parts, batch_size=8)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").glob("latents-*")}
    assert kept
    build_cache(load_manifest(shards), fakes.FakeCodec(), fakes.FakeText(), **parts, batch_size=8)
    assert all((tmp_path / "cache" / "shards" / n).stat().st_mtime_ns == then for n, then in kept.items())
    build_cache(load_manifest(shards), fakes.FakeCodec(), fakes.FakeText(), out=tmp_path / "whole", seconds=0.4, batch_size=8)  # fmt: skip
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "cache" / path.relative_to(tmp_path / "whole")).read_bytes()


def header(name, kind=tarfile.REGTYPE, size=0, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, target
    return made


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([header("a.wav", tarfile.SYMTYPE, target="/etc/passwd")], r"x\.tar: a\.wav: a link"),
        ([header("a.wav", tarfile.LNKTYPE, target="b.wav")], "a link"),
        ([header("a.wav", tarfile.CHRTYPE)], "a device"),
        ([("../../a.wav", b"x")], r"\.\./\.\./a\.wav: a name that climbs"),
        ([("/a.wav", b"x")], "climbs"),
        ([("b/../../a.wav", b"x")], "climbs"),
        ([("a\x1b[2J.wav", b"x")], r"U\+001B"),
        ([("a.wav", sound())], r"a\.wav: no caption; hint: pack a\.txt or a\.json"),
        ([("a.wav", sound()), ("a.flac", sound())], r"a\.flac: the second flac of key 'a'"),
        ([("a.txt", b"x")], "no sound with key 'a'"),
        ([("a.wav", sound()), ("a.txt", b"\xff\x81")], r"a\.txt: not UTF-8"),
        ([("a.wav", sound()), ("a.json", b"[" * 100_000)], r"a\.json: not JSON"),
        ([("a.wav", sound()), ("a.json", b"[]")], "not a JSON object"),
        ([("a.wav", sound()), ("a.json", b'{"caption": "red \\u001b[31m"}')], r"U\+001B"),
        ([("a.wav", sound()), ("a.json", b'{"caption": "x", "split": "all"}')], "split must be"),
        ([("a.wav", sound()), ("a.json", b'{"caption": "x", "id": []}')], "id must be text"),
        ([("a.wav", sound()), ("a.txt", b"x " * 600_000)], "up to 1,048,576 are read"),
        ([("a.wav", sound()), ("a.txt", b"x"), ("d/b.wav", sound()), ("d/b.json", b'{"id": "a", "text": "x"}')], "two clips have the id 'a'"),
    ],
)  # fmt: skip
def test_a_hostile_member_is_named_in_a_line(tmp_path, members, says, write_tar):
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=says) as refused:
        load_manifest(tmp_path / "x.tar")
    assert "\n" not in str(refused.value) and [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_a_broken_archive_is_refused_in_a_line(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.wav", sound(1)), ("a.txt", b"a"), ("b.wav", sound(2)), ("b.txt", b"b")])
    good = path.read_bytes()
    second = tar_members(str(path))[2].offset - 512
    for cut in (0, 100, 700, second, second + 100, second + 600, second + 512 + 8500):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match="not a whole tar"):
            load_manifest(path)
    path.write_bytes(good[:second] + b"?" * 512 + good[second + 512 :])  # tarfile alone would end here without a word
    with pytest.raises(UserError, match="no member and no end mark at byte"):
        load_manifest(path)
    with tarfile.open(tmp_path / "y.tar", "w:gz") as tar:
        tar.add(path, "a.wav")
    with pytest.raises(UserError, match="must be unpacked"):
        load_manifest(tmp_path / "y.tar")
    with pytest.raises(UserError, match=r"nowhere\.tar: cannot be read"):
        load_manifest(tmp_path / "nowhere.tar")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_claim_of_two_gigabytes_is_not_read_into_memory(tmp_path, kind):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(header("a.wav", kind, size=2 << 30).tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (2 << 30) + 1024)
    if kind == tarfile.REGTYPE:  # a file full of zeros, and a tar without a fault: there is no caption
        with pytest.raises(UserError, match="no caption"):
            load_manifest(path)
    else:
        with pytest.raises(UserError, match=r"a header of 2,147,483,648 bytes|a hole|not a whole tar"):
            load_manifest(path)


@QUICK
@given(data=st.data())
def test_any_change_of_a_tar_is_read_or_refused(tmp_path, data, write_tar):
    path = write_tar(tmp_path / "x.tar", [("a.wav", sound(1)), ("a.txt", b"a"), ("b.wav", b"x" * 300), ("b.txt", b"b")])
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    path.write_bytes(changed[: data.draw(st.sampled_from((len(changed), at + 1)))])
    try:
        for clip in load_manifest(path):
            assert clip.path.offset + clip.path.size <= path.stat().st_size
    except UserError as error:
        assert "\n" not in str(error)


def test_an_address_is_read_as_a_file_is(tmp_path, write_tar):
    fsspec = pytest.importorskip("fsspec")
    path = write_tar(tmp_path / "x.tar", [("a.flac", sound(1, "FLAC")), ("a.txt", b"a tone")])
    fsspec.filesystem("memory").pipe("/far/x.tar", path.read_bytes())
    (near,), (far,) = load_manifest(path), load_manifest("memory://far/x.tar")
    assert (near.id, near.captions) == (far.id, far.captions) and str(far.path) == "memory://far/x.tar: a.flac"
    assert np.array_equal(read_wave(near.path, 8000), read_wave(far.path, 8000))
    with pytest.raises(UserError, match=r"memory://far/y\.tar: cannot be opened"):
        load_manifest("memory://far/y.tar")
    with pytest.raises(UserError, match="ends before byte 99,999"):
        read_spans([("memory://far/x.tar", 0, 99_999)])
