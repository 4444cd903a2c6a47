from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.models.dit import DiT, DiTConfig
from segue.models.files import ModelCard, config_of, current_tensors
from segue.models.positions import rotary_tables, rotate
from segue.models.presets import PRESETS, parameters_of, preset
from segue.models.step_memory import StepKind, memory_need
from segue.types import Condition, UserError

SMALL = DiTConfig(channels=6, text_dim=10, width=32, depth=3, heads=4, adaln_rank=4)


def woken(config: DiTConfig = SMALL) -> DiT:
    """A model whose zero-initialised layers are not zero, so that every path reaches the output."""
    torch.manual_seed(0)
    model = DiT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def condition(batch: int = 2, tokens: int = 5, drop: list[bool] | None = None) -> Condition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(tokens)[None] < torch.tensor([tokens, tokens - 2])[:batch, None]
    values = torch.randn(batch, tokens, 10, generator=generator) * mask[..., None]
    return Condition(values, mask, None if drop is None else torch.tensor(drop))


X = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0.3, 0.8])


def test_a_fresh_model_predicts_zero():
    assert DiT(SMALL)(X, T, condition()).prediction.abs().max() == 0  # adaLN-zero, zero output layer


def test_a_value_residual_mixes_the_first_values_in():
    plain, mixed = DiT(SMALL), DiT(replace(SMALL, value_residual=True))
    added = set(mixed.state_dict()) - set(plain.state_dict())
    assert added == {f"blocks.{i}.attention.value_shares" for i in range(SMALL.depth)}
    weights = woken().state_dict()
    shares = dict.fromkeys(added, torch.tensor([0.0, 1.0]))
    mixed.load_state_dict(weights | shares)
    model = woken()
    expected = model(X, T, condition()).prediction
    torch.testing.assert_close(mixed(X, T, condition()).prediction, expected, atol=1e-5, rtol=1e-5)
    # A block's own values are those that a model of it alone would use: with all of the first's, nothing changes there.
    mixed.load_state_dict(weights | shares | {"blocks.0.attention.value_shares": torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(mixed(X, T, condition()).prediction, expected, atol=1e-5, rtol=1e-5)
    mixed.load_state_dict(weights | dict.fromkeys(added, torch.tensor([0.5, 0.5])))
    made = mixed(X, T, condition()).prediction
    assert (made - expected).abs().max() > 1e-3
    made.square().sum().backward()
    assert all(mixed.get_parameter(name).grad.abs().max() > 0 for name in added)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_shapes_with_patches_that_do_not_divide_the_length(patch):
    model = woken(DiTConfig(channels=6, text_dim=10, width=32, depth=2, heads=4, patch_frames=patch))
    shapes = []
    model.blocks[0].register_forward_hook(lambda block, args, out: shapes.append(out.shape))
    assert model(X, T, condition()).prediction.shape == X.shape
    assert shapes == [(2, -(-11 // patch), 32)]


@pytest.mark.parametrize("patch", [1, 3])
def test_padding_changes_nothing(patch):
    """A padded clip gives what the clip alone gives, whatever lies in the padding."""
    model = woken(DiTConfig(channels=6, text_dim=10, width=32, depth=3, heads=4, patch_frames=patch))
    alone = model(X[..., :6], T, condition()).prediction
    padded = torch.cat([X[..., :6], 100 * torch.ones(2, 6, 5)], dim=-1)
    if patch == 3:
        padded[..., 6:] = 0  # the first padded patch is whole here: nothing is shared with real frames
    mask = (torch.arange(11) < 6).expand(2, 11)
    out = model(padded, T, condition(), mask).prediction
    torch.testing.assert_close(out[..., :6], alone, atol=1e-5, rtol=1e-4)
    assert out[..., 6:].abs().max() == 0


def test_text_padding_changes_nothing():
    model = woken()
    given_ = condition()
    longer = Condition(
        torch.cat([given_.tokens, 9 * torch.ones(2, 3, 10)], 1),
        torch.cat([given_.tokens_mask, torch.zeros(2, 3, dtype=torch.bool)], 1),
    )
    torch.testing.assert_close(model(X, T, longer).prediction, model(X, T, given_).prediction, atol=1e-5, rtol=1e-4)


def test_dropped_captions_are_not_heard_and_kept_ones_are():
    model = woken()
    dropped = model(X, T, condition(drop=[True, False])).prediction
    free = model(X, T, None).prediction
    kept = model(X, T, condition()).prediction
    torch.testing.assert_close(dropped[0], free[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dropped[1], kept[1], atol=1e-5, rtol=1e-4)
    assert (free[1] - kept[1]).abs().max() > 1e-3
    assert torch.equal(condition().dropped().drop, torch.tensor([True, True]))


def test_order_of_frames_matters_and_order_of_batch_does_not():
    model = woken()
    out = model(X, T, condition()).prediction
    assert (model(X.flip(-1), T, condition()).prediction.flip(-1) - out).abs().max() > 1e-3
    c = condition()
    flipped = model(X.flip(0), T.flip(0), Condition(c.tokens.flip(0), c.tokens_mask.flip(0))).prediction
    torch.testing.assert_close(flipped.flip(0), out, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(shift=st.integers(0, 50), gap=st.integers(0, 50))
def test_rotary_scores_depend_on_distance_only(shift, gap):
    cos, sin = rotary_tables(120, 8, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(shift)).double()  # one token, one head

    def score(i, j):
        tables = [(cos[n : n + 1].double(), sin[n : n + 1].double()) for n in (i, j)]
        return (rotate(q, tables[0]) * rotate(k, tables[1])).sum()

    torch.testing.assert_close(score(shift, shift + gap), score(0, gap), atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for flag in (False, True):
        model = woken().train()
        model.gradient_checkpointing = flag
        model(X, T, condition()).prediction.square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_every_parameter_learns():
    model = woken().train()
    model(X, T, condition(drop=[True, False])).prediction.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("dit-3m", 3e6, 4.5e6), ("dit-10m", 9e6, 13e6), ("dit-35m", 30e6, 45e6), ("dit-120m", 110e6, 150e6),
     ("dit-350m", 330e6, 420e6), ("dit-1b", 0.95e9, 1.25e9)],
)  # fmt: skip
def test_presets_have_the_size_of_their_name(name, low, high):
    assert low < parameters_of(preset(name, channels=32, text_dim=384)) < high


def test_memory_need():
    config = preset("dit-3m", channels=32, text_dim=384)
    need = memory_need(config, batch=32, frames=64)
    assert need.weights == 20 * parameters_of(config)  # weight, gradient, two moments, EMA: 5 x 4 bytes
    assert memory_need(config, 32, 64, kind=StepKind(checkpointing=True)).activations < need.activations / 3
    assert set(PRESETS) >= {"dit-3m", "dit-1b"}


@pytest.mark.parametrize("bad", [{"heads": 3}, {"predicts": "score"}])
def test_settings_that_cannot_be_are_refused(bad):
    with pytest.raises(UserError, match="model"):
        DiTConfig(width=32, **{"heads": 4, **bad})


def test_unknown_preset():
    with pytest.raises(UserError, match="dit-3m"):
        preset("dit-9t", channels=4, text_dim=4)


# --- audio and windows ----------------------------------------------------------------------------------------------

TOTAL, COUNT, OUTPUT = 6634.50722894602, 73680, -8.49180637858808
WITH_AUDIO = DiTConfig(channels=6, text_dim=10, width=32, depth=3, heads=4, adaln_rank=4, audio=True)


def audio(drop: list[bool] | None = None) -> Condition:
    """The lower four of six channels are given; a lower cutoff with the second clip."""
    values = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(3))
    known = (torch.arange(6) < 4).expand(2, 6)
    drop = None if drop is None else torch.tensor(drop)
    return Condition(
        drop=drop, audio=values * known[..., None], known_mask=known[..., None], cutoff=torch.tensor([0.5, 0.25])
    )


def test_without_audio_and_window_the_model_is_what_it_was():
    """Weights and outputs of a text model, from its seed: the numbers were taken before audio came."""
    torch.manual_seed(0)
    model = DiT(SMALL).eval()
    total = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    assert total == pytest.approx(TOTAL, abs=1e-9) and sum(p.numel() for p in model.parameters()) == COUNT
    # Noise on all weights, drawn by the names of that time, when q and kv of self-attention were two layers.
    drawn = {}
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            layer, width = name.removesuffix("qkv.weight"), SMALL.width
            for part, rows in (("q", width), ("kv", 2 * width)):
                drawn[f"{layer}{part}.weight"] = torch.randn(rows, width)
                drawn[f"{layer}{part}.bias"] = torch.randn(rows)
        elif not name.endswith("qkv.bias"):
            drawn[name] = torch.randn_like(parameter)
    for name, noise in current_tensors(drawn).items():
        model.get_parameter(name).data += 0.1 * noise
    assert float(model(X, T, condition()).prediction.detach().double().sum()) == pytest.approx(OUTPUT, abs=1e-4)
    names = {n for n, _ in model.named_parameters()}
    assert names == {n for n, _ in DiT(WITH_AUDIO).named_parameters() if not n.startswith(("audio", "cutoff"))}


def test_given_channels_are_not_generated_and_noise_in_them_is_not_heard():
    model = woken(WITH_AUDIO)
    out = model(X, T, audio()).prediction
    assert out[:, :4].abs().max() == 0 and out[:, 4:].abs().min() > 0
    other = X.clone()
    other[:, :4] += 1.0
    assert torch.equal(model(other, T, audio()).prediction, out)


def test_audio_and_cutoff_are_heard_until_dropped():
    model, heard = woken(WITH_AUDIO), audio()
    values = heard.audio.clone().requires_grad_(True)
    model(X, T, replace(heard, audio=values)).prediction.sum().backward()
    assert (values.grad[:, :4].abs().sum((1, 2)) > 0).all()
    moved = replace(heard, cutoff=heard.cutoff + 0.1)
    assert not torch.allclose(model(X, T, heard).prediction, model(X, T, moved).prediction)
    dropped = audio([True, False])
    changed = replace(dropped, audio=2 * dropped.audio)
    first, second = model(X, T, dropped).prediction, model(X, T, changed).prediction
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    assert torch.equal(model(X, T, heard.dropped()).prediction, model(X, T, audio([True, True])).prediction)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_window_limits_what_a_frame_hears(patch):
    """Depth 3 and window 2: six tokens to each side, and no further."""
    model = woken(replace(WITH_AUDIO, patch_frames=patch, attention_window=2))
    x = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(4))
    changed = x.clone()
    changed[..., 20] += 1.0
    t = torch.tensor([0.5])
    moved = (model(x, t).prediction - model(changed, t).prediction).abs().amax((0, 1)) > 0
    heard = [token for token in range(40 // patch) if moved[token * patch : (token + 1) * patch].any()]
    assert heard == list(range(20 // patch - 6, 20 // patch + 7))


def test_a_chunk_with_context_gives_what_the_whole_gives():
    model = woken(replace(WITH_AUDIO, attention_window=2))
    x, t = torch.randn(1, 6, 60, generator=torch.Generator().manual_seed(4)), torch.tensor([0.5])
    whole, chunk = model(x, t).prediction, model(x[..., 14:46], t).prediction
    torch.testing.assert_close(chunk[..., 6:-6], whole[..., 20:40], atol=1e-5, rtol=1e-4)


def test_padding_beyond_a_window_leaves_no_nan():
    model = woken(replace(WITH_AUDIO, attention_window=2))
    mask = torch.arange(11)[None] < torch.tensor([[11], [3]])
    out = model(X, T, audio(), mask).prediction
    assert torch.isfinite(out).all() and out[1, :, 3:].abs().max() == 0


def test_the_skip_predicts_its_channels_from_the_audios_alone_until_dropped():
    model = DiT(replace(WITH_AUDIO, audio_skip=5, predicts="clean")).eval()
    torch.nn.init.normal_(model.skip_weight, std=0.1)
    heard = audio()
    out = model(X, T, heard).prediction  # the rest of a fresh model predicts zero
    assert out[:, 4].abs().min() > 0 and out[:, 5].abs().max() == 0 and out[:, :4].abs().max() == 0
    assert torch.equal(model(X + 1.0, 1 - T, heard).prediction, out)
    assert model(X, T, heard.dropped()).prediction.abs().max() == 0
    later = replace(heard, audio=heard.audio.clone())
    later.audio[..., 8] += 1.0
    moved = (model(X, T, later).prediction - out).abs().amax((0, 1)) > 0
    assert moved.nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
    with pytest.raises(UserError, match="predicts=clean"):
        DiTConfig(audio=True, audio_skip=5)


def test_a_config_of_an_older_card_is_read():
    card = ModelCard({"width": 32, "heads": 4, "norm": "layer"}, {}, "", {}, 1.0, 0, "stage")
    assert config_of(card) == DiTConfig(width=32, heads=4)
    with pytest.raises(UserError, match=r"model\.norm is 'rms', but this setting was removed and is always .layer."):
        config_of(replace(card, model=card.model | {"norm": "rms"}))


KNOWN = replace(SMALL, known=True)


def some_known(drop: list[bool] | None = None, frames: int = 11) -> Condition:
    """Of the first example the first four frames, of the second none."""
    given_ = condition(drop=drop)
    known = (torch.arange(frames)[None, None] < 4) & torch.tensor([True, False])[:, None, None]
    values = torch.randn(2, 6, frames, generator=torch.Generator().manual_seed(3))
    return replace(given_, audio=values * known, known_mask=known)


def test_a_model_that_can_be_given_frames_begins_as_one_that_cannot():
    torch.manual_seed(0)
    plain = DiT(SMALL)
    torch.manual_seed(0)
    able = DiT(KNOWN)
    assert {n for n, _ in able.named_parameters()} - {n for n, _ in plain.named_parameters()} == {"known_in"}
    assert all(torch.equal(value, able.state_dict()[name]) for name, value in plain.state_dict().items())
    able = woken(KNOWN)
    plain.load_state_dict({name: value for name, value in able.state_dict().items() if name != "known_in"})
    assert torch.equal(able(X, T, condition()).prediction, plain.eval()(X, T, condition()).prediction)
    nothing = replace(some_known(), known_mask=torch.zeros(2, 1, 11, dtype=torch.bool))
    assert torch.equal(able(X, T, nothing).prediction, able(X, T, condition()).prediction)
    with pytest.raises(UserError, match=r"model\.known is for generation"):
        replace(WITH_AUDIO, known=True)


@pytest.mark.parametrize("patch", [1, 3])
def test_frames_that_are_given_are_read_without_their_noise_and_not_generated(patch):
    model = woken(replace(KNOWN, patch_frames=patch))
    given_ = some_known()
    out = model(X, T, given_).prediction
    assert out[0, :, :4].abs().max() == 0 and out[0, :, 4:].abs().min() > 0 and out[1].abs().min() > 0
    noisier = X.clone()
    noisier[0, :, :4] += 1.0
    assert torch.equal(model(noisier, T, given_).prediction, out)
    for changed in (replace(given_, audio=2 * given_.audio), replace(given_, known_mask=given_.known_mask.flip(-1))):
        assert not torch.allclose(model(X, T, changed).prediction[0, :, 5], out[0, :, 5])
    # Guidance drops the caption, not what is known.
    dropped = some_known(drop=[True, True])
    louder = replace(dropped, audio=2 * dropped.audio)
    assert not torch.allclose(model(X, T, louder).prediction[0], model(X, T, dropped).prediction[0])
    torch.testing.assert_close(model(X, T, given_.dropped()).prediction, model(X, T, dropped).prediction)
