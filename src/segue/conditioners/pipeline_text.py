"""The text encoder of a diffusers pipeline: captions as the pipeline itself lays them out for its model.

Each of them goes through the pipeline's own `encode_prompt`, and what else stands between text and model and is not
trained here: the projection of Stable Audio Open, the condition encoder of ACE-Step. What a cache holds is then all
that a model has to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from segue.conditioners.base import TextConditioner
from segue.conditioners.text import token_lengths
from segue.files import sha256_of
from segue.hub import PipelineFolder, pipeline_folder
from segue.types import UserError, first_line, import_extra

# In a caption, the line that begins the lyrics. The models without lyrics read it like any other text.
LYRICS = "\nlyrics:"
_TIMBRE_SEC = 30  # of silence, where the pipeline of ACE-Step is given no reference

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


class PipelineText(TextConditioner):
    """A frozen text encoder of a diffusers pipeline, computed in float32."""

    def __init__(self, folder: PipelineFolder, sha256: str, parts: dict[str, Any], seconds: float) -> None:
        """
        Args:
            folder: the pipeline.
            sha256: hash of the weights of what encodes.
            parts: the objects that encode, by their names in the pipeline.
            seconds: length of the sounds; ACE-Step writes it into the text.
        """
        make = _MAKERS[folder.kind("transformer")]
        self._encode, self.dim, self.max_tokens = make(folder, parts, seconds)
        self._folder, self._sha256, self._parts, self._seconds = folder, sha256, parts, seconds
        # A hub name alone would be taken for that of a text encoder.
        self.name = folder.name if str(folder.path) == folder.name else f"pipeline:{folder.name}"

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, K, E] float32, real ones first, zeros behind them, and mask [B, K] bool."""
        if isinstance(captions, str) or not captions:
            raise ValueError("give a list of at least one caption")
        with torch.inference_mode():
            tokens, mask = self._encode(list(captions))
        # Some tokenizers pad on the left; to a model that attends to a set, the order of tokens is nothing.
        order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        longest = max(1, int(mask.sum(1).max()))
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))[:, :longest]
        mask = mask.gather(1, order)[:, :longest]
        # Outside inference_mode, so that the product is a tensor that autograd may use.
        return tokens.float() * mask[..., None], mask

    def count_tokens(self, captions: Sequence[str]) -> tuple[list[int], list[int]]:
        return token_lengths(self._parts["tokenizer"], [caption.partition(LYRICS)[0] for caption in captions])

    def with_max_tokens(self, max_tokens: int) -> PipelineText:
        """The same: the pipeline says where captions are cut."""
        return self

    def for_seconds(self, seconds: float) -> PipelineText:
        return PipelineText(self._folder, self._sha256, self._parts, seconds)

    def to(self, device: torch.device | str) -> PipelineText:
        """Move what has weights; returns itself."""
        for part in self._parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return self

    def fingerprint(self) -> dict:
        """Name, cut, features and a hash of the weights; the length of the sounds where the text says it."""
        found = {"name": self.name, "max_tokens": self.max_tokens, "dim": self.dim, "weights": self._sha256}
        return found | ({"seconds": self._seconds} if "condition_encoder" in self._parts else {})


def load_pipeline_text(name: str, option: str = "--text", seconds: float = 0.0) -> PipelineText:
    """The text encoder of a diffusers pipeline by folder or hub name.

    Raises:
        UserError: no such pipeline, one whose text is not known here, or a part that is missing or cannot be read.
    """
    folder = pipeline_folder(option, name)
    kind = folder.kind("transformer")
    if kind not in _MAKERS:
        raise UserError(
            f"{option} {name}: how the pipeline of a {kind} reads text is not known here; hint: those of "
            f"{', '.join(_MAKERS)} are"
        )
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    parts: dict[str, Any] = {}
    try:
        parts["tokenizer"] = AutoTokenizer.from_pretrained(folder.part("tokenizer"), local_files_only=True)
        for part in ("text_encoder", *_BESIDE[kind]):
            parts[part] = _module(folder, part)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{option} {name}: cannot load its text encoder ({first_line(error)}); hint: save or fetch it anew"
        ) from error
    return PipelineText(folder, pipeline_text_hash(folder), parts, seconds)


def pipeline_text_hash(folder: PipelineFolder) -> str:
    """What the fingerprint of this pipeline's text has as "weights", from its files alone."""
    parts = ("text_encoder", *_BESIDE.get(folder.kind("transformer"), ()))
    return sha256_of([path for part in parts for path in sorted(folder.part(part).glob("*.safetensors"))])


def _module(folder: PipelineFolder, part: str) -> Any:
    """A part with weights, in float32, every weight read from file.

    Raises:
        UserError: its class is unknown, or its files lack weights.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    library, kind = folder.index[part]
    source: Any = transformers if library == "transformers" else import_extra("diffusers", "finetune")
    loader = getattr(source, kind, None)
    if loader is None and library != "transformers":
        loader = getattr(import_extra("diffusers.pipelines.ace_step", "finetune"), kind, None)
    if loader is None or not hasattr(loader, "from_pretrained"):
        raise UserError(
            f"{folder.option} {folder.name}: {library} {source.__version__} has no {kind}; "
            f"hint: pip install -U {library}"
        )
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    model, info = loader.from_pretrained(folder.part(part), torch_dtype=torch.float32, **options)
    if info["missing_keys"]:  # the libraries fill them with random numbers and go on
        some = sorted(info["missing_keys"])
        raise UserError(
            f"{folder.option} {folder.name}: the files of its {part} lack {len(some)} weights ({some[0]}...); use a "
            "complete pipeline"
        )
    return model.eval().requires_grad_(False)


def _device(parts: dict[str, Any]) -> torch.device:
    return next(parts["text_encoder"].parameters()).device


def _stable_audio(folder: PipelineFolder, parts: dict[str, Any], _seconds: float) -> tuple[Encode, int, int]:
    encode_prompt = import_extra("diffusers", "finetune").StableAudioPipeline.encode_prompt
    tokenizer = parts["tokenizer"]

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        tokens = encode_prompt(SimpleNamespace(**parts), captions, _device(parts), False)
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        mask = tokenizer(captions, return_tensors="pt", **options).attention_mask
        return tokens, mask.to(tokens.device).bool()

    return encode, parts["projection_model"].config.conditioning_dim, tokenizer.model_max_length


def _stable_audio_3(folder: PipelineFolder, parts: dict[str, Any], _seconds: float) -> tuple[Encode, int, int]:
    encode_prompt = import_extra("diffusers", "finetune").StableAudio3Pipeline.encode_prompt

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = encode_prompt(SimpleNamespace(**parts), captions, _device(parts), 1)
        return tokens, mask.bool()

    dim = folder.config("transformer")["cond_token_dim"]
    return encode, dim, min(parts["tokenizer"].model_max_length, 256)


def _ace_step(folder: PipelineFolder, parts: dict[str, Any], seconds: float) -> tuple[Encode, int, int]:
    pipeline = import_extra("diffusers", "finetune").AceStepPipeline(
        vae=None, transformer=None, scheduler=None, **parts
    )
    vae = folder.config("vae")
    timbre_frames = ceil(_TIMBRE_SEC * vae["sampling_rate"] / prod(vae["downsampling_ratios"]))
    encoder = parts["condition_encoder"]

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        texts, _, lyrics = zip(*(caption.partition(LYRICS) for caption in captions))
        device = _device(parts)
        text, text_mask, lyric, lyric_mask = pipeline.encode_prompt(
            list(texts), [part.strip() for part in lyrics], device, audio_duration=seconds
        )
        timbre = encoder.silence_latent[:, :timbre_frames].expand(len(captions), -1, -1).contiguous()
        order = torch.arange(len(captions), device=device)
        return encoder(text, text_mask, lyric, lyric_mask, timbre, order)

    # Text and lyrics are cut at 256 and 2,048 tokens, and one more stands for the timbre.
    return encode, encoder.config.hidden_size, 256 + 2048 + 1


_MAKERS = {
    "StableAudioDiTModel": _stable_audio,
    "StableAudio3DiTModel": _stable_audio_3,
    "AceStepTransformer1DModel": _ace_step,
}
# What stands between the text encoder and the model.
_BESIDE: dict[str, tuple[str, ...]] = {
    "StableAudioDiTModel": ("projection_model",),
    "StableAudio3DiTModel": (),
    "AceStepTransformer1DModel": ("condition_encoder",),
}
