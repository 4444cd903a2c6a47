"""The examples run, and docs/foreign-loops.md tells the truth about what segue adds to each."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "foreign"
NEEDS = {
    "plain": [],
    "stable_audio_diffusers": ["diffusers"],
    "stable_audio_tools_dit": ["einops", "stable_audio_tools"],
    "lightning_module": ["lightning"],
}
DIFFS = dict(
    re.findall(r"```diff\n--- examples/foreign/(\w+)\.py\n(.*?)```", (ROOT / "docs/foreign-loops.md").read_text(), re.S)
)


def hunk_sides(hunk: str) -> tuple[str, str]:
    """(without, with) of one hunk of a diff."""
    lines = hunk.splitlines(keepends=True)
    return tuple("".join(line[1:] or line for line in lines if line[0] != other) for other in "+-")


def without_segue(name: str) -> str:
    """The example as it was before the documented lines were added."""
    text = (FOLDER / f"{name}.py").read_text()
    for hunk in DIFFS[name].split("@@\n"):
        old, new = hunk_sides(hunk)
        assert text.count(new) == 1, f"not in {name}.py, or not once:\n{new}"
        text = text.replace(new, old)
    return text


def run(path: Path, examples: int, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [str(path), str(examples)])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_documented_and_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NEEDS, "textures"}
    assert set(DIFFS) == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_the_documented_lines_are_all_that_segue_adds(name):
    code = without_segue(name).split('"""', 2)[2]  # after the header
    assert "segue" not in code.lower() and "stage" not in code
    compile(code, name, "exec")
    assert 5 <= sum(line.startswith("+") and line != "+" for line in DIFFS[name].splitlines()) <= 9


@pytest.mark.parametrize("name", NEEDS)
def test_the_example_learns_and_says_its_stage(name, monkeypatch, capsys):
    for module in NEEDS[name]:
        pytest.importorskip(module)
    out = run(FOLDER / f"{name}.py", 320, monkeypatch, capsys)
    assert "0 examples: semantic stage by condition-gain (r 0.00), alignment 0.50" in out
    losses = [float(x) for x in re.findall(r"loss'?:? ([\d.]+)", out)]
    assert losses[-1] < (0.8 * losses[0] if len(losses) > 1 else 2.0)


@pytest.mark.parametrize("name", ["plain", "lightning_module"])
def test_the_example_runs_without_segue_too(name, monkeypatch, capsys, tmp_path):
    for module in NEEDS[name]:
        pytest.importorskip(module)
    path = tmp_path / f"{name}.py"
    path.write_text(without_segue(name))
    assert "loss" in run(path, 96, monkeypatch, capsys)


def test_stable_audios_blocks_have_signatures():
    """Names of both trainers are known to stage/variants/block_weights."""
    import torch

    import segue

    diffusers = pytest.importorskip("diffusers")
    model = diffusers.StableAudioDiTModel(
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
    )
    signed = segue.attach(model.transformer_blocks).signatures()
    assert signed.shape == (3, 2, 32, 32) and torch.isfinite(signed).all()


def test_stable_audio_tools_blocks_have_signatures():
    import segue

    for module in NEEDS["stable_audio_tools_dit"]:
        pytest.importorskip(module)
    from stable_audio_tools.models.dit import DiffusionTransformer

    model = DiffusionTransformer(io_channels=4, embed_dim=64, depth=3, num_heads=2, cond_token_dim=8)
    # Its branches start at zero: nothing is written yet, but everything is read.
    assert segue.attach(model.transformer.layers).signatures().shape == (3, 2, 64, 64)
