"""The fast forms of attention, modulation and positions compute what the plain ones do."""

import copy

import pytest
import torch
from torch.nn import functional as F

from segue.models import attention
from segue.models.attention import CrossAttention, LayerNorm, SelfAttention, attend, multiply_add, token_bias
from segue.models.dit import DiT, DiTConfig
from segue.models.positions import KEPT, Tables, rotary_tables, rotate, sinusoid_frequencies, window_bias
from segue.types import Condition

CPU = torch.device("cpu")
SMALL = DiTConfig(channels=6, text_dim=10, width=32, depth=2, heads=4, adaln_rank=4)


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_attention(layer, q, k, v, bias, rotary):
    """As it was written before: heads first, norms, two rotated halves, softmax."""

    def turned(x):
        if rotary is None:
            return x
        cos, sin = rotary
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    q, k, v = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (q, k, v))
    q, k = turned(layer.q_norm(q)), turned(layer.k_norm(k))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    mixed = (logits if bias is None else logits + bias).softmax(-1) @ v
    return layer.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("padded", [False, True])
def test_self_attention_is_the_plain_one(padded):
    torch.manual_seed(0)
    layer = SelfAttention(32, 4).double()
    x = drawn(2, 7, 32).requires_grad_()
    real = torch.arange(7) < torch.tensor([[7], [4]]) if padded else None
    bias = token_bias(real, x, 0, Tables())
    rotary = rotary_tables(7, 8, CPU, torch.float64)
    fast = layer(x, bias, rotary)
    plain = plain_attention(layer, *layer.qkv(x).chunk(3, dim=-1), bias, rotary)
    torch.testing.assert_close(fast, plain, atol=1e-10, rtol=1e-10)
    wanted = (x, *layer.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (fast, plain))):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_cross_attention_is_the_plain_one():
    torch.manual_seed(0)
    layer = CrossAttention(32, 4).double()
    x, context = drawn(2, 7, 32), drawn(2, 5, 32, seed=1)
    bias = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    bias[1, ..., 3:] = float("-inf")
    plain = plain_attention(layer, layer.q(x), *layer.kv(context).chunk(2, dim=-1), bias, None)
    torch.testing.assert_close(layer(x, context, bias), plain, atol=1e-10, rtol=1e-10)


def test_a_single_key_needs_no_queries():
    torch.manual_seed(0)
    layer = CrossAttention(32, 4).double()
    x, context = drawn(2, 7, 32), drawn(2, 1, 32, seed=1)
    trained = layer(x, context, None)
    with torch.no_grad():
        shared = layer(x, context, None)
    assert shared.shape == (2, 1, 32)
    torch.testing.assert_close(shared.expand_as(trained), trained, atol=1e-10, rtol=1e-10)


def test_gradients_of_our_own_functions_are_those_of_finite_differences():
    rotary = rotary_tables(3, 4, CPU, torch.float64)
    x = drawn(2, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotary), (x,))
    y, b = drawn(2, 3, 4, seed=1).requires_grad_(), drawn(2, 1, 4, seed=2).requires_grad_()
    for a in (drawn(2, 1, 4, seed=3).requires_grad_(), drawn(2, 3, 4, seed=4).requires_grad_()):
        torch.testing.assert_close(multiply_add(a, b, y), a + b * y)
        assert torch.autograd.gradcheck(multiply_add, (a, b, y))


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_in_bfloat16_agree_with_torchs_kernel(masked):
    bias = torch.zeros(2, 1, 1, 9, dtype=torch.bfloat16)
    if masked:
        bias[1, ..., 5:] = float("-inf")
    q, k, v = (drawn(2, 3, 9, 8, seed=s, dtype=torch.bfloat16).requires_grad_() for s in range(3))
    ours = attend(q, k, v, bias)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    for a, b in zip(*(torch.autograd.grad(y.float().square().sum(), (q, k, v)) for y in (ours, theirs))):
        assert float((a - b).float().norm() / b.float().norm()) < 0.02
    assert float((ours - theirs).detach().float().norm() / theirs.detach().float().norm()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_keeps_the_type_of_its_tokens_under_autocast(dtype, affine):
    norm, x = LayerNorm(16, affine), drawn(3, 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), F.layer_norm(x.float(), (16,), eps=1e-6), atol=2e-2, rtol=2e-2)


# --- masks and tables -----------------------------------------------------------------------------------------------


def test_without_padding_attention_gets_no_mask(monkeypatch):
    seen = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v, bias: seen.append(bias) or v[..., :1, :].expand_as(q))
    model, x, t = DiT(SMALL), drawn(2, 6, 5, dtype=torch.float32), torch.tensor([0.2, 0.7])
    model(x, t)
    assert seen == [None] * 4  # neither self-attention nor, without a caption, cross-attention
    seen.clear()
    text = Condition(drawn(2, 3, 10, dtype=torch.float32), torch.ones(2, 3, dtype=torch.bool))
    model(x, t, text, torch.arange(5) < torch.tensor([[5], [3]]))
    assert [bias.dtype for bias in seen] == [torch.float32] * 4  # as attention adds them: none is converted in a block
    assert seen[0] is seen[2] and seen[1] is seen[3]


def test_tables_are_made_once_for_each_length_device_and_type():
    tables = Tables()
    first = tables.get(rotary_tables, 5, 8, CPU, torch.float32)
    assert tables.get(rotary_tables, 5, 8, CPU, torch.float32) is first
    assert tables.get(rotary_tables, 5, 8, CPU, torch.bfloat16)[0].dtype == torch.bfloat16
    for length in range(KEPT + 1):
        tables.get(sinusoid_frequencies, 2 * length, CPU)
    assert len(tables._made) == KEPT
    bias = tables.get(window_bias, 4, 1, CPU, torch.float32)[0, 0]
    assert torch.equal(bias == 0, (torch.arange(4)[:, None] - torch.arange(4)).abs() <= 1)


def test_tables_made_for_inference_serve_training_and_copies_and_are_not_saved():
    model = DiT(SMALL)
    names = set(model.state_dict())
    x, t = drawn(2, 6, 5, dtype=torch.float32), torch.tensor([0.2, 0.7])
    with torch.inference_mode():
        first = model(x, t).prediction
    twin = copy.deepcopy(model)
    assert set(model.state_dict()) == names == set(twin.state_dict())
    for some in (model, twin):
        out = some(x, t).prediction
        assert torch.equal(out, first)
        out.square().sum().backward()
    model.double()
    assert model(x.double(), t.double()).prediction.dtype == torch.float64
