"""What is known of a sound: what training draws, the windows that fill the rest, and the joint of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.process.noise import BatchDraws
from segue.tasks.known_parts import KINDS, UNIFORMS, context_around, known_frames, splice, windows, with_known_parts
from segue.types import Condition

UNIFORM = torch.rand(400, UNIFORMS, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_is_known_is_one_stretch_of_real_frames_and_never_all(length, share, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, length + 1, (64,), generator=generator)
    uniform = torch.rand(64, UNIFORMS, generator=generator)
    known = known_frames(uniform, frames, length, share)
    assert known.shape == (64, length)
    for row, real, some in zip(known.tolist(), frames.tolist(), uniform[:, 0].tolist()):
        assert not any(row[real:])
        assert 0 < sum(row) < real if some < share and real > 1 else not any(row)
        # One stretch on the circle of real frames: known and unknown meet at most twice.
        assert sum(row[i] != row[:real][i - 1] for i in range(real)) <= 2


def test_all_kinds_and_sizes_occur_equally_often():
    length = 20
    frames = torch.full((len(UNIFORM),), length)
    known = known_frames(UNIFORM, frames, length, 1.0)
    begins, ends = known[:, 0], known[:, -1]
    kinds = (UNIFORM[:, 1] * len(KINDS)).long()
    assert begins[kinds == 0].all() and not ends[kinds == 0].any()
    assert ends[kinds == 1].all() and not begins[kinds == 1].any()
    assert (begins & ends)[(kinds == 3) & (known.sum(1) > 1)].all()
    # A stretch of the middle may touch one end, never both.
    assert not (begins & ends)[kinds == 2].any() and not (begins | ends)[kinds == 2].all()
    assert torch.bincount(kinds).min() > 70 and set(known.sum(1).tolist()) == set(range(1, length))
    assert not known_frames(UNIFORM, frames, length, 0.0).any()
    assert known_frames(UNIFORM, frames, length, 0.3).any(1).float().mean() == pytest.approx(0.3, abs=0.05)


def test_a_rank_draws_its_part_of_the_batch_and_the_condition_holds_what_is_known_alone():
    x_0 = torch.randn(8, 3, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < torch.tensor([12, 9, 1, 12, 5, 12, 3, 0])[:, None]

    def drawn(rank, world):
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        draws = BatchDraws(5, 64, 8 // world, rank, world)
        return with_known_parts(Condition(), x_0[rows], mask[rows], draws, 0.8)

    whole = drawn(0, 1)
    assert whole.known_mask.shape == (8, 1, 12) and whole.known_mask.any()
    assert torch.equal(whole.audio, x_0 * whole.known_mask)
    halves = [drawn(rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.known_mask for half in halves]), whole.known_mask)
    made = torch.zeros_like(x_0)
    assert torch.equal(whole.fill_known(made), whole.audio)
    assert torch.equal(whole.generated(mask), mask & ~whole.known_mask[:, 0])
    # Channels that are known leave every real frame to be generated.
    channels = Condition(audio=x_0, known_mask=torch.ones(8, 3, 1, dtype=torch.bool))
    assert channels.generated(mask) is mask and Condition().generated(None) is None


@settings(max_examples=60, deadline=None)
@given(known=st.lists(st.booleans(), min_size=1, max_size=60), most=st.integers(2, 20))
def test_windows_make_every_frame_once_and_know_half_of_what_is_before(known, most):
    known = torch.tensor(known)
    made = known.clone()
    for index, frames in enumerate(windows(known, most)):
        assert 0 < frames.stop - frames.start <= most and frames.stop <= len(known)
        assert not made[frames].all()
        if index and frames.stop < len(known):
            assert made[frames][: most // 2].all()
        made[frames] = True
    assert made.all()


@settings(max_examples=60, deadline=None)
@given(total=st.integers(2, 200), most=st.integers(4, 50), ends=st.tuples(st.integers(0, 199), st.integers(1, 200)))
def test_the_context_of_an_edit_lies_in_the_recording_and_is_a_window_where_it_can_be(total, most, ends):
    first, last = min(ends[0], total - 1), min(ends[1], total)
    if first >= last:
        return
    around = context_around(first, last, total, most)
    assert 0 <= around.start <= first and last <= around.stop <= total
    size = around.stop - around.start
    assert size >= min(total, most - 1) and size <= max(most, last - first + 2 * (most // 4) + 1)


def test_a_splice_is_the_recording_outside_and_what_is_made_inside():
    generator = torch.Generator().manual_seed(2)
    recording, made = torch.randn(2, 2, 400, generator=generator)
    out = splice(recording, made, 100, 200, 20)
    assert torch.equal(out[:, 100:200], made[:, 100:200])
    assert torch.equal(out[:, :80], recording[:, :80]) and torch.equal(out[:, 220:], recording[:, 220:])
    assert torch.equal(splice(recording, made, 0, 400, 20), made)
    ramp = splice(torch.zeros(1, 400), torch.ones(1, 400), 100, 200, 20)[0]
    assert ramp.diff().abs().max() == pytest.approx(1 / 21, abs=1e-6)
