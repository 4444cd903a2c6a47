import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import segue
from segue.models.dit import DiT, DiTConfig
from segue.types import UserError


@pytest.fixture
def dit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiT(DiTConfig(channels=4, text_dim=8, width=16, depth=6, heads=2))


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 10, generator=generator), torch.tensor([0.3, 0.8])


def test_the_tap_is_what_its_block_hands_to_the_next(dit):
    tap = segue.attach(dit.blocks, at=0.33)
    taken = []
    dit.blocks[2].register_forward_pre_hook(lambda block, args: taken.append(args[0]))
    dit(*inputs())
    assert tap.index == 1
    assert torch.equal(tap.hidden, taken[0])


def test_a_checkpointed_model_gives_the_same_tokens_and_gradients(dit):
    tap = segue.attach(dit.blocks, at=2)
    found = []
    for checkpointing in (False, True):
        dit.gradient_checkpointing = checkpointing
        dit.zero_grad()
        out = dit(*inputs()).prediction
        (tap.hidden.square().mean() + out.mean()).backward()
        found.append([p.grad for p in dit.parameters() if p.grad is not None])
        tap.clear()
    assert len(found[0]) == len(found[1]) > 20 and all(torch.equal(a, b) for a, b in zip(*found))


def test_gradients_reach_the_blocks_up_to_the_tap_and_no_further(dit):
    tap = segue.attach(dit.blocks, at=2)
    dit(*inputs())
    tap.hidden.square().mean().backward()
    touched = [any(p.grad is not None for p in block.parameters()) for block in dit.blocks]
    assert touched == [True] * 3 + [False] * 3


def test_nothing_stays_on_the_model(dit):
    with segue.attach(dit.blocks) as tap:
        before = dit(*inputs()).prediction
        assert len(dit.blocks[tap.index]._forward_hooks) == 1
    assert not dit.blocks[tap.index]._forward_hooks
    assert torch.equal(dit(*inputs()).prediction, before)
    with pytest.raises(UserError, match="run the model"):
        _ = tap.hidden


def test_signatures_are_those_of_the_blocks(dit):
    signed = segue.attach(dit.blocks).signatures()
    assert signed.shape == (6, 2, 16, 16) and not signed.requires_grad
    assert torch.allclose(signed.flatten(1).norm(dim=1), torch.ones(6), atol=1e-5)


def test_tuples_and_prepended_tokens_are_handled():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x), "attention weights"

    block = Block()
    tap = segue.attach(nn.ModuleList([block]), at=0.5, prepended=2)
    x = torch.randn(1, 7, 3)
    block(x)
    assert torch.equal(tap.hidden, block.linear(x)[:, 2:])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_work_unless_reentrant(reentrant):
    blocks = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tap = segue.attach(blocks, at=0)
    x = torch.randn(1, 4, 3, requires_grad=True)
    y = checkpoint(lambda x: 2 * blocks[0](x), x, use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(UserError, match="use_reentrant=False"):
            _ = tap.hidden
    else:
        (tap.hidden.sum() + blocks[1](y).sum()).backward()
        plain = torch.autograd.grad(blocks[0](x).sum() + blocks[1](2 * blocks[0](x)).sum(), blocks[0].weight)
        assert torch.allclose(blocks[0].weight.grad, plain[0])


def test_measuring_without_gradients_is_fine(dit):
    tap = segue.attach(dit.blocks)
    with torch.no_grad():
        dit(*inputs())
        assert tap.hidden.shape == (2, 10, 16)


@pytest.mark.parametrize(
    "wrong, at, words",
    [
        (nn.Linear(3, 3), 0.33, "list of blocks"),
        ([], 0.33, "one or more blocks"),
        (["block"], 0.33, "one or more blocks"),
        (nn.Sequential(nn.Linear(3, 3)), 1, "the model has 1 blocks"),
    ],
)
def test_what_cannot_be_tapped_is_one_clear_line(wrong, at, words):
    with pytest.raises(UserError, match=words):
        segue.attach(wrong, at=at)


def test_blocks_that_return_no_tokens_are_named():
    flatten = nn.Sequential(nn.Flatten())
    segue.attach(flatten, at=0)
    with pytest.raises(UserError, match="not tokens"):
        flatten(torch.ones(2, 3, 4))
