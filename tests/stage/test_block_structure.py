import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from segue.models.dit import DiT, DiTConfig
from segue.process.noise import keyed_generator
from segue.stage.variants import block_groups, block_structure, block_weights
from segue.stage.variants.block_structure import StructureConfig, StructureMeasure, StructureState
from segue.types import UserError

CONFIG = StructureConfig(strength=0.015)


def random_blocks(depth: int, seed: int = 0, width: int = 32) -> nn.ModuleList:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiT(DiTConfig(channels=4, text_dim=8, width=width, depth=depth, heads=4, adaln_rank=4))
        for block in model.blocks:  # adaLN-zero and the zero cross-attention output would hide half of what is tested
            nn.init.xavier_uniform_(block.cross.out.weight)
            nn.init.normal_(block.adaln_up.bias, std=0.1)
    return model.blocks


def projections(attention: nn.Module) -> list[nn.Linear]:
    """The layers of queries, keys and values, each with `width` rows for one or more of them."""
    return [attention.qkv] if hasattr(attention, "qkv") else [attention.q, attention.kv]


def permute_hidden(block: nn.Module, seed: int) -> None:
    """Permute MLP units and heads of both attentions, and turn inside the heads where rows and columns undo it."""
    generator = keyed_generator(seed, "test/permute")
    order = torch.randperm(block.mlp_in.out_features, generator=generator)
    block.mlp_in.weight.data = block.mlp_in.weight[order]
    block.mlp_in.bias.data = block.mlp_in.bias[order]
    block.mlp_out.weight.data = block.mlp_out.weight[:, order]
    for attention in (block.attention, block.cross):
        width, heads = attention.out.in_features, attention.heads
        order = torch.randperm(heads, generator=generator)
        rows = torch.arange(width).view(heads, -1)[order].flatten()
        for layer in projections(attention):
            layer.weight.data = torch.cat([part[rows] for part in layer.weight.split(width)])
        attention.out.weight.data = attention.out.weight[:, rows]


def planted_blocks(labels: list[int], noise: float = 0.3, seed: int = 0) -> nn.ModuleList:
    """Blocks near one prototype a label, their hidden units and heads shuffled; the ends are unrelated."""
    prototypes = random_blocks(max(labels) + 1, seed)
    blocks = random_blocks(len(labels) + 2, seed + 1)
    for index, label in enumerate(labels, 1):
        for mine, theirs in zip(blocks[index].parameters(), prototypes[label].parameters()):
            mine.data = theirs.detach() + noise * mine.detach()
        permute_hidden(blocks[index], seed + index)
    return blocks


def nudge(blocks: nn.ModuleList, share: float, seed: int) -> None:
    """Move every weight matrix by `share` of its norm."""
    for place, p in enumerate(blocks.parameters()):
        step = torch.randn(p.shape, generator=keyed_generator(seed, "test/nudge", place))
        p.data += share * p.detach().norm() * step / step.norm()


def haar(width: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix, Haar-distributed (Mezzadri, arXiv math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return q * r.diagonal().sign()


def signatures(blocks):
    return block_structure.signatures([block_structure.block_weights(b) for b in blocks])


def follow(blocks, config=CONFIG, share=0.05, checks=4, regime=1.0, total=100_000, stop=False):
    """Check, let the weights move, check again."""
    state, n, reasons = block_structure.start_structure(), 2000, []
    for check in range(checks):
        measure = block_structure.measure_structure(config, state, blocks)
        state, reading = block_structure.update_structure(
            config, state, measure, examples_seen=n, total_examples=total, regime_monotone=regime
        )
        reasons.append(reading.reason)
        nudge(blocks, share, check)
        n = int(1.25 * n)
        if stop and check and not state.passed:
            break
    return state, reading, reasons


# --- finding in_proj and out_proj ---


def test_our_block_reads_and_writes():
    block = random_blocks(1)[0]
    found = block_structure.block_weights(block)
    for mine, module in zip(found.in_proj, (block.attention.qkv, block.cross.q, block.mlp_in)):
        assert mine.data_ptr() == module.weight.data_ptr()
    for mine, module in zip(found.out_proj, (block.attention.out, block.cross.out, block.mlp_out)):
        assert mine.data_ptr() == module.weight.data_ptr()
    _, scale_a, _, _, scale_m, _ = block.adaln_up.bias.chunk(6)[0:6]
    for mine, expected in zip(found.scales, (1 + scale_a, block.norm_cross.weight, 1 + scale_m)):
        torch.testing.assert_close(mine, expected.detach())


def test_foreign_blocks():
    attention = pytest.importorskip("diffusers.models.attention")
    audio = pytest.importorskip("diffusers.models.transformers.stable_audio_transformer")
    # Cross-attention as wide as the stream: shape alone would take its keys and values for in_proj.
    block = audio.StableAudioDiTBlock(64, 4, 2, 16, cross_attention_dim=64)
    shapes = [tuple(w.shape) for w in block_structure.block_weights(block).in_proj]
    assert shapes == [(64, 64)] * 4 + [(512, 64)]
    assert len(block_structure.block_weights(block).out_proj) == 3
    adaln = attention.BasicTransformerBlock(
        64, 4, 16, cross_attention_dim=64, norm_type="ada_norm_zero", num_embeds_ada_norm=9
    )
    shapes = [tuple(w.shape) for w in block_structure.block_weights(adaln).in_proj]
    assert shapes == [(64, 64)] * 4 + [(512, 64)], "the modulation reads the condition, not the stream"
    twice = attention.BasicTransformerBlock(64, 4, 16, double_self_attention=True)
    assert len(block_structure.block_weights(twice).in_proj) == 7, "a second self-attention reads with all three"
    assert len(block_structure.block_weights(nn.TransformerEncoderLayer(64, 4)).in_proj) == 2
    decoder = block_structure.block_weights(nn.TransformerDecoderLayer(64, 4, 128))
    assert [tuple(w.shape) for w in decoder.in_proj] == [(192, 64), (64, 64), (128, 64)]


def test_stable_audio_tools_names():
    """The module names of stable-audio-tools' TransformerBlock, which is not installed here."""

    def attention(**layers):
        return nn.ModuleDict({name: nn.Linear(*sides, bias=False) for name, sides in layers.items()})

    glu = nn.Module()
    glu.proj = nn.Linear(64, 512)
    feed = nn.Module()
    feed.ff = nn.Sequential(glu, nn.Identity(), nn.Linear(256, 64))
    block = nn.ModuleDict(
        {
            "self_attn": attention(to_qkv=(64, 192), to_out=(64, 64)),
            "cross_attn": attention(to_q=(64, 64), to_kv=(64, 128), to_out=(64, 64)),
            "ff": feed,
            "to_scale_shift_gate": nn.Sequential(nn.SiLU(), nn.Linear(64, 384)),
        }
    )
    found = block_structure.block_weights(block)
    assert [tuple(w.shape) for w in found.in_proj] == [(192, 64), (64, 64), (512, 64)]
    assert [tuple(w.shape) for w in found.out_proj] == [(64, 64), (64, 64), (64, 256)]


def test_what_cannot_be_told_is_one_clear_line():
    odd = nn.ModuleDict({"alpha": nn.Linear(8, 8), "beta": nn.Linear(8, 16), "gamma": nn.Linear(16, 8)})
    with pytest.raises(UserError, match=r"'alpha' reads or writes.*structure\.in_proj"):
        block_structure.block_weights(odd)
    found = block_structure.block_weights(odd, in_proj=["beta"], out_proj=["alpha", "gamma"])
    assert (len(found.in_proj), len(found.out_proj)) == (1, 2)
    with pytest.raises(UserError, match="'delta' is no linear layer of ModuleDict; it has alpha, beta, gamma"):
        block_structure.block_weights(odd, in_proj=["delta"], out_proj=["gamma"])
    with pytest.raises(UserError, match="name both or neither"):
        block_structure.block_weights(odd, in_proj=["beta"])
    with pytest.raises(UserError, match="no linear layer reads"):
        block_structure.block_weights(nn.Sequential(nn.Conv1d(4, 4, 3)))
    with pytest.raises(UserError, match="one residual width"):
        signatures([random_blocks(1)[0], random_blocks(1, width=16)[0]])


# --- signatures ---


def test_signature_is_invariant_to_permutations_and_to_turns_inside_heads():
    block = random_blocks(1)[0].double()
    before = signatures([block])
    changed = copy.deepcopy(block)
    permute_hidden(changed, 3)
    assert not torch.equal(changed.mlp_in.weight, block.mlp_in.weight)
    torch.testing.assert_close(signatures([changed]), before)
    for attention in (changed.attention, changed.cross):
        width, head = attention.out.in_features, attention.out.in_features // attention.heads
        turns = [haar(head, keyed_generator(i, "test/head")).double() for i in range(attention.heads)]
        turn = torch.block_diag(*turns)
        for layer in projections(attention):
            layer.weight.data = torch.cat([turn @ part for part in layer.weight.split(width)])
        attention.out.weight.data = attention.out.weight @ turn.T
        assert width == len(turn)
    torch.testing.assert_close(signatures([changed]), before, rtol=1e-6, atol=1e-7)


def test_signature_closed_form():
    block = random_blocks(1)[0].double()
    found = block_structure.block_weights(block)
    read = sum((w * s).T @ (w * s) for w, s in zip(found.in_proj, found.scales))
    wrote = sum(w @ w.T for w in found.out_proj)
    signature = signatures([block])[0]
    for mine, gram in zip(signature, (read, wrote)):
        centred = gram - gram.trace() / len(gram) * torch.eye(len(gram))
        torch.testing.assert_close(mine, centred / centred.norm() / 2**0.5)
        assert abs(float(mine.trace())) < 1e-12
    assert float(signature.norm()) == pytest.approx(1.0)
    # Scale-free, and not blind to what is read.
    for p in block.parameters():
        p.data *= 3.0
    block.adaln_up.bias.data /= 3.0
    block.norm_cross.weight.data /= 3.0
    torch.testing.assert_close(signatures([block])[0], signature)
    block.mlp_in.weight.data = block.mlp_in.weight[:, torch.randperm(32, generator=keyed_generator(0, "test"))]
    assert float((signatures([block])[0] * signature).sum()) < 0.95


# --- clustering and nulls ---


def test_groups_of_a_block_matrix():
    labels = [0, 0, 1, 2, 1, 2, 2, 0, 1, 1]
    table = np.where(np.equal.outer(labels, labels), 0.6, 0.1)
    table = np.pad(table, 1, constant_values=0.1) + 0.0
    np.fill_diagonal(table, 1.0)
    assert block_structure.find_groups(table) == (-1, *labels, -1)
    assert block_structure.find_groups(table[:5, :5]) is None
    assert block_groups.contrast_of(table, (-1, *labels, -1)) == pytest.approx(0.5)
    ours = block_groups.modularity(table[1:-1, 1:-1], labels)
    assert ours > block_groups.modularity(table[1:-1, 1:-1], [0, 0, 1, 1, 1, 1, 1, 0, 1, 1])


def test_cluster_agrees_with_scipy():
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    draw = np.random.default_rng(0)
    for _ in range(5):
        table = draw.uniform(0, 1, (9, 9))
        table = (table + table.T) / 2
        tree = hierarchy.linkage(1 - table[np.triu_indices(9, 1)], "average")
        for count in (2, 3, 4):
            expected = block_groups.canonical(hierarchy.cut_tree(tree, count)[:, 0])
            assert block_groups._cut(tree[:, :2].astype(int), 9, count) == expected


def test_adjusted_rand():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(1)
    for _ in range(30):
        first, second = draw.integers(0, 3, 9), draw.integers(0, 4, 9)
        expected = metrics.adjusted_rand_score(first, second)
        assert block_structure.adjusted_rand(first, second) == pytest.approx(expected)
    assert block_structure.adjusted_rand((-1, 0, 0, 1, 1, -1), (-1, 1, 1, 0, 0, -1)) == 1.0
    assert block_structure.adjusted_rand((-1, 0, 0, 0, -1), (-1, 0, 0, 0, -1)) == 1.0


def test_null_has_the_variance_of_random_bases():
    """Cosines of traceless symmetric matrices in Haar-random bases: mean 0, variance 2 / ((D - 1)(D + 2)) (Schur's lemma).

    Signed permutations draw the same null from matrices without a preferred basis.
    """
    width, count = 24, 6
    signed = torch.randn(count, 2, width, width, generator=keyed_generator(0, "test/null"))
    signed = signed + signed.mT
    signed -= signed.diagonal(dim1=2, dim2=3).mean(-1)[..., None, None] * torch.eye(width)
    signed /= signed.flatten(2).norm(dim=2)[..., None, None] * 2**0.5
    drawn, contrasts = [], []
    for draw in range(100):
        generator = keyed_generator(draw, "test/haar")
        turned = torch.stack([q @ s @ q.T for s in signed for q in [haar(width, generator)]])
        table = block_structure.similarity(turned)
        drawn.append(table[np.triu_indices(count, 1)])
        contrasts.append(block_groups.contrast_of(table, block_groups.cluster(table, 2)))
    # S is the mean of two cosines, uncorrelated between in_proj and out_proj.
    expected = 1.0 / ((width - 1) * (width + 2))
    assert np.mean(drawn) == pytest.approx(0.0, abs=3 * (expected / 1500) ** 0.5)
    assert np.var(drawn) == pytest.approx(expected, rel=0.15)
    ours = block_structure.null_contrast(signed, 2, 200, keyed_generator(0, "test/signed"))
    assert ours.mean() == pytest.approx(np.mean(contrasts), rel=0.15)
    assert ours.std() == pytest.approx(np.std(contrasts), rel=0.3)


def test_null_is_exact_for_blocks_with_a_preferred_basis():
    """Random adaLN scales make each signature diagonal-heavy by itself: p must stay uniform, which rotations do not give."""
    shares = []
    for seed in range(40):
        signed = signatures(random_blocks(6, seed))
        table = block_structure.similarity(signed)
        found = block_groups.contrast_of(table, block_groups.cluster(table, 2))
        drawn = block_structure.null_contrast(signed, 2, 19, keyed_generator(seed, "test/exact"))
        shares.append(block_structure._share(drawn, found))
    assert 0.35 < np.mean(shares) < 0.7 and np.mean(np.array(shares) <= 0.1) < 0.25


def test_drift_null_tells_a_gradient_from_groups():
    distance = np.abs(np.subtract.outer(range(12), range(12)))
    drift = 0.5 * np.exp(-distance / 5)
    labels = np.repeat([0, 1, 2], 4)
    groups = np.where(np.equal.outer(labels, labels), 0.5, 0.1)
    for table, least, most in ((drift, 0.9, 1.0), (groups, 0.0, 0.02)):
        np.fill_diagonal(table, 1.0)
        found = block_groups.contrast_of(table, block_groups.cluster(table, 4))
        drawn = block_groups.drift_contrast(table, 4, 60, keyed_generator(0, "test/drift"))
        assert least <= block_structure._share(drawn, found) <= most


# --- activation ---


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 2, 2, 0, 2]])
def test_planted_groups_are_found_and_switch_it_on(labels):
    state, reading, reasons = follow(planted_blocks(labels))
    assert reading.groups == (-1, *labels, -1)
    assert state.active_at == 3906 and state.labels == reading.groups and state.margin > 0
    assert reading.active and reasons[0].startswith("off: first check")
    assert reasons[1:3] == [f"off: {k} of 3 checks passed in a row" for k in (1, 2)]
    sizes = " + ".join(map(str, sorted((labels.count(k) for k in set(labels)), reverse=True)))
    assert reasons[3] == f"on since 3,906 examples: groups of {sizes} blocks (groups)"


def test_unstructured_weights_do_not_switch_it_on():
    """Random weights that only move a little keep their accidental groups: ARI is 1, and the null must refuse them."""
    for seed in range(20):
        state, _, _ = follow(random_blocks(8, seed), share=0.02, stop=True)
        assert state.active_at is None, seed


def test_weights_that_hardly_move_do_not_switch_it_on():
    state, reading, _ = follow(planted_blocks([0, 1, 0, 1, 1, 0]), share=0.004, checks=6)
    assert state.active_at is None and reading.ari == 1.0
    assert reading.reason.startswith("off: weights moved 0.") and reading.reason.endswith("(< 1%)")


def measured(groups, value=1.0, **figures):
    rows = tuple(tuple(map(float, row)) for row in np.eye(len(groups) if groups else 5))
    figures = {"z": 9.0, "p": 0.0196, "drift_p": 0.5, **figures}
    return StructureMeasure(rows, groups, 0.3, sketch=(value,) * 64, labels=groups or (), margin=0.1, **figures)


GROUPS = (-1, 0, 0, 0, 1, 1, 1, -1)


@pytest.mark.parametrize(
    ("config", "measure", "n", "regime", "words"),
    [
        (CONFIG, measured((-1, 0, 1, 0, 1, 1, 0, -1), 1.1), 5000, 1.0, "groups not yet stable (ARI -0.11 < 0.9)"),
        (CONFIG, measured(GROUPS, 1.1, z=1.24), 5000, 1.0, "groups no clearer than by chance (z 1.2 < 3)"),
        (CONFIG, measured(GROUPS, 1.1, p=0.04), 5000, 1.0, "groups no clearer than by chance (p 0.040 > 0.02)"),
        (replace(CONFIG, max_drift_p=0.05), measured(GROUPS, 1.1), 5000, 1.0, "no clearer than a drift with depth (p 0.50 > 0.05)"),
        (CONFIG, measured(GROUPS, 1.001), 5000, 1.0, "weights moved 0.10% since the last check (< 1%)"),
        (CONFIG, measured(None), 5000, 1.0, "5 blocks are too few to form groups (6 needed)"),
        (CONFIG, measured(GROUPS, 1.1), 9000, 1.0, "too late (90% of the run > 80%)"),
        (CONFIG, measured(GROUPS, 1.1), 5000, 0.31, "groups are stable, waiting for the regime (0.31 < 0.5)"),
    ],
)  # fmt: skip
def test_every_reason(config, measure, n, regime, words):
    state = StructureState(checks=3, last_check=4000, passed=2, previous=GROUPS, sketch=(1.0,) * 64)
    after, reading = block_structure.update_structure(
        config, state, measure, examples_seen=n, total_examples=10_000, regime_monotone=regime
    )
    assert reading.reason == f"off: {words}" and not reading.active and after.active_at is None
    assert after.last_check == n and after.checks == 4


def test_checks_must_pass_in_a_row():
    state = StructureState(checks=3, last_check=4000, passed=1, previous=GROUPS, sketch=(1.0,) * 64)
    arguments = {"examples_seen": 5000, "total_examples": 10_000, "regime_monotone": 1.0}
    after, reading = block_structure.update_structure(CONFIG, state, measured(GROUPS, 1.1), **arguments)
    assert reading.reason == "off: 2 of 3 checks passed in a row" and after.active_at is None and after.passed == 2


def test_one_group_beside_an_outlier_is_no_organisation(monkeypatch):
    lonely = (-1, 0, 0, 0, 0, 0, 1, -1)
    state = StructureState(3, 4000, 2, lonely, (1.0,) * 64)
    arguments = {"examples_seen": 5000, "total_examples": 10_000, "regime_monotone": 1.0}
    _, reading = block_structure.update_structure(CONFIG, state, measured(lonely, 1.1), **arguments)
    assert reading.reason == "off: 1 group beside single blocks (2 needed)"
    monkeypatch.setattr(block_structure, "MIN_GROUPS", 1)
    _, reading = block_structure.update_structure(CONFIG, state, measured(lonely, 1.1), **arguments)
    assert reading.active


def test_it_latches_and_freezes():
    state = StructureState(checks=4, last_check=4000, passed=2, previous=GROUPS, sketch=(1.0,) * 64)
    arguments = {"total_examples": 100_000, "regime_monotone": 0.6}
    state, reading = block_structure.update_structure(
        CONFIG, state, measured(GROUPS, 1.1), examples_seen=5000, **arguments
    )
    assert reading.active and (state.active_at, state.labels, state.margin) == (5000, GROUPS, 0.1)
    other = measured((-1, 0, 1, 0, 1, 1, 0, -1), 1.2, z=None, p=None, drift_p=None)
    later, reading = block_structure.update_structure(CONFIG, state, other, examples_seen=7000, **arguments)
    assert reading.active and (later.active_at, later.labels, later.margin) == (5000, GROUPS, 0.1)
    strengths = [block_structure.structure_strength(CONFIG, state, n, 100_000) for n in (5000, 7500, 10_000, 90_000)]
    assert strengths == pytest.approx([0.0, 0.0075, 0.015, 0.015])
    assert block_structure.structure_strength(CONFIG, StructureState(), 90_000, 100_000) == 0.0


def test_checks_fall_due_by_ratio():
    state = block_structure.start_structure()
    assert not block_structure.check_due(CONFIG, state, 1999, 100_000)
    assert block_structure.check_due(CONFIG, state, 2000, 100_000)
    state = replace(state, checks=1, last_check=2000)
    assert [block_structure.check_due(CONFIG, state, n, 100_000) for n in (2000, 2499, 2500)] == [False, False, True]


def test_state_round_trips_and_measures_repeat():
    blocks = planted_blocks([0, 1, 0, 1, 1, 0])
    state, _, _ = follow(blocks)
    assert StructureState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert len(json.dumps(state.to_json())) < 3000
    fresh = replace(state, active_at=None)
    first, second = (block_structure.measure_structure(CONFIG, fresh, blocks) for _ in range(2))
    assert first == second and first.z is not None
    once_on = block_structure.measure_structure(CONFIG, state, blocks)
    assert once_on.z is None and once_on.similarity == first.similarity


def test_sketch_reads_the_movement():
    blocks = random_blocks(8)
    before = block_structure.measure_structure(CONFIG, StructureState(), blocks).sketch
    flat = torch.cat([w.flatten() for b in blocks for w in block_structure.block_weights(b).all])
    nudge(blocks, 0.05, 0)
    moved = torch.cat([w.flatten() for b in blocks for w in block_structure.block_weights(b).all]) - flat
    after = block_structure.measure_structure(CONFIG, StructureState(), blocks).sketch
    expected = float(moved.norm() / flat.norm())
    assert block_structure._moved(before, after) == pytest.approx(expected, rel=0.35)


def test_weights_that_are_not_finite_switch_nothing_on():
    blocks = planted_blocks([0, 1, 0, 1, 1, 0])
    blocks[2].mlp_in.weight.data[0, 0] = float("nan")
    state, _, _ = follow(blocks)
    assert state.active_at is None
    json.dumps(state.to_json(), allow_nan=False)


def test_controls_have_their_own_groups():
    groups = (-1, 0, 0, 1, 0, 1, 1, 2, 2, -1)
    random = block_structure.controlled(groups, "random", 0)
    assert random != groups and random == block_structure.controlled(groups, "random", 0)
    assert sorted(random.count(k) for k in range(3)) == [2, 3, 3] and random[0] == random[-1] == -1
    assert block_structure.controlled(groups, "contiguous", 0) == (-1, 0, 0, 0, 1, 1, 1, 2, 2, -1)
    for control in ("groups", "decay", "opposite"):
        assert block_structure.controlled(groups, control, 0) == groups


@pytest.mark.parametrize(
    ("name", "value"),
    [("control", "nearest"), ("strength", -1.0), ("spacing", 1.0), ("max_drift_p", 2.0), ("every", 0)],
)
def test_config_errors_name_the_option(name, value):
    with pytest.raises(UserError, match=rf"structure\.{name} is"):
        StructureConfig(**{name: value})


# --- the term ---


@pytest.fixture()
def active():
    """Noisy planted blocks in float64, and the state that freezes their groups with a margin that some exceed."""
    blocks = planted_blocks([0, 1, 0, 1, 1, 0], noise=0.6).double()
    measure = block_structure.measure_structure(CONFIG, StructureState(active_at=1), blocks)
    return blocks, StructureState(active_at=1, labels=measure.labels, margin=measure.margin)


def loss_of(blocks, state):
    signed = signatures(blocks)
    return float(block_structure.structure_loss(signed, state.labels, state.margin))


def differentiable_signatures(blocks, leaves):
    """The same signatures, written plainly, through autograd."""
    signed, leaves = [], iter(leaves)
    for block in blocks:
        found = block_structure.block_weights(block)
        in_proj = [next(leaves) * s for s in found.scales]
        out_proj = [next(leaves) for _ in found.out_proj]
        grams = torch.stack([sum(r.T @ r for r in in_proj), sum(w @ w.T for w in out_proj)])
        centred = grams - torch.stack([g.trace() / len(g) * torch.eye(len(g), dtype=g.dtype) for g in grams])
        signed.append(centred / centred.flatten(1).norm(dim=1)[:, None, None] / 2**0.5)
    return torch.stack(signed)


def test_the_step_is_the_gradient_of_autograd(active):
    blocks, state = active
    weights = [w for b in blocks for w in block_structure.block_weights(b).all]
    before = [w.clone() for w in weights]
    leaves = [w.clone().requires_grad_() for w in weights]
    loss = block_structure.structure_loss(differentiable_signatures(blocks, leaves), state.labels, state.margin)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    figures = block_structure.structure_step(blocks, state, 0.01)
    assert figures["structure_loss"] == pytest.approx(float(loss.detach())) and figures["structure_step"] == 0.01
    assert 0 < figures["structure_outside"] <= 0.5
    for now, was, gradient in zip(weights, before, gradients):
        torch.testing.assert_close(now - was, -0.01 * gradient / norm, rtol=1e-6, atol=1e-10)


def test_the_gradient_is_that_of_finite_differences(active):
    """With the means held still, as stopgrad says."""
    blocks, state = active
    signed = signatures(blocks)
    means = {k: signed[[i for i, l in enumerate(state.labels) if l == k]].mean(0) for k in (0, 1)}

    def frozen_loss():
        now = signatures(blocks)
        far = [float((now[i] - means[k]).square().sum()) - state.margin for i, k in enumerate(state.labels) if k >= 0]
        return sum(max(0.0, f) ** 2 for f in far)

    weights = [w for b in blocks for w in block_structure.block_weights(b).all]
    before = [w.clone() for w in weights]
    at = frozen_loss()
    block_structure.structure_step(blocks, state, 1e-3)
    moves = [w - b for w, b in zip(weights, before)]
    unit = [m / 1e-3 for m in moves]

    def along(size):
        for w, b, u in zip(weights, before, unit):
            w.copy_(b + size * u)
        return frozen_loss()

    slope = (along(1e-4) - along(-1e-4)) / 2e-4
    leaves = [b.clone().requires_grad_() for b in before]
    along(0.0)
    loss = block_structure.structure_loss(differentiable_signatures(blocks, leaves), state.labels, state.margin)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    assert at == pytest.approx(float(loss.detach()))
    assert slope == pytest.approx(-float(norm), rel=1e-4)


@pytest.mark.parametrize("control", ["groups", "opposite"])
def test_the_step_lowers_r_and_its_opposite_raises_it(active, control):
    blocks, state = active
    at = loss_of(blocks, state)
    assert at > 0
    block_structure.structure_step(blocks, state, 0.05, control)
    assert (loss_of(blocks, state) < at) == (control == "groups")


@pytest.mark.parametrize("control", ["groups", "decay", "opposite"])
def test_only_block_weights_move_by_the_norm_asked_for(active, control):
    blocks, state = active
    before = copy.deepcopy(blocks)
    twin = copy.deepcopy(blocks)
    figures = block_structure.structure_step(blocks, state, 0.05, control)
    assert block_structure.structure_step(twin, state, 0.05, control) == figures
    total, names = 0.0, {"q", "qkv", "out", "mlp_in", "mlp_out"}
    for (name, now), was, again in zip(blocks.named_parameters(), before.parameters(), twin.parameters()):
        assert torch.equal(now, again), "the same state and weights give the same step"
        moved = float((now - was).detach().square().sum())
        inner = name.split(".")[0] not in ("0", "7")
        if not (inner and name.endswith("weight") and name.split(".")[-2] in names and "cross.kv" not in name):
            assert moved == 0.0, name
        total += moved
        if control == "decay" and moved:
            ratio = (now / was).detach()
            torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])))
            assert float(ratio[0, 0]) < 1.0
    assert total**0.5 == pytest.approx(0.05)
    assert all(p.grad is None for p in blocks.parameters())


@pytest.mark.parametrize("control", block_structure.CONTROLS)
def test_no_step_where_r_is_zero_or_the_term_is_off(active, control):
    blocks, state = active
    before = copy.deepcopy(blocks.state_dict())
    for still, norm in ((replace(state, margin=10.0), 0.05), (StructureState(), 0.05), (state, 0.0)):
        figures = block_structure.structure_step(blocks, still, norm, control)
        assert figures["structure_step"] == 0.0
    assert all(torch.equal(now, before[name]) for name, now in blocks.state_dict().items())


def test_many_steps_draw_the_groups_together(active):
    blocks, state = active
    start = block_groups.contrast_of(block_structure.similarity(signatures(blocks)), state.labels)
    for _ in range(100):
        figures = block_structure.structure_step(blocks, state, 0.05)
        if figures["structure_step"] == 0.0:
            break
    assert figures["structure_loss"] < 1e-4
    assert block_groups.contrast_of(block_structure.similarity(signatures(blocks)), state.labels) > start


def test_unknown_control():
    with pytest.raises(UserError, match=r"structure\.control is 'up'"):
        block_structure.structure_step(random_blocks(2), StructureState(), 0.1, "up")


def test_weights_in_half_precision_are_read_in_float32():
    block = random_blocks(1)[0].bfloat16()
    assert signatures([block]).dtype == torch.float32
    assert block_weights.folded(block_structure.block_weights(block))[0][0].dtype == torch.float32
