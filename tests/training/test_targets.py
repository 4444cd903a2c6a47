"""Other targets of the alignment, the contrastive loss, a second tap: closed forms, resume, and ranks by halves."""

from dataclasses import replace

import pytest
import torch
from running import assert_same, run

from segue.process.noise import BatchDraws
from segue.process.path import velocity_target
from segue.stage.alignment import Aligner, AlignmentConfig, alignment_loss
from segue.training.config import override
from segue.training.optim import make_optimizer, set_rate
from segue.training.step import Example
from segue.training.targets import LatentTargets, OwnTargets, other_targets
from segue.types import Condition, ModelOutput, UserError


def example(count=6, seed=0, mask=None):
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = (torch.randn(count, 3, 8, generator=generator) for _ in range(2))
    t = torch.rand(count, generator=generator)
    tokens = torch.randn(count, 2, 4, generator=generator)
    return Example(x_0, eps, t, Condition(tokens, torch.ones(count, 2, dtype=torch.bool)), mask)


def test_neighbours_are_pairs_so_that_half_a_batch_holds_both():
    whole = example()
    found = other_targets(whole, "velocity")
    expected = velocity_target(whole.x_0, whole.eps)
    assert torch.equal(found[0::2], expected[1::2]) and torch.equal(found[1::2], expected[0::2])
    halves = [replace(whole, x_0=whole.x_0[s], eps=whole.eps[s], t=whole.t[s]) for s in (slice(0, 4), slice(4, 6))]
    assert torch.equal(torch.cat([other_targets(half, "velocity") for half in halves]), found)
    assert torch.equal(other_targets(whole, "clean")[0], whole.x_0[1])


def test_latents_are_their_own_features():
    mask = torch.arange(8)[None] < torch.tensor([8, 5])[:, None]
    features, real = LatentTargets()(example(2, mask=mask), BatchDraws(0, 0, 2))
    assert features.shape == (2, 8, 3) and torch.equal(real, mask)
    assert torch.equal(features[1, 4], example(2).x_0[1, :, 4])


class Doubling(torch.nn.Module):
    """One block, that doubles the noisy latents: what it was shown can be read off its tokens."""

    class config:
        prepended = 0

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False)])
        self.blocks[0].weight.data = 2 * torch.eye(3)

    def forward(self, x_t, t, condition, mask):
        self.times = t
        return ModelOutput(self.blocks[0](x_t.transpose(1, 2)).transpose(1, 2))


class Grid:
    def tokens_mask(self, mask):
        return mask


def test_the_averaged_model_sees_the_same_clip_at_lower_noise():
    ema, given = Doubling(), example()
    features, real = OwnTargets(ema, Grid())(given, BatchDraws(3, 0, 6))
    assert bool((ema.times < given.t).all()) and bool(real.all())
    x_s = (1 - ema.times[:, None, None]) * given.x_0 + ema.times[:, None, None] * given.eps
    torch.testing.assert_close(features, torch.nn.functional.layer_norm(2 * x_s.transpose(1, 2), (3,)))
    again, _ = OwnTargets(ema, Grid())(given, BatchDraws(3, 0, 6))
    assert torch.equal(features, again) and not ema.blocks[0]._forward_hooks


def test_two_taps_share_the_weight():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
    statistics = torch.zeros(5), torch.ones(5)
    aligner = Aligner(AlignmentConfig(weight=1.0, tap=1, second_tap=3), blocks, statistics)
    x, target = torch.randn(2, 6, 8), torch.randn(2, 6, 5)
    for block in blocks:
        x = block(x)
    hidden = [tap.hidden for tap in aligner.taps]
    parts = [
        alignment_loss(projector(h, 6), target)
        for projector, h in zip((aligner.projector.first, aligner.projector.second), hidden)
    ]
    found = aligner.distance(target, torch.full((2,), 0.5))
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)
    assert not torch.equal(*(p.layers[0].weight for p in (aligner.projector.first, aligner.projector.second)))
    aligner.remove()
    assert not any(block._forward_hooks for block in blocks)


CHANGES = {
    "latents": ["alignment.target=latents"],
    "self": ["alignment.target=self"],
    "two taps": ["alignment.tap=1", "alignment.second_tap=2"],
    "contrastive": ["train.contrastive=0.05"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_changes_the_run_and_resumed_equals_uninterrupted(taught, recipe, tmp_path, name):
    plain = recipe("repa", "train.total_examples=32", "train.checkpoint_every=16")
    config = override(plain, CHANGES[name])
    _, whole = run(config, taught, tmp_path / "whole")
    assert any(not torch.equal(v, whole[k]) for k, v in run(plain, taught, tmp_path / "plain")[1].items())
    run(override(config, ["train.total_examples=32"]), taught, tmp_path / "cut")
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    result, again = run(config, taught, tmp_path / "cut", resume=True)
    assert result.finished
    assert_same(again, whole)


@pytest.mark.parametrize("target", ["latents", "self"])
def test_no_teacher_is_needed(cache, recipe, tmp_path, target):
    config = recipe("repa", "train.total_examples=16", f"alignment.target={target}", "probe.run=never")
    assert run(config, cache, tmp_path)[0].finished


def test_pieces_of_a_batch_give_what_the_whole_gives(taught, recipe, tmp_path):
    config = recipe("repa", "train.total_examples=16", "train.contrastive=0.05", "alignment.target=self")
    _, whole = run(config, taught, tmp_path / "whole")
    _, pieces = run(override(config, ["train.accumulation=3"]), taught, tmp_path / "pieces")
    assert_same(whole, pieces, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        ("train.contrastive=1", "a share below 1"),
        ("train.contrastive=-0.1", "a share below 1"),
        ("alignment.target=nobody", "use teacher, latents or self"),
        ("optim.muon_rate=0", "give a positive number"),
        ("alignment.second_tap=1.5", "a block index"),
    ],
)
def test_what_cannot_be_is_refused(recipe, change, words):
    with pytest.raises(UserError, match=words):
        recipe("repa", change)


def test_pairs_need_an_even_batch(taught, recipe, tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size a multiple of 2"):
        run(recipe("static-uniform", "train.contrastive=0.05", "train.batch_size=5"), taught, tmp_path)


def test_muon_has_a_rate_and_a_decay_of_its_own():
    from segue.models.dit import DiT, DiTConfig
    from segue.training.config import OptimConfig

    model = DiT(DiTConfig(channels=4, text_dim=6, width=16, depth=1, heads=2))
    config = OptimConfig(kind="muon", learning_rate=0.01, muon_rate=4.0, muon_weight_decay=0.0)
    optimizer = make_optimizer(model, config)
    assert set_rate(optimizer, 0.002) == 0.002
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.008, 0.002, 0.002])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01, 0.0]
