"""`segue evaluate`: what it writes and prints, and one line for what cannot be measured."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import transformers as tf

RATE_HZ = 16_000
FILES = ("evaluation.json", "files.csv", "worst-and-best.png")


def write_set(folder, count=8, gain=1.0, seed=0, rate_hz=RATE_HZ, samples=6000, first=0):
    """Decaying tones of falling pitch, with noise of this seed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(first, first + count):
        time_sec = np.arange(samples) / rate_hz
        tone = np.sin(2 * np.pi * (200 + 90 * index) * time_sec) * np.exp(-3 * time_sec)
        wave = gain * (0.3 * tone + 0.01 * generator.standard_normal(samples))
        soundfile.write(folder / f"note_{index:02d}.wav", wave, rate_hz, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "ref")
    write_set(root / "est", seed=1)
    write_set(root / "ten", gain=10.0)
    return root


def results(out):
    found = json.loads((out / "evaluation.json").read_text())
    return found, {m["name"]: m for m in found["measures"]}


def test_generation_measures_refuses_frechet_and_offers_kad(segue, sets, tmp_path):
    ran = segue("evaluate", "generation", sets / "est", sets / "ref", "--out", tmp_path, "--draws", "20")
    assert ran.code == 0, ran.err
    found, measures = results(tmp_path)
    assert {"KAD (x100)", "KAD (x1000)", "precision", "recall", "density", "coverage", "inception score"} <= set(
        measures
    )
    assert {"KL(generated||reference)", "KL(reference||generated)"} <= set(measures)  # ids pair
    assert measures["KAD (x1000)"]["value"] == pytest.approx(10 * measures["KAD (x100)"]["value"])
    for m in measures.values():
        low, high = m["interval"]
        assert np.isfinite([m["value"], low, high]).all() and low <= high and m["n"] == 8
        assert m["card"]["embedding"]["weights"] and m["card"]["versions"]["segue"]
    assert (
        "64 dimensions" in found["not_computed"]["Frechet distance"]
        and "KAD" in found["not_computed"]["Frechet distance"]
    )
    assert "no run named" in ran.out and "KAD (x100)" in ran.out
    rows = list(csv.DictReader((tmp_path / "files.csv").open()))
    assert [r["id"] for r in rows] == [f"note_{i:02d}" for i in range(8)] and rows[0]["nearest_reference"]
    assert (tmp_path / "worst-and-best.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 16


def test_order_of_files_changes_nothing_where_ids_do_not_pair(segue, sets, tmp_path):
    """The same clips under names that sort the other way."""
    turned = tmp_path / "turned"
    turned.mkdir()
    for index, path in enumerate(sorted((sets / "est").iterdir())):
        shutil.copy(path, turned / f"{99 - index}.wav")
    values = []
    for name in (sets / "est", turned):
        out = tmp_path / f"out-{name.name}"
        ran = segue("evaluate", "generation", name, sets / "ref", "--unpaired", "--out", out, "--draws", "20")
        assert ran.code == 0, ran.err
        values.append({n: (m["value"], m["interval"]) for n, m in results(out)[1].items()})
    assert values[0].keys() == values[1].keys()
    contents = [results(tmp_path / f"out-{name}")[0]["sets"]["GEN"]["content"] for name in ("est", "turned")]
    assert contents[0] == contents[1]
    for name, (value, interval) in values[0].items():
        assert values[1][name] == (pytest.approx(value, rel=1e-9), pytest.approx(interval, rel=1e-9)), name


def test_pitch_is_compared_with_a_manifest_and_captions_must_be_complete(segue, sets, tmp_path):
    folder = write_set(tmp_path / "gen", seed=2)
    rows = [{"path": f"note_{i:02d}.wav", "caption": "a note", "pitch": 60 + i} for i in range(8)]
    manifest = folder / "asked.jsonl"
    manifest.write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = ("evaluate", "generation", folder, sets / "ref", "--out", tmp_path / "out", "--draws", "20", "--captions")
    ran = segue(*common, manifest)
    assert ran.code == 0, ran.err
    pitch = results(tmp_path / "out")[1]["pitch accuracy"]
    assert 0 <= pitch["value"] <= 1 and pitch["card"]["chance"] >= 0
    manifest.write_text("".join(json.dumps(r) + "\n" for r in rows[1:]))
    assert "none for 1 of 8 clips (note_00)" in segue(*common, manifest).line
    assert "none for 8 of 8" in segue(*common, "title").line


def save_clap(folder):
    """A tiny CLAP with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    audio = {"patch_embeds_hidden_size": 4, "depths": [1, 1, 1], "num_attention_heads": [1, 2, 2], "num_mel_bins": 16,
             "spec_size": 64, "window_size": 4, "hidden_size": 16, "projection_dim": 8}  # fmt: skip
    text = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    torch.manual_seed(0)
    tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(folder)
    tf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="rand_trunc",
    ).save_pretrained(folder)  # fmt: skip
    words = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "low", "high", "note"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def test_text_similarity_by_clap_and_an_embedding_of_the_training_is_refused_unless_forced(segue, sets, tmp_path):
    clap = save_clap(tmp_path / "clap")
    gen = write_set(tmp_path / "gen", seed=2)
    for index, path in enumerate(sorted(gen.glob("*.wav"))):
        path.with_suffix(".txt").write_text(("a low note", "a high note")[index % 2])
    out = tmp_path / "out"
    common = ("evaluate", "generation", gen, sets / "ref", "--embedding", clap, "--out", out, "--draws", "20")
    ran = segue(*common, "--captions", gen, "--text-embedding", clap)
    assert ran.code == 0, ran.err
    similarity = results(out)[1]["text-audio similarity"]
    assert -1 <= similarity["interval"][0] <= similarity["value"] <= similarity["interval"][1] <= 1
    assert "mismatched" in similarity["card"] and "first 8000 samples" in similarity["card"]["embedding"]["crop"]

    run, cache = tmp_path / "run", tmp_path / "cache"
    run.mkdir(), cache.mkdir()
    (run / "config.json").write_text(json.dumps({"cache": str(cache), "run": {}}))
    weights = next(m for m in results(out)[1].values() if m["name"] == "KAD (x100)")["card"]["embedding"]["weights"]
    (cache / "meta.json").write_text(json.dumps({"teacher": {"name": "clap_audio_model", "weights": weights}}))
    ran = segue(*common, "--run", run)
    assert ran.code == 2 and "took part in training may not measure it" in ran.line and "--force" in ran.line
    ran = segue(*common, "--run", run, "--force")
    assert ran.code == 0 and "FORCED" in ran.out and "FORCED" in (out / "evaluation.json").read_text()
    assert (
        segue(*common[:4], "--run", run, "--out", out, "--draws", "20").code == 0
    )  # the note classifier took part in nothing
    for path in gen.glob("*.wav"):  # as segue generate names its run
        wave, rate_hz = soundfile.read(path)
        with soundfile.SoundFile(path, "w", rate_hz, 1, "PCM_16", format="WAV") as file:
            file.comment = f"{run} seed 3"
            file.write(wave)
    assert "took part in training may not measure it" in segue(*common).line
    (cache / "meta.json").unlink()
    assert "cannot be checked" in segue(*common, "--run", run).line


def test_super_resolution_of_a_known_gain(segue, sets, tmp_path):
    ran = segue(
        "evaluate", "super-resolution", sets / "ten", sets / "ref", "--cutoff-hz", "4000", "--out", tmp_path, "--draws", "20"
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found, measures = results(tmp_path)
    for band in ("full", "low", "high"):
        assert measures[f"LSD ssr_eval {band}"]["value"] == pytest.approx(2.0, abs=1e-3)
        assert measures[f"LSD ssr_eval {band}, loudness-matched"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert measures["SNR"]["value"] == pytest.approx(-20 * np.log10(9), abs=1e-4)
    rows = {name: {m["name"]: m["value"] for m in measures} for name, measures in found["rows"].items()}
    assert list(rows) == ["unprocessed", "sinc", "band replication", "codec round trip"]
    for name in ("unprocessed", "sinc"):
        assert rows[name]["LSD nuwave2 high"] > 1 > rows[name]["LSD nuwave2 low"] and name in ran.out
    assert rows["band replication"]["LSD nuwave2 high"] < 0.7 * rows["sinc"]["LSD nuwave2 high"]
    assert rows["codec round trip"]["LSD nuwave2 full"] < 1e-3
    assert any("protocol nuwave2, cutoff 4000 Hz" in note for note in found["notes"])
    assert "input: protocol nuwave2" in found["rows"]["sinc"][0]["card"]["row"]
    for m in (*measures.values(), *(m for row in found["rows"].values() for m in row)):
        card = m["card"]
        assert card["sample_rate_hz"] == RATE_HZ and "own rate" in card["preprocessing"] and "draws" in card["interval"]
        assert card["versions"]["torch"] and (m["name"].startswith("LSD") == ("floor_is" in card)), m["name"]
    assert found["sets"]["EST"]["clips"] == 8 and found["sets"]["EST"]["content"] != found["sets"]["REF"]["content"]
    assert found["origin"].keys() == {"command", "commit", "machine"}
    assert all((tmp_path / name).stat().st_size for name in FILES)


def test_rows_beside_are_made_of_the_inputs_that_are_given(segue, sets, tmp_path):
    common = ("evaluate", "super-resolution", sets / "est", sets / "ref", "--draws", "20", "--out", tmp_path / "out")
    low = write_set(tmp_path / "low", rate_hz=8000, samples=3000)
    ran = segue(*common, "--cutoff-hz", "4000", "--input", low)
    assert ran.code == 0, ran.err
    found, _ = results(tmp_path / "out")
    assert any(f"as in {low}" in note for note in found["notes"]) and found["rows"]["sinc"]
    assert "--input needs --cutoff-hz" in segue(*common, "--input", low).line
    (low / "note_03.wav").unlink()
    assert "none for 1 of 8 pairs (note_03)" in segue(*common, "--cutoff-hz", "4000", "--input", low).line
    assert "has 13 filters" in segue(*common, "--cutoff-hz", "4000", "--protocol", "ssr-eval").line
    assert "no test protocol 'x'" in segue(*common, "--cutoff-hz", "4000", "--protocol", "x").line
    assert "fewer than 4 bins" in segue(*common, "--cutoff-hz", "100").line


def test_equal_files_have_distances_of_zero_and_no_ratio(segue, sets, tmp_path):
    ran = segue("evaluate", "files", sets / "ref", sets / "ref", "--out", tmp_path, "--draws", "20")
    assert ran.code == 0, ran.err
    found, measures = results(tmp_path)
    assert measures["LSD nuwave2 full"]["value"] == measures["log-mel L1"]["value"] == 0
    assert "SNR" in found["not_computed"] and "SNR" not in measures


@pytest.fixture
def broken(sets, tmp_path):
    """name -> a copy of the estimates with one thing wrong."""
    made = {}
    for name in ("silent", "missing", "other-rate", "other-length", "one", "not-sound"):
        made[name] = shutil.copytree(sets / "est", tmp_path / name)
    victim = "note_03.wav"
    soundfile.write(made["silent"] / victim, np.zeros(6000), RATE_HZ)
    (made["missing"] / victim).unlink()
    write_set(made["other-rate"], count=1, first=3, rate_hz=8000)
    write_set(made["other-length"], count=1, first=3, samples=5900)
    for path in made["one"].glob("note_0[1-9].wav"):
        path.unlink()
    (made["not-sound"] / victim).write_text("no sound")
    return made


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("files", "silent", "note_03.wav: silent"),
        ("files", "missing", "A has 7 sounds, B 8, and they do not pair by id: note_03 only in B"),
        ("super-resolution", "other-rate", "a pair of 8,000 and 16,000 Hz"),
        ("super-resolution", "other-length", "5,900 samples, its pair 6,000"),
        ("files", "one", "one clip only"),
        ("files", "not-sound", "note_03.wav"),
        ("generation", "silent", "note_03.wav: silent"),
        ("generation", "missing", "7 ids are in both sets, 1 in one only (note_03)"),
        ("generation", "other-rate", "8,000 Hz, but note-classifier takes 16,000 Hz"),
        ("generation", "one", "one clip only"),
    ],
)
def test_bad_input_gets_one_line_and_writes_no_result(segue, sets, broken, tmp_path, verb, name, words):
    ran = segue("evaluate", verb, broken[name], sets / "ref", "--out", tmp_path / "out", "--draws", "20")
    assert ran.code == 2 and words in ran.line, ran.err
    assert not any((tmp_path / "out" / file).exists() for file in FILES)


def test_mends_that_the_lines_name_work(segue, sets, broken, tmp_path):
    out = ("--out", tmp_path / "out", "--draws", "20")
    assert segue("evaluate", "files", broken["other-length"], sets / "ref", "--trim", *out).code == 0
    assert segue("evaluate", "generation", broken["missing"], sets / "ref", "--unpaired", *out).code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--embedding", "panns"), "needs its weights, panns:FILE.safetensors"),
        (("--embedding", "panns:Cnn14.pth"), "no file Cnn14.pth"),
        (("--embedding", "vggish:nowhere.safetensors", "--layer", "2"), "vggish has one embedding only"),
        (("--embedding", "nowhere/here"), "--embedding nowhere/here: no such folder"),
        (("--layer", "3"), "note-classifier has one embedding only"),
        (("--crop-seconds", "3"), "the note classifier takes the first 2.048 s"),
        (("--run", "nowhere"), "no run there"),
        (("--text-embedding", "nowhere/here"), "--text-embedding"),
    ],
)
def test_bad_options_get_one_line(segue, sets, tmp_path, options, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = segue("evaluate", "generation", sets / "est", sets / "ref", "--out", tmp_path / "out", *options)
    assert ran.code == 2 and words in ran.line, ran.err
