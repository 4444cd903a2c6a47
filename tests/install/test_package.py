"""What is shipped is shipped whole: weights and cards in the wheel, a Dockerfile of sound form, code for every system."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_weights_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["segue"]
    shipped = {path for pattern in patterns for path in (SRC / "segue").glob(pattern)}
    tracked = subprocess.run(["git", "ls-files", "src/segue/weights"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:  # no checkout
        pytest.skip("not a git checkout")
    assert {ROOT / line for line in tracked.stdout.splitlines()} <= shipped


def test_every_shipped_model_has_a_card_with_its_data_and_their_licences():
    for folder in (SRC / "segue" / "weights").iterdir():
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        sources = card["training"].get("sources") or [card["data"]]
        assert sources and all(source.get("licence") for source in sources), folder


def test_the_version_is_one():
    from segue._version import __version__

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"version = {{{__version__}}}" in text and f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_is_of_sound_form():
    """What a build would take minutes to tell, and what hadolint says where it is installed."""
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert words[0] == "ARG" and words.count("FROM") == 1 and words[-2:] == ["ENTRYPOINT", "CMD"]
    assert words.index("USER") < words.index("ENTRYPOINT"), "the command runs as nobody's root"
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored), "what is copied is sent to the build"
    for name in re.findall(r"--build-arg (\w+)=", DOCKERFILE):
        assert any(line.startswith(f"ARG {name}") for line in lines), name
    extras = re.search(r'ARG EXTRAS="(.*)"', DOCKERFILE)[1].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    here = Path(sys.executable).with_name("hadolint")
    if hadolint := here if here.exists() else shutil.which("hadolint"):
        ran = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout


# What Windows or macOS lack, and what stands in for it -> the files that ask for it only where it is.
ELSEWHERE = {
    r"\bimport (fcntl|pwd|grp|termios)\b": (),
    r"\bimport resource\b": ("memory.py",),
    r"/proc/": ("memory.py", "provenance.py"),
    r"os\.(sched_\w+|fork|sysconf|killpg|setsid|mkfifo)\b": (),
    r"os\.getuid\b": ("training/threads.py",),
    r"os\.kill\b": ("training/parallel_runs.py",),
    r"signal\.(SIGALRM|SIGKILL|SIGHUP|setitimer)\b": ("training/interrupt.py",),
    r"\.(read_text|write_text)\(\)": (),
    r"(?<!os)(?<!_)\.open\(\"[wa]\"\)": ("training/parallel_runs.py",),  # a process writes there, not we
}


def test_the_code_asks_no_system_for_what_only_some_have():
    for path in sorted((SRC / "segue").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for pattern, where in ELSEWHERE.items():
            found = re.search(pattern, text)
            assert not found or path.relative_to(SRC / "segue").as_posix() in where, f"{path}: {found[0]}"


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_every_python_that_is_here_compiles_the_code(minor, tmp_path):
    """Grammar alone; what runs under the others is said in docs/install.md."""
    python = shutil.which(f"python3.{minor}")
    if not python or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python 3.{minor} here")
    code = "import ast, sys, pathlib; [ast.parse(p.read_text(encoding='utf-8')) for p in pathlib.Path(sys.argv[1]).rglob('*.py')]"
    assert subprocess.run([python, "-c", code, str(SRC)], capture_output=True).returncode == 0
