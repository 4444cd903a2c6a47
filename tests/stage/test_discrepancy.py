import pytest
import torch

from segue.stage.alignment import standardise
from segue.stage.discrepancy import (
    ProbeConfig,
    next_probe,
    probe_sums,
    probes_in,
    reading_of,
    target_statistics,
)
from segue.types import UserError

M, S, F = 20, 7, 64


@pytest.fixture
def targets():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(M, S, dtype=torch.bool)
    mask[::3, 5:] = False
    features = torch.randn(M, S, F, generator=generator, dtype=torch.float64) * 5 + 3
    return standardise(features, *target_statistics(features, mask)), mask


def reading(predicted, targets, mask, rows=None):
    rows = list(range(M)) if rows is None else rows
    return reading_of(probe_sums(predicted[:, rows], rows, targets, mask), (0.5, 0.9)[: len(predicted)])


def test_targets_are_standardised_over_real_frames(targets):
    values, mask = targets
    torch.testing.assert_close(values[mask].mean(0), torch.zeros(F, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(values[mask].std(0, correction=0), torch.ones(F, dtype=torch.float64))


def test_the_truth_has_none_another_clip_has_one(targets):
    values, mask = targets
    assert reading(values[None], values, mask).value == pytest.approx(0, abs=1e-9)
    other = values.roll(1, 0)[None]  # no shift of the probe pairs a clip with its neighbour
    assert reading(other, values, torch.ones_like(mask)).value == pytest.approx(1, abs=0.05)


def test_it_falls_with_the_share_of_truth_and_ignores_scale(targets):
    values, mask = targets
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # cos between a x + b n and x is a / sqrt(a^2 + b^2), and about 0 to other clips
    for a, b in ((1.0, 0.5), (1.0, 1.0), (1.0, 3.0)):
        expected = 1 - a / (a * a + b * b) ** 0.5
        assert reading((a * values + b * noise)[None], values, mask).value == pytest.approx(expected, abs=0.05)
    mixed = values + noise
    assert reading(7 * mixed[None], values, mask).value == pytest.approx(reading(mixed[None], values, mask).value)


def test_padding_is_not_heard(targets):
    values, mask = targets
    spoiled = torch.where(mask[..., None], values, torch.full_like(values, 1e3))
    assert reading(spoiled[None], values, mask).value == pytest.approx(0, abs=1e-9)


def test_parts_of_a_probe_add_up_to_the_whole(targets):
    values, mask = targets
    predicted = torch.stack([values + 0.5, values.roll(2, 0) * 0.3 + values])
    whole = probe_sums(predicted, list(range(M)), values, mask)
    parts = [list(range(rank, M, 3)) for rank in range(3)]
    added = sum(probe_sums(predicted[:, rows], rows, values, mask) for rows in parts)
    torch.testing.assert_close(added, whole, rtol=1e-12, atol=1e-12)
    both = reading_of(whole, (0.5, 0.9))
    assert both.value == pytest.approx(sum(d for _, d in both.by_time) / 2)
    assert [t for t, _ in both.by_time] == [0.5, 0.9]


def test_a_broken_model_reads_as_not_finite(targets):
    values, mask = targets
    assert not torch.isfinite(torch.tensor(reading(values[None] * float("nan"), values, mask).value))


def test_probes_stand_evenly_at_first_and_at_constant_ratios_later():
    config, total = ProbeConfig(spacing=1.1, closest=0.01), 100_000
    places = [0]
    while places[-1] < total:
        places.append(next_probe(config, places[-1], total))
    assert places[:4] == [0, 2000, 3000, 4000] and places[-1] == total
    late = [b / a for a, b in zip(places, places[1:]) if a >= 10_000][:-1]
    assert all(ratio == pytest.approx(1.1, abs=1e-3) for ratio in late) and len(late) > 20
    assert probes_in(config, total) == len(places) and next_probe(config, total, total) > total


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"clips": 7}, "probe.clips"), ({"times": (0.5, 1.0)}, "probe.times"), ({"times": ()}, "probe.times"),
     ({"spacing": 1.0}, "probe.spacing"), ({"closest": 1.0}, "probe.closest"), ({"space": "mel"}, "probe.space"), ({"run": "yes"}, "probe.run"),
     ({"first": 0.0}, "probe.first")],
)  # fmt: skip
def test_a_probe_that_cannot_measure_is_refused(wrong, named):
    with pytest.raises(UserError, match=named):
        ProbeConfig(**wrong)
