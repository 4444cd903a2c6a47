import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.models.dit import DiT, DiTConfig
from segue.stage.alignment import (
    LATCH,
    Aligner,
    AlignmentConfig,
    Projector,
    alignment_loss,
    alignment_weight,
    frames_of_step,
    interpolate,
    interpolation_matrix,
    output_alignment,
    resample_mask,
    standardise,
    time_weight,
)
from segue.stage.tap import causal_scores, tap_index
from segue.types import UserError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


unit = st.floats(0, 1)


# --- lambda and w(t) ---


@pytest.mark.parametrize(
    "schedule, regime, share, expected",
    [
        ("decay", 0.0, 0.9, 0.5),
        ("decay", 0.5, 0.1, 0.125),
        ("decay", 1.0, 0.1, 0.0),
        ("time", 0.9, 0.0, 0.5),
        ("time", 0.0, 0.5, 0.125),
        ("time", 0.0, 1.2, 0.0),
        ("constant", 1.0, 1.0, 0.5),
        ("cut", 0.9, 0.39, 0.5),
        ("cut", 0.0, 0.4, 0.0),
    ],
)
def test_each_schedule_follows_its_formula(schedule, regime, share, expected):
    assert alignment_weight(AlignmentConfig(weight=0.5, schedule=schedule), regime, share) == pytest.approx(
        expected, abs=1e-15
    )


def test_lambda_latches_to_exactly_zero():
    config = AlignmentConfig(weight=0.5)
    edge = 1 - math.sqrt(0.02)
    assert alignment_weight(config, edge - 1e-6, 0.5) == pytest.approx(0.01, rel=1e-4)
    late = alignment_weight(config, edge + 1e-6, 0.5)
    assert late == 0.0 and isinstance(late, float)
    assert alignment_weight(AlignmentConfig(), 0.0, 0.0) == 0.0


@given(
    regimes=st.lists(unit, min_size=2, max_size=20),
    schedule=st.sampled_from(["decay", "time"]),
    weight=st.floats(0, 10),
)
def test_lambda_never_rises_once_its_driver_never_falls(regimes, schedule, weight):
    config = AlignmentConfig(weight=weight, schedule=schedule)
    driver = sorted(regimes)
    weights = [alignment_weight(config, r, r) for r in driver]
    assert weights == sorted(weights, reverse=True)
    assert all(w == 0 or w >= LATCH * weight for w in weights)
    assert all(0 <= w <= weight for w in weights)


@pytest.mark.parametrize(
    "regime, share", [(-0.1, 0.5), (1.1, 0.5), (float("nan"), 0.5), (0.5, -1), (0.5, float("nan"))]
)
def test_numbers_outside_their_range_are_errors(regime, share):
    with pytest.raises(ValueError):
        alignment_weight(AlignmentConfig(weight=0.5), regime, share)


def test_clean_clips_are_not_aligned():
    t = torch.tensor([0.0, 0.0999, 0.1, 0.5, 1.0])
    assert time_weight(t).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "wrong, names",
    [
        ({"weight": -1.0}, "alignment.weight"),
        ({"weight": float("nan")}, "alignment.weight"),
        ({"schedule": "never"}, "decay, constant, cut or time"),
        ({"space": "mel"}, "hidden or output"),
        ({"cut_at": 1.5}, "alignment.cut_at"),
        ({"tap": 2.5}, "alignment.tap"),
        ({"tap": -0.5}, "alignment.tap"),
    ],
)
def test_a_wrong_option_is_named(wrong, names):
    with pytest.raises(UserError, match=names):
        AlignmentConfig(**wrong)


@pytest.mark.parametrize(
    "tap, depth, index", [(0.33, 8, 2), (0.33, 28, 8), (0.0, 8, 0), (0.999, 8, 7), (0.5, 12, 5), (1, 8, 1), (7.0, 8, 7)]
)
def test_the_tap_is_a_share_or_an_index(tap, depth, index):
    assert tap_index(tap, depth) == index


@pytest.mark.parametrize("tap, depth", [(8, 8), (-0.1, 8), (1.5, 8), (0.3, 0), (float("nan"), 8)])
def test_a_tap_outside_the_stack_is_one_clear_line(tap, depth):
    with pytest.raises(UserError, match=r"alignment\.tap is .*blocks"):
        tap_index(tap, depth)


@given(tap=st.floats(0, 1, exclude_max=True), depth=st.integers(1, 60))
def test_a_share_always_lies_in_the_stack(tap, depth):
    assert 0 <= tap_index(tap, depth) < depth


# --- from tokens to frames ---


@given(tokens=st.integers(1, 40), frames=st.integers(1, 60), span=st.floats(0.8, 1.2))
def test_interpolation_weights_are_a_partition_of_one(tokens, frames, span):
    matrix = interpolation_matrix(tokens, frames, span)
    assert matrix.shape == (frames, tokens)
    assert (matrix >= 0).all() and torch.allclose(matrix.sum(1), torch.ones(frames, dtype=torch.float64))
    assert ((matrix > 0).sum(1) <= 2).all()


def test_equal_rates_leave_tokens_alone():
    x = torch.randn(2, 7, 5, generator=seeded(), dtype=torch.float64)
    assert torch.equal(interpolate(x, interpolation_matrix(7, 7)), x)


@pytest.mark.parametrize("tokens, frames, span", [(32, 51, 1.0), (50, 20, 1.0), (32, 49, 0.98)])
def test_a_ramp_in_time_stays_that_ramp(tokens, frames, span):
    # The ramp is the time of a token's middle, so between the end tokens' middles a frame must read its own time.
    token_time = (torch.arange(tokens, dtype=torch.float64) + 0.5) / tokens
    frame_time = span * (torch.arange(frames, dtype=torch.float64) + 0.5) / frames
    seen = interpolate(token_time[None, :, None], interpolation_matrix(tokens, frames, span))[0, :, 0]
    inside = frame_time.clamp(token_time[0], token_time[-1])
    assert torch.allclose(seen, inside, atol=1e-14)


def test_interpolation_agrees_with_torch():
    x = torch.randn(3, 32, 4, generator=seeded(), dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(x.transpose(1, 2), 51, mode="linear", align_corners=False)
    assert torch.allclose(interpolate(x, interpolation_matrix(x.shape[1], 51)), theirs.transpose(1, 2), atol=1e-12)


@settings(deadline=None)
@given(tokens=st.integers(2, 20), frames=st.integers(1, 40), real=st.integers(1, 20))
def test_padding_never_leaks_into_frames(tokens, frames, real):
    x = torch.randn(1, tokens, 3, generator=seeded(tokens), dtype=torch.float64)
    mask = torch.arange(tokens)[None] < real
    garbage = torch.where(mask[..., None], x, 1e6)
    matrix = interpolation_matrix(tokens, frames)
    assert torch.equal(interpolate(x, matrix, mask), interpolate(garbage, matrix, mask))
    constant = interpolate(torch.ones_like(x), matrix, mask)
    assert torch.allclose(constant, constant.round(), atol=1e-12)  # 1 where a real token is near, else 0


def test_the_projector_lets_no_padding_leak():
    projector = Projector(6, 4)
    hidden, mask = torch.randn(2, 8, 6, generator=seeded()), torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    garbage = torch.where(mask[..., None], hidden, 50.0)
    assert torch.equal(projector(hidden, 11, mask), projector(garbage, 11, mask))


def test_masks_follow_time():
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert resample_mask(mask, 8).tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    assert resample_mask(mask, 2).tolist() == [[True, True], [True, False]]
    assert torch.equal(resample_mask(mask, 4), mask)


def test_projection_comes_before_interpolation():
    projector = Projector(6, 4)
    hidden = torch.randn(2, 8, 6, generator=seeded())
    matrix = interpolation_matrix(8, 13)
    assert torch.allclose(projector(hidden, 13), interpolate(projector(hidden, 8), matrix), atol=1e-6)
    assert not torch.allclose(projector(hidden, 13), projector(interpolate(hidden, matrix), 13), atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_chosen_frames_are_those_of_all_frames(masked):
    projector = Projector(6, 4).double()
    hidden = torch.randn(2, 8, 6, generator=seeded(), dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3]) if masked else None
    chosen = slice(2, None, 3)
    few, all_of_them = projector(hidden, 13, mask, 1.0, chosen), projector(hidden, 13, mask)[:, chosen]
    assert torch.allclose(few, all_of_them, atol=1e-12)
    wanted = [hidden, *projector.parameters()]
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), wanted) for x in (few, all_of_them))):
        assert torch.allclose(a, b, atol=1e-12)


@given(every=st.integers(1, 5), frames_every=st.integers(1, 9), frames=st.integers(1, 60))
def test_steps_compare_all_frames_in_turn(every, frames_every, frames):
    config = AlignmentConfig(weight=0.5, every=every, frames_every=frames_every)
    apart = min(frames_every, frames)
    turns = [range(frames)[frames_of_step(config, turn * every, frames)] for turn in range(apart)]
    assert sorted(frame for turn in turns for frame in turn) == list(range(frames))
    assert all(turns)  # a step that compares nothing would count as aligned
    # Steps that are not aligned move nothing on.
    assert frames_of_step(config, every - 1, frames) == frames_of_step(config, 0, frames)


def test_some_frames_in_turn_have_the_gradient_of_all_on_average():
    config = AlignmentConfig(weight=0.5, frames_every=4)
    blocks = torch.nn.Sequential(*(torch.nn.Linear(6, 6, dtype=torch.float64) for _ in range(3)))
    aligner = Aligner(config, list(blocks), (torch.zeros(4).double(), torch.ones(4).double()))
    aligner.projector.double()
    clips = torch.randn(3, 8, 6, generator=seeded(), dtype=torch.float64)
    features = torch.randn(3, 12, 4, generator=seeded(1), dtype=torch.float64)

    def gradient(step):
        blocks(clips)
        loss = aligner.distance(features, torch.ones(3), step=step).mean()
        (of,) = torch.autograd.grad(loss, [blocks[0].weight])
        return of

    of_steps = [gradient(step) for step in range(4)]
    assert torch.allclose(torch.stack(of_steps).mean(0), gradient(None), atol=1e-12)
    assert not torch.allclose(of_steps[0], of_steps[1])


def test_a_projector_shifts_no_other_draw():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = Projector(6, 4, seed=1)
    assert torch.equal(torch.rand(4), expected)
    again, other = Projector(6, 4, seed=1), Projector(6, 4, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_the_projector_is_half_as_wide_as_the_model():
    assert [layer.out_features for layer in Projector(6, 4).layers] == [3, 3, 4]


# --- the loss ---


def test_alignment_is_one_minus_cosine():
    x = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    y = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]], dtype=torch.float64)
    expected = ((1 - 0) + (1 - 1 / math.sqrt(2))) / 2
    assert alignment_loss(x, y).item() == pytest.approx(expected, abs=1e-6)
    assert alignment_loss(3 * y, y).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(-y, y).item() == pytest.approx(2, abs=1e-6)


def test_only_real_frames_count():
    x, y = torch.randn(2, 2, 5, 3, generator=seeded()).unbind(0)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    loss = alignment_loss(x, y, mask)
    assert loss[0] == pytest.approx(alignment_loss(x[:1, :2], y[:1, :2]).item(), abs=1e-6)
    assert loss[1] == 0


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 50))
def test_alignment_lies_in_its_range_whatever_the_scale(scale, seed):
    x, y = torch.randn(2, 3, 4, 8, generator=seeded(seed), dtype=torch.float64).unbind(0)
    loss = alignment_loss(scale * x, y)
    assert ((loss >= 0) & (loss <= 2)).all()
    if scale > 0.1:
        assert torch.allclose(loss, alignment_loss(x, y), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_vectors_give_no_nan(dtype):
    x = torch.zeros(1, 2, 3, dtype=dtype, requires_grad=True)
    loss = alignment_loss(x, torch.zeros(1, 2, 3, dtype=dtype))
    assert loss.dtype == torch.float32 and loss.item() == 1
    (loss + alignment_loss(x, torch.ones(1, 2, 3, dtype=dtype))).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e3


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match="equal"):
        alignment_loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))


def test_standardised_features_have_unit_statistics():
    features = 5 + 3 * torch.randn(500, 4, generator=seeded(), dtype=torch.float64)
    features[:, 2] = 7.0
    mean, std = features.mean(0), features.std(0, unbiased=False)
    out = standardise(features, mean, std)
    assert torch.allclose(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    live = [0, 1, 3]
    assert torch.allclose(out[:, live].std(0, unbiased=False), torch.ones(3, dtype=torch.float64))
    assert (out[:, 2] == 0).all()


def test_a_gradient_reaches_hidden_only_with_a_weight():
    projector = Projector(6, 4)
    target = torch.randn(2, 9, 4, generator=seeded(1)).requires_grad_()
    t = torch.tensor([0.05, 0.6])
    for regime, flows in ((0.2, True), (1.0, False)):
        hidden = torch.randn(2, 7, 6, generator=seeded()).requires_grad_()
        weight = alignment_weight(AlignmentConfig(weight=0.5), regime, 0.5)
        loss = (weight * time_weight(t) * alignment_loss(projector(hidden, 9), target)).mean()
        loss.backward()
        assert bool((hidden.grad[1] != 0).any()) is flows
        assert not hidden.grad[0].any()  # w(t) is 0 there
    assert target.grad is None


# --- output space ---


def test_output_alignment_sends_its_gradient_through_codec_and_teacher():
    decoder, teacher = torch.nn.Linear(6, 10).requires_grad_(False), torch.nn.Linear(10, 4).requires_grad_(False)

    def features(latents):
        return teacher(torch.tanh(decoder(latents.transpose(1, 2))))

    clean = torch.randn(2, 6, 5, generator=seeded())
    target = features(clean)
    guess = torch.randn(2, 6, 5, generator=seeded(1)).requires_grad_()
    before = output_alignment(guess, features, target)
    assert before.shape == (2,)
    (gradient,) = torch.autograd.grad(before.sum(), guess)
    assert output_alignment(guess - 0.5 * gradient, features, target).sum() < before.sum()
    assert output_alignment(clean, features, target).abs().max() < 1e-5


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_codec_without_a_gradient_is_refused(mode):
    @mode()
    def features(latents):
        return latents.transpose(1, 2) * 2

    guess = torch.randn(1, 3, 4).requires_grad_()
    with pytest.raises(UserError, match=r"alignment\.space=output"):
        output_alignment(guess, features, torch.randn(1, 4, 3))
    with torch.no_grad():
        output_alignment(guess, features, torch.randn(1, 4, 3))  # measuring needs no gradient


# --- causal scores ---


def tiny_dit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiT(DiTConfig(channels=4, text_dim=8, width=16, depth=4, heads=2)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model


def test_a_block_that_does_nothing_scores_nothing():
    model = tiny_dit()
    silent = model.blocks[2]
    for layer in (silent.attention.out, silent.cross.out, silent.mlp_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x, t = torch.randn(2, 4, 10, generator=seeded()), torch.tensor([0.4, 0.9])
    whole = model(x, t).prediction
    scores = causal_scores(lambda: model(x, t).prediction, model.blocks)
    assert len(scores) == 4 and scores[2] == 0 and min(scores[:2] + scores[3:]) > 1e-3
    assert torch.equal(model(x, t).prediction, whole)  # the hooks are gone
    # Cutting block 0 out is what the score says it is.
    blocks = model.blocks
    model.blocks = torch.nn.ModuleList([blocks[1], blocks[2], blocks[3]])
    without = model(x, t).prediction
    assert scores[0] == pytest.approx(((without - whole).norm() / whole.norm()).item(), rel=1e-4)


def test_a_model_that_predicts_nothing_yet_scores_zero():
    with torch.random.fork_rng():
        model = DiT(DiTConfig(channels=4, text_dim=8, width=16, depth=3, heads=2))  # adaLN-zero: output 0
    assert causal_scores(lambda: model(torch.ones(1, 4, 6), torch.tensor([0.5])).prediction, model.blocks) == [0] * 3


def test_blocks_that_return_tuples_or_take_keywords_are_scored():
    class Pair(torch.nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def forward(self, *, hidden_states):
            return hidden_states * self.gain, "cache"

    blocks = [Pair(2.0), Pair(1.0)]

    def forward():
        x = torch.ones(1, 3)
        for block in blocks:
            x, kept = block(hidden_states=x)
            assert kept == "cache"
        return x

    assert causal_scores(forward, blocks) == [pytest.approx(0.5), 0.0]


def test_hooks_go_even_when_the_model_fails():
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="residual"):
        causal_scores(lambda: layer(torch.ones(1, 3)), [layer])
    assert layer(torch.ones(1, 3)).shape == (1, 2)
