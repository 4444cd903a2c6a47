"""The commands of fine-tuning a public model, on tiny random folders of each class; and what they refuse."""

import json
import shutil

import pytest
from tiny_models import KINDS, SECONDS

from segue.data import round_trip
from segue.training.log import read_log


@pytest.fixture(autouse=True)
def random_codecs_give_no_sound_back(monkeypatch):
    monkeypatch.setattr(round_trip, "WORST", float("inf"))


SHORT = ["--examples", 16, "--set", "train.batch_size=4", "--set", "train.validation_clips=2", "--samples", 1,
         "--set", "probe.clips=8", "--set", "probe.space=latent", "--set", "train.tensorboard=false"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_from_recordings_to_a_folder_of_diffusers(kind, segue, recordings, tiny_folders, tmp_path, monkeypatch):
    from segue.models.adapters.base import Adapter, OwnSampling

    monkeypatch.setattr(Adapter, "own_sampling", OwnSampling(2, 2.0))
    for adapter in Adapter.__subclasses__():
        monkeypatch.delattr(adapter, "own_sampling")
    folder, run = tiny_folders[kind], tmp_path / "run"
    made = segue("encode", recordings, "--captions", "filename", "--model", folder, "--out", tmp_path / "cache",
                 *([] if kind == "stable-audio" else ["--seconds", SECONDS]))  # fmt: skip
    assert made.code == 0, made.err
    meta = json.loads((tmp_path / "cache" / "meta.json").read_text())
    # Stable Audio's own window is the default.
    assert meta["seconds"] == pytest.approx(SECONDS)
    assert meta["codec_source"] == meta["text"]["name"] == str(folder)
    trained = segue("train", "stage", "--model", folder, "--data", tmp_path / "cache", "--out", run, *SHORT)
    assert trained.code == 0, trained.err
    assert "timesteps of the checkpoint: " in trained.err and "timesteps.distribution=stage" in trained.err
    assert any(line["event"] == "stage" for line in read_log(run / "log.jsonl"))
    assert (run / "samples" / "000.wav").exists()
    made = segue("generate", run, "hard kick", "--out", tmp_path / "sounds", "--seconds", 0.3)
    assert made.code == 0 and (tmp_path / "sounds" / "000-hard-kick-seed0.wav").exists(), made.err
    out = segue("export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert out.code == 0 and "from_pretrained" in out.out, out.err
    # The result is a pipeline like the one that it came from, and can be trained on in turn.
    again = segue("train", "static-checkpoint", "--model", tmp_path / "out", "--data", tmp_path / "cache",
                  "--out", tmp_path / "again", "--dry-run")  # fmt: skip
    assert again.code == 0, again.err
    assert '"pretrained"' in again.out


def damaged(folder, out, change):
    shutil.copytree(folder, out)
    change(out)
    return out


def without(part):
    return lambda folder: shutil.rmtree(folder / part)


def unnamed(part):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        del index[part]
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def other_model(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "LongCatAudioDiTTransformer"]
    (folder / "model_index.json").write_text(json.dumps(index))


def other_scheduler(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "DDIMScheduler"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("scheduler"), "its folder scheduler/ is missing"),
        (unnamed("scheduler"), "names no scheduler"),
        (without("vae"), "its folder vae/ is missing"),
        (unnamed("vae"), "names no vae"),
        (without("transformer"), "its folder transformer/ is missing"),
        (other_model, "StableAudioDiTModel, StableAudio3DiTModel, AceStepTransformer1DModel"),
        (other_scheduler, "DDIMScheduler is not known"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "no diffusers pipeline"),
        (lambda folder: (folder / "model_index.json").unlink(), "no diffusers pipeline"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("[]"), "transformer/config.json cannot"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("{}"), "lacks 'num_attention_heads'"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_something_is_refused_in_one_line(
    change, said, segue, recordings, tiny_folders, tiny_caches, tmp_path
):
    folder = damaged(tiny_folders["stable-audio"], tmp_path / "model", change)
    commands = (
        ("encode", recordings, "--captions", "filename", "--model", folder, "--out", tmp_path / "cache"),
        ("train", "stage", "--model", folder, "--data", tiny_caches["stable-audio"].path, "--out", tmp_path / "run"),
    )
    for command in commands:
        refused = segue(*command)
        assert refused.code == 2 and said in refused.line and "--model" in refused.line
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run" / "config.json").exists()


def test_a_cache_of_another_codec_or_text_encoder_is_refused(segue, tiny_folders, tiny_caches, cache, tmp_path):
    for other in (cache, tiny_caches["ace-step"].path):
        options = ("--model", tiny_folders["stable-audio"], "--data", other, "--out", tmp_path / "run")
        refused = segue("train", "static-checkpoint", *options, *SHORT)
        assert refused.code == 2 and "the codec" in refused.line and "segue encode SOUNDS --model" in refused.line


def test_a_gated_name_without_a_token_says_what_to_do(segue, recordings, tmp_path, monkeypatch):
    import huggingface_hub

    class GatedRepoError(OSError):
        pass

    def gated(*_, **__):
        raise GatedRepoError("401 Client Error. Cannot access gated repo for url")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    name = "stabilityai/stable-audio-open-1.0"
    refused = segue("encode", recordings, "--captions", "filename", "--model", name, "--out", tmp_path / "cache")
    assert refused.code == 2 and name in refused.line and "hf auth login" in refused.line


def test_options_that_contradict_a_model_are_refused(segue, recordings, tiny_folders, cache, tmp_path):
    folder = tiny_folders["ace-step"]
    refused = segue("encode", recordings, "--model", folder, "--codec", "spectral", "--out", tmp_path / "cache")
    assert refused.code == 2 and "leave --codec away" in refused.line
    refused = segue("train", "static-checkpoint", "--data", cache, "--out", tmp_path / "run")
    assert refused.code == 2 and "--model" in refused.line
    refused = segue("export", tmp_path, "--to", "onnx", "--out", tmp_path / "out")
    assert refused.code == 2 and "diffusers" in refused.line


def test_a_model_of_our_own_shape_is_not_exported(segue, cache, tmp_path):
    ran = segue("train", "static-uniform", "--data", cache, "--out", tmp_path / "run", "--examples", 16,
                "--set", "train.batch_size=8", "--set", "model.preset=dit-tiny", "--samples", 0)  # fmt: skip
    assert ran.code == 0, ran.err
    refused = segue("export", tmp_path / "run", "--to", "diffusers", "--out", tmp_path / "out")
    assert refused.code == 2 and "segue's own shape" in refused.line
