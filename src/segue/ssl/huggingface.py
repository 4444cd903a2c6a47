"""Teachers of the transformers library: speech, music and sound encoders by hub name or local folder.

Families differ in their input: raw waveforms (WavLM, HuBERT, wav2vec2, data2vec-audio, MERT, PE-A), filter banks of any
length (w2v-BERT 2.0), or spectrograms of a fixed length (AST, Whisper, CLAP), for which longer clips are cut into
consecutive chunks. Every clip of T samples gets S = ceil(T x frame rate / sample rate) frames, frame k about the k-th
hop, and is normalised by itself: its features do not depend on its batch, nor on chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.files import sha256_of
from segue.hub import model_folder
from segue.ssl.base import Teacher
from segue.types import UserError, first_line

_WAVEFORM_KINDS = ("wavlm", "hubert", "wav2vec2", "data2vec-audio")
_CHOICE = "a WavLM, HuBERT, wav2vec2, data2vec-audio, w2v-BERT 2.0, AST, Whisper, CLAP, PE-A or MERT model"
_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")  # older models have the first, newer ones the other
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")


@dataclass(frozen=True)
class FrontEnd:
    """The front end of a family: how waveforms become inputs of the model. Lengths: samples at the teacher's rate.

    Attributes:
        frames, hop_samples: so many frames stand for so many samples; a chunked family computes exactly these at once.
        window_samples: what the model is given to compute them.
        chunked: whether clips are cut (and padded) to chunks; otherwise any length is encoded whole, frame by frame.
        prepare: waveforms [B, T] -> arguments of the model.
        to_frames: hidden states of a layer -> [B, frames, F].
        normalisation: what becomes of the level, for the reader.
    """

    frames: int
    hop_samples: int
    window_samples: int
    chunked: bool
    prepare: Callable[[Tensor], dict[str, Tensor]]
    to_frames: Callable[[Tensor], Tensor]
    normalisation: str

    def count(self, samples: int) -> int:
        """S, frames of a clip of so many samples: the least that cover it."""
        return -(-samples * self.frames // self.hop_samples)


class TransformersTeacher(Teacher):
    """A frozen encoder of the transformers library, giving the hidden states of one layer, in float32."""

    def __init__(self, name: str, kind: str, model: nn.Module, extractor, layer: int | None, sha256: str) -> None:
        """Hold a loaded model and its feature extractor; `load_transformers_teacher` makes them from a name or path.

        Raises:
            UserError: no such layer, or a model and an extractor that do not fit.
        """
        self.name = name
        self.kind = kind
        # Frozen and in float32: features do not depend on what else runs.
        self.model = model.float().eval().requires_grad_(False)
        self.layers = _layer_count(model.config)
        self.layer = (self.layers + 1) // 2 if layer is None else layer
        if not 1 <= self.layer <= self.layers:
            # Counted from 1; hidden state 0 is the input of the first block.
            raise UserError(f"--teacher-layer {layer}: {name} has layers 1 to {self.layers}")
        if kind != "clap_audio_model":
            # CLAP's stages are not a plain stack.
            _drop_unused_blocks(model, self.layers, self.layer)
        self.sample_rate_hz = int(extractor.sampling_rate)
        self.front_end = _front_end(name, kind, model.config, extractor, self.layer)
        self.frame_rate_hz = self.front_end.frames * self.sample_rate_hz / self.front_end.hop_samples
        self._sha256 = sha256
        # The width differs between layers and families: one window of silence tells it.
        self.dim = self.encode(torch.zeros(1, self.front_end.window_samples)).shape[-1]

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        """[B, T] at sample_rate_hz -> [B, S, F] float32, S = ceil(T x frame_rate_hz / sample_rate_hz).

        Raises:
            ValueError: not [B, T], or an empty waveform.
        """
        if wave.ndim != 2 or not wave.numel():
            raise ValueError(f"give a waveform [B, T], not {list(wave.shape)}")
        front_end = self.front_end
        # Feature extractors work on the CPU, in NumPy.
        wave = wave.detach().to("cpu", torch.float32)
        if not front_end.chunked:
            return self._frames(wave)
        starts = range(0, wave.shape[-1], front_end.hop_samples)
        pieces = [wave[:, start : start + front_end.window_samples] for start in starts]
        # Each chunk gives as many frames as its hop stands for; the rest is padding.
        frames = torch.cat([self._frames(piece)[:, : front_end.frames] for piece in pieces], dim=1)
        return frames[:, : front_end.count(wave.shape[-1])]

    def _frames(self, wave: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        arguments = {k: v.to(device) for k, v in self.front_end.prepare(wave).items()}
        states = self.model(**arguments, output_hidden_states=True).hidden_states[self.layer]
        return self.front_end.to_frames(states).float()

    def describe(self) -> str:
        """One line: layer, rates, features, lengths and normalisation."""
        front_end = self.front_end
        rate = self.sample_rate_hz
        length = (
            f"encoded in chunks of {front_end.hop_samples / rate:g} s" if front_end.chunked else "clips encoded whole"
        )
        return (
            f"{self.name} ({self.kind}): layer {self.layer} of {self.layers}, works at {rate:,} Hz (nothing above "
            f"{rate // 2:,} Hz), {self.frame_rate_hz:g} frames/s of {self.dim} features, {length}, "
            f"{front_end.normalisation}"
        )

    def fingerprint(self) -> dict:
        """Kind, layer, rates, features, and a hash of weights, configuration and feature extractor."""
        return {
            "name": self.kind,
            "layer": self.layer,
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "frame_rate_hz": self.frame_rate_hz,
            "weights": self._sha256,
        }

    def to(self, device) -> TransformersTeacher:
        """Move the model; returns itself."""
        self.model.to(device)
        return self


def load_transformers_teacher(
    name_or_path: str, layer: int | None = None, trust_remote_code: bool = False
) -> TransformersTeacher:
    """See `segue.ssl.load_teacher`. Reads safetensors only, and refuses a model that lacks weights.

    HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Raises:
        UserError: a folder that lacks a part, a model that is no audio encoder or brings code that was not allowed, a
            name that cannot be fetched, no such layer.
    """
    name = name_or_path
    # The JSON files first: they refuse a wrong model before gigabytes are fetched.
    folder = model_folder("--teacher", name, ("*.json",))
    kind, remote = _kind(name, folder, trust_remote_code)
    extractors = [folder / file for file in _EXTRACTORS if (folder / file).is_file()]
    if not extractors:
        raise UserError(
            f"--teacher {name}: no preprocessor_config.json there; save the feature extractor beside the model "
            "with save_pretrained"
        )
    # Code is fetched only where it was allowed.
    model_folder("--teacher", name, (*_WEIGHTS, *(("*.py",) if remote else ())))
    weights = _weights(name, folder)
    from safetensors import SafetensorError
    from transformers import AutoFeatureExtractor

    sha256 = sha256_of([folder / "config.json", extractors[0], *weights])
    try:
        model = _load_model(name, folder, kind, remote)
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=remote)
        # Its audio tower alone is used, whichever of the two classes held it.
        kind = "clap_audio_model" if kind == "clap" else kind
        return TransformersTeacher(name, kind, model, extractor, layer, sha256)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--teacher {name}: cannot load it ({first_line(error)}); save or fetch it anew") from error


def _kind(name: str, folder: Path, trust_remote_code: bool) -> tuple[str, bool]:
    """The model type of a folder, and whether it runs on code of its own.

    Raises:
        UserError: no configuration, no audio encoder, or code that was not allowed.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str(config.get("model_type", ""))
        has_code = "AutoModel" in config.get("auto_map", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--teacher {name}: no readable config.json there; give a folder saved with save_pretrained, or a hub name"
        ) from error
    ours = (
        *_WAVEFORM_KINDS,
        "pe_audio",
        "wav2vec2-bert",
        "audio-spectrogram-transformer",
        "whisper",
        "clap",
        "clap_audio_model",
    )
    if kind in ours:
        # Known families come first: of these no code is run, even where a repository brings some.
        return kind, False
    # A model with code of its own must at least read waveforms, as MERT does.
    if not has_code or "conv_stride" not in config:
        raise UserError(f"--teacher {name}: a {kind or 'nameless'} model is no audio encoder known here; use {_CHOICE}")
    if not trust_remote_code:
        raise UserError(
            f"--teacher {name}: brings code of its own; read {', '.join(sorted(set(config['auto_map'].values())))} "
            "there, then add --trust-remote-code"
        )
    return kind, True


def _weights(name: str, folder: Path) -> list[Path]:
    weights = [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not weights:
        raise UserError(
            f"--teacher {name}: no model.safetensors there (pickled weights are not read); load the model with "
            "transformers once and save_pretrained it into a folder, or name a revision that has it (NAME@refs/pr/N)"
        )
    return weights


def _load_model(name: str, folder: Path, kind: str, remote: bool) -> nn.Module:
    """The audio encoder of a local model, every weight of it read from file.

    Raises:
        UserError: its files lack weights.
    """
    import transformers
    from transformers.utils import logging

    classes = {"clap": "ClapModel", "clap_audio_model": "ClapAudioModel", "whisper": "WhisperModel"}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A tower that was saved with its projection is loaded by the class that saved it.
    if config.get("architectures") == ["ClapAudioModelWithProjection"]:
        classes[kind] = "ClapAudioModelWithProjection"
    loader = getattr(transformers, classes.get(kind, "AutoModel"))
    options = {"trust_remote_code": True} if remote else {}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists every weight of a head or a text tower; what is missing we check ourselves
    logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    finally:
        # Verbosity is global: whoever set it gets it back.
        logging.set_verbosity(verbosity)
    # The embedding of masked frames serves training only; CLAP's text tower and Whisper's decoder are not used.
    unused = ("masked_spec_embed", "pooler", "text_model.", "text_projection.", "decoder.")
    missing = [key for key in info["missing_keys"] if not any(part in key for part in unused)]
    if missing:  # transformers fills them with random numbers and goes on
        raise UserError(
            f"--teacher {name}: its files lack {len(missing)} weights ({missing[0]}...); use a complete model"
        )
    if kind in ("whisper", "pe_audio"):
        return model.encoder if kind == "whisper" else model.audio_encoder
    return getattr(model, "audio_model", model)


def _layer_count(config) -> int:
    if config.model_type == "whisper":
        return config.encoder_layers
    return len(config.depths) if config.model_type == "clap_audio_model" else config.num_hidden_layers


def _drop_unused_blocks(model: nn.Module, layers: int, layer: int) -> None:
    """Cut the stack one block above the layer: the model's last norm must not fall on it. Half the time is saved."""
    # By place, not by search: data2vec's positional convolutions are a list named layers, too.
    for owner in (getattr(model, "encoder", None), model):
        for name in ("layers", "layer"):
            blocks = getattr(owner, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) == layers:
                setattr(owner, name, blocks[: layer + 1])


def _front_end(name: str, kind: str, config, extractor, layer: int) -> FrontEnd:
    """The front end of this family.

    Raises:
        UserError: model and feature extractor do not fit.
    """
    if kind == "wav2vec2-bert":
        return _filter_bank_front_end(name, config, extractor)
    if kind == "audio-spectrogram-transformer":
        return _ast_front_end(name, config, extractor)
    if kind == "whisper":
        return _whisper_front_end(name, config, extractor)
    if kind == "clap_audio_model":
        return _clap_front_end(name, config, extractor, layer)
    if kind == "pe_audio":
        return _pe_audio_front_end(name, config, extractor)
    return _waveform_front_end(config, extractor)


def _extract(extractor, wave: Tensor, **options) -> Mapping[str, Tensor]:
    return extractor(list(wave.numpy()), sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)


def _centred(wave: Tensor, hop: int, window: int) -> Tensor:
    """Zeros on both sides of [B, T], so that windows at every hop are centred on the ceil(T / hop) hops."""
    # As many hops as cover the sound, each with a window around its middle.
    samples = wave.shape[-1]
    left = (window - hop) // 2
    total = (-(-samples // hop) - 1) * hop + window
    return F.pad(wave, (left, total - left - samples))


def _waveform_front_end(config, extractor) -> FrontEnd:
    hop = prod(config.conv_stride)
    window = 1
    # How many samples one frame of the convolutions sees, counted from the last layer back.
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
        window = (window - 1) * stride + kernel

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        # Normalised before the zeros come, as the extractor itself would do.
        return {"input_values": _centred(_extract(extractor, wave)["input_values"].float(), hop, window)}

    level = "each clip to zero mean and unit variance" if extractor.do_normalize else "level as it is"
    return FrontEnd(1, hop, window, False, prepare, lambda states: states, level)


def _pe_audio_front_end(name: str, config, extractor) -> FrontEnd:
    hop = prod(config.dac_config.downsampling_ratios)
    if extractor.hop_length != hop:
        raise _misfit(name)

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        # Without the mask of padding: all clips of a batch are equally long, and their last hop is filled up alike.
        return {"input_values": _extract(extractor, wave)["input_values"].float()}

    # A token that stands for the whole clip leads.
    return FrontEnd(1, hop, hop, False, prepare, lambda states: states[:, 1:], "level as it is")


def _filter_bank_front_end(name: str, config, extractor) -> FrontEnd:
    if extractor.num_mel_bins * extractor.stride != config.feature_projection_input_dim:
        raise _misfit(name)
    # The extractor's windows are 400 samples every 160 at any rate; `stride` of them make a frame.
    hop = 160 * extractor.stride
    window = hop + 240

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        return {"input_features": _extract(extractor, _centred(wave, hop, window))["input_features"].float()}

    return FrontEnd(1, hop, window, False, prepare, lambda states: states, "each mel band to zero mean, unit variance")


def _ast_front_end(name: str, config, extractor) -> FrontEnd:
    if (extractor.max_length, extractor.num_mel_bins) != (config.max_length, config.num_mel_bins):
        raise _misfit(name)
    # How many patches lie on each other, and how many side by side.
    down = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    along = (config.max_length - config.patch_size) // config.time_stride + 1

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        # A filter bank needs one window of 400 samples; the extractor pads to its length.
        wave = F.pad(wave, (0, max(0, 400 - wave.shape[-1])))
        return {"input_values": _extract(extractor, wave)["input_values"].float()}

    def to_frames(states: Tensor) -> Tensor:
        # Two tokens lead (class and distillation); the rest are patches, low to high, each row along time.
        # The mean over frequency patches leaves one vector for each place in time.
        return states[:, -down * along :].unflatten(1, (down, along)).mean(dim=1)

    window = 160 * config.max_length + 240
    level = "filter banks by the model's own mean and deviation, mean over its frequency patches"
    return FrontEnd(along, 160 * config.time_stride * along, window, True, prepare, to_frames, level)


def _whisper_front_end(name: str, config, extractor) -> FrontEnd:
    samples = extractor.n_samples
    frames = config.max_source_positions
    if (samples // extractor.hop_length, extractor.feature_size) != (2 * frames, config.num_mel_bins):
        raise _misfit(name)

    extractor.dither = 0.0  # noise, and not from our generator

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        return {"input_features": _extract(extractor, wave)["input_features"].float()}

    level = "log-mel clipped 80 dB below the chunk's peak, padded with silence"
    return FrontEnd(frames, samples, samples, True, prepare, lambda states: states, level)


def _clap_front_end(name: str, config, extractor, layer: int) -> FrontEnd:
    if extractor.feature_size != config.num_mel_bins:
        raise _misfit(name)
    folds = config.spec_size // config.num_mel_bins
    # Patches are merged two by two after every stage but the last.
    stride = config.patch_stride if isinstance(config.patch_stride, int) else config.patch_stride[-1]
    # How wide a row of the image is after the stages before this layer.
    width = config.spec_size // stride // 2 ** min(layer, len(config.depths) - 1)

    def prepare(wave: Tensor) -> dict[str, Tensor]:
        batch = _extract(extractor, wave)
        # A fusion extractor marks a clip at random as longer than a chunk; none is.
        longer = torch.zeros(wave.shape[0], 1, dtype=torch.bool)
        return {"input_features": batch["input_features"].float(), "is_longer": longer}

    def to_frames(states: Tensor) -> Tensor:
        # HTSAT folds time into the rows of a square image: [B, F, folds x frequency, width].
        frames = states.unflatten(2, (folds, -1)).mean(dim=3)
        return frames.flatten(2).transpose(1, 2)

    samples = extractor.nb_max_samples
    level = f"log-mel in dB, shorter clips by '{extractor.padding}', mean over its frequency patches"
    return FrontEnd(folds * width, samples, samples, True, prepare, to_frames, level)


def _misfit(name: str) -> UserError:
    return UserError(
        f"--teacher {name}: config.json and preprocessor_config.json do not fit; take both from the same model"
    )
