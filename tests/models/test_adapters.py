"""What adapters read off a pipeline's configuration: path, times, grids, timestep distributions."""

import json
import math
import shutil

import pytest
import torch

from segue.models.adapters import adapter_of, load_adapter, read_adapter_config
from segue.models.adapters.base import own_time, sigmas_of
from segue.process.timesteps import LogitNormal, Shifted, Uniform, UniformAngle
from segue.types import UserError

TIMES = torch.tensor([0.01, 0.3, 0.5, 0.8, 0.998], dtype=torch.float64)
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0,
       "prediction_type": "v_prediction"}  # fmt: skip


def test_each_schedulers_time_is_that_of_the_same_noise_level():
    sigma = TIMES / (1 - TIMES)
    cosine = own_time(TIMES, {"_class_name": "CosineDPMSolverMultistepScheduler"})
    torch.testing.assert_close(cosine, sigma.atan() / math.pi * 2)
    diffusers = pytest.importorskip("diffusers")
    edm = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=1.0)
    torch.testing.assert_close(own_time(TIMES, EDM), edm.precondition_noise(sigma))
    straight = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    torch.testing.assert_close(own_time(TIMES, straight), TIMES * 1000)


@pytest.mark.parametrize("schedule", ["exponential", "karras"])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_the_grid_of_noise_levels_is_the_schedulers(schedule, last):
    diffusers = pytest.importorskip("diffusers")
    options = {**EDM, "sigma_schedule": schedule, "final_sigmas_type": last}
    theirs = diffusers.EDMDPMSolverMultistepScheduler(**{k: v for k, v in options.items() if k[0] != "_"})
    theirs.set_timesteps(9)
    torch.testing.assert_close(sigmas_of(options, 9).float(), theirs.sigmas, rtol=1e-5, atol=1e-6)


def with_scheduler(folder, out, **changes):
    shutil.copytree(folder, out)
    path = out / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(out)


def test_what_a_checkpoint_predicts_and_was_trained_with(tiny_folders, tmp_path):
    read = {kind: load_adapter(str(folder)) for kind, folder in tiny_folders.items()}
    assert {kind: model.predicts for kind, model in read.items()} == {
        "stable-audio": "v", "stable-audio-3": "velocity", "ace-step": "velocity"}  # fmt: skip
    assert [model.timesteps for model in read.values()] == [UniformAngle(), Uniform(), LogitNormal(-0.4, 1.0)]
    shifted = with_scheduler(tiny_folders["ace-step"], tmp_path / "shifted", shift=3.0)
    assert load_adapter(shifted).timesteps == Shifted(LogitNormal(-0.4, 1.0), 3.0)
    # The published Stable Audio Open has this scheduler, and one of its successors a straight path.
    cosine = with_scheduler(
        tiny_folders["stable-audio"], tmp_path / "c", _class_name="CosineDPMSolverMultistepScheduler"
    )
    assert read_adapter_config(cosine).predicts == "v"
    straight = with_scheduler(
        tiny_folders["stable-audio"], tmp_path / "s", _class_name="FlowMatchEulerDiscreteScheduler"
    )
    assert load_adapter(straight).predicts == "velocity" and load_adapter(straight).timesteps == Uniform()
    for number, changes in enumerate(({"sigma_data": 0.5}, {"prediction_type": "epsilon"})):
        with pytest.raises(UserError, match="only v_prediction with sigma_data 1"):
            load_adapter(with_scheduler(tiny_folders["stable-audio"], tmp_path / str(number), **changes))


@pytest.mark.parametrize("kind", ["stable-audio", "stable-audio-3", "ace-step"])
def test_an_adapter_is_made_again_from_its_shape_and_weights(kind, tiny_folders):
    model = load_adapter(str(tiny_folders[kind]))
    before = torch.get_rng_state()
    again = adapter_of(type(model.config)(**json.loads(json.dumps(vars(model.config)))))
    assert torch.equal(before, torch.get_rng_state())
    again.load_state_dict(model.state_dict())
    assert len(again.blocks) == model.config.depth == 3
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"transformer"}
    with pytest.raises(ValueError, match="9 blocks"):
        adapter_of(type(model.config)(**{**vars(model.config), "depth": 9}))


def test_weights_that_are_missing_are_told(tiny_folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folders["ace-step"], folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("condition_embedder.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 weights \(condition_embedder.weight"):
        load_adapter(str(folder))
    file.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot load its transformer"):
        load_adapter(str(folder))
