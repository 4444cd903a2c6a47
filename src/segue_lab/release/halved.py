"""The averaged weights of a run in float16, as released models hold them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from segue.models.files import model_file, read_tensors


def write_halved(run: Path, out: Path) -> tuple[Path, int]:
    """Write model.safetensors of a run's averaged weights in float16 into `out`; returns it and its parameters.

    Raises:
        UserError: no model there.
    """
    tensors, metadata = read_tensors(model_file(run))
    # The averaged weights alone: the trained ones are of no use but to resume.
    kept = {name: value.half().contiguous() for name, value in tensors.items() if name.startswith("ema.")}
    parameters = sum(value.numel() for value in kept.values())
    # Statistics stay in float32: they are few, and everything is scaled by them.
    kept |= {name: value.contiguous() for name, value in tensors.items() if name.startswith("latents.")}
    file = out / "model.safetensors"
    save_file(kept, file, metadata)
    return file, parameters
