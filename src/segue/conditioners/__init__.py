"""Text encoders by name."""

from __future__ import annotations

from segue.conditioners.base import TextConditioner
from segue.hub import is_pipeline
from segue.types import UserError

PIPELINE = "pipeline:"  # before the hub name of a diffusers pipeline, whose own text encoder is meant


def load_token_counter(name_or_path: str, max_tokens: int | None = None) -> TextConditioner:
    """The encoder of this name without its weights: it counts the tokens of captions, and encodes none.

    Args:
        max_tokens: longer captions count as cut; default: the positions that the encoder has.

    Raises:
        UserError: its tokenizer cannot be found or read.
    """
    from segue.conditioners.text import load_counter

    return load_counter(name_or_path, max_tokens)


def load_conditioner(name_or_path: str, max_tokens: int = 48) -> TextConditioner:
    """A text encoder.

    Args:
        name_or_path: "minilm" (from the extra `text`, or from the hub), the hub name or local folder of a T5, CLAP or
            BERT-like model, the folder of a diffusers pipeline, or "pipeline:" and the hub name of one.
        max_tokens: longer captions are cut.

    Raises:
        UserError: it cannot be loaded.
    """
    from segue.conditioners.text import load_minilm, load_transformers

    if name_or_path.startswith(PIPELINE) or is_pipeline(name_or_path):
        from segue.conditioners.pipeline_text import load_pipeline_text

        return load_pipeline_text(name_or_path.removeprefix(PIPELINE))
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; give at least 1")
    return load_minilm(max_tokens) if name_or_path == "minilm" else load_transformers(name_or_path, max_tokens)
