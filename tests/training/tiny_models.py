"""Tiny random diffusers pipelines of every class that has an adapter, as folders of `save_pretrained`."""

from pathlib import Path

import pytest
import torch

RATE_HZ = 8000
CHANNELS = 6
SAMPLE_SIZE = 16  # latent frames of Stable Audio's window
KINDS = ("stable-audio", "stable-audio-3", "ace-step")
SAID = "a soft violin drum snare hard kick bass low bell long perc snap ambi choir hit playing C 5"


def _tokenizer(max_length):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(SAID.split())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    )


def _oobleck():
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS, downsampling_ratios=[4, 8, 8], channel_multiples=[1, 2, 2], decoder_channels=4,
        decoder_input_channels=CHANNELS, audio_channels=2, sampling_rate=RATE_HZ,
    )  # fmt: skip


def _t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0)
    )


def _stable_audio():
    from diffusers import (
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    transformer = StableAudioDiTModel(
        sample_size=SAMPLE_SIZE, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, num_key_value_attention_heads=2, cross_attention_dim=16, time_proj_dim=16,
        global_states_input_dim=32, cross_attention_input_dim=16,
    )  # fmt: skip
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    return StableAudioPipeline(
        vae=_oobleck(), text_encoder=_t5(), tokenizer=_tokenizer(12), transformer=transformer, scheduler=scheduler,
        projection_model=StableAudioProjectionModel(16, 16, 0, 32),
    )  # fmt: skip


def _stable_audio_3():
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3DurationEmbedder,
        StableAudio3Pipeline,
    )
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    part = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16,
    }  # fmt: skip
    text_encoder = T5GemmaEncoderModel(
        T5GemmaConfig(encoder=part, decoder=part, vocab_size=40, is_encoder_decoder=False)
    )
    vae = AutoencoderSAME(
        patch_size=64, encoder_channels=4, encoder_c_mults=(4,), encoder_strides=(4,), encoder_transformer_depths=(1,),
        latent_dim=CHANNELS, dim_heads=8, sampling_rate=RATE_HZ,
    )  # fmt: skip
    transformer = StableAudio3DiTModel(
        io_channels=CHANNELS, embed_dim=32, depth=3, num_heads=4, cond_token_dim=16, global_cond_dim=16,
        local_add_cond_dim=CHANNELS + 1, timestep_features_dim=16, num_memory_tokens=4,
    )  # fmt: skip
    return StableAudio3Pipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=_tokenizer(14), transformer=transformer,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip


def _ace_step():
    from diffusers import AceStepPipeline, AceStepTransformer1DModel, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    sizes = {
        "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 4,
    }  # fmt: skip
    transformer = AceStepTransformer1DModel(
        num_hidden_layers=3, in_channels=3 * CHANNELS, audio_acoustic_hidden_dim=CHANNELS, **sizes
    )
    encoder = AceStepConditionEncoder(
        text_hidden_dim=16, timbre_hidden_dim=CHANNELS, num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2, **sizes,
    )  # fmt: skip
    encoder.silence_latent = torch.randn(1, 15000, CHANNELS)
    return AceStepPipeline(
        vae=_oobleck(), text_encoder=text_encoder, tokenizer=_tokenizer(64), transformer=transformer,
        condition_encoder=encoder, scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip


def tiny_pipeline(kind):
    """A pipeline of random weights; every weight differs from 0, so that each of them has a gradient."""
    torch.manual_seed(KINDS.index(kind))
    pipeline = {"stable-audio": _stable_audio, "stable-audio-3": _stable_audio_3, "ace-step": _ace_step}[kind]()
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Folder of a tiny pipeline of each kind."""
    pytest.importorskip("diffusers", minversion="0.42")
    folders = {kind: tmp_path_factory.mktemp("tiny") / kind for kind in KINDS}
    for kind, folder in folders.items():
        tiny_pipeline(kind).save_pretrained(folder)
    return folders


SECONDS = SAMPLE_SIZE * 256 / RATE_HZ  # of a clip: Stable Audio's window


def encode(source, folder, out, captions="filename", seconds=SECONDS, teacher=None):
    """The cache of `segue encode --model`; a random codec gives no sound back, which is not asked here."""
    from segue.codecs import load_codec
    from segue.conditioners import load_conditioner
    from segue.data import encoding, round_trip
    from segue.data.manifest import load_manifest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_trip, "WORST", float("inf"))
        text = load_conditioner(str(folder)).for_seconds(seconds)
        clips = load_manifest(source, captions)
        codec = load_codec(str(folder))
        return encoding.build_cache(clips, codec, text, teacher, out=out, seconds=seconds, dtype="float32")


@pytest.fixture(scope="session")
def tiny_caches(tiny_folders, recordings, tmp_path_factory):
    """The recordings, encoded by each tiny pipeline's own parts. Some are shorter than a row."""
    return {
        kind: encode(recordings, folder, tmp_path_factory.mktemp("tiny-caches") / kind)
        for kind, folder in tiny_folders.items()
    }
