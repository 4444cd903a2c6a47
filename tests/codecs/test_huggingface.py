import re

import pytest
import torch
from transformers import BertConfig, BertModel, DacConfig, DacModel, EncodecConfig, EncodecModel

from segue.codecs import load_codec
from segue.codecs.base import Codec
from segue.types import UserError


def save_dac(folder, ratios=(2, 4)):
    model = DacModel(
        DacConfig(encoder_hidden_size=4, decoder_hidden_size=8, downsampling_ratios=list(ratios), n_codebooks=2,
                  codebook_size=16, codebook_dim=4, sampling_rate=8000)
    )  # fmt: skip
    model.save_pretrained(folder)
    return model.eval()


def save_encodec(folder, **changes):
    config = {"sampling_rate": 8000, "hidden_size": 6, "num_filters": 4, "upsampling_ratios": [4, 2],
              "num_lstm_layers": 1, "codebook_size": 16, "target_bandwidths": [8.0]} | changes  # fmt: skip
    model = EncodecModel(EncodecConfig(**config))
    model.save_pretrained(folder)
    return model.eval()


def save_encodec_48k(folder):
    """As the 48 kHz model: stereo, chunks of their own level, norm over time, not causal."""
    return save_encodec(
        folder, audio_channels=2, normalize=True, chunk_length_s=0.1, overlap=0.0, norm_type="time_group_norm",
        use_causal_conv=False,
    )  # fmt: skip


def save_oobleck(folder, sides=2):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=4, audio_channels=sides, sampling_rate=8000,
    )  # fmt: skip
    model.save_pretrained(folder)
    return model.eval()


def noise(batch, samples, sides=1, seed=0):
    return 0.3 * torch.randn(batch, sides, samples, generator=torch.Generator().manual_seed(seed))


def padded(wave, hop):
    return torch.nn.functional.pad(wave, (0, -wave.shape[-1] % hop))


SAVERS = [save_dac, save_encodec, save_encodec_48k, save_oobleck]


@pytest.fixture(params=SAVERS, ids=lambda save: save.__name__)
def codec(request, tmp_path) -> Codec:
    torch.manual_seed(0)
    request.param(tmp_path / "model")
    return load_codec(str(tmp_path / "model"))


@pytest.mark.parametrize("samples", [1, 7, 800, 1003, 2400])
def test_lengths_come_out_exactly(codec, samples):
    latents = codec.encode(noise(2, samples, codec.audio_channels))
    assert latents.shape == (2, codec.channels, codec.latent_frames(samples))
    assert latents.dtype == torch.float32 and bool(latents.isfinite().all())
    wave = codec.decode(latents, samples)
    assert wave.shape == (2, codec.audio_channels, samples) and bool(wave.isfinite().all())


def test_latents_of_a_clip_do_not_depend_on_its_batch(codec):
    wave = noise(3, 1003, codec.audio_channels)
    torch.testing.assert_close(codec.encode(wave)[1:2], codec.encode(wave[1:2]), atol=1e-5, rtol=1e-4)


def test_says_what_it_does(codec, tmp_path):
    line = codec.describe()
    assert "8,000 Hz" in line and f"{codec.frame_rate_hz:g} frames/s" in line and "\n" not in line
    assert codec.source == str(tmp_path / "model")


def test_the_fingerprint_follows_the_weights(codec, tmp_path):
    first = codec.fingerprint()
    assert first == load_codec(str(tmp_path / "model")).fingerprint()
    assert first["sample_rate_hz"] == 8000 and first["channels"] == codec.channels
    torch.manual_seed(1)
    {"dac": save_dac, "encodec": save_encodec, "oobleck": save_oobleck}[codec.name](tmp_path / "other")
    assert load_codec(str(tmp_path / "other")).fingerprint() != first


def test_another_rate_is_refused(codec):
    with pytest.raises(UserError, match="8000 Hz, not 16000"):
        load_codec(codec.source, 16000)
    with pytest.raises(UserError, match="0 samples"):
        codec.encode(torch.zeros(1, codec.audio_channels, 0))


def test_dac_equals_a_direct_call(tmp_path):
    torch.manual_seed(0)
    model, wave = save_dac(tmp_path), noise(2, 1003)
    codec = load_codec(str(tmp_path))
    with torch.no_grad():
        direct = model.encoder(padded(wave, 8))
        # What the library's own quantiser is given is what we call the latents.
        quantised = model.quantizer(direct)[0]
        torch.testing.assert_close(model.encode(padded(wave, 8)).quantized_representation, quantised)
        sound = model.decode(quantized_representation=direct).audio_values[:, None, :1003]
    torch.testing.assert_close(codec.encode(wave), direct)
    torch.testing.assert_close(codec.decode(direct, 1003), sound)


def test_a_decoder_that_gives_too_little_is_ended_with_silence(tmp_path):
    torch.manual_seed(0)
    save_dac(tmp_path, ratios=(2, 5))  # odd strides lose samples, as in DAC's 24 kHz model
    codec = load_codec(str(tmp_path))
    wave = codec.decode(codec.encode(noise(1, 100)), 100)
    assert wave.shape == (1, 1, 100) and wave[0, 0, -1] == 0 and wave[0, 0, :-4].abs().min() > 0


def test_encodec_equals_a_direct_call(tmp_path):
    torch.manual_seed(0)
    model, wave = save_encodec(tmp_path), noise(2, 1003)
    codec = load_codec(str(tmp_path))
    seen = []
    model.quantizer.encode = lambda embeddings, bandwidth: seen.append(embeddings) or embeddings[:, :1].long()
    with torch.no_grad():
        model.encode(padded(wave, 8))
        sound = model.decoder(seen[0])[..., :1003]
    torch.testing.assert_close(codec.encode(wave), seen[0])
    torch.testing.assert_close(codec.decode(seen[0], 1003), sound)


def test_encodec_by_chunks_equals_a_direct_call_without_overlap(tmp_path):
    torch.manual_seed(0)
    model, wave = save_encodec_48k(tmp_path), noise(2, 2003, 2)  # chunks of 800 samples, 100 frames
    wave[1] *= 0.01
    codec = load_codec(str(tmp_path))
    assert (codec.channels, codec.audio_channels, codec.chunk_frames) == (7, 2, 100)
    seen = []
    model.quantizer.encode = lambda embeddings, bandwidth: seen.append(embeddings) or embeddings[:, :1].long()
    stereo = padded(wave, 8)
    latents = codec.encode(wave)
    with torch.no_grad():
        _, scales, _ = model.encode(stereo, return_dict=False)
        sound = torch.cat([model.decoder(e) * s.view(-1, 1, 1) for e, s in zip(seen, scales)], dim=-1)
    torch.testing.assert_close(latents[:, :-1], torch.cat(seen, dim=-1), atol=1e-4, rtol=1e-4)
    for n, scale in enumerate(scales):
        levels = latents[:, -1, 100 * n : 100 * (n + 1)].exp()
        torch.testing.assert_close(levels, scale.expand_as(levels))
    torch.testing.assert_close(codec.decode(latents, 2003), sound[..., :2003], atol=1e-5, rtol=1e-4)


def test_silence_stays_quiet_where_levels_are_normalised(tmp_path):
    torch.manual_seed(0)
    save_encodec_48k(tmp_path)
    codec = load_codec(str(tmp_path))
    latents = codec.encode(torch.zeros(1, 2, 1600))
    torch.testing.assert_close(latents[:, -1], torch.full((1, 200), 1e-4).log())
    assert codec.decode(latents, 1600).abs().max() < 1e-2


@pytest.mark.parametrize("sides", [1, 2])
def test_oobleck_equals_a_direct_call(tmp_path, sides):
    torch.manual_seed(0)
    model, wave = save_oobleck(tmp_path / "vae", sides), noise(2, 1003, sides)
    codec = load_codec(str(tmp_path))  # the folder of a whole pipeline
    with torch.no_grad():
        direct = model.encode(padded(wave, 8)).latent_dist.mode()
        sound = model.decode(direct).sample[..., :1003]
    torch.testing.assert_close(codec.encode(wave), direct)
    torch.testing.assert_close(codec.decode(direct, 1003)[..., : sound.shape[-1]], sound)


def test_what_is_no_codec_is_refused_in_one_line(tmp_path):
    BertModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="a bert model is no codec"):
        load_codec(str(tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no trained codec there"):
        load_codec(str(tmp_path / "empty"))


def test_weights_that_are_missing_pickled_or_cut_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_dac(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    save_file({k: v for k, v in load_file(file).items() if "decoder.conv1" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match="lack 2 weights"):
        load_codec(str(tmp_path))
    file.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot load it"):
        load_codec(str(tmp_path))
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled ones are not read"):
        load_codec(str(tmp_path))


def test_a_hub_name_is_fetched_in_two_steps_without_pickles_or_code(monkeypatch, tmp_path):
    asked = []

    def fetch(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    save_dac(tmp_path)
    codec = load_codec("somebody/dac_8khz@refs/pr/1")
    assert codec.source == "somebody/dac_8khz@refs/pr/1" and codec.name == "dac"
    assert [(name, revision) for name, revision, _ in asked] == [("somebody/dac_8khz", "refs/pr/1")] * 2
    assert asked[0][2] == ["config.json", "vae/config.json"]
    assert not any(re.search(r"\.(bin|py|pt|\*)$", pattern) for pattern in asked[1][2])


def test_a_name_that_is_not_there_is_refused_without_a_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not to be had from the hub"):
        load_codec("nobody/no-such-codec")
