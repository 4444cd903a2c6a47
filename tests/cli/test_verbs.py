"""The command line itself: its help, its version, completion by the shell, and verbs that are imported late."""

import os
import subprocess
import sys

import pytest

from segue._version import __version__
from segue.cli.main import VERBS
from segue.cli.verbs import Group, Verb, make_command, run_command

GROUPS = [name for name, verb in VERBS.items() if isinstance(verb, Group)]


@pytest.mark.parametrize("first", [(), *((name,) for name in GROUPS)], ids=lambda first: " ".join(first) or "segue")
def test_no_verb_prints_the_help_as_help(segue, first):
    asked, bare = segue(*first, "--help"), segue(*first)
    assert (bare.code, bare.out, bare.err) == (0, asked.out, "")
    assert bare.out.startswith(f"Usage: {' '.join(('segue', *first))} [OPTIONS] COMMAND")
    assert "..." not in bare.out.partition("Commands:")[2]  # every line fits
    for name in VERBS[first[0]].verbs if first else VERBS:
        assert f"\n  {name} " in bare.out


def test_the_version(segue):
    assert segue("--version").out == f"segue {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian",), "'train'"),
        (("data", "chek"), "'check'"),
        (("data", "check"), "source"),
        (("--vresion",), "--v"),
        (("train", "--recipe", "stage"), "hint: segue train RECIPE, without --recipe"),
        (("train", "--nothing"), "hint: segue train --help"),
    ],
)
def test_a_slip_gets_one_line(segue, arguments, says):
    ran = segue(*arguments)
    assert ran.code == 2 and says in ran.line


def complete(words):
    """What the shell is offered for the last of these words."""
    environment = os.environ | {
        "_SEGUE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "segue.cli.main"], capture_output=True, text=True, env=environment, check=True
    )
    return ran.stdout.split()


def test_the_shell_completes_verbs_and_options(segue, monkeypatch):
    # The shell is named, not looked for among the parents of this process, which has none under a job runner.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = segue("--show-completion", "bash")
    assert script.code == 0 and "_SEGUE_COMPLETE=complete_bash" in script.out
    assert complete("segue up") == ["upsample"]
    assert complete("segue data re") == ["render-demo"]
    assert complete("segue codec train --min") == ["--minutes"]


def test_a_table_of_verbs_makes_a_command_line_of_its_own(capsys):
    table = {"one": Verb("tests_no_such_module:f", "Never imported."), "two": Group("Twice.", {"x": VERBS["recipes"]})}
    command = make_command("Other things.", "other 1.0", table)
    for arguments in (["--help"], ["two"], ["two", "x", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            run_command(command, "other", arguments)
        assert not stopped.value.code
    out = capsys.readouterr().out
    assert "Never imported." in out and "Usage: other two x [OPTIONS]" in out and "other 1.0" in out
    with pytest.raises(ModuleNotFoundError, match="tests_no_such_module"):
        run_command(command, "other", ["one"])
