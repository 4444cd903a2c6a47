"""Which words of `segue generate` are RUN, and which are prompts."""

import pytest

from segue.audio.write import write_wav
from segue.cli.which_model import names_run, run_and_prompts

PROMPT = "a soft violin playing C 5"


@pytest.mark.parametrize(
    ("words", "run", "prompts"),
    [
        ((), None, []),
        ((PROMPT,), None, [PROMPT]),
        ((PROMPT, "a drum"), None, [PROMPT, "a drum"]),
        (("default", "drum"), None, ["drum"]),
        (("here", "a drum"), "here", ["a drum"]),  # exists
        (("here",), "here", []),
        (("default", "here"), None, ["here"]),
        (("runs/none", "a drum"), "runs/none", ["a drum"]),
        (("OWNER/NAME@v1", "a drum"), "OWNER/NAME@v1", ["a drum"]),
        (("a 4/4 beat",), None, ["a 4/4 beat"]),
        (("x" * 5000,), None, ["x" * 5000]),
        (("",), None, [""]),
    ],
)
def test_the_first_word_is_run_by_a_rule(words, run, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert run_and_prompts(words) == (run, prompts)


def test_a_windows_path_is_a_run():
    assert names_run(r"runs\mine") and not names_run("drum")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no prompt; hint: for example: segue generate"),
        (("here",), "here was taken as RUN; hint: for example: segue generate here"),
        (("here",), "segue generate default here"),
        (("here/none", "a drum"), "no such file or folder here, and the hub cannot be reached"),
        (("/none/of/them", "a drum"), "/none/of/them: does not exist; hint: give a run folder"),
        (("--like", "{tmp}/theirs.wav"), "was made by runs/mine, not by the shipped model; hint: segue generate RUN"),
    ],
)
def test_what_is_meant_otherwise_gets_one_line(segue, words, says, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "here").mkdir()
    import numpy as np

    write_wav(tmp_path / "theirs.wav", np.ones(100, np.float32), 16000, "a drum", '{"run": "runs/mine", "seed": 0}')
    ran = segue("generate", *(word.format(tmp=tmp_path) for word in words), "--device", "cpu")
    assert ran.code == 2 and says in ran.line and not (tmp_path / "generated").exists()


def test_the_shipped_model_makes_its_own_files_again(segue, tmp_path):
    ran = segue("generate", PROMPT, "--steps", 2, "--seconds", 0.3, "--out", tmp_path / "a", "--device", "cpu")
    assert ran.code == 0 and "model: the shipped one" in ran.err
    (file,) = (tmp_path / "a").iterdir()
    again = segue("generate", "--like", file, "--out", tmp_path / "b", "--device", "cpu")
    assert again.code == 0 and (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
