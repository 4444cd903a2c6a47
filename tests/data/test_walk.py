"""Folders: what is not used of them is counted and named; links are followed only when that is asked for."""

from __future__ import annotations

import os

import pytest

from segue.cli.main import main
from segue.data.check import check_listing
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.types import UserError


@pytest.fixture
def folder(tmp_path, write_sine):
    write_sine("set/a tone.wav")
    return tmp_path / "set"


def test_other_kinds_are_counted_and_named(folder, capsys):
    for name in ("x.mid", "y.mid", "notes.xyz", "README", ".DS_Store"):
        (folder / name).write_text("x")
    os.mkfifo(folder / "pipe.wav")
    listing = read_listing(folder, Reading("filename"))
    assert [c.id for c in listing.clips] == ["a tone"]
    (note,) = listing.notes
    assert note.startswith("5 files (README and 4 more) of other kinds left out: .mid (2), ")
    assert sorted(note.split(": ")[1].split(", ")) == [".mid (2)", ".wav (1)", ".xyz (1)", "without suffix (1)"]
    with pytest.raises(SystemExit):
        main(["data", "check", str(folder), "--captions", "filename", "--text", "none"])
    assert "note: 5 files" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["upsample", str(folder), str(folder.parent / "wide"), "--dry-run"])
    with pytest.raises(SystemExit):
        main(["evaluate", "files", str(folder), str(folder)])
    assert capsys.readouterr().err.count("5 files (README and 4 more) of other kinds left out") >= 2


def test_linked_folders_are_counted_or_followed(folder, tmp_path, write_sine):
    write_sine("elsewhere/b tone.wav", hz=500)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "self").symlink_to(folder)
    listing = read_listing(folder, Reading("filename"))
    assert [c.id for c in listing.clips] == ["a tone"]
    assert listing.notes == ["2 linked folders (linked and 1 more) not followed; hint: --follow-links"]
    followed = read_listing(folder, Reading("filename", follow_links=True))
    assert [c.id for c in followed.clips] == ["a tone", "linked/b tone"]
    assert followed.notes == ["1 linked folder (self) read under another name already"]


def test_a_set_that_is_links_says_so_or_is_read(tmp_path, write_sine):
    """As git-annex and DVC keep them: every sound a link into a store."""
    (tmp_path / "set").mkdir()
    for n in range(3):
        path = write_sine(f"store/{n}.blob.wav", hz=300 + n)
        (tmp_path / "set" / f"tone {'abc'[n]}.wav").symlink_to(path)
    with pytest.raises(UserError, match=r"leads out of.*--follow-links for a set of links \(2 more"):
        load_manifest(tmp_path / "set", "filename")
    assert len(load_manifest(tmp_path / "set", reading=Reading("filename", follow_links=True))) == 3
    (tmp_path / "set").rename(tmp_path / "links")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "all").symlink_to(tmp_path / "links")
    with pytest.raises(UserError, match=r"holds no sounds \(1 linked folder \(all\) not followed\).*--follow-links"):
        load_manifest(tmp_path / "set", "filename")


def test_dangling_links_are_counted_named_and_bad(folder, tmp_path):
    (folder / "gone tone.wav").symlink_to(tmp_path / "nowhere.wav")
    (folder / "round tone.wav").symlink_to(folder / "round tone.wav")
    listing = read_listing(folder, Reading("filename"))
    assert any("2 dangling links (gone tone.wav and 1 more)" in note for note in listing.notes)
    report, usable = check_listing(listing)
    assert [bad["path"].rsplit("/", 1)[1] for bad in report.bad] == ["gone tone.wav", "round tone.wav"]
    assert all("a dangling link" in bad["reason"] for bad in report.bad) and len(usable.clips) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read_are_named(folder):
    (folder / "locked").mkdir(mode=0)
    assert any("1 folder (locked) may not be read" in note for note in read_listing(folder, Reading("filename")).notes)


def test_a_root_elsewhere(tmp_path, write_sine):
    path = write_sine("sounds/deep/a.wav")
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "m.csv"
    for name in ("deep/a.wav", str(path), "deep/../deep/a.wav", "./deep/a.wav"):
        table.write_text(f"path,caption\n{name},x\n")
        (clip,) = load_manifest(table, reading=Reading(root=tmp_path / "sounds"))
        assert clip.path.samefile(path) and clip.id == "deep/a"
    with pytest.raises(UserError, match=r"relative to the list, or to --root DIR"):
        load_manifest(table)
    table.write_text("path,caption\n../sounds/deep/a.wav,x\n")
    with pytest.raises(UserError, match=r"leads out of .*/lists; hint: .*--root DIR for the folder that holds all"):
        load_manifest(table)
    (clip,) = load_manifest(table, reading=Reading(root=tmp_path))  # as the hint says
    assert clip.path.samefile(path) and clip.id == "sounds/deep/a"
    with pytest.raises(UserError, match=r"--root .*: no such folder"):
        Reading(root=tmp_path / "nowhere")


@pytest.mark.parametrize("follow", [False, True])
def test_no_path_leaves_the_given_root(tmp_path, write_sine, follow):
    outside = write_sine("outside.wav")
    write_sine("far/away/b.wav")
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "far" / "away")
    reading = Reading(root=root, follow_links=follow)
    # Behind the link, ".." is far/, not root/: a path that looks as if it stayed inside climbs out.
    for name in (
        "../outside.wav",
        str(outside),
        "in/../../outside.wav",
        "linked/../away/b.wav",
        "linked/../../outside.wav",
    ):
        (tmp_path / "m.csv").write_text(f"path,caption\n{name},x\n")
        with pytest.raises(UserError, match="leads out of"):
            load_manifest(tmp_path / "m.csv", reading=reading)
    (tmp_path / "m.csv").write_text("path,caption\nlinked/b.wav,x\n")
    if follow:
        assert [c.id for c in load_manifest(tmp_path / "m.csv", reading=reading)] == ["linked/b"]
    else:
        with pytest.raises(UserError, match="leads out of"):
            load_manifest(tmp_path / "m.csv", reading=reading)
    for stem in ("../outside", "/etc/passwd", "x/../../outside"):
        (tmp_path / "m.csv").write_text(f"ytid,caption\n{stem},x\n")
        with pytest.raises(UserError, match="does not exist"):
            load_manifest(tmp_path / "m.csv", reading=reading)


def test_captions_missing_for_some_are_bad_files(folder, write_sine):
    (folder / "a tone.txt").write_text("x")
    write_sine("set/bare.wav")
    listing = read_listing(folder, Reading())
    report, usable = check_listing(listing)
    assert [c.id for c in usable.clips] == ["a tone"] and report.bad[0]["path"].endswith("bare.wav")
    assert "no caption file; hint: write bare.txt beside it" in report.bad[0]["reason"]
    (folder / "a tone.txt").unlink()
    (folder / "list.csv").write_text("path,caption\na tone.wav,x\n")
    with pytest.raises(UserError, match=r"a tone.wav and 1 more: no caption file; hint: name the list .*list.csv"):
        read_listing(folder, Reading())


def test_a_bare_name_is_found_further_down_where_one_file_has_it(tmp_path, write_sine):
    """As Clotho has it: a table beside the folders of its sounds."""
    write_sine("set/development/rain.wav"), write_sine("set/development/sea.wav"), write_sine("set/validation/sea.wav")
    table = tmp_path / "set" / "captions.csv"
    table.write_text("file_name,caption_1\nrain.wav,rain\n")
    assert [c.id for c in load_manifest(table)] == ["development/rain"]
    table.write_text("file_name,caption_1\nsea.wav,sea\n")
    with pytest.raises(
        UserError, match=r"'sea.wav' may be .*development/sea.wav or .*validation/sea.wav; hint: .*--root"
    ):
        load_manifest(table)
    assert [c.id for c in load_manifest(table, reading=Reading(root=tmp_path / "set" / "validation"))] == ["sea"]
