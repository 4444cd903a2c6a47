"""A predictor as one safetensors file: weights in float16, and in its metadata a card that says the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from segue.files import replacing
from segue.predictor.network import PredictorConfig
from segue.predictor.predictor import BandPredictor
from segue.types import UserError

FILE = "predictor.safetensors"
_KEY = "segue_predictor"


def predictor_file(place: Path | str) -> Path | None:
    """The predictor's file in a folder or at a path; None where there is none."""
    path = Path(place)
    path = path / FILE if path.is_dir() else path
    return path if path.name.endswith(".safetensors") and path.is_file() and _metadata(path) is not None else None


def save_predictor(model: BandPredictor, folder: Path, about: dict) -> None:
    """Write FILE into a folder, whole or not at all; `about` says what it was trained on and for."""
    card = {"config": asdict(model.config), **about}
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / FILE) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(card)})


def load_predictor(path: Path) -> tuple[BandPredictor, dict]:
    """A predictor in evaluation mode, and its card.

    Raises:
        UserError: no predictor's file, or one of another version.
    """
    metadata = _metadata(path)
    if metadata is None:
        raise UserError(
            f"{path}: no predictor of super-resolution; hint: give a folder of segue super-resolution train"
        )
    try:
        model = BandPredictor(PredictorConfig(**metadata["config"]))
        with safe_open(path, "pt") as file:
            model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a readable predictor ({error}); hint: another version of segue made it"
        ) from error
    return model.eval().requires_grad_(False), metadata


def predictor_hash(path: Path) -> str:
    """What tells a predictor from others: 16 hex digits of a hash of its shape and its weights, not of its card."""
    metadata = _metadata(path) or {}
    digest = hashlib.sha256(json.dumps(metadata.get("config"), sort_keys=True).encode())
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode())
            digest.update(file.get_tensor(name).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _metadata(path: Path) -> dict | None:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError):
        return None


def half_precision(model: BandPredictor) -> BandPredictor:
    """A copy with the weights that its file would hold, for figures of what is used."""
    other = BandPredictor(model.config)
    other.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return other.to(next(model.parameters()).device).eval().requires_grad_(False)


def count_parameters(model: torch.nn.Module) -> int:
    """How many numbers it has learned."""
    return sum(parameter.numel() for parameter in model.parameters())
