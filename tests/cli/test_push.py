"""A run is shared as a folder and through the hub, which a server of this machine stands in for."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from segue.cli.main import main
from segue.models.files import BESIDE, load_model, model_file
from segue.pipeline import Pipeline
from segue.types import UserError

SRC = Path(__file__).parents[2] / "src"
TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")
SHA = "a" * 40


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "static-uniform", "--data", cache, "--out", run, "--examples", 8, *TINY, "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--samples", 2, "--set", "optim.learning_rate=1e-3"]])
    assert not stopped.value.code
    return run


def test_a_folder_holds_the_model_and_says_what_it_is(segue, trained, tmp_path):
    figures = tmp_path / "evaluation.json"
    measure = {"name": "KAD (x100)", "value": 1.25, "interval": [1.0, 1.5], "n": 64}
    figures.write_text(json.dumps({"measures": [measure]}), encoding="utf-8")
    out = tmp_path / "shared"
    ran = segue("push", trained, "--to", out, "--licence", "CC-BY-4.0", "--data", "36 sounds", "--figures", figures)
    assert ran.code == 0, ran.err
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == ["README.md", "config.json", "model.safetensors", "samples/000.wav", "samples/001.wav"]
    page = (out / "README.md").read_text(encoding="utf-8")
    for words in ("license: cc-by-4.0", "36 sounds", "| KAD (x100) | 1.25 | 1 to 1.5 | 64 |", "Held-out loss",
                  "segue train static-uniform --data CACHE --out RUN --examples 8 --seed 0",
                  "--set optim.learning_rate=0.001", "samples/000.wav", "`spectral`"):  # fmt: skip
        assert words in page, words
    # Of this machine's folders nothing is told.
    everything = "".join((out / name).read_bytes().decode("utf-8", "replace") for name in names)
    assert str(trained.parent) not in everything and str(tmp_path) not in everything
    waves = [Pipeline.load(place).generate(["a drum"], seconds=0.3, seed=1) for place in (trained, out, str(out))]
    assert torch.equal(waves[0], waves[1]) and torch.equal(waves[0], waves[2])
    again = segue("push", trained, "--to", out)
    assert again.code == 2 and "exists already" in again.line and (out / "README.md").read_text("utf-8") == page


def test_what_is_not_stated_is_said_so(segue, trained, tmp_path):
    ran = segue("push", trained, "--to", tmp_path / "shared", "--sounds", 0)
    assert ran.code == 0 and "no --licence" in ran.err and "no --data" in ran.err
    page = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert page.count("Not stated by") == 2 and "license" not in page and "## Sounds" not in page
    assert "Nothing was measured" in page and not (tmp_path / "shared" / "samples").exists()


def test_a_codec_of_ones_own_goes_along(trained, tmp_path):
    from dataclasses import asdict, replace

    from segue.codecs.autoencoder import Autoencoder, AutoencoderConfig, save_codec
    from segue.models.files import read_tensors, save_model
    from segue.workflows.share import Statement, write_shared

    codec, run = tmp_path / "my-codec", tmp_path / "run"
    torch.manual_seed(0)
    save_codec(Autoencoder(AutoencoderConfig(channels=4, encoder_width=8, decoder_width=8)), codec)
    tensors, _ = read_tensors(model_file(trained))
    card = replace(load_model(model_file(trained)).card, codec_source=str(codec))
    run.mkdir()
    parts = [{k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("model.", "ema.")]
    save_model(run / "model.safetensors", *parts, tensors["latents.mean"], tensors["latents.std"], card)
    write_shared(run, tmp_path / "shared", Statement("mine"))
    assert (tmp_path / "shared/codec/codec.safetensors").read_bytes() == (codec / "codec.safetensors").read_bytes()
    stored = json.loads((tmp_path / "shared/config.json").read_text(encoding="utf-8"))
    assert stored["card"]["codec_source"] == f"{BESIDE}codec" and asdict(card)["codec_source"] not in str(stored)
    (tmp_path / "shared").rename(tmp_path / "moved")
    found = load_model(tmp_path / "moved/model.safetensors").card.codec_source
    assert Path(found) == tmp_path / "moved/codec" and Path(found).is_dir()


def test_a_predictor_of_ones_own_goes_along_and_the_shipped_one_is_named(trained, tmp_path):
    from dataclasses import replace

    from segue.codecs import load_codec
    from segue.models.files import read_tensors, save_model
    from segue.predictor import BandPredictor, PredictorConfig, predictor_hash, save_predictor, shipped_for
    from segue.workflows.share import Statement, write_shared

    torch.manual_seed(0)
    save_predictor(BandPredictor(PredictorConfig(width=16, blocks=1)), tmp_path / "own", {})
    tensors, _ = read_tensors(model_file(trained))
    parts = [{k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("model.", "ema.")]
    for name, folder in (("own", tmp_path / "own"), ("shipped", shipped_for(16_000))):
        found = {"source": str(folder), "sha256": predictor_hash(folder / "predictor.safetensors")}
        card = replace(load_model(model_file(trained)).card, predictor=found)
        card = replace(card, codec=load_codec("gain-shape", 16_000).fingerprint())
        run = tmp_path / f"run-{name}"
        run.mkdir()
        save_model(run / "model.safetensors", *parts, tensors["latents.mean"], tensors["latents.std"], card)
        write_shared(run, tmp_path / f"shared-{name}", Statement("mine"))
        assert str(tmp_path) not in (tmp_path / f"shared-{name}/config.json").read_text(encoding="utf-8")
    (tmp_path / "shared-own").rename(tmp_path / "moved")
    sent = tmp_path / "moved/predictor/predictor.safetensors"
    assert sent.read_bytes() == (tmp_path / "own/predictor.safetensors").read_bytes()
    assert load_model(tmp_path / "moved/model.safetensors").card.predictor["source"] == str(
        tmp_path / "moved/predictor"
    )
    assert load_model(tmp_path / "shared-shipped/model.safetensors").card.predictor["source"] == "shipped"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("{run}",), "give OWNER/NAME"),
        (("{run}", "me/mine", "--to", "{tmp}/x"), "one of the two"),
        (("{tmp}/none", "--to", "{tmp}/x"), "does not exist"),
        (("{run}", "--to", "{tmp}/x", "--figures", "{tmp}/none.json"), "--figures"),
        (("{run}", "--to", "{tmp}/x", "--figures", "{run}/config.json"), "no figures of segue in it"),
        (("{run}", "mine"), "OWNER/NAME"),
        (("{run}", "../mine"), "OWNER/NAME"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(segue, trained, tmp_path, words, says):
    ran = segue("push", *(word.format(run=trained, tmp=tmp_path) for word in words))
    assert ran.code == 2 and says in ran.line and "hint:" in ran.line
    assert not list(tmp_path.iterdir())


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as pushing and loading take; files lie in the server's dictionary `models`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            sent = b"".join(iter(self.chunk, b""))
        path = urlsplit(self.path).path
        self.server.posted.append(path)
        if "Bearer may-write" not in self.headers.get("Authorization", ""):
            return self.reply({"error": "no"}, 403)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.models.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.reply({"url": f"{self.server.address}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [f["path"] for f in json.loads(sent)["files"]]
            return self.reply(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in files]}
            )
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.server.models[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply(
            {"success": True, "commitOid": SHA, "commitUrl": f"{self.server.address}/{name}/commit/{SHA}"}
        )

    def chunk(self):
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.models.get(name)
        if files is None:
            return self.missing()
        if api and "tree" in parts:
            return self.reply(
                [{"type": "file", "path": p, "size": len(b), "oid": f"{len(b):040x}"} for p, b in files.items()]
            )
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self.reply({"id": name, "sha": SHA, "private": self.server.private[name], "siblings": siblings})
        body = files["/".join(parts[4:])]
        return self.reply(body, ETag=f'"{len(body):040x}"', X_Repo_Commit=SHA)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.models, server.private, server.posted = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# One process for all calls: most of its time is spent on imports.
SCRIPT = """
import io, json, sys, contextlib
from segue.cli.main import main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def calls(home, *commands, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = kept | {"PYTHONPATH": str(SRC), "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    words = json.dumps([[str(word) for word in command] for command in commands])
    ran = subprocess.run([sys.executable, "-c", SCRIPT, words], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]


def complaint(called):
    code, _, err = called
    lines = [line for line in err.splitlines() if line.startswith("segue: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_a_model_goes_to_the_hub_and_comes_back(trained, hub, tmp_path):
    hub.models["me/public"], hub.private["me/public"] = {"README.md": b""}, False
    hub.models["you/evil"], hub.private["you/evil"] = {"model.safetensors": b"", "../../evil.json": b"{}"}, False
    short = ("--seconds", 0.3, "--steps", 2)
    pushed, refused, generated, evil, none, empty = calls(
        tmp_path / "home",
        ("push", trained, "me/mine", "--licence", "my own words", "--data", "36 sounds"),
        ("push", trained, "me/public"),
        ("generate", "me/mine", "a drum", *short, "--out", tmp_path / "theirs"),
        ("generate", "you/evil", "a drum", "--out", tmp_path / "evil"),
        ("generate", "me/none", "a drum", "--out", tmp_path / "none"),
        ("generate", "me/public", "a drum", "--out", tmp_path / "none"),
        HF_ENDPOINT=hub.address, HF_TOKEN="may-write",
    )  # fmt: skip
    assert pushed[0] == 0 and "sending" in pushed[2] and "private" in pushed[1], pushed
    assert hub.private["me/mine"] and b'license_name: "my own words"' in hub.models["me/mine"]["README.md"]
    assert "is public on the hub" in complaint(refused) and hub.models["me/public"] == {"README.md": b""}
    assert generated[0] == 0, generated[2]
    (theirs,) = (tmp_path / "theirs").iterdir()
    main_words = ["generate", trained, "a drum", *short, "--out", tmp_path / "ours", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([str(word) for word in main_words])
    import soundfile

    (ours,) = (tmp_path / "ours").iterdir()
    assert (soundfile.read(ours)[0] == soundfile.read(theirs)[0]).all()
    assert "'../../evil.json' would lie outside" in complaint(evil)
    assert not list(tmp_path.rglob("evil.json"))
    assert "no model of that name on the hub, or a private one" in complaint(none)
    assert "no model of segue on the hub" in complaint(empty)
    # What was fetched before is there without the hub; what was not gets one line, and so does a push without a token.
    hub.posted.clear()
    kept, never, tokenless = calls(
        tmp_path / "home",
        ("generate", "me/mine", "a drum", *short, "--out", tmp_path / "offline"),
        ("generate", "me/other", "a drum", "--out", tmp_path / "none"),
        ("push", trained, "me/mine"),
        HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert kept[0] == 0, kept[2]
    assert "the hub cannot be reached" in complaint(never)
    assert "no token for the hub; hint: `hf auth login`" in complaint(tokenless) and not hub.posted


def test_a_token_that_may_not_write_sends_nothing(trained, hub, monkeypatch):
    from huggingface_hub import constants

    from segue.hub import send_folder

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "reads-alone")
    with pytest.raises(UserError, match="does not let this token write there"):
        send_folder(trained / "samples", "me/mine", False)
    assert not hub.models
