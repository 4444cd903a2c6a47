import json
import re

import numpy as np
import pytest
import torch
import transformers as tf

from segue.ssl import load_teacher
from segue.types import UserError

SPEECH = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24,
          "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}  # fmt: skip
CONV = {"conv_dim": [8, 8], "conv_kernel": [10, 4], "conv_stride": [5, 4]}  # hop 20, window 25


def save_waveform(folder, config, model, normalise=True, rate_hz=1000):
    model(config).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(sampling_rate=rate_hz, do_normalize=normalise).save_pretrained(folder)
    return model.from_pretrained(folder).eval()


def save_wavlm(folder):
    return save_waveform(folder, tf.WavLMConfig(**SPEECH, **CONV), tf.WavLMModel, normalise=False)


def save_hubert(folder):
    config = tf.HubertConfig(**SPEECH, **CONV, feat_extract_norm="layer", do_stable_layer_norm=True)
    return save_waveform(folder, config, tf.HubertModel)


def save_wav2vec2(folder):
    return save_waveform(folder, tf.Wav2Vec2Config(**SPEECH, **CONV), tf.Wav2Vec2Model)


def save_data2vec(folder):
    return save_waveform(
        folder, tf.Data2VecAudioConfig(**SPEECH, **CONV, conv_pos_kernel_size=3), tf.Data2VecAudioModel
    )


def save_w2v_bert(folder):
    config = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24,
              "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3}  # fmt: skip
    tf.Wav2Vec2BertModel(tf.Wav2Vec2BertConfig(**config)).save_pretrained(folder)
    tf.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8, sampling_rate=16000).save_pretrained(folder)
    return tf.Wav2Vec2BertModel.from_pretrained(folder).eval()


def save_ast(folder):
    config = tf.ASTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, patch_size=4,
        frequency_stride=2, time_stride=2, max_length=40, num_mel_bins=16,
    )  # fmt: skip
    tf.ASTForAudioClassification(config).save_pretrained(folder)  # as the published ones are
    tf.ASTFeatureExtractor(max_length=40, num_mel_bins=16, sampling_rate=16000).save_pretrained(folder)
    return tf.ASTModel.from_pretrained(folder).eval()


def save_whisper(folder):
    config = tf.WhisperConfig(
        vocab_size=20, num_mel_bins=8, encoder_layers=4, encoder_attention_heads=2, decoder_layers=1, d_model=16,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    tf.WhisperForConditionalGeneration(config).save_pretrained(folder)
    tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return tf.WhisperModel.from_pretrained(folder).encoder.eval()


CLAP = {"patch_embeds_hidden_size": 4, "depths": [1, 1, 1], "num_attention_heads": [1, 2, 2], "num_mel_bins": 16,
        "spec_size": 64, "window_size": 4, "hidden_size": 16, "projection_dim": 8}  # fmt: skip


def save_clap(folder, fusion=False):
    text = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16}  # fmt: skip
    audio = CLAP | ({"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {})
    tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(folder)
    tf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)  # fmt: skip
    return tf.ClapModel.from_pretrained(folder).audio_model.eval()


def save_clap_fused(folder):
    return save_clap(folder, fusion=True)


def save_pe_audio(folder, model=tf.PeAudioFrameLevelModel):
    text = {"model_type": "modernbert", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
    dac = {"downsampling_ratios": [4, 10], "encoder_hidden_size": 4, "decoder_hidden_size": 8, "codebook_dim": 8}
    audio = {"dac_config": dac, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
             "num_attention_heads": 2, "head_dim": 8}  # fmt: skip
    model(tf.PeAudioConfig(text_config=text, audio_config=audio)).save_pretrained(folder)
    tf.PeAudioFeatureExtractor(sampling_rate=1000, hop_length=40).save_pretrained(folder)
    return model.from_pretrained(folder).audio_encoder.eval()


def save_pe_av(folder):
    return save_pe_audio(folder, tf.PeAudioModel)


WAVEFORM = [save_wavlm, save_hubert, save_wav2vec2, save_data2vec]
ALL = [*WAVEFORM, save_w2v_bert, save_ast, save_whisper, save_clap, save_clap_fused, save_pe_audio]
named = {"ids": lambda save: save.__name__.removeprefix("save_")}


def noise(batch, samples):
    return 0.3 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=ALL, **named)
def saved(request, tmp_path):
    torch.manual_seed(0)
    request.param(tmp_path)
    return str(tmp_path)


@torch.no_grad()
def states(model, layer, **arguments):
    return model(**arguments, output_hidden_states=True).hidden_states[layer]


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("save", WAVEFORM, **named)
def test_waveform_families_equal_a_direct_call(save, layer, tmp_path):
    torch.manual_seed(0)
    model, wave = save(tmp_path), noise(2, 1010)
    teacher = load_teacher(str(tmp_path), layer)
    assert (teacher.sample_rate_hz, teacher.frame_rate_hz, teacher.dim) == (1000, 50, 16)
    extractor = tf.AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor([w.numpy() for w in wave], sampling_rate=1000, return_tensors="pt")["input_values"]
    if save is save_wavlm:
        torch.testing.assert_close(values, wave)
    # 51 windows of 25 samples every 20: 1,025 samples, 2 of the 15 that lack before the clip.
    values = torch.nn.functional.pad(values, (2, 13))
    features = teacher.encode(wave)
    assert features.shape == (2, 51, 16)
    torch.testing.assert_close(features, states(model, layer, input_values=values), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [1, 4])
def test_w2v_bert_equals_a_direct_call(layer, tmp_path):
    torch.manual_seed(0)
    model, wave = save_w2v_bert(tmp_path), noise(2, 3333)
    teacher = load_teacher(str(tmp_path), layer)
    assert (teacher.frame_rate_hz, teacher.dim) == (50, 16)
    extractor = tf.AutoFeatureExtractor.from_pretrained(tmp_path)
    whole = torch.nn.functional.pad(wave, (120, 11 * 320 + 240 - 120 - 3333)).numpy()
    inputs = extractor(list(whole), sampling_rate=16000, return_tensors="pt")
    assert bool(inputs["attention_mask"].all()) and inputs["input_features"].shape == (2, 11, 16)
    direct = states(model, layer, input_features=inputs["input_features"], attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(teacher.encode(wave), direct, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [2, 4])
def test_ast_equals_direct_calls_on_chunks(layer, tmp_path):
    torch.manual_seed(0)
    model = save_ast(tmp_path)
    teacher = load_teacher(str(tmp_path), layer)
    hop, window, along = 19 * 320, 40 * 160 + 240, 19  # 19 patches of 4 mel frames every 2 in 40
    assert teacher.frame_rate_hz == 50 and teacher.front_end.count(hop) == along
    wave = noise(2, hop + 5000)
    extractor = tf.AutoFeatureExtractor.from_pretrained(tmp_path)
    direct = []
    for start in (0, hop):
        piece = list(wave[:, start : start + window].numpy())
        values = extractor(piece, sampling_rate=16000, return_tensors="pt")["input_values"]
        patches = states(model, layer, input_values=values)[:, 2:]
        direct.append(patches.reshape(2, 7, along, 16).mean(1))
    features = teacher.encode(wave)
    assert features.shape[1] == along + 16  # ceil(5000 / 320)
    torch.testing.assert_close(features, torch.cat(direct, 1)[:, : features.shape[1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [2, 4])
def test_whisper_equals_direct_calls_on_chunks(layer, tmp_path):
    torch.manual_seed(0)
    model, wave = save_whisper(tmp_path), noise(2, 16000 + 5000)
    teacher = load_teacher(str(tmp_path), layer)
    extractor = tf.AutoFeatureExtractor.from_pretrained(tmp_path)
    direct = []
    for piece in wave.split(16000, dim=1):
        inputs = extractor(list(piece.numpy()), sampling_rate=16000, return_tensors="pt")["input_features"]
        direct.append(states(model, layer, input_features=inputs))
    features = teacher.encode(wave)
    assert (teacher.frame_rate_hz, features.shape) == (50, (2, 66, 16))
    torch.testing.assert_close(features, torch.cat(direct, 1)[:, :66], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("save", [save_clap, save_clap_fused], **named)
def test_clap_equals_a_direct_call(save, tmp_path):
    torch.manual_seed(0)
    model, wave = save(tmp_path), noise(2, 8000)
    teacher = load_teacher(str(tmp_path), 3)
    extractor = tf.AutoFeatureExtractor.from_pretrained(tmp_path)
    mel = extractor(list(wave.numpy()), sampling_rate=8000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        # The library unfolds time itself for the last layer, [B, F, frequency, time], after its norm.
        direct = model(input_features=mel, is_longer=torch.zeros(2, 1, dtype=torch.bool)).last_hidden_state
    features = teacher.encode(wave)
    assert features.shape == (2, 16, 16) and teacher.frame_rate_hz == 16
    assert direct.shape == (2, 16, 1, 16)  # one patch of frequency is left, so that its mean is itself
    normed = teacher.model.audio_encoder.norm(features)
    torch.testing.assert_close(normed, direct[:, :, 0].transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert load_teacher(str(tmp_path)).layer == 2 and load_teacher(str(tmp_path), 1).frame_rate_hz == 32


@pytest.mark.parametrize("save", [save_pe_audio, save_pe_av], **named)
@pytest.mark.parametrize("layer", [1, 2, 4])
def test_pe_audio_equals_a_direct_call(save, layer, tmp_path):
    torch.manual_seed(0)
    model = save(tmp_path)
    teacher = load_teacher(str(tmp_path), layer)
    assert (teacher.sample_rate_hz, teacher.frame_rate_hz, teacher.dim) == (1000, 25, 16)
    wave = noise(2, 410)
    # The last hop is filled up by reflection, as the published feature extractor does; the leading token is no frame.
    whole = torch.cat([wave, wave[:, -31:-1].flip(1)], dim=1)
    expected = states(model, layer, input_values=whole[:, None])[:, 1:]
    torch.testing.assert_close(teacher.encode(wave), expected, atol=1e-5, rtol=1e-4)


def test_a_feature_extractor_may_lie_in_the_processor(tmp_path):
    save_pe_audio(tmp_path)
    extractor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"feature_extractor": extractor, "processor_class": "PeAudioProcessor"})
    )
    assert load_teacher(str(tmp_path)).sample_rate_hz == 1000


def test_frames_of_clap_follow_time(tmp_path):
    """A click moves the frames about it, and leaves those of another half of the clip nearly as they were."""
    torch.manual_seed(0)
    save_clap(tmp_path)
    teacher = load_teacher(str(tmp_path), 1)
    wave = noise(1, 8000) * 0.01
    click = wave.clone()
    click[0, 6000:6200] += 0.9
    moved = (teacher.encode(click) - teacher.encode(wave)).norm(dim=-1)[0]
    assert abs(int(moved.argmax()) - 6100 * 32 // 8000) <= 3


def test_a_clip_does_not_depend_on_its_batch_or_on_chance(saved):
    teacher = load_teacher(saved)
    rate = teacher.sample_rate_hz
    for samples in (rate // 5, rate + rate // 3):
        wave = noise(3, samples) * torch.tensor([1.0, 0.01, 0.3])[:, None]
        torch.manual_seed(1), np.random.seed(1)
        batch = teacher.encode(wave)
        torch.manual_seed(2), np.random.seed(2)
        torch.testing.assert_close(batch[1:2], teacher.encode(wave[1:2]), atol=1e-4, rtol=1e-3)
        assert torch.equal(batch, teacher.encode(wave))


def test_lengths_layers_and_words(saved):
    teacher = load_teacher(saved)
    assert teacher.layer == (teacher.layers + 1) // 2
    for samples in (1, teacher.sample_rate_hz // 7, teacher.sample_rate_hz * 5 // 2):
        features = teacher.encode(noise(1, samples))
        assert features.shape == (
            1,
            -(-samples * teacher.front_end.frames // teacher.front_end.hop_samples),
            teacher.dim,
        )
        assert features.dtype == torch.float32 and bool(features.isfinite().all())
    line = teacher.describe()
    assert f"layer {teacher.layer} of {teacher.layers}" in line and f"{teacher.sample_rate_hz:,} Hz" in line
    assert "\n" not in line
    for layer in (0, teacher.layers + 1):
        with pytest.raises(UserError, match=f"layers 1 to {teacher.layers}"):
            load_teacher(saved, layer)
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        teacher.encode(torch.zeros(1, 0))
    assert bool(teacher.encode(torch.zeros(1, 500)).isfinite().all())


def test_the_fingerprint_follows_layer_and_weights(tmp_path):
    torch.manual_seed(0)
    save_wavlm(tmp_path / "a")
    save_wavlm(tmp_path / "b")
    first = load_teacher(str(tmp_path / "a")).fingerprint()
    assert first == load_teacher(str(tmp_path / "a"), 2).fingerprint()
    assert first != load_teacher(str(tmp_path / "a"), 3).fingerprint()
    assert first != load_teacher(str(tmp_path / "b")).fingerprint()
    json.dumps(first)


@pytest.mark.parametrize("save", [*WAVEFORM, save_w2v_bert, save_ast, save_whisper], **named)
def test_blocks_above_the_layer_are_not_kept(save, tmp_path):
    whole = save(tmp_path)
    kept = load_teacher(str(tmp_path), 1).model
    assert sum(p.numel() for p in kept.parameters()) < 0.75 * sum(p.numel() for p in whole.parameters())


MERT = """
from transformers import Hubert{what}


class Mert{what}(Hubert{what}):
    {body}
"""


def save_mert(folder):
    """A model that brings its own code, as MERT does."""
    config = tf.HubertConfig(**SPEECH, **CONV)
    model = save_waveform(folder, config, tf.HubertModel, rate_hz=1500)
    data = json.loads((folder / "config.json").read_text())
    data |= {"model_type": "mert_model", "architectures": ["MertModel"],
             "auto_map": {"AutoConfig": "configuration_mert.MertConfig", "AutoModel": "modeling_mert.MertModel"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "configuration_mert.py").write_text(MERT.format(what="Config", body='model_type = "mert_model"'))
    code = "from .configuration_mert import MertConfig\n" + MERT.format(what="Model", body="config_class = MertConfig")
    (folder / "modeling_mert.py").write_text(code)
    return model


def test_code_of_a_model_runs_only_when_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(0)
    model, wave = save_mert(tmp_path / "mert"), noise(1, 500)
    with pytest.raises(UserError, match=r"configuration_mert\.MertConfig.*--trust-remote-code"):
        load_teacher(str(tmp_path / "mert"))
    teacher = load_teacher(str(tmp_path / "mert"), 3, trust_remote_code=True)
    assert (teacher.kind, teacher.frame_rate_hz) == ("mert_model", 75)
    values = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
    values = torch.nn.functional.pad(values, (2, 3))
    torch.testing.assert_close(teacher.encode(wave), states(model, 3, input_values=values), atol=1e-5, rtol=1e-4)


def test_what_is_no_audio_encoder_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no readable config\.json"):
        load_teacher(str(tmp_path / "empty"))
    tf.BertModel(
        tf.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="a bert model is no audio encoder"):
        load_teacher(str(tmp_path / "bert"))
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"no readable config\.json"):
        load_teacher(str(tmp_path / "sound.wav"))


def test_parts_that_lack_or_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_whisper(tmp_path)
    tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="do not fit"):
        load_teacher(str(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        load_teacher(str(tmp_path))
    save_whisper(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    save_file({k: v for k, v in load_file(file).items() if "encoder.layers.3" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack \d+ weights"):
        load_teacher(str(tmp_path))
    file.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot load it"):
        load_teacher(str(tmp_path))
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load_teacher(str(tmp_path))


def test_a_hub_name_is_fetched_without_pickles_or_code(monkeypatch, tmp_path):
    asked = []

    def fetch(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    save_wavlm(tmp_path)
    assert load_teacher("somebody/wavlm-tiny@refs/pr/1").name == "somebody/wavlm-tiny@refs/pr/1"
    assert [(name, revision) for name, revision, _ in asked] == [("somebody/wavlm-tiny", "refs/pr/1")] * 2
    assert not any(re.search(r"\.(bin|py|pt|\*)$", pattern) for _, _, patterns in asked for pattern in patterns)


def test_a_name_that_is_not_there_is_refused_without_a_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not to be had from the hub"):
        load_teacher("nobody/no-such-teacher")
