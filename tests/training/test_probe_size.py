"""The size of a probe that nobody gave: a fiftieth of a long run's work at most, decided before the run begins."""

from dataclasses import replace

import pytest

from segue.recipes import load_recipe
from segue.stage.discrepancy import next_probe, probes_in
from segue.training.config import RunConfig, override
from segue.training.probe_size import settled_probe


def run(examples: int, *settings: str, recipe: str = "stage") -> RunConfig:
    config = override(load_recipe(recipe), settings)
    return settled_probe(replace(config, train=replace(config.train, total_examples=examples)))


def share(config: RunConfig, asked: int) -> float:
    probe = config.policy.probe
    total = config.train.total_examples
    return probes_in(probe, total) * probe.clips * asked / 3 / total


@pytest.mark.parametrize("examples", [50_000, 144_000, 400_000])
def test_probes_take_a_fiftieth_of_a_long_run(examples):
    by_level = run(examples, recipe="stage-by-level")
    assert 8 < by_level.policy.probe.clips <= 64 and share(by_level, 4) <= 0.02
    assert by_level.policy.probe.clips == 64 or share(by_level, 4) > 0.016
    gain = run(3 * examples)
    assert 16 < gain.policy.probe.clips <= 32 and share(gain, 3) <= 0.005


def test_low_bands_are_asked_for_again_at_every_time_and_captions_at_one():
    sizes = [run(n).policy.probe.clips for n in (90_000, 150_000, 400_000)]
    assert sizes[0] == 16 and 16 < sizes[1] < sizes[2] == 32
    low_bands = run(150_000, recipe="sr-demo")
    assert share(run(150_000), 3) <= 0.005 and share(low_bands, 4) <= 0.005
    assert low_bands.policy.probe.clips < sizes[1]


def test_a_short_run_has_the_smallest_probe_and_what_is_given_stays():
    assert run(2_000).policy.probe.clips == 16
    assert run(2_000, recipe="stage-by-level").policy.probe.clips == 8
    assert run(2_000, "probe.clips=32", "probe.space=waveform").policy.probe.clips == 32
    again = settled_probe(run(60_000))
    longer = settled_probe(replace(again, train=replace(again.train, total_examples=120_000)))
    assert longer.policy == again.policy  # a run that is resumed for longer keeps its probe


@pytest.mark.parametrize("recipe", ["stage", "stage-by-level", "sr-demo"])
def test_probes_of_a_short_run_stand_further_apart(recipe):
    asked = 3 if recipe == "stage" else 4
    for examples in (640, 2_000, 6_000, 12_000):
        config = run(examples, recipe=recipe)
        probe = config.policy.probe
        # A twentieth of the work between two of them.
        assert probe.clips * asked / 3 == pytest.approx(0.05 * probe.closest_examples, rel=0.01)
        assert share(config, asked) <= 0.05 + 2 * probe.clips * asked / 3 / examples  # and those at both ends
    assert probes_in(run(640, recipe=recipe).policy.probe, 640) <= 5
    # A run that is resumed for longer has as many as one of that length, or more.
    assert probes_in(run(640, recipe=recipe).policy.probe, 100_000) >= probes_in(run(100_000).policy.probe, 100_000)
    # A probe whose size is given keeps its places, too, and a distance that is given stays.
    assert run(640, "probe.clips=16", recipe=recipe).policy.probe.closest_examples == 0
    assert run(640, "probe.closest_examples=9", recipe=recipe).policy.probe.closest_examples == 9


def test_a_doubling_has_as_many_probes_as_a_line_needs():
    probe, total = run(100_000).policy.probe, 100_000
    places = [0]
    while places[-1] < total:
        places.append(next_probe(probe, places[-1], total))
    for end in (n for n in places if n > total / 4):
        assert sum(end / 2 <= n <= end for n in places) >= 8


def test_the_space_is_that_of_the_model():
    assert run(8_000).policy.probe.space == "latent"
    assert run(8_000, "probe.space=waveform").policy.probe.space == "waveform"
    assert run(8_000, recipe="sr-demo").policy.probe.space == "waveform"
    assert run(8_000, "model.pretrained=somewhere").policy.probe.space == "waveform"
