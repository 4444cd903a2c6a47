"""Captions from names, folders and tags."""

from pathlib import PurePosixPath

import pytest

from segue.data.phrasings import phrasings


@pytest.mark.parametrize(
    ("path", "tags", "expected"),
    [
        ("drums/BongoHi-Hard.wav", {}, ("bongo hi hard", "bongo hi hard, drums", "a recording of bongo hi hard")),
        (
            "a/b/dog_bark_03.wav",
            {"title": "Dog Bark 03", "genre": "Effects"},
            ("dog bark", "dog bark, effects", "a recording of dog bark"),
        ),
        ("01.mp3", {"title": "Winter  Song\n", "genre": "Other"}, ("Winter Song", "a recording of Winter Song")),
        ("7.wav", {"comment": "A big dog barks twice in a yard"}, ("A big dog barks twice in a yard",)),
        ("rain/0001.wav", {}, ("rain",)),
        ("1C.ogg", {}, ()),
        ("0001.wav", {"comment": "ripped by EAC from http://x.org, 320 kbps"}, ()),
        ("0001.wav", {"comment": '{"run": "runs/mine", "seed": 3, "number": 0}'}, ()),
    ],
)
def test_what_is_known_becomes_a_few_wordings(path, tags, expected):
    assert phrasings(PurePosixPath(path), tags) == expected


def test_words_of_a_model_come_first_where_they_add_something():
    assert phrasings(PurePosixPath("kit/tom 1.wav"), {}, ["drum", "tom"])[0] == "tom, drum"
    assert phrasings(PurePosixPath("7.wav"), {}, ["rain", "thunder"]) == ("rain, thunder",)


def test_each_wording_is_there_once_and_no_more_than_asked_for():
    made = phrasings(PurePosixPath("kit/Tom/tom.wav"), {"title": "TOM", "genre": "tom"}, (), 9)
    assert len({caption.lower() for caption in made}) == len(made)
    assert len(phrasings(PurePosixPath("a/b/c/dog bark.wav"), {"genre": "effects"}, ["wind"], 2)) == 2
