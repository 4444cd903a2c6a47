"""What stands behind the tabs, without a browser: what is made, what is refused, and what belongs to whom."""

import json
import socket
import sys
import time
from threading import Event

import numpy as np
import pytest
import soundfile
import torch

from segue import Pipeline, Sampling, SuperResolver, UserError, read_settings
from segue.app import jobs as jobs_module
from segue.app import training
from segue.app.folders import Folders, task_of
from segue.app.jobs import Jobs, output_of
from segue.app.models import Models
from segue.app.runs import live_html, runs_html
from segue.app.server import _refuse_taken, serve
from segue.app.sessions import Sessions
from segue.app.takes import MOST_TAKES, Ask, Edit, generate, read_upload
from segue.app.training import Order, plan, resume, start
from segue.app.wider import upsample
from segue.audio.sound import BadAudio


@pytest.fixture(scope="module")
def folders(served):
    return Folders.of([served])


@pytest.fixture(scope="module")
def pipeline(served):
    return Pipeline.load(served / "first")


def told(done, total):
    assert 0 < done <= total


# --- Folders and visitors ---


def test_paths_outside_the_folders_are_refused(folders, served, tmp_path):
    assert folders.runs("generation") == [served / "first"] and folders.runs("super-resolution") == []
    name = folders.name(served / "first")
    assert folders.inside(name) == folders.inside("first") == folders.inside(served / "first") == served / "first"
    (served / "link").symlink_to(tmp_path)
    for outside in ("/etc", "../..", f"{name}/../../..", "link", "link/run", str(tmp_path), "", "a\0b"):
        with pytest.raises(UserError, match=r"not in the folders of this page|no folder is named"):
            folders.inside(outside)
    (served / "link").unlink()
    with pytest.raises(UserError, match="no such folder; hint"):
        Folders.of([tmp_path / "nowhere"])


def test_folders_that_are_no_run(tmp_path):
    for text in ("{", "[]", '{"run": 3}', "{}"):
        (tmp_path / "config.json").write_text(text)
        assert task_of(tmp_path) is None
    assert Folders.of([tmp_path]).runs() == []


def test_visitors_have_folders_of_their_own(tmp_path):
    sessions = Sessions(tmp_path)
    one, two = sessions.of("one"), sessions.of("two")
    assert sessions.of("one") is one and one.folder != two.folder
    stop, other = one.begin("generate"), two.begin("generate")
    one.stop("generate")
    two.stop("edit")
    assert stop.is_set() and not other.is_set()
    (one.folder / "mine.wav").write_text("x")
    sessions.drop("one")
    assert not one.folder.exists() and two.folder.exists() and len(sessions) == 1
    sessions.close()
    assert other.is_set() and list(tmp_path.iterdir()) == []


# --- Sounds ---


def test_takes_are_what_the_command_makes(pipeline, tmp_path):
    ask = Ask("drum snare", seconds=0.3, steps=3, guidance=1.5, seed=7, takes=2)
    takes = list(generate(pipeline, ask, "served/first", tmp_path, Event(), told))
    assert [take.seed for take in takes] == [7, 8]
    sampling = Sampling(steps=3, guidance_scale=1.5)
    wave = pipeline.generate(["drum snare"], seconds=0.3, seed=8, sampling=sampling)[0, 0]
    kept, rate_hz = soundfile.read(takes[1].path)
    assert rate_hz == 8000 and torch.allclose(torch.from_numpy(kept).float(), wave, atol=2**-14)
    about = read_settings(takes[0].path)
    assert (about["prompt"], about["seed"], about["steps"], about["run"]) == ("drum snare", 7, 3, "served/first")
    assert takes[0].picture.read_bytes().startswith(b"\x89PNG")


def test_a_stop_keeps_what_was_finished(pipeline, tmp_path):
    stop, calls = Event(), []

    def on_step(done, total):
        calls.append(done)
        if done == 4:
            stop.set()

    takes = list(generate(pipeline, Ask("bell", steps=3, takes=3), "run", tmp_path, stop, on_step))
    assert len(takes) == 1 and calls == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Ask("  "), "an empty prompt"),
        (lambda: Ask("bell", seconds=1e9), "give at most 300"),
        (lambda: Ask("bell", takes=MOST_TAKES + 1), "give 1 to"),
        (lambda: Ask("bell", seed=10**30), "seed"),
        (lambda: Edit("replace", start_sec=1.0, end_sec=1.0), "no range is marked"),
        (lambda: Edit("vary", strength=0.0), "strength"),
        (lambda: Edit("reverse"), "choose one of"),
    ],
)
def test_what_cannot_be_made_is_one_line(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong()


def test_uploads_come_at_the_rate_of_the_model(pipeline, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(44100) / 20)[:, None].repeat(2, 1), 44100)
    wave = read_upload(tmp_path / "a.wav", pipeline)
    assert wave.shape == (1, 8000) and wave.dtype == torch.float32
    (tmp_path / "no.wav").write_text("no sound")
    with pytest.raises(BadAudio):
        read_upload(tmp_path / "no.wav", pipeline)
    soundfile.write(tmp_path / "long.wav", np.full(601 * 1000, 0.1), 1000)
    with pytest.raises(UserError, match=r"long.wav: 601 s; give a sound of at most 600 s"):
        read_upload(tmp_path / "long.wav", pipeline)


def test_upsampling_names_what_it_cannot_use_and_does_the_rest(tmp_path):
    noise = np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "good.wav", 0.1 * noise, 8000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF no sound")
    (out := tmp_path / "out").mkdir()
    files = [tmp_path / "bad.wav", tmp_path / "good.wav"]
    bad, good = upsample(SuperResolver.load(None), files, out, Event(), lambda done, total: None, steps=1)
    assert bad.after is None and bad.words.startswith("bad.wav: ") and str(tmp_path) not in bad.words
    assert good.after is not None and "8,000 Hz" in good.words and len(good.pictures) == 2
    assert soundfile.info(good.after).samplerate > 8000
    stop = Event()
    stop.set()
    assert list(upsample(SuperResolver.load(None), files[1:], tmp_path, stop, lambda done, total: None)) == []


def test_models_are_loaded_once(served):
    models = Models("cpu")
    assert models.pipeline(served / "first") is models.pipeline(served / "first")
    with pytest.raises(UserError, match="not for super-resolution"):
        models.resolver(Folders.of([served]), str(served / "first"))


# --- Runs ---


def test_runs_side_by_side(served):
    html = runs_html({"first": served / "first", "again": served / "first"})
    assert html.count("<audio") >= 2 * 2 * 3  # two prompts: the original, a checkpoint, the end
    for words in ("validation loss ↓", "static-uniform", "Curves", "Sounds: first", "original", "at the end"):
        assert words in html
    with pytest.raises(UserError, match="no run is chosen"):
        runs_html({})
    assert "Newest sounds" in live_html(served / "first") and live_html(served / "nowhere") == ""


# --- Training ---


def order(**changes):
    return Order(**{"source": "cache", "captions": "filename", "sound": "16 kHz mono", "recipe": "static-uniform",
                    "name": "second", "examples": 24} | changes)  # fmt: skip


def test_commands_of_a_training(folders, served):
    of_cache = order(preset="dit-tiny", more="train.batch_size=4 optim.kind=muon")
    assert of_cache.encode(folders) is None
    command = of_cache.train(folders)
    assert command[:6] == ["train", "static-uniform", "--data", str(served / "cache"), "--out", str(served / "second")]
    assert command[6:] == ["--examples", "24", "--set", "model.preset=dit-tiny", "--set", "train.batch_size=4",
                           "--set", "optim.kind=muon"]  # fmt: skip
    of_sounds = order(source="sounds", sound="44.1 kHz stereo")
    assert of_sounds.encode(folders)[:5] == ["encode", str(served / "sounds"), "--captions", "filename", "--out"]
    assert "stereo-44k" in of_sounds.encode(folders) and of_sounds.cache(folders).parent == served
    assert "segue encode" in plan(folders, of_sounds, Event())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../out"}, "give letters and digits"),
        ({"name": ".."}, "give letters and digits"),
        ({"recipe": "none"}, "choose one of the list"),
        ({"examples": -1}, "give a positive number"),
        ({"more": "train.start_from=/etc/model"}, "start_from names a file"),
        ({"more": "model.pretrained=/x"}, "pretrained names a file"),
        ({"more": "'"}, "No closing quotation"),
        ({"sound": "8 bit"}, "choose how"),
    ],
)
def test_orders_that_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        order(**changes)


def test_a_taken_name_and_a_folder_without_a_run(folders):
    with pytest.raises(UserError, match="holds a run already; hint: Resume"):
        start(folders, Jobs(), order(name="first"))
    with pytest.raises(UserError, match="no run there"):
        resume(folders, Jobs(), "sounds")
    with pytest.raises(UserError, match="not in the folders"):
        start(folders, Jobs(), order(source="/etc"))


def wait(job, seconds=20.0):
    job.thread.join(seconds)
    return job.state


def test_jobs_run_their_commands_and_are_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs_module, "SEGUE", (sys.executable, "-c"))
    jobs = Jobs()
    done = jobs.start(tmp_path / "a", [["print('one')"], ["print('two')"]])
    assert wait(done) == "finished" and list(done.lines) == ["one", "two"]
    failed = jobs.start(tmp_path / "b", [["import sys; print('segue: why'); sys.exit(2)"], ["print('never')"]])
    assert wait(failed) == "failed" and failed.last_line == "segue: why"
    asleep = "import time; print('began', flush=True); time.sleep(60)"
    long = jobs.start(tmp_path / "c", [[asleep], ["print('never')"]])
    with pytest.raises(UserError, match="is being trained already"):
        jobs.start(tmp_path / "c", [])
    while not long.lines:
        time.sleep(0.05)
    jobs.stop(tmp_path / "c")
    assert wait(long) == "stopped" and list(long.lines) == ["began"] and not jobs.running
    with pytest.raises(UserError, match="not being trained"):
        jobs.stop(tmp_path / "c")
    jobs.start(tmp_path / "d", [[asleep]])
    jobs.close()
    assert not jobs.running


def test_what_a_failing_command_says():
    with pytest.raises(UserError, match="nothing"):
        output_of(["nothing"])
    assert output_of(["--version"]).startswith("segue ")


def test_check_says_what_is_in_a_folder(folders, monkeypatch):
    found = {"clips": 3, "hours": 0.1, "rates_hz": {"8000": 3}, "channels": {"1": 3}, "formats": {"WAV": 3},
             "splits": {}, "captions": {"unique": 2}, "bad": [{"path": "<a>.wav", "reason": "silent"}],
             "notes": ["one"]}  # fmt: skip
    monkeypatch.setattr(training, "output_of", lambda *_: json.dumps(found))
    html = training.check(folders, "sounds", "filename", Event())
    for words in ("8000 Hz: 3", "2 different ones", "&lt;a&gt;.wav: silent", "note: one"):
        assert words in html
    assert "is a latent cache" in training.check(folders, "cache", "filename", Event())


# --- The server ---


def test_a_taken_port_is_one_line_with_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port \d+: taken or not allowed .*; hint: --port \d+ is free"):
            _refuse_taken(taken.getsockname()[1])


def test_without_gradio_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"hint: pip install 'segue-audio\[app\]'"):
        serve([tmp_path], port=0)
