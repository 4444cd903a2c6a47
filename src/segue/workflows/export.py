"""What a run has trained, out again: as a folder that diffusers loads with no segue installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from segue.hub import INDEX, pipeline_folder
from segue.models.adapters import Adapter
from segue.models.files import load_adapters, load_model, model_file
from segue.models.lora import save_peft
from segue.types import UserError, first_line


def export_diffusers(run: Path, out: Path, weights: str = "ema") -> str:
    """Write a whole diffusers pipeline: the trained model, and all other parts of the one that it came from.

    Args:
        run: run folder, checkpoint folder or model.safetensors.
        out: folder, which must not exist.
        weights: "ema" or "model".

    Returns:
        A line on how to load it.

    Raises:
        UserError: a model of our own shape, a pipeline that is not there any more, or a folder that cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; hint: --out another folder")
    model = load_model(model_file(run), weights).model
    if not isinstance(model, Adapter):
        raise UserError(
            f"{run}: a model of segue's own shape, which diffusers does not know; hint: segue generate and "
            "segue.Pipeline load it as it is"
        )
    # All parts first: fetched where they lie on the hub, so that a missing one is told before anything is written.
    folder = pipeline_folder("the run's model", model.config.source)
    parts = [name for name, value in folder.index.items() if isinstance(value, list) and value[-1]]
    found = {part: folder.part(part) for part in parts if part != "transformer"}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        shutil.copyfile(folder.path / INDEX, temporary / INDEX)
        for part, path in found.items():
            shutil.copytree(path, temporary / part)
        model.transformer.save_pretrained(temporary / "transformer", safe_serialization=True)
        os.replace(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{out}: cannot be written ({first_line(error)}); hint: free some disk, or --out elsewhere"
        ) from error
    return f"{out}: a diffusers pipeline; load it with diffusers.DiffusionPipeline.from_pretrained({str(out)!r})"


def export_peft(run: Path, out: Path, weights: str = "ema") -> str:
    """Write the low-rank adapters of a run as a folder that peft loads onto the model that they were trained on.

    Args:
        run, out, weights: as `export_diffusers`.

    Returns:
        A line on how to load it.

    Raises:
        UserError: a run without LoRA, a base that is not there any more, or a folder that cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; hint: --out another folder")
    model, card = load_adapters(model_file(run), weights)
    of_diffusers = isinstance(model, Adapter)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        save_peft(model, temporary, below="transformer" if of_diffusers else "", base=card.base["source"])
        os.replace(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{out}: cannot be written ({first_line(error)}); hint: free some disk, or --out elsewhere"
        ) from error
    onto = "pipeline.transformer" if of_diffusers else "model"
    return f"{out}: adapters of peft; load them with peft.PeftModel.from_pretrained({onto}, {str(out)!r})"


# Form -> what writes it; it returns a line on how to load the result.
EXPORTS: dict[str, Callable[[Path, Path, str], str]] = {"diffusers": export_diffusers, "peft": export_peft}
