"""Validation over several ranks gives the figures of one, whatever their number."""

from types import SimpleNamespace

import pytest
import torch

from segue.training.build import build_model, make_task
from segue.training.validation import make_validation_set, validate


class Rank(SimpleNamespace):
    """accelerate's handle of one of several ranks, which are asked one after the other."""

    def gather(self, tensor):
        self.shared.append(tensor)
        return torch.cat(self.shared) if self.process_index == self.num_processes - 1 else tensor


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_clips_and_find_what_one_finds(cache, config, world):
    model = build_model(config, cache, 0)
    # Weights that are not those of the start, where every prediction is 0.
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    task, cpu = make_task(config, cache), torch.device("cpu")
    one = make_validation_set(task, cache, config, Rank(process_index=0, num_processes=1, device=cpu, shared=[]))
    expected = validate(model, one)
    shared = []
    for index in range(world):
        rank = Rank(process_index=index, num_processes=world, device=cpu, shared=shared)
        held_out = make_validation_set(task, cache, config, rank)
        assert len(held_out.examples[0].t) == -(-4 // world) and held_out.clips == 4
        found = validate(model, held_out)
    assert found == pytest.approx(expected, rel=1e-6)
