import json

import pytest

from segue.process.timesteps import LogitNormal, Mixture
from segue.stage.adaptive_timesteps import stage_law
from segue.stage.controller import ControllerState, Observation, StageController
from segue.stage.policy import Policy
from segue.types import UserError


def test_a_static_policy_decides_the_same_throughout():
    controller = StageController(Policy(law=LogitNormal(0.5, 1.0)))
    state = controller.init(1000)
    laws, reasons = set(), set()
    for seen in range(0, 1000, 100):
        state, decision = controller.update(state, Observation(seen))
        assert state.examples_seen == seen
        laws.add(decision.timesteps)
        reasons.add(decision.reason)
    assert laws == {LogitNormal(0.5, 1.0)} and len(reasons) == 1


def test_state_survives_json_and_the_controller_keeps_nothing():
    controller = StageController(Policy())
    state, _ = controller.update(controller.init(500), Observation(120))
    back = ControllerState.from_json(json.loads(json.dumps(state.to_json())))
    assert back == state
    fresh = StageController(Policy())
    assert fresh.update(back, Observation(200)) == controller.update(state, Observation(200))


def test_a_run_without_length_is_refused():
    with pytest.raises(UserError, match="total_examples"):
        StageController(Policy()).init(0)


def test_stage_law_leans_from_noise_to_data_as_the_regime_moves():
    means = [stage_law(r).mean() for r in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert means == sorted(means, reverse=True)
    assert means[2] == pytest.approx(0.5, abs=1e-6)  # both parts are symmetric at mu = 0
    assert means[0] + means[4] == pytest.approx(1.0, abs=1e-6)  # the two ends mirror each other
    assert isinstance(stage_law(0.3), Mixture)


def test_no_noise_level_starves_at_either_end():
    import torch

    t = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    for regime in (0.0, 0.5, 1.0):
        assert stage_law(regime, floor=0.5).density(t).min() >= 0.5


@pytest.mark.parametrize("regime", [-0.1, 1.1])
def test_a_regime_outside_its_range_is_an_error(regime):
    with pytest.raises(ValueError, match="regime"):
        stage_law(regime)
