"""Two channels: sides keep their places, mono stays mono, and a waveform of other channels is refused."""

import pytest
import torch

from segue.codecs import codec_of, load_codec
from segue.codecs.gain_shape import GainShapeCodec
from segue.codecs.latent_space import LatentSpace
from segue.codecs.spectral import SpectralCodec
from segue.types import UserError

RATE_HZ = 16000
KINDS = [SpectralCodec, GainShapeCodec]


def tone(hz=440.0, samples=9001):
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(samples) / RATE_HZ)


def noise(samples=9001, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def stereo(kind):
    return kind(RATE_HZ, audio_channels=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tone_on_one_side_stays_there(kind):
    codec = stereo(kind)
    for side in (0, 1):
        wave = torch.zeros(1, 2, 9001)
        wave[0, side] = tone()
        back = codec.decode(codec.encode(wave), 9001)
        torch.testing.assert_close(back, wave, atol=2e-6, rtol=1e-4)
        assert back[0, 1 - side].abs().max() < 1e-5, "90 dB below the tone"


@pytest.mark.parametrize("kind", KINDS)
def test_two_sounds_come_back_on_their_own_sides_and_rows(kind):
    codec = stereo(kind)
    wave = torch.stack([torch.stack([tone(300), noise()]), torch.stack([noise(seed=1), tone(900)])])
    latents = codec.encode(wave)
    assert latents.shape == (2, codec.channels, codec.latent_frames(9001))
    torch.testing.assert_close(codec.decode(latents, 9001), wave, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(codec.encode(wave[1:]), latents[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mono_stays_exactly_mono_through_storage_and_statistics(kind, dtype):
    codec = stereo(kind)
    generator = torch.Generator().manual_seed(2)
    mean = 0.1 * torch.randn(codec.channels, 1, generator=generator)
    space = LatentSpace(codec, mean, 0.3 + torch.rand(codec.channels, 1, generator=generator))
    # Pauses, too: beside a sound, an error of the side could vanish by rounding.
    sound = torch.cat([torch.zeros(3000), noise(3000), torch.zeros(3001)])
    latents = codec.encode(sound.expand(1, 2, -1)).to(dtype).float()
    back = space.decode(space.standardise(latents), 9001)
    assert torch.equal(back[:, 0], back[:, 1])
    assert back[0, 0, 3000:6000].abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_mid_is_what_mono_is_and_mono_latents_are_what_they_were(kind):
    mono, both = kind(RATE_HZ), stereo(kind)
    wave = noise()
    alone = mono.encode(wave[None, None])
    pair = both.encode(wave.expand(1, 2, -1))
    torch.testing.assert_close(mono.decode(alone, 9001)[0, 0], wave, atol=1e-6, rtol=1e-4)
    assert both.channels == 2 * mono.channels and both.levels == 2 * mono.levels
    levels = both.levels // 2
    mid = torch.cat([pair[:, :levels], pair[:, 2 * levels :].chunk(2, dim=1)[0]], dim=1)
    torch.testing.assert_close(mid, alone, atol=1e-5, rtol=1e-5)
    assert "audio_channels" not in mono.fingerprint() and both.fingerprint()["audio_channels"] == 2


def test_bands_below_a_cutoff_are_those_of_mid_and_side():
    mono, both = GainShapeCodec(RATE_HZ), stereo(GainShapeCodec)
    cutoff_hz = torch.tensor([4000.0, 100.0])
    one, two = mono.bands_below(cutoff_hz), both.bands_below(cutoff_hz)
    assert two.shape == (2, both.channels)
    assert torch.equal(two, torch.cat([one[:, : mono.levels]] * 2 + [one[:, mono.levels :]] * 2, dim=1))


def test_waveforms_of_other_channels_are_refused():
    for codec, wave in ((stereo(SpectralCodec), torch.zeros(1, 1, 800)), (SpectralCodec(RATE_HZ), torch.zeros(2, 800))):
        with pytest.raises(ValueError, match=r"takes waveforms \[B, \d, T\], not"):
            codec.encode(wave)


def test_a_codec_of_either_kind_is_loaded_by_request_and_a_mono_one_refuses_stereo():
    assert load_codec("spectral").audio_channels == 1
    codec = load_codec("spectral", 44100, 2)
    assert codec.audio_channels == 2
    assert codec_of("spectral", codec.fingerprint()).fingerprint() == codec.fingerprint()
    with pytest.raises(UserError, match="a mono codec, not stereo; hint: leave --channels out"):
        load_codec("autoencoder", None, 2)
    with pytest.raises(UserError, match="1 or 2"):
        SpectralCodec(RATE_HZ, audio_channels=6)
