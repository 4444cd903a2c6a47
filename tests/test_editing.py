"""Editing of recordings by models whose answer is known: the exact denoiser of a smooth random sound.

Sounds are draws of a Gaussian process of known covariance, and the codec cuts them into frames without loss. So what a
model should make of a known part is known, and a joint that is none shows as a jump.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.editing import FADE_SEC
from segue.models.files import ModelCard, SavedModel
from segue.pipeline import Pipeline, Sampling
from segue.types import ModelOutput, UserError

RATE_HZ, HOP, FRAMES = 1000, 8, 32  # a training clip has 256 samples
SAMPLES = HOP * FRAMES
FADE = round(FADE_SEC * RATE_HZ)


class Cut(Codec):
    """Frames of samples, as they are."""

    name = source = "cut"
    sample_rate_hz, channels, hop_samples = RATE_HZ, HOP, HOP

    def encode(self, wave):
        self.check_wave(wave)
        padded = torch.nn.functional.pad(wave[:, 0], (0, -wave.shape[-1] % HOP))
        return padded.unflatten(1, (-1, HOP)).transpose(1, 2)

    def decode(self, latents, samples):
        return latents.transpose(1, 2).flatten(1)[:, None, :samples]

    def fingerprint(self):
        return {"codec": "cut"}


class Signs(TextConditioner):
    """One token a word; "loud" is a word that the model knows."""

    name, dim, max_tokens = "signs", 2, 4

    def encode(self, captions):
        words = [caption.split()[: self.max_tokens] for caption in captions]
        longest = max(len(row) for row in words)
        tokens, mask = torch.zeros(len(words), longest, 2), torch.zeros(len(words), longest, dtype=torch.bool)
        for row, some in enumerate(words):
            mask[row, : len(some)] = True
            for column, word in enumerate(some):
                tokens[row, column, 0] = word == "loud"
        return tokens, mask

    def fingerprint(self):
        return {"name": "signs"}


def covariance(samples):
    """Matern-3/2 with a scale of 12 samples: once differentiable, so that a draw has no jumps."""
    apart = 3**0.5 * (torch.arange(samples)[:, None] - torch.arange(samples)).abs().double() / 12
    return (1 + apart) * torch.exp(-apart) + 1e-6 * torch.eye(samples, dtype=torch.float64)


def draw(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(covariance(samples))
    return (root @ torch.randn(samples, dtype=torch.float64, generator=generator)).float()[None]


@dataclass(frozen=True)
class Shape:
    known: bool
    channels: int = HOP


class Exact(torch.nn.Module):
    """E[x_0 | x_t], and of a model that can be given a part, E[x_0 | x_t, the known part]. "loud" adds a mean of 2."""

    predicts = "clean"

    def __init__(self, known):
        super().__init__()
        self.config = Shape(known)
        self.frames = []

    def forward(self, x_t, t, condition, mask=None):
        self.frames.append(x_t.shape[-1])
        t = min(float(t[0]), 1 - 1e-4)
        loud = (condition.tokens[..., 0] * condition.tokens_mask).amax(1)
        mean = 2.0 * (loud if condition.drop is None else loud * ~condition.drop).double()[:, None]
        # Everything observed, as the sound plus noise of some deviation: next to none where it is known.
        seen = x_t.transpose(1, 2).flatten(1).double() / (1 - t) - mean
        noise = torch.full(seen.shape[1:], t / (1 - t), dtype=torch.float64)
        if condition.audio is not None:
            assert self.config.known
            known = condition.known_mask[0, 0].repeat_interleave(HOP)
            seen = seen.where(~known, condition.audio.transpose(1, 2).flatten(1).double() - mean)
            noise = noise.where(~known, 1e-3)
        prior = covariance(seen.shape[1])
        clean = prior @ torch.linalg.solve(prior + (noise**2).diag(), seen.T)
        out = (clean.T + mean).float().unflatten(1, (-1, HOP)).transpose(1, 2)
        return ModelOutput(out if condition.audio is None else out * ~condition.known_mask)


@pytest.fixture(scope="module", params=[True, False], ids=["trained", "replacement"])
def pipeline(request):
    card = ModelCard({}, {"codec": "cut"}, "cut", {"name": "signs"}, SAMPLES / RATE_HZ, 0, "static-uniform")
    saved = SavedModel(Exact(request.param), torch.zeros(HOP, 1), torch.ones(HOP, 1), card)
    return Pipeline(saved, Cut(), Signs())


FEW = Sampling(steps=10, guidance_scale=1.0)
WAVE = draw(200, 0)


def roughest(wave):
    """Largest second difference: smooth draws have about 0.1, and a jump of the size of the sound ten times that."""
    return float(wave.diff().diff().abs().max())


def test_a_stretch_is_replaced_without_a_joint_and_the_rest_is_the_recording(pipeline):
    out = pipeline.replace(WAVE, "tone", start_sec=0.08, end_sec=0.12, sampling=FEW, seed=1)
    assert out.shape == (1, 1, 200)
    assert torch.equal(out[0, :, : 80 - FADE], WAVE[:, : 80 - FADE])
    assert torch.equal(out[0, :, 120 + FADE :], WAVE[:, 120 + FADE :])
    assert float((out[0] - WAVE)[:, 85:115].abs().max()) > 0.1
    assert roughest(out) < 3 * roughest(WAVE), "no click"
    assert torch.equal(out, pipeline.replace(WAVE, "tone", start_sec=0.08, end_sec=0.12, sampling=FEW, seed=1))
    other = pipeline.replace(WAVE, "tone", start_sec=0.08, end_sec=0.12, sampling=FEW, seed=2)
    assert not torch.equal(out, other)


@pytest.mark.parametrize(("start_sec", "end_sec"), [(0.0, 0.05), (0.15, 0.2), (0.0, 0.2), (0.05, 0.051)])
def test_any_stretch_can_be_replaced(pipeline, start_sec, end_sec):
    out = pipeline.replace(WAVE, "tone", start_sec=start_sec, end_sec=end_sec, sampling=FEW)
    assert out.shape == (1, 1, 200) and roughest(out) < 3 * roughest(WAVE)
    changed = (out[0, 0] != WAVE[0]).nonzero().flatten()
    hop = HOP / RATE_HZ
    assert changed.min() / RATE_HZ >= start_sec - FADE_SEC - hop
    assert changed.max() / RATE_HZ <= end_sec + FADE_SEC + hop


def test_what_is_made_follows_what_is_known(pipeline):
    """The mean of many continuations is near the conditional mean of the process, which a free draw is not."""
    first = 2 * HOP
    gain = covariance(200 + first)[200:, :200] @ torch.linalg.inv(covariance(200 + first)[:200, :200])
    wanted = (gain @ WAVE[0].double()).float()
    made = [pipeline.extend(WAVE, "tone", seconds=first / RATE_HZ, seed=seed, sampling=FEW) for seed in range(12)]
    mean = torch.cat(made)[:, 0, 200:].mean(0)
    near = slice(0, HOP // 2)
    error = float((mean - wanted)[near].abs().mean() / wanted[near].abs().mean())
    # By replacement a model knows what is given only in part, which is said to its user.
    assert error < {"training": 0.1, "replacement": 0.6}[pipeline.keeps_by]


@pytest.mark.parametrize("samples", [200, 203, 700])
@pytest.mark.parametrize("seconds", [0.05, 0.9])
def test_a_recording_is_continued_from_its_end_whatever_the_lengths(pipeline, samples, seconds):
    wave = draw(samples, 3)
    pipeline.model.frames.clear()
    out = pipeline.extend(wave, "tone", seconds=seconds, sampling=Sampling(steps=4, guidance_scale=1.0))
    assert out.shape == (1, 1, samples + round(1000 * seconds))
    kept = samples // HOP * HOP - FADE
    assert torch.equal(out[0, :, :kept], wave[:, :kept])
    assert roughest(out[..., kept - 5 : samples + 40]) < 4 * roughest(wave)
    # Windows are never longer than what the model makes in one piece.
    assert max(pipeline.model.frames) <= 2 * FRAMES


def test_a_loop_meets_its_beginning(pipeline):
    out = pipeline.loop(WAVE, "tone", sampling=FEW)[0]
    assert roughest(torch.cat([WAVE, WAVE], 1)) > 5 * roughest(WAVE), "the recording itself does not"
    assert roughest(torch.cat([out, out], 1)) < 3 * roughest(WAVE)
    beside = 200 // 8 + HOP + FADE
    assert torch.equal(out[:, beside:-beside], WAVE[:, beside:-beside])
    made = pipeline.generate(["tone", "hum"], loop=True, sampling=FEW, seed=[4, 5])
    assert made.shape == (2, 1, SAMPLES)
    for wave in made:
        assert roughest(torch.cat([wave, wave], 1)) < 3 * roughest(WAVE)


def test_a_variation_is_near_the_recording_where_it_is_weak_and_free_where_it_is_strong(pipeline):
    apart = []
    for strength in (0.05, 0.4, 0.8, 1.0):
        out = pipeline.vary(WAVE, "tone", strength=strength, seed=2, sampling=FEW)
        assert out.shape == (1, 1, 200)
        apart.append(float((out[0] - WAVE).square().mean()))
    assert apart == sorted(apart) and apart[0] < 0.01 < 0.3 < apart[-1]
    free = pipeline.vary(-WAVE, "tone", strength=1.0, seed=2, sampling=FEW)
    assert torch.equal(free, out), "from noise alone nothing of the recording is left"


def test_long_sounds_are_made_in_windows_that_fit_each_other(pipeline):
    pipeline.model.frames.clear()
    steps = Sampling(steps=6, guidance_scale=1.0)
    made = pipeline.generate(["tone", "tone"], seconds=0.9, seed=[1, 2], sampling=steps)
    assert made.shape == (2, 1, 900) and set(pipeline.model.frames) == {FRAMES}
    assert roughest(made) < 4 * roughest(WAVE) and not torch.equal(made[0], made[1])
    assert len(pipeline.model.frames) == pipeline.evaluations(900, steps)
    # A row does not depend on its batch, up to rounding.
    alone = pipeline.generate(["tone"], seconds=0.9, seed=2, sampling=steps, numbers=[1])
    torch.testing.assert_close(alone[0], made[1], atol=1e-3, rtol=0)
    pipeline.model.frames.clear()
    pipeline.generate(["tone"], seconds=0.5, sampling=steps)
    assert set(pipeline.model.frames) == {63}, "up to twice the training length in one piece"


def test_a_negative_prompt_is_steered_away_from(pipeline):
    guided = Sampling(steps=8, guidance_scale=2.0)
    plain = pipeline.generate(["tone"], sampling=guided)
    away = pipeline.generate(["tone"], sampling=guided, negative="loud hiss and hum")
    assert float(plain.mean() - away.mean()) == pytest.approx(2.0, abs=0.3)
    # Away from itself is nowhere: the prompt alone.
    same = pipeline.generate(["loud"], sampling=guided, negative="loud")
    torch.testing.assert_close(same, pipeline.generate(["loud"], sampling=replace(guided, guidance_scale=1.0)))
    varied = pipeline.vary(WAVE, "tone", strength=0.9, sampling=guided, negative="loud")
    assert float(varied.mean()) < float(pipeline.vary(WAVE, "tone", strength=0.9, sampling=guided).mean()) - 0.5
    out = pipeline.replace(WAVE, "tone", start_sec=0.05, end_sec=0.15, sampling=guided, negative="loud")
    assert torch.equal(out[0, :, :20], WAVE[:, :20])


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("replace", {"start_sec": 0.1, "end_sec": 0.1}, "--replace 0.1-0.1: of no length; hint:"),
        ("replace", {"start_sec": 0.1, "end_sec": 0.3}, "the recording lasts 0.200 s; hint: give a range within it"),
        ("replace", {"start_sec": -0.1, "end_sec": 0.1}, "give a range within it"),
        ("replace", {"start_sec": float("nan"), "end_sec": 0.1}, "hint:"),
        ("vary", {"strength": 0.0}, "--strength 0: hint: give more than 0, up to 1"),
        ("vary", {"strength": 1.2}, "--strength 1.2"),
        ("vary", {"strength": float("nan")}, "--strength nan"),
        ("extend", {"seconds": 0.0}, "--continue 0.0: give a positive length"),
        ("extend", {"seconds": float("inf")}, "--continue inf"),
        ("vary", {"strength": 0.5, "negative": "loud"}, "a negative prompt acts through guidance"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(pipeline, method, options, says):
    with pytest.raises(UserError, match=says):
        getattr(pipeline, method)(WAVE, "tone", sampling=FEW, **options)


def test_waves_that_are_none_are_one_line(pipeline):
    for wave, says in (
        (WAVE[0], r"takes \[1, samples\] at 1,000 Hz"),
        (WAVE.expand(2, -1), r"takes \[1, samples\]"),
        (WAVE[:, :0], r"takes \[1, samples\]"),
        (WAVE * torch.nan, "not finite"),
    ):
        with pytest.raises(UserError, match=says):
            pipeline.vary(wave, "tone", strength=0.5)
    with pytest.raises(UserError, match="an empty prompt"):
        pipeline.vary(WAVE, " ", strength=0.5)
    with pytest.raises(UserError, match="shorter than one latent frame"):
        pipeline.extend(WAVE[:, :5], "tone", seconds=0.1)
    with pytest.raises(UserError, match="too short; hint"):
        pipeline.loop(WAVE[:, :5], "tone")
