"""The walls of the house: which room may import which (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segue

SRC = Path(__file__).parents[1] / "src" / "segue"
LAB = SRC.parent / "segue_lab"
PARTS = {"process", "stage", "models", "codecs", "conditioners", "ssl", "data", "tasks", "evaluation"}

# room -> what it may import of segue, beside itself, types, files, hub, memory, devices, _version and provenance.
# "room.file" allows that file alone. segue_lab is no room: nothing here may import it.
ALLOWED = {
    "types": set(),
    "files": set(),
    "hub": set(),
    "memory": set(),
    "_version": set(),
    "provenance": set(),
    "devices": set(),
    "__init__": {"*"},
    "process": set(),
    "stage": {"process"},
    "models": {"process"},
    "codecs": set(),
    "conditioners": set(),
    "ssl": set(),
    "audio": set(),
    "progress": set(),
    "evaluation": {"audio", "progress", "data", "codecs", "ssl", "tasks"},
    "data": {"audio", "progress", "codecs.base", "conditioners.base", "conditioners.tokens", "ssl.base"},
    "tasks": {
        "data",
        "codecs.base",
        "codecs.latent_space",
        "conditioners.base",
        "process.noise",
        "models.audio_skip",
        "models.fields",
        "audio.recode",
        "predictor",
    },
    "report": {"audio", "evaluation"},
    "training": PARTS | {"audio", "progress", "predictor"},
    "predictor": {"process"},
    "sampling": {"process"},
    "editing": {"process", "models", "codecs", "tasks", "sampling"},
    "pipeline": {"process", "models", "codecs", "conditioners", "tasks", "sampling", "editing", "predictor"},
    "upsampling": {"audio", "progress", "predictor", "pipeline"},
    "recipes": PARTS | {"training"},
    "integrations": {"stage", "process"},
    "workflows": PARTS | {"audio", "progress", "pipeline", "predictor", "recipes", "report", "training"},
    "app": {"audio", "models.presets", "pipeline", "recipes", "report", "upsampling"},
    "cli": {"*"},
}
# The page calls what everyone may call; beside the public names, rooms of helpers without state.
BY_PUBLIC_NAMES = {"app"}
# Nothing imports the command line but itself. The laboratory's own has the same kind of verbs and the same checks.
CLI_FOR_OTHERS = {"segue.cli.verbs", "segue.cli.options"}
# third party -> the only rooms that may import it
OWNED = {
    "accelerate": {"training"},
    "tensorboard": {"training"},
    "diffusers": {"integrations", "codecs", "conditioners", "models"},
    "peft": {"models"},
    "lightning": {"integrations"},
    "stable_audio_tools": {"integrations"},
    "matplotlib": {"report"},
    "typer": {"cli"},
    "gradio": {"app"},
    "starlette": {"app"},
    "wandb": {"training"},
    "av": {"audio"},
    "soundfile": {"audio", "data"},  # data/demo_set.py renders sounds in memory; no file is opened there
    "sklearn": set(),
    "mido": {"data"},
    "midirenderer": {"data"},
    "pyarrow": {"data"},
    "datasets": {"data"},
}


def imports_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(SRC).parts[0].removesuffix(".py")
    allowed = ALLOWED[room] | {room, "types", "files", "hub", "memory", "_version", "provenance", "devices"}
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "segue" and "*" not in allowed:
            target = rest[0] if rest else ""
            if room in BY_PUBLIC_NAMES and ".".join(rest) in segue.__all__:
                continue
            fits = target in allowed or any(".".join(rest).startswith(f"{a}.") or ".".join(rest) == a for a in allowed)
            assert fits, f"{room} may not import {name}"
        assert top != "segue_lab", f"{path}: segue may not import its laboratory"
        if top in OWNED:
            assert room in OWNED[top], f"{top} belongs to {OWNED[top]}"


@pytest.mark.parametrize("path", sorted((SRC / "evaluation").glob("*.py")), ids=lambda p: p.stem)
def test_figures_know_nothing_of_folders_codecs_and_teachers(path):
    """What measures arrays stands above evaluation/folders, and does not know who reads the files."""
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "segue":
            assert rest[0] in ("evaluation", "types", "files", "hub", "_version") and "folders" not in rest, name


def test_the_laboratory_is_named_nowhere_in_segue():
    """Neither an import inside a function nor a module's name in a string leads from segue to segue_lab."""
    for path in FILES:
        assert "segue_lab" not in path.read_text(), path


def test_importing_every_module_of_segue_loads_nothing_of_the_laboratory():
    modules = sorted(
        ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.relative_to(SRC).parts[0] in ("cli", "report", "evaluation") or path.parent.name == "training"
    )
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print([m for m in sys.modules if m.startswith('segue_lab')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_laboratory_draws_and_asks_through_segue():
    """It has no pickles, no matplotlib of its own, and typer in its command line alone."""
    for path in sorted(LAB.rglob("*.py")):
        text = path.read_text()
        assert "torch.load(" not in text and "torch.save(" not in text and "import pickle" not in text, path
        for name in imports_of(path):
            top = name.split(".")[0]
            assert top not in ("matplotlib", "accelerate", "diffusers", "lightning", "mido", "midirenderer"), (
                path,
                name,
            )
            assert top != "typer" or path.parent.name == "cli", (path, name)


def test_nothing_imports_the_command_line():
    """What verbs, demo and laboratory share stands in workflows; only the laboratory's command line takes its tools."""
    for path in [*FILES, *LAB.rglob("*.py")]:
        names = {name for name in imports_of(path) if f"{name}.".startswith("segue.cli.")}
        if path.parent == LAB / "cli":
            names = {name for name in names if not any(f"{name}.".startswith(f"{ours}.") for ours in CLI_FOR_OTHERS)}
        assert not names or path.parent == SRC / "cli", (path, names)


def test_stage_knows_no_devices_ranks_or_files():
    for path in (SRC / "stage").rglob("*.py"):
        names = set(imports_of(path))
        assert not any(n.startswith(("torch.distributed", "accelerate", "pathlib", "os", "time")) for n in names), path


def test_variants_come_into_the_method_by_its_policy():
    """The controller keeps their state and the tap their signatures; whatever else is compared, the policy brings in."""
    known = {"policy.py", "controller.py", "decision.py", "tap.py"}
    for path in (SRC / "stage").glob("*.py"):
        names = {n for n in imports_of(path) if n.startswith("segue.stage.variants")}
        assert not names or path.name in known, path


def test_no_pickle():
    for path in FILES:
        text = path.read_text()
        assert "torch.load(" not in text and "torch.save(" not in text and "import pickle" not in text, path


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import segue", ("torch", "numpy", "accelerate", "matplotlib", "transformers")),
        ("import segue.cli.main", ("torch", "numpy", "rich")),
        ("import segue.pipeline", ("accelerate", "matplotlib", "scipy", "sklearn")),
    ],
)
def test_imports_are_light(code, heavy):
    """Inference must not pull in what only training or the demo need, nor a help text what computes."""
    code = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# install/test_base.py imports all of this with everything hidden that a base install has not.


def test_no_file_is_long():
    for path in [*FILES, *LAB.rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path


def test_no_file_imports_itself_by_way_of_others():
    """Imports inside functions count, those for type checkers alone do not."""
    files = [*FILES, *LAB.rglob("*.py")]
    modules = {".".join(path.relative_to(SRC.parent).with_suffix("").parts): path for path in files}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: set(modules_named(path, modules)) - {name} for name, path in modules.items()}
    for start in graph:
        todo, reached = list(graph[start]), set()
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += graph[name]
        assert start not in reached, f"{start} is imported by something that it imports"


def modules_named(path, modules):
    """The modules of ours that a file imports; a package's __init__ only where a name is taken from it."""

    def nodes(body):
        for node in body:
            if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
                yield node
                yield from nodes(ast.iter_child_nodes(node))

    for node in nodes(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in whole if node.module in modules)


def test_the_reading_path_is_short():
    """Loop, stage, regime and backbone: what a newcomer reads to know what this is."""
    files = ("training/loop.py", "stage/stage.py", "stage/regime.py", "models/dit.py")
    lines = {name: len((SRC / name).read_text(encoding="utf-8").splitlines()) for name in files}
    assert lines["training/loop.py"] <= 170 and sum(lines.values()) <= 1000, lines
