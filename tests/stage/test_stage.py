import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from segue.models.dit import DiT, DiTConfig
from segue.process.path import sample_path
from segue.process.timesteps import Uniform
from segue.stage.alignment import AlignmentConfig, alignment_weight
from segue.stage.discrepancy import Discrepancy, Reading
from segue.stage.policy import Policy, stage_policy
from segue.stage.regime import RegimeConfig
from segue.stage.reporting import Printer
from segue.stage.stage import Stage
from segue.stage.timesteps import STAGE_TIMESTEPS, TimestepsConfig
from segue.stage.variants import block_structure
from segue.stage.variants.block_structure import StructureConfig, StructureState
from segue.types import UserError

TOTAL = 800
STATIC = Policy()
SLOPE = Policy(regime=RegimeConfig(), timesteps=STAGE_TIMESTEPS, alignment=AlignmentConfig(0.5))
RAMP = Policy(regime=RegimeConfig(signal="time"), timesteps=TimestepsConfig("stage"), alignment=AlignmentConfig(0.5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_dit(depth=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiT(DiTConfig(channels=4, text_dim=8, width=16, depth=depth, heads=2))


DATA = torch.randn(64, 4, 12, generator=seeded(7))
FEATURES = torch.tanh(DATA.transpose(1, 2) @ torch.randn(4, 5, generator=seeded(8)))


def quiet(_line):
    pass


def train(model, stage, steps, *, start=0, optimizer=None):
    """A foreign loop, small enough to compare bit for bit."""
    extra = [] if stage is None else [*stage.parameters()]
    optimizer = optimizer or torch.optim.SGD([*model.parameters(), *extra], lr=0.05)
    for step in range(start, start + steps):
        rows = torch.arange(16) + 16 * (step % 4)
        t = Uniform().sample(16, seeded(step), True) if stage is None else stage.timesteps(16)
        x_0, eps = DATA[rows], torch.randn(16, 4, 12, generator=seeded(100 + step))
        flow = (model(sample_path(x_0, eps, t), t).prediction - (eps - x_0)).square().mean()
        loss = flow if stage is None else flow + stage.alignment(FEATURES[rows], t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if stage is not None:
            stage.after_step(16)
    return optimizer


def measure_of(model):
    return Discrepancy(
        model, lambda x_t, t, rows: model(x_t, t).prediction, DATA[:8], lambda z: torch.tanh(z.transpose(1, 2))
    )


# --- the probe ---


def test_a_perfect_prediction_has_no_discrepancy_and_noise_has_much():
    model = nn.Linear(1, 1)
    clean = DATA[:8]

    def perfect(x_t, t, rows):
        return (x_t - clean) / t[:, None, None]

    reading = Discrepancy(model, perfect, clean, lambda z: z.transpose(1, 2))()
    assert reading.value == pytest.approx(0, abs=1e-5)
    assert [t for t, _ in reading.by_time] == [0.5, 0.7, 0.85, 0.95]
    lost = Discrepancy(model, lambda x_t, t, rows: torch.zeros_like(x_t), clean, lambda z: z.transpose(1, 2))()
    assert [d for _, d in lost.by_time] == sorted(d for _, d in lost.by_time) and lost.value > 0.3


def test_a_probe_leaves_no_trace():
    model = tiny_dit().train()
    probe = measure_of(model)
    state = torch.random.get_rng_state()
    assert probe() == probe()
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_probe_of_a_few_clips_is_refused():
    with pytest.raises(UserError, match="at least 8"):
        Discrepancy(nn.Linear(1, 1), None, DATA[:7], None)


# --- the loop ---


def test_a_static_policy_changes_nothing():
    plain, model = tiny_dit(), tiny_dit()
    stage = Stage(model.blocks, total_examples=TOTAL, policy=STATIC)
    assert stage.projector is None and list(stage.parameters()) == []
    times = [stage.timesteps(16)]
    assert stage.alignment(FEATURES[:16], times[0]) == 0.0
    for m in (plain, model):
        loss = m(DATA, torch.full((64,), 0.5)).prediction.square().mean()
        loss.backward()
    for a, b in zip(plain.parameters(), model.parameters()):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_probing_or_not_gives_the_same_weights_when_r_is_ignored():
    ignored = Policy(alignment=AlignmentConfig(0.5, schedule="constant"))
    probed = Policy(alignment=AlignmentConfig(0.5, schedule="constant"), regime=RegimeConfig())
    first, second = tiny_dit(), tiny_dit()
    train(first, Stage(first.blocks, total_examples=TOTAL, targets=FEATURES, policy=ignored), 4)
    train(
        second,
        Stage(
            second.blocks, total_examples=TOTAL, targets=FEATURES, policy=probed, measure=measure_of(second), log=quiet
        ),
        4,
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_the_time_ramp_drives_times_and_guidance():
    model = tiny_dit()
    lines = []
    stage = Stage(model.blocks, total_examples=TOTAL, targets=FEATURES, policy=RAMP, log=lines.append)
    train(model, stage, TOTAL // 16)
    assert stage.decision.regime.regime == 1.0  # asked once more after the last step
    assert stage.examples_seen == TOTAL and lines[-1]["examples_seen"] == TOTAL
    assert [line["alignment_weight"] for line in lines] == pytest.approx(
        [alignment_weight(RAMP.alignment, line["regime_monotone"], 0.0) for line in lines]
    )
    means = [line["timestep_mean"] for line in lines]
    assert means == sorted(means, reverse=True) and means[0] > 0.57 > 0.43 > means[-1]
    assert lines[-1]["alignment_weight"] == 0.0  # latched
    assert json.loads(json.dumps(lines)) == lines
    # After the latch nothing is asked of model or teacher.
    stage.aligner.clear()
    assert stage.alignment(None, None) == 0.0


def test_guidance_sits_out_every_other_step_and_counts_twice():
    model, given = tiny_dit(), {}
    t = torch.full((16,), 0.5)
    for every in (1, 2):
        policy = replace(RAMP, alignment=AlignmentConfig(0.5, every=every))
        stage = Stage(model.blocks, total_examples=TOTAL, targets=FEATURES, policy=policy, log=quiet)
        given[every] = []
        for _ in range(3):
            model(DATA[:16], t)
            given[every].append(float(torch.as_tensor(stage.alignment(FEATURES[:16], t)).detach()))
            stage.after_step(1)  # far too few examples to move r
        stage.remove()
    assert given[2] == pytest.approx([2 * given[1][0], 0.0, 2 * given[1][2]]) and given[1][1] > 0


def test_an_interrupted_run_equals_an_uninterrupted_one():
    whole, parts = tiny_dit(), tiny_dit()
    lines, resumed_lines = [], []
    stage = Stage(
        whole.blocks, SLOPE, total_examples=TOTAL, targets=FEATURES, measure=measure_of(whole), log=lines.append
    )
    train(whole, stage, 20)
    first = Stage(
        parts.blocks, SLOPE, total_examples=TOTAL, targets=FEATURES, measure=measure_of(parts), log=resumed_lines.append
    )
    optimizer = train(parts, first, 9)
    kept = json.loads(json.dumps(first.state_dict()))
    first.remove()
    second = Stage(
        parts.blocks, SLOPE, total_examples=TOTAL, targets=FEATURES, measure=measure_of(parts), log=resumed_lines.append
    )
    second.load_state_dict(kept)
    second.projector.load_state_dict(first.projector.state_dict())
    optimizer = torch.optim.SGD([*parts.parameters(), *second.parameters()], lr=0.05)
    train(parts, second, 11, start=9, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
    assert lines == resumed_lines and stage.state_dict() == second.state_dict()
    assert sum(line["examples_seen"] == 144 for line in lines) <= 1


def test_ranks_share_one_stratified_batch():
    whole = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC).timesteps(8)
    parts = [
        Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC, rank=r, world=2, reduce=lambda x: x).timesteps(4)
        for r in (0, 1)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_what_ranks_measure_is_averaged_before_it_is_read():
    lines = []
    Stage(
        tiny_dit().blocks,
        Policy(regime=RegimeConfig(signal="level")),
        total_examples=TOTAL,
        measure=lambda: Reading(0.25, ((0.5, 0.25),)),
        world=2,
        reduce=lambda x: x * 2,
        log=lines.append,
    ).timesteps(4)
    assert lines[0]["discrepancy"] == 0.5 and lines[0]["discrepancy_by_t"] == {"0.5": 0.5}


def test_accumulated_batches_draw_different_times():
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC)
    first, second = stage.timesteps(8), stage.timesteps(8)
    assert not torch.equal(first, second)
    again = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC)
    assert torch.equal(again.timesteps(8), first)


def test_the_block_term_follows_the_optimisers_step(monkeypatch):
    monkeypatch.setattr(block_structure, "RAMP", 0.0)
    model = tiny_dit()
    policy = Policy(structure=StructureConfig(enabled=True, strength=0.1, every=1, first_check=1.0))
    stage = Stage(model.blocks, total_examples=TOTAL, policy=policy, log=quiet)
    active = StructureState(active_at=0, labels=(-1, 0, 0, 1, 1, -1), margin=0.0)
    stage.load_state_dict(
        {"controller": stage.state_dict()["controller"] | {"structure": active.to_json()}, "steps": 0}
    )
    before = [[p.detach().clone() for p in block.parameters()] for block in model.blocks]
    stage.timesteps(4)
    with torch.no_grad():
        for block in model.blocks:
            for p in block.parameters():
                p.add_(0.01)
    stage.after_step(4)
    moved = [
        sum((p - b - 0.01).square().sum() for p, b in zip(block.parameters(), old)).sqrt().item()
        for block, old in zip(model.blocks, before)
    ]
    optimiser = sum(0.01**2 * p.numel() for block in list(model.blocks)[1:5] for p in block.parameters()) ** 0.5
    assert moved[0] < 1e-4 and moved[5] < 1e-4 and min(moved[1:5]) > 1e-4
    assert sum(m**2 for m in moved) ** 0.5 == pytest.approx(0.1 * optimiser, rel=0.01)


def test_a_corrected_law_is_weighed_back():
    policy = Policy(regime=RegimeConfig(signal="time"), timesteps=TimestepsConfig("stage", corrected=True))
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=policy, log=quiet)
    t = stage.timesteps(64)
    assert torch.allclose(stage.importance(t), (1 / stage.decision.timesteps.density(t.double())).float())
    assert (Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC).importance(t) == 1).all()


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"targets": FEATURES}, "nothing measures"),
        ({"policy": Policy(timesteps=TimestepsConfig("per-time"))}, "nothing measures"),
        ({"measure": lambda: 0.5}, "needs targets"),
        ({"policy": RAMP}, "needs targets"),
        ({"policy": STATIC, "world": 2}, "reduce="),
        ({"policy": Policy(alignment=AlignmentConfig(0.5, tap=6)), "targets": FEATURES}, "model has 6 blocks"),
        ({"policy": Policy(alignment=AlignmentConfig(0.5, space="output")), "targets": FEATURES}, "features="),
    ],
)
def test_what_is_missing_is_one_clear_line(wrong, words):
    with pytest.raises(UserError, match=words):
        Stage(tiny_dit().blocks, total_examples=TOTAL, **wrong)


def test_the_law_by_time_needs_the_probes_own_times():
    policy = Policy(timesteps=TimestepsConfig("per-time"))
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=policy, measure=lambda: 0.5, log=quiet)
    with pytest.raises(UserError, match=r"policy\.probe\.times"):
        stage.timesteps(4)
    model = tiny_dit()
    fits = Stage(model.blocks, total_examples=TOTAL, policy=policy, measure=measure_of(model), log=quiet)
    assert fits.timesteps(4).shape == (4,)


def test_the_state_of_another_run_is_refused():
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, policy=STATIC)
    with pytest.raises(UserError, match="of 400 examples, not 800"):
        stage.load_state_dict(Stage(tiny_dit().blocks, total_examples=400, policy=STATIC).state_dict())


def test_guidance_before_the_model_ran_is_one_clear_line():
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, targets=FEATURES, measure=lambda: 0.5, log=quiet)
    with pytest.raises(UserError, match="run the model"):
        stage.alignment(FEATURES[:4], stage.timesteps(4))


def test_the_terminal_hears_of_what_changes(capsys):
    say = Printer()
    for n, (regime, headline) in enumerate([(0.0, "a"), (0.01, "a"), (0.2, "a"), (0.2, "b"), (0.2, "b")]):
        say({"examples_seen": n, "regime": regime, "headline": headline, "reason": f"{headline} {regime}"})
    assert capsys.readouterr().out.splitlines() == [
        "0 examples: a 0.0",
        "2 examples: a 0.2",
        "3 examples: b 0.2",
    ]


def test_the_default_is_the_recipe():
    """What strangers get is what we train; the wider tests/training/ checks every other recipe's policy."""
    from segue.recipes import load_recipe

    assert stage_policy() == load_recipe("stage").policy
    stage = Stage(tiny_dit().blocks, total_examples=TOTAL, targets=FEATURES, measure=lambda: 0.5, log=quiet)
    assert stage.policy == load_recipe("stage").policy


def test_a_learned_distribution_wants_to_know_what_steps_bring():
    policy = Policy(timesteps=TimestepsConfig("learned", learn_every=16))
    stage = Stage(tiny_dit().blocks, policy, total_examples=TOTAL, log=quiet)
    stage.timesteps(16)
    stage.after_step(16)
    stage.timesteps(16)
    assert stage.due.loss_drops
    with pytest.raises(UserError, match="loss_drops"):
        stage.after_step(16)
    stage.after_step(16, loss_drops=[(0.2, 1.0), (0.8, 3.0)])
    assert stage.decision.timesteps.mean() > 0.5


def test_a_step_that_was_left_out_counts_its_examples_and_no_step():
    model = tiny_dit()
    stage = Stage(model.blocks, RAMP, total_examples=TOTAL, targets=FEATURES, log=quiet)
    stage.timesteps(16)
    stage.after_step(16, stepped=False)
    assert (stage.examples_seen, stage.steps) == (16, 0)


def test_alignment_by_example_has_the_mean_that_it_has_by_batch():
    model = tiny_dit()
    stage = Stage(model.blocks, RAMP, total_examples=TOTAL, targets=FEATURES, log=quiet)
    t = stage.timesteps(16)
    model(DATA[:16], t)
    each, mean = (stage.alignment(FEATURES[:16], t, reduction=r) for r in ("none", "mean"))
    assert each.shape == (16,) and torch.allclose(each.mean(), mean)
    assert torch.allclose(stage.aligned * stage.alignment_weight, each.detach())


def test_pieces_and_ranks_measure_what_one_pass_measures():
    model = tiny_dit()
    state = torch.Generator().manual_seed(3)
    frames = torch.rand(20, 12, generator=state) > 0.2
    frames[:, 0] = True

    def make(**options):
        return Discrepancy(
            model,
            lambda x_t, t, rows: model(x_t, t).prediction + rows[:, None, None] * 0.01,
            DATA[:20],
            lambda z: torch.tanh(z.transpose(1, 2)),
            mask=frames,
            **options,
        )

    whole = make(at_once=20)()
    assert make(at_once=7)().value == pytest.approx(whole.value, abs=1e-6)
    sums = []
    for rank in range(3):
        make(rank=rank, world=3, reduce=lambda x: sums.append(x) or x)()
    from segue.stage.discrepancy import reading_of

    assert reading_of(sum(sums), make().times).value == pytest.approx(whole.value, abs=1e-6)
    assert make().fingerprint == make(rank=1, world=3).fingerprint


def test_a_resumed_run_must_measure_on_the_same_clips():
    model = tiny_dit()
    kept = Stage(model.blocks, SLOPE, total_examples=TOTAL, targets=FEATURES, measure=measure_of(model)).state_dict()
    other = Discrepancy(model, None, DATA[20:28], lambda z: torch.tanh(z.transpose(1, 2)) * 3 + 1)
    stage = Stage(model.blocks, SLOPE, total_examples=TOTAL, targets=FEATURES, measure=other)
    with pytest.raises(UserError, match="probe's targets are not those"):
        stage.load_state_dict(kept)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda model: Stage(model, total_examples=TOTAL, policy=STATIC), "DiT is no list of blocks"),
        (lambda model: Stage([], total_examples=TOTAL, policy=STATIC), "one or more blocks"),
        (lambda model: stage_of(model, targets=FEATURES[0, :, 0]), r"targets= is \[12\]"),
        (lambda model: Discrepancy(model, None, DATA[0], None), r"held-out clips are \[4, 12\]"),
        (lambda model: Discrepancy(model, None, DATA[:8], lambda z: z.mean((1, 2))), r"features\(\) made \[8\] of 8"),
        (lambda model: Discrepancy(model, lambda x, t, rows: x[:, :2], DATA[:8], lambda z: z)(), r"predict\(\) made"),
        (lambda model: stage_of(model).alignment(FEATURES[:4], torch.rand(16)), r"\[4, 12, 5\] and 16 times"),
        (lambda model: stage_of(model).alignment(FEATURES[0], torch.rand(16)), r"features \[12, 5\]"),
        (lambda model: stage_of(model).alignment(FEATURES[:16, :, :3], torch.rand(16)), r"\[16, frames, 5\]"),
    ],
)
def test_what_has_another_shape_is_one_clear_line(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong(tiny_dit())


def stage_of(model, targets=FEATURES):
    return Stage(model.blocks, total_examples=TOTAL, targets=targets, measure=lambda: 0.5, log=quiet)


def test_a_loop_without_after_step_is_told_so():
    stage = Stage(tiny_dit().blocks, total_examples=64, policy=STATIC)
    with pytest.raises(UserError, match="after_step"):
        for _ in range(9):
            stage.timesteps(16)
    for _ in range(9):
        stage.after_step(16)
        stage.timesteps(16)
