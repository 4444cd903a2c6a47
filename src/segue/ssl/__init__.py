"""Teachers: frozen self-supervised encoders: the shipped one, one of your own, or by hub name or local folder."""

from __future__ import annotations

from pathlib import Path

from segue.ssl.base import Teacher


def load_teacher(name_or_path: str, layer: int | None = None, trust_remote_code: bool = False) -> Teacher:
    """A teacher, giving the hidden states of one layer.

    Args:
        name_or_path: "compact" (16 kHz) or "compact-44k", which come with this package; a folder that `segue teacher
            train` left; or, of the transformers library, a hub name (NAME@REVISION for another revision) or local
            folder of a WavLM, HuBERT, wav2vec2, w2v-BERT 2.0, data2vec-audio, AST, Whisper, CLAP, PE-A or, with its own
            code, MERT model.
        layer: 1 to the number of blocks (stages for CLAP); None takes the middle one, or what our own was shipped with.
        trust_remote_code: run the Python code that comes with the model; MERT needs it.

    Raises:
        UserError: it cannot be loaded, is no audio encoder, or has no such layer.
    """
    from segue.ssl import compact

    if name_or_path in ("compact", "compact-44k"):
        return compact.shipped_teacher(layer, name_or_path)
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or (path / compact.WEIGHTS).is_file():
        return compact.load_compact(path, layer)
    from segue.ssl.huggingface import load_transformers_teacher

    return load_transformers_teacher(name_or_path, layer, trust_remote_code)


__all__ = ["Teacher", "load_teacher"]
