"""`--device auto` is the best device there is, said once; one that is not there is refused in one line."""

import pytest
import torch

from segue.devices import announced_device, describe_device, device_of
from segue.types import UserError


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")]
)
def test_auto_takes_the_best_there_is(monkeypatch, cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_of("auto") == found and device_of("cpu") == "cpu"


def test_what_is_not_there_is_refused_with_what_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="--device cuda:2: 2 of them are here; hint: --device cuda:0"):
        device_of("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UserError, match=f"--device {name}: there is none here; hint: --device cpu"):
            device_of(name)


def test_the_choice_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert announced_device("cpu") == "cpu"
    assert capsys.readouterr().err == "device: cpu (2 threads)\n"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"some GPU {device}")
    assert describe_device("cuda:1") == "cuda:1 (some GPU cuda:1)"


def test_an_accelerator_of_another_kind_is_refused():
    """accelerate keeps one choice for a process: a run that asks for another must not compute elsewhere in silence."""
    from types import SimpleNamespace

    from segue.recipes import load_recipe
    from segue.training import build

    class Taken(SimpleNamespace):
        def Accelerator(self, cpu):
            return SimpleNamespace(device=torch.device("cpu"), num_processes=1, distributed_type="NO")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "import_extra", lambda *_: Taken())
        patch.setattr(build, "device_of", lambda name: name)
        assert build.make_accelerator(load_recipe("stage"), "cpu").device.type == "cpu"
        with pytest.raises(UserError, match="--device mps: this process computes on cpu already"):
            build.make_accelerator(load_recipe("stage"), "mps")
