"""Super-resolution from a predictor's guess: two parts of one latent, the shares in closed form, and the run's promises."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from running import assert_same, cut_to_checkpoints, run, timeless

from segue.models.files import load_model, model_file
from segue.pipeline import SuperResolver
from segue.predictor import BandPredictor, PredictorConfig, guess, level_gain, predictor_hash, save_predictor
from segue.predictor.resolver import MEAN_SHARE
from segue.process.noise import BatchDraws
from segue.tasks.degradation import degrade, protocol
from segue.tasks.super_resolution import fitted_share, magnitudes, turn_of
from segue.training.build import build_model, make_task
from segue.training.checks import check_before_training
from segue.training.config import to_json
from segue.types import UserError

BAND = ["degradation.cutoff_min_hz=400", "degradation.cutoff_max_hz=500", "model.patch_frames=1"]


def small_predictor(folder, seed=0, rate_hz=2000):
    torch.manual_seed(seed)
    save_predictor(BandPredictor(PredictorConfig(rate_hz, width=16, blocks=1)), folder, {})
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return small_predictor(tmp_path_factory.mktemp("predictor"))


@pytest.fixture
def predicted(recipe, predictor):
    def make(name, *changes):
        return recipe(name, *BAND, f"degradation.predictor={predictor}", *changes)

    return make


def prepared(task, cache, position, rank=0, world=1):
    """Of four clips, or of a rank's part of them."""
    rows = cache.rows("train")[:4][rank * 4 // world : (rank + 1) * 4 // world]
    draws = None if position is None else BatchDraws(0, position, len(rows), rank, world)
    return cache.batch(rows), task.prepare(cache.batch(rows), draws)


@pytest.fixture
def fitted(hisses, predicted):
    """The task of a run that begins, and its model."""
    config = predicted("sr-predicted-static")
    task, model = make_task(config, hisses), build_model(config, hisses, 0)
    task.initialise(model, hisses)
    return task, model


def test_residual_and_mean_add_up_to_the_clean_latent(hisses, fitted):
    """Levels and what has no phase exactly; of the rest the magnitudes, with phases of the guess alone."""
    task, _ = fitted
    codec = task.space.codec
    # Held-out clips: brought to the level of files in use, which is undone here.
    batch, (x_0, condition, mask) = prepared(task, hisses, None)
    wave = codec.decode(batch.latents.float(), task.samples)
    low = degrade(wave, 2000, [task.config.held_out] * len(wave))
    clean = task.space.encode(wave * level_gain(low, mask.sum(1) * codec.hop_samples), mask)
    given = condition.known_mask.expand_as(x_0)
    whole = condition.fill_known(x_0)
    plain = torch.ones(codec.channels, dtype=torch.bool)
    plain[codec.pairs.flatten()] = False
    torch.testing.assert_close(whole[:, plain][~given[:, plain]], clean[:, plain][~given[:, plain]])
    assert plain.sum() == codec.levels + 2 and torch.equal(whole[given], condition.audio[given])
    made, true, turn = (torch.complex(*x[:, codec.pairs].unbind(1)) for x in (whole, clean, condition.turn))
    missing = ~given[:, codec.pairs[0]] & mask[:, None]
    torch.testing.assert_close(made.abs()[missing], true.abs()[missing], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made[missing], (turn * true.abs())[missing], atol=1e-5, rtol=1e-4)
    assert x_0[given].abs().max() == 0 and condition.mean[given].abs().max() == 0
    # The mean is a share of the guess, which is the audio where nothing is known.
    torch.testing.assert_close(condition.mean[~given], (task.share[:, None] * condition.audio)[~given])
    assert condition.audio[~given].std() > 0.1 and x_0.transpose(1, 2)[~mask].abs().max() == 0


def test_a_guess_alone_comes_back_as_its_own_wave(hisses, fitted):
    """Magnitudes and phases of one latent are that latent."""
    task, _ = fitted
    latents = task.space.standardise(hisses.batch(hisses.rows("train")[:4]).latents)
    again = magnitudes(latents, task.space.codec) * turn_of(latents, task.space.codec)
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)


def test_shares_are_the_least_squares_of_clean_on_guess(hisses, fitted):
    task, model = fitted
    rows = hisses.rows("train")
    draws = BatchDraws(task.seed, 0, len(rows))
    x_0, condition, mask = task.prepare(hisses.batch(rows), draws)
    clean, given = x_0.double() + condition.mean, condition.known_mask.expand_as(x_0)
    for channel in range(clean.shape[1]):
        missing = ~given[:, channel] & mask
        true, guessed = (x[:, channel][missing].double().numpy() for x in (clean, condition.audio))
        least = float(np.linalg.lstsq(guessed[:, None], true, rcond=None)[0][0]) if len(true) else 0.0
        assert float(task.share[channel]) == pytest.approx(min(max(least, 0.0), 1.0), abs=1e-5)
    assert 0 < float(task.share.max()) <= 1 and float(task.share.min()) == 0
    assert torch.equal(model.guess_share, task.share)


def test_shares_stay_from_nothing_to_all():
    found = fitted_share(torch.tensor([1.0, 3.0, -1.0, 0.0]).double(), torch.tensor([2.0, 2.0, 2.0, 0.0]).double())
    assert found.tolist() == [0.5, 1.0, 0.0, 0.0]


def test_guesses_are_keyed_by_position_and_fixed_where_there_is_none(hisses, fitted):
    task, _ = fitted
    first, again, other = (prepared(task, hisses, n)[1][1] for n in (40, 40, 80))
    assert torch.equal(first.audio, again.audio) and not torch.equal(first.mean, other.mean)
    second = prepared(task, hisses, 40, rank=1, world=2)[1][1]
    torch.testing.assert_close(second.audio, first.audio[2:], atol=1e-5, rtol=1e-4)
    fixed = [prepared(task, hisses, None)[1][1].audio for _ in range(2)]
    assert torch.equal(*fixed)


def test_without_a_predictor_nothing_is_there(hisses, recipe):
    config = recipe("sr-demo-static", *BAND)
    task, model = make_task(config, hisses), build_model(config, hisses, 0)
    task.initialise(model, hisses)
    _, (_, condition, _) = prepared(task, hisses, 5)
    assert condition.mean is None and task.share is None and not hasattr(model, "guess_share")
    assert "predictor" not in to_json(config)["degradation"]


def test_resumed_equals_uninterrupted_bit_for_bit(hisses, predicted, tmp_path):
    config = predicted("sr-predicted")
    _, whole = run(config, hisses, tmp_path / "whole")
    run(replace(config, train=replace(config.train, keep_last=9)), hisses, tmp_path / "cut")
    cut_to_checkpoints(tmp_path / "cut", 1)
    _, resumed = run(config, hisses, tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")
    assert torch.equal(whole["model.guess_share"], whole["ema.guess_share"]) and whole["model.guess_share"].max() > 0


def test_a_saved_model_finds_its_predictor_and_refuses_another(hisses, recipe, tmp_path, monkeypatch):
    place = small_predictor(tmp_path / "own")
    config = recipe("sr-predicted-static", *BAND, f"degradation.predictor={place}", "train.total_examples=16")
    run(config, hisses, tmp_path / "run")
    low = degrade(torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)), 2000, protocol("nuwave2", 500.0))

    def made():
        resolver = SuperResolver.load(tmp_path / "run")
        noise = resolver.noise(resolver.frames(4000), 0)[None]
        assert noise.shape[1] == resolver.codec.channels + resolver.hop_samples
        return resolver.resolve(low, torch.tensor([500.0]), noise)

    before = made()
    card = load_model(model_file(tmp_path / "run")).card
    found = {"source": str(place), "sha256": predictor_hash(place / "predictor.safetensors")}
    assert card.predictor == found | {"mean_share": MEAN_SHARE}
    # Its card may say something else, and it may have moved into the package.
    (place / "predictor.safetensors").unlink()
    with pytest.raises(UserError, match="no predictor, which the model starts from; hint"):
        made()
    monkeypatch.setattr(guess, "SHIPPED", {2000: tmp_path / "shipped"})
    torch.manual_seed(0)
    same = BandPredictor(PredictorConfig(2000, width=16, blocks=1))
    save_predictor(same, tmp_path / "shipped", {"name": "another card"})
    assert torch.equal(made(), before)
    small_predictor(tmp_path / "shipped", seed=1)
    with pytest.raises(UserError, match=r"not the predictor that the model was trained with \(\w{16}\); hint"):
        made()
    # Nor does the run go on from another.
    small_predictor(place, seed=1)
    with pytest.raises(UserError, match=r"degradation\.predictor: \w{16} at 0\.15, and the run began with \w{16} at 0"):
        run(config, hisses, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("degradation.predictor=nowhere", "nowhere: no predictor, which the model starts from; hint"),
        ("degradation.predictor=shipped", "no predictor is shipped for 2000 Hz, only for .*16000.*; hint"),
        ("degradation.predictor=", None),
    ],
)
def test_a_predictor_that_is_not_there_is_refused_before_training(hisses, predicted, change, says):
    config = predicted("sr-predicted", change)
    if says is None:
        assert not any("predictor" in line for line in check_before_training(config, hisses))
        return
    with pytest.raises(UserError, match=says):
        check_before_training(config, hisses)


def test_a_predictor_of_another_rate_is_refused_and_one_that_fits_is_named(hisses, predicted, tmp_path):
    other = small_predictor(tmp_path, rate_hz=4000)
    with pytest.raises(UserError, match="made for 4000 Hz in frames of 32 samples, and the codec has 2000 Hz and 32"):
        check_before_training(predicted("sr-predicted", f"degradation.predictor={other}"), hisses)
    (line,) = [line for line in check_before_training(predicted("sr-predicted"), hisses) if "predictor:" in line]
    assert "whose guess the model starts from" in line


def test_a_config_of_a_run_without_a_predictor_is_what_it_was(recipe):
    stored = json.loads(json.dumps(to_json(recipe("sr-demo", *BAND))))
    assert set(stored["degradation"]) == set(asdict(recipe("sr-demo").degradation)) - {"predictor"}


def test_latents_without_bands_start_from_the_whole_guess(taught, recipe, predictor, tmp_path):
    """The low band is part of the guess, so that shares are near 1 where it lies."""
    config = recipe("sr-predicted", *BAND, f"degradation.predictor={predictor}", "train.total_examples=16")
    task, model = make_task(config, taught), build_model(config, taught, 0)
    task.initialise(model, taught)
    _, (x_0, condition, _) = prepared(task, taught, 5)
    assert not condition.known_mask.any() and (condition.turn == 1).all()
    clean = condition.fill_known(x_0)
    assert task.share[:12].min() > 0.9 and x_0.square().mean() < 0.9 * clean.square().mean()
