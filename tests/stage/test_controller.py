import json

import pytest

from segue.process.timesteps import LogitNormal, Mixture
from segue.stage.controller import ControllerState, Due, Observation, StageController, due_at
from segue.stage.policy import Policy
from segue.stage.timesteps import stage_distribution
from segue.types import UserError


def test_a_static_policy_decides_the_same_throughout():
    controller = StageController(Policy(static_timesteps=LogitNormal(0.5, 1.0)))
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


def test_stage_distribution_leans_from_noise_to_data_as_the_regime_moves():
    means = [stage_distribution(r).mean() for r in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert means == sorted(means, reverse=True)
    assert means[2] == pytest.approx(0.5, abs=1e-6)  # both parts are symmetric at mu = 0
    assert means[0] + means[4] == pytest.approx(1.0, abs=1e-6)  # the two ends mirror each other
    assert isinstance(stage_distribution(0.3), Mixture)


def test_no_noise_level_starves_at_either_end():
    import torch

    t = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    for regime in (0.0, 0.5, 1.0):
        assert stage_distribution(regime, floor=0.5).density(t).min() >= 0.5


@pytest.mark.parametrize("regime", [-0.1, 1.1])
def test_a_regime_outside_its_range_is_an_error(regime):
    with pytest.raises(ValueError, match="regime"):
        stage_distribution(regime)


def test_a_recipe_explains_itself_in_words():
    from segue.recipes import load_recipe
    from segue.stage.condition_gain import GainReading

    controller = StageController(load_recipe("stage").policy)
    state = controller.init(10_000)
    assert due_at(controller.policy, state, 0).probe and not due_at(controller.policy, state, 0).structure
    state, decision = controller.update(state, Observation(0, condition_gain=GainReading(0.0)))
    assert decision.reason == "semantic stage by condition-gain (r 0.00), alignment 0.50, next probe at 200 examples"
    assert decision.headline == "semantic stage by condition-gain, alignment on"
    assert not due_at(controller.policy, state, 199).probe and due_at(controller.policy, state, 200).probe


def test_a_falling_then_flat_discrepancy_moves_everything_at_once():
    """The whole controller on an exponential curve: alignment latches to zero, times turn to low noise, JSON all along."""
    import math

    from segue.recipes import load_recipe
    from segue.stage.discrepancy import Reading

    controller = StageController(load_recipe("stage").policy)
    state, total = controller.init(100_000), 100_000
    weights, means = [], []
    for seen in range(0, total + 1, 100):
        state = ControllerState.from_json(json.loads(json.dumps(state.to_json())))
        value = 0.04 + 0.66 * math.exp(-seen / 8_000)
        probe = Reading(value, ((0.5, value), (0.9, value))) if due_at(controller.policy, state, seen).probe else None
        state, decision = controller.update(state, Observation(seen, discrepancy=probe))
        weights.append(decision.alignment_weight)
        means.append(decision.timesteps.mean())
    assert weights == sorted(weights, reverse=True) and weights[0] == 0.5 and weights[-1] == 0.0
    assert means[0] > 0.55 and means[-1] < 0.45
    assert "refinement stage" in decision.reason and "alignment off" in decision.reason


def test_the_last_probe_stands_at_the_end():
    from segue.recipes import load_recipe

    controller = StageController(load_recipe("time-ramp").policy)
    state, total = controller.init(1000), 1000
    probed = []
    for seen in range(0, total + 1, 8):
        if due_at(controller.policy, state, seen).probe:
            probed.append(seen)
        state, decision = controller.update(state, Observation(seen))
    assert probed[0] == 0 and probed[-1] == total
    assert decision.regime.regime == 1.0


def test_what_the_loop_has_asked_already_is_not_asked_again():
    """An observation says what was due; without that word the controller looks itself, and decides alike."""
    from segue.recipes import load_recipe

    controller = StageController(load_recipe("time-ramp").policy)
    state = controller.init(1000)
    due = due_at(controller.policy, state, 0)
    assert due == Due(probe=True)
    assert controller.update(state, Observation(0, due=due)) == controller.update(state, Observation(0))
    state, decision = controller.update(state, Observation(500, due=Due()))
    assert decision.regime.regime == 0.0 and state.next_probe == 0  # nothing was due, so nothing was read


def test_what_a_step_brought_comes_with_an_observation():
    from segue.recipes import load_recipe
    from segue.stage.variants.learned_timesteps import update_learned

    controller = StageController(load_recipe("adaptive-timesteps").policy)
    state = controller.init(10_000)
    drops = ((0.2, 1.0), (0.8, 3.0), (0.5, 1.5))
    after, decision = controller.update(state, Observation(1280, loss_drops=drops))
    assert after.learned == update_learned(state.learned, *zip(*drops), 1280) != state.learned
    assert decision.timesteps == after.learned.distribution


def test_a_state_of_the_first_version_is_read():
    controller = StageController(Policy())
    state, _ = controller.update(controller.init(500), Observation(120))
    old = state.to_json() | {"probe_print": [0.5, 0.25]}
    del old["fingerprint"]
    assert ControllerState.from_json(old).fingerprint == (0.5, 0.25)
