"""One walk for all commands: hidden files, links and unknown kinds are met alike."""

import os
from pathlib import PurePosixPath

import pytest

from segue.audio.folders import walk
from segue.audio.names import find_named, identities
from segue.types import UserError


def names(paths):
    return [path.name for path in paths]


def test_what_a_folder_holds(tmp_path):
    root, other = tmp_path / "set", tmp_path / "other"
    for name in ("b.WAV", "a.flac", "._a.flac", ".hidden/c.wav", "in/side.m4a", "notes.txt", "song.xyz", "in/more.xyz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    other.mkdir()
    (other / "far.wav").touch()
    (root / "near.wav").symlink_to(root / "a.flac")
    (root / "far.wav").symlink_to(other / "far.wav")
    (root / "lost.wav").symlink_to(other / "nothing.wav")
    (root / "linked").symlink_to(other)
    (root / "above").symlink_to(tmp_path)
    found = walk(root)
    assert names(found.sounds) == ["a.flac", "b.WAV", "side.m4a", "near.wav"]
    assert names(found.outside) == ["far.wav"] and names(found.dangling) == ["lost.wav"]
    assert names(found.linked_folders) == ["above", "linked"]
    assert names(found.others) == ["more.xyz", "song.xyz"]
    assert names(found.beside[root].values()) == ["notes.txt"]
    assert found.notes() == [
        "2 files (more.xyz and 1 more) of other kinds left out: .xyz (2)",
        "2 linked folders (above and 1 more) not followed; hint: --follow-links",
        "1 dangling link (lost.wav): the file is elsewhere; hint: git annex get, or dvc pull",
    ]
    followed = walk(root, follow_links=True)
    assert not followed.outside and not followed.linked_folders
    assert "far.wav" in names(followed.sounds) and names(followed.dangling) == ["lost.wav"]
    assert len(followed.sounds) == 6, "each folder once, though links lead round in a circle"
    with pytest.raises(UserError, match="no such folder"):
        walk(tmp_path / "nothing")


def test_ids_are_printable_unique_and_stable():
    composed, decomposed, latin = "caf\u00e9.wav", "cafe\u0301.wav", os.fsdecode(b"caf\xe9.wav")
    for name in (composed, decomposed):
        assert identities([PurePosixPath("x", name)]) == ["x/caf\u00e9"]
    assert identities([PurePosixPath(latin)]) == ["caf\\udce9"]
    together = identities([PurePosixPath(name) for name in (composed, decomposed, latin, "a\nb.wav")])
    assert together[0] == "caf\u00e9" and together[1].startswith("caf\u00e9~")
    assert len(set(together)) == 4 and all(name.isprintable() for name in together)
    for name in together:
        name.encode()
    assert identities([PurePosixPath(n) for n in ("spear.ogg", "spear.wav", "d/spear.wav")]) == [
        "spear.ogg", "spear.wav", "d/spear",
    ]  # fmt: skip


def test_a_file_is_found_under_its_name_written_another_way(tmp_path):
    (tmp_path / "De\u0301but").mkdir()
    (tmp_path / "De\u0301but" / "cafe\u0301.wav").touch()
    assert find_named(tmp_path / "D\u00e9but" / "caf\u00e9.wav").exists()
    assert find_named(tmp_path / "n" / ("x" * 300)) == tmp_path / "n" / ("x" * 300)
