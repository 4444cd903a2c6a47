import json

import pytest
import torch
from safetensors.torch import save_file

from segue.models.dit import DiT, DiTConfig
from segue.models.files import ModelCard, load_model, save_model
from segue.types import UserError

CONFIG = DiTConfig(channels=4, text_dim=6, width=16, depth=2, heads=2)


def write(path, **changes):
    model = DiT(CONFIG)
    ema = {k: v + 1 for k, v in model.state_dict().items()}
    card = ModelCard(**{"model": CONFIG.__dict__, "codec": {"name": "x"}, "codec_source": "x", "text": {"name": "y"},
                        "seconds": 2.0, "examples_seen": 64, "recipe": "r", **changes})  # fmt: skip
    save_model(path, model.state_dict(), ema, torch.zeros(4, 1), torch.ones(4, 1), card)
    return model


def test_weights_and_average_come_back(tmp_path):
    model = write(tmp_path / "m.safetensors")
    plain = load_model(tmp_path / "m.safetensors", "model")
    averaged = load_model(tmp_path / "m.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(plain.model.state_dict()[name], value)
        assert torch.equal(averaged.model.state_dict()[name], value + 1)
    assert plain.card.examples_seen == 64 and plain.std.shape == (4, 1)
    assert not plain.model.training


def test_what_is_no_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_model(path)
    path.write_bytes(b"RIFF not this")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a segue model"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path, {"segue": json.dumps({"schema_version": 99})})
    with pytest.raises(UserError, match="schema 99"):
        load_model(path)
    write(path, model={**CONFIG.__dict__, "width": 32})
    with pytest.raises(UserError, match="do not fit"):
        load_model(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable"):
        load_model(path)
