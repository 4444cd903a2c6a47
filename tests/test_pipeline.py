"""SuperResolver on a model whose weights are random, but not zero: what must hold whatever was learned."""

from dataclasses import asdict, replace

import pytest
import torch

from segue.codecs import load_codec
from segue.evaluation.spectral_distances import lsd
from segue.models.dit import DiT, DiTConfig
from segue.models.files import ModelCard, SavedModel
from segue.pipeline import Pipeline, SuperResolver
from segue.predictor import BandPredictor, Predictor, PredictorConfig, predictor_hash, save_predictor
from segue.tasks.degradation import degrade, protocol
from segue.types import UserError

RATE_HZ, CUTOFF = 16000, torch.tensor([4000.0])


def saved(task="super-resolution", codec=None) -> SavedModel:
    torch.manual_seed(0)
    codec = codec or load_codec("gain-shape", RATE_HZ)
    shape = DiTConfig(channels=codec.channels, width=32, depth=3, heads=4, predicts="clean", audio=True)
    model = DiT(replace(shape, attention_window=3))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    card = ModelCard(asdict(model.config), codec.fingerprint(), "gain-shape", {}, 1.0, 0, "sr-demo", task)
    mean, std = torch.zeros(codec.channels, 1), torch.ones(codec.channels, 1)
    return SavedModel(model.eval(), mean, std, card)


@pytest.fixture(scope="module")
def resolver():
    return SuperResolver(saved(), load_codec("gain-shape", RATE_HZ))


def sound(seconds=2.0, seed=0):
    """Noise that falls with frequency, in swells, and what the protocol leaves of it."""
    samples = round(seconds * RATE_HZ)
    noise = torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(seed))
    wave = noise.cumsum(-1) - 0.95 * noise.cumsum(-1).roll(1, -1)
    swell = 0.6 + 0.4 * torch.sin(torch.arange(samples) / 3000)
    wave = 0.1 * swell * (wave - wave.mean()) / wave.std()
    return wave, degrade(wave, RATE_HZ, list(protocol("nuwave2", 4000.0)))


def test_the_low_band_is_kept_and_the_high_band_filled(resolver):
    wave, low = sound()
    out = resolver.resolve(low, CUTOFF, resolver.noise(resolver.frames(low.shape[-1]), 0)[None])
    assert out.shape == low.shape
    assert lsd(out[:, 0], low[:, 0], RATE_HZ, "nuwave2", band="low", cutoff_hz=4000.0) < 0.1
    assert lsd(out[:, 0], wave[:, 0], RATE_HZ, "nuwave2", band="low", cutoff_hz=4000.0) < 0.1
    high, before = (
        torch.stft(x[:, 0], 512, window=torch.hann_window(512), return_complex=True).abs() for x in (out, low)
    )
    assert high[:, 140:, 5:-5].mean() > 100 * before[:, 140:, 5:-5].mean()


@pytest.mark.parametrize("of", ["resolver", "predicted"])
def test_noise_is_keyed_by_frame(request, of):
    resolver = request.getfixturevalue(of)
    whole = resolver.noise(100, seed=7)
    for first, frames in ((0, 100), (13, 50), (16, 16), (99, 1)):
        assert torch.equal(resolver.noise(frames, 7, first), whole[:, first : first + frames])
    assert not torch.equal(resolver.noise(100, 8), whole)
    assert abs(float(whole.mean())) < 0.02 and abs(float(whole.std()) - 1) < 0.02


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """The same from the guess of a small predictor with random weights."""
    folder = tmp_path_factory.mktemp("predictor")
    torch.manual_seed(1)
    save_predictor(BandPredictor(PredictorConfig(RATE_HZ, width=16, blocks=2)), folder, {})
    plain = saved()
    model = DiT(replace(plain.model.config, guessed=True))
    model.load_state_dict(plain.model.state_dict() | {"guess_share": torch.full((model.config.channels,), 0.9)})
    found = {"source": str(folder), "sha256": predictor_hash(folder / "predictor.safetensors"), "mean_share": 0.15}
    card = replace(plain.card, predictor=found)
    return SuperResolver(replace(plain, model=model.eval(), card=card), load_codec("gain-shape", RATE_HZ))


def test_a_model_that_predicts_nothing_gives_back_the_guess(predicted):
    """With shares of 1; those of levels are less where a guess is hardly better than the mean level."""
    _, low = sound(1.0)
    noise = predicted.noise(predicted.frames(16000), 3)[None]
    place = predicted.saved.card.predictor["source"]
    predictor = Predictor.load(place)
    wanted = predictor.resolve(low, CUTOFF, predictor.noise(predictor.frames(16000), 3)[None])
    weights = {name: value.clone() for name, value in predicted.model.state_dict().items()}
    try:
        predicted.model.guess_share.fill_(1.0)
        for name in ("weight", "bias"):
            predicted.model.patch_out.get_parameter(name).data.zero_()
        made = predicted.resolve(low, CUTOFF, noise, steps=1)
        # The two bins at the cutoff are joined a second time, and at the ends there is half a window.
        difference = (made - wanted)[..., 512:-512].abs().max()
        assert difference < 5e-3 * (wanted - low).abs().max()
    finally:
        predicted.model.load_state_dict(weights)


def test_a_model_without_a_predictor_takes_any_level(resolver, predicted):
    _, low = sound(0.5)
    assert torch.equal(resolver.level_gain(low), torch.ones(1, 1, 1))
    torch.testing.assert_close((low * predicted.level_gain(low)).square().mean().sqrt(), torch.tensor(0.2))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("of", ["resolver", "predicted"])
def test_a_chunk_with_context_equals_the_whole(request, of, steps):
    resolver = request.getfixturevalue(of)
    _, low = sound(6.0)
    hop, context = resolver.hop_samples, resolver.context_samples
    noise = resolver.noise(resolver.frames(low.shape[-1]), 0)
    whole = resolver.resolve(low, CUTOFF, noise[None], steps=steps)[0, 0]
    first, last = context // hop + 40, context // hop + 100
    start, end = first * hop - context, last * hop + context
    assert start > 0 and end < low.shape[-1] and start % hop == 0
    part = resolver.noise(resolver.frames(end - start), 0, start // hop)
    chunk = resolver.resolve(low[..., start:end], CUTOFF, part[None], steps=steps)[0, 0]
    difference = (chunk[context : end - start - context] - whole[first * hop : last * hop]).abs().max()
    assert difference < 1e-3 * whole.abs().max()


def test_rows_are_computed_apart(resolver):
    first, second = (sound(1.0, seed)[1] for seed in (0, 1))
    noise = resolver.noise(resolver.frames(16000), 0)[None]
    both = resolver.resolve(torch.cat([first, second]), CUTOFF.expand(2), noise.expand(2, -1, -1))
    torch.testing.assert_close(both[:1], resolver.resolve(first, CUTOFF, noise), atol=1e-5, rtol=1e-4)


def test_a_model_of_one_task_is_refused_for_the_other():
    codec = load_codec("gain-shape", RATE_HZ)
    with pytest.raises(UserError, match="not for super-resolution"):
        SuperResolver(saved("generation"), codec)
    with pytest.raises(UserError, match="not for generation; use segue upsample"):
        Pipeline(saved(), codec, None)


def test_another_codec_and_no_steps_are_refused(resolver):
    with pytest.raises(UserError, match="trained with another codec"):
        SuperResolver(saved(), load_codec("gain-shape", 48000))
    with pytest.raises(UserError, match="--steps 0"):
        resolver.resolve(sound(0.1)[1], CUTOFF, resolver.noise(7, 0)[None], steps=0)


def test_a_stereo_model_keeps_the_low_band_on_its_side():
    torch.manual_seed(1)
    codec = load_codec("gain-shape", RATE_HZ, 2)
    stereo = saved(codec=codec)
    resolver = SuperResolver(stereo, codec)
    assert resolver.audio_channels == 2
    _, low = sound(1.0)
    sides = torch.cat([low, torch.zeros_like(low)], dim=1)
    out = resolver.resolve(sides, CUTOFF, resolver.noise(resolver.frames(low.shape[-1]), 0)[None])
    assert out.shape == sides.shape
    assert lsd(out[:, 0], low[:, 0], RATE_HZ, "nuwave2", band="low", cutoff_hz=4000.0) < 0.1
    spectra = torch.stft(out[0], 512, window=torch.hann_window(512), return_complex=True).abs()[:, :120, 5:-5]
    assert spectra[1].max() < 1e-3 * spectra[0].max(), "nothing of the low band crosses over"
