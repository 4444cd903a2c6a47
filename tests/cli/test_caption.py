"""`segue caption`: a list to edit, which `segue encode` reads, and which nothing replaces."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers as tf

from segue.data.manifest import load_manifest

spec = importlib.util.spec_from_file_location("evaluate_cases", Path(__file__).with_name("test_evaluate.py"))
evaluate_cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluate_cases)


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "my sounds"
    (folder / "drums").mkdir(parents=True)
    tone = 0.3 * np.sin(np.arange(8000) / 5)
    for name in ("drums/Snare-Hard_01.wav", "0007.wav", "dog bark.flac"):
        with soundfile.SoundFile(folder / name, "w", 8000, 1) as file:
            if name.endswith("flac"):
                file.genre, file.comment = "Animals", "A big dog barks twice in a yard"
            file.write(tone)
    (folder / "drums" / "Snare-Hard_01.txt").write_text("somebody hits a snare")
    return folder


def rows_of(path):
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_names_folders_tags_and_own_captions_make_a_list_that_encode_reads(segue, sounds):
    ran = segue("caption", sounds)
    assert ran.code == 0 and "3 sounds; read it through and edit it, then: segue encode" in ran.out
    assert "1 of them have no caption" in ran.out
    rows = rows_of(sounds / "manifest.jsonl")
    assert rows["drums/Snare-Hard_01"]["captions"] == [
        "somebody hits a snare", "snare hard", "snare hard, drums", "a recording of snare hard",
    ]  # fmt: skip
    assert rows["dog bark"]["captions"] == ["dog bark", "dog bark, animals", "A big dog barks twice in a yard"]
    assert rows["0007"]["captions"] == [] and rows["dog bark"]["genre"] == "Animals"
    # A row without a caption is refused until somebody writes one.
    assert segue("data", "check", sounds, "--text", "none").code == 2
    rows["0007"]["captions"] = ["a tone"]
    (sounds / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    clips = load_manifest(sounds)
    assert sorted(clip.captions[0] for clip in clips) == ["a tone", "dog bark", "somebody hits a snare"]


def test_nothing_is_replaced(segue, sounds, tmp_path):
    for out in ((), ("--out", tmp_path / "list.jsonl")):
        assert segue("caption", sounds, *out).code == 0
        path = Path(out[1]) if out else sounds / "manifest.jsonl"
        before = path.read_bytes()
        ran = segue("caption", sounds, *out)
        assert ran.code == 2 and "exists already, and is never replaced; hint: --out" in ran.line
        assert path.read_bytes() == before
    (sounds / "manifest.jsonl").rename(sounds / "metadata.jsonl")
    assert "the folder has a list already" in segue("caption", sounds).line
    assert not (sounds / "manifest.jsonl").exists()


def test_a_list_elsewhere_is_read_with_the_command_that_is_printed(segue, sounds, tmp_path):
    for out, root in ((tmp_path / "list.jsonl", ()), (tmp_path / "else" / "list.jsonl", ("--root", sounds))):
        ran = segue("caption", sounds, "--out", out, "--phrasings", 1)
        assert ran.code == 0 and ("--root" in ran.out) == bool(root)
        rows = rows_of(out)
        assert len(rows) == 3 and len(rows["dog bark"]["captions"]) == 1
        checked = segue("data", "check", out, *root, "--text", "none", "--json")
        assert json.loads(checked.out)["clips"] == 2, "but for the one without a caption"


def test_a_clap_model_chooses_words_of_a_list(segue, sounds, tmp_path):
    model = evaluate_cases.save_clap(tmp_path / "clap")
    (tmp_path / "words.txt").write_text("low note\nhigh note\n\nlow note\na\n")
    (sounds / "broken.wav").write_bytes(b"RIFF")
    ran = segue("caption", sounds, "--model", model, "--words", tmp_path / "words.txt")
    assert ran.code == 0 and "no tags for" in ran.err and "broken.wav" in ran.err
    rows = rows_of(sounds / "manifest.jsonl")
    tags = rows["0007"]["tags"]
    assert set(tags) <= {"low note", "high note", "a"} and 0 < sum(tags.values()) <= 1.01
    assert rows["0007"]["captions"] == [", ".join(tags)], "of this sound nothing else is known"
    assert "tags" not in rows["broken"] and rows["broken"]["captions"][0] == "broken"


def test_a_classifier_gives_its_own_labels(segue, sounds, tmp_path):
    torch.manual_seed(0)
    config = tf.ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_mel_bins=32,
        id2label={0: "Dog, domestic", 1: "Rain", 2: "Speech"}, label2id={"Dog, domestic": 0, "Rain": 1, "Speech": 2},
    )  # fmt: skip
    tf.ASTForAudioClassification(config).save_pretrained(tmp_path / "ast")
    tf.ASTFeatureExtractor(sampling_rate=16000, num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "ast")
    assert segue("caption", sounds, "--model", tmp_path / "ast").code == 0
    assert set(rows_of(sounds / "manifest.jsonl")["0007"]["tags"]) <= {"dog", "rain", "speech"}
    (tmp_path / "words.txt").write_text("a\nb\n")
    ran = segue(
        "caption", sounds, "--model", tmp_path / "ast", "--words", tmp_path / "words.txt", "--out", tmp_path / "o.jsonl"
    )
    assert "has labels of its own; hint: leave --words out" in ran.line


def test_bad_input_is_one_line_and_nothing_is_written(segue, sounds, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("rain\n")
    (tmp_path / "model").mkdir()
    for words, says in (
        ((tmp_path / "none",), "no such folder; hint: name a folder that holds sounds"),
        ((tmp_path / "empty",), "holds no sounds; hint"),
        ((sounds, "--out", tmp_path / "list.csv"), "hint: name a .jsonl file"),
        ((sounds, "--words", tmp_path / "one.txt"), "--words needs --model"),
        ((sounds, "--model", "x", "--words", tmp_path / "one.txt"), "1 words; hint: write at least two"),
        ((sounds, "--model", "x", "--words", tmp_path / "no.txt"), "hint: name a text file"),
        ((sounds, "--model", tmp_path / "model"), "no readable config.json there; hint"),
        ((sounds, "--phrasings", 0), "--phrasings"),
    ):
        ran = segue("caption", *words)
        assert ran.code == 2 and says in ran.line
    assert not (sounds / "manifest.jsonl").exists() and not list(tmp_path.glob("*.jsonl"))
