"""A trained model as one safetensors file: weights, averaged weights, latent statistics, and a card that says the rest.

Nothing has to be unwrapped or exported: what training saves is what inference loads.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segue.files import sha256_of
from segue.hub import pipeline_folder
from segue.models.adapters import Adapter, AdapterConfig, adapter_of, load_adapter
from segue.models.backbone import Backbone, BackboneConfig, backbone_of
from segue.models.dit import DiTConfig
from segue.models.lora import LoraConfig, add_lora, load_trained, merge_lora
from segue.types import UserError, first_line, without_deleted

SCHEMA_VERSION = 2  # 2: one layer qkv where 1 had q and kv; both are read
BESIDE = "beside:"  # in a model's card, before the name of a codec, text encoder or predictor in the model's own folder


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself, kept in the file's metadata.

    Attributes:
        model: fields of DiTConfig, or of AdapterConfig.
        codec: fingerprint of the codec whose latents it models.
        codec_source: name or path that loads this codec.
        text: fingerprint of the text encoder.
        seconds: length of the training clips.
        examples_seen: how far it was trained.
        recipe: name of the recipe.
        task: "generation" or "super-resolution".
        degradation: fields of DegradationConfig that a super-resolution model was trained under.
        lora: fields of LoraConfig, where the file holds adapters alone.
        base: what these belong to: {"source": its file or pipeline, "weights": `base_weights` of it}.
        lengths: how long the training sounds were, where the model is told it: "quantiles", in seconds, and "captions"
            with the length of one sound each.
        predictor: of a model that starts from a predictor's guess: {"source": its folder or "shipped", "sha256":
            `predictor_hash` of it, "mean_share": of its levels}.
    """

    model: dict
    codec: dict
    codec_source: str
    text: dict
    seconds: float
    examples_seen: int
    recipe: str
    task: str = "generation"
    degradation: dict = field(default_factory=dict)
    lora: dict = field(default_factory=dict)
    base: dict = field(default_factory=dict)
    lengths: dict = field(default_factory=dict)
    predictor: dict = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class SavedModel:
    """A model file, read.

    Attributes:
        model: the backbone in evaluation mode.
        mean, std: [C, 1] statistics that latents were standardised with.
        card: what the file says of itself.
    """

    model: Backbone
    mean: Tensor
    std: Tensor
    card: ModelCard


def config_of(card: ModelCard) -> BackboneConfig:
    """The shape that a card of whichever version describes.

    Raises:
        UserError: a model that this version cannot build.
    """
    if "adapter" in card.model:
        return AdapterConfig(**card.model)
    return DiTConfig(**without_deleted(card.model, {"norm": "layer"}, "model."))


def save_model(
    path: Path, weights: dict[str, Tensor], ema: dict[str, Tensor], mean: Tensor, std: Tensor, card: ModelCard
) -> None:
    """Write one model file. The caller makes the write atomic (it belongs to a folder that is moved as a whole)."""
    tensors = {f"model.{name}": value for name, value in weights.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    tensors |= {"latents.mean": mean, "latents.std": std}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"segue": json.dumps(asdict(card))})


def former_names(name: str) -> list[str]:
    """The tensors of schema 1 that a tensor of a model consists of, by its first rows and its last."""
    fused = re.fullmatch(r"(.*\bblocks\.\d+\.attention)\.qkv\.(weight|bias)", name)
    return [name] if fused is None else [f"{fused[1]}.q.{fused[2]}", f"{fused[1]}.kv.{fused[2]}"]


def current_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model file of either schema under today's names: q and kv of self-attention are one layer."""
    found = {}
    for name, value in tensors.items():
        part = re.fullmatch(r"(.*\bblocks\.\d+\.attention)\.(q|kv)\.(weight|bias)", name)
        if part is None:
            found[name] = value
        elif part[2] == "q":
            whole = f"{part[1]}.qkv.{part[3]}"
            found[whole] = torch.cat([tensors[n] for n in former_names(whole)])
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; weights of a model under today's names.

    Raises:
        UserError: the file is missing, truncated, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return current_tensors({name: file.get_tensor(name) for name in file.keys()}), file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; hint: give a run folder, a checkpoint folder or a model.safetensors"
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); use an earlier checkpoint") from error


def read_card(path: Path) -> ModelCard:
    """The card of a model file; its weights are left unread.

    Raises:
        UserError: not a segue model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return ModelCard(**json.loads((file.metadata() or {})["segue"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a segue model ({first_line(error)}); give a checkpoint of `segue train`"
        ) from error


def load_model(path: Path, weights: str = "ema") -> SavedModel:
    """Read a model file.

    Args:
        path: the model.safetensors.
        weights: "ema" (averaged, for use) or "model" (the trained ones).

    Raises:
        UserError: not a segue model, another schema version, or weights that do not fit the card.
    """
    card, own, tensors = _read_model(path, weights)
    try:
        if card.lora:
            model = merge_lora(model_with_lora(card, own))
        else:
            config = config_of(card)
            _refuse_other_shapes(config, own)
            model = backbone_of(config)
            model.load_state_dict(own)
        return SavedModel(model.eval(), tensors["latents.mean"], tensors["latents.std"], card)
    except _MISFITS as error:
        raise _misfit(path, error) from error


def load_adapters(path: Path, weights: str = "ema") -> tuple[Backbone, ModelCard]:
    """Read the model file of a run with LoRA: the model with its adapters apart, and the card.

    Raises:
        UserError: as `load_model`; a model without adapters.
    """
    card, own, _ = _read_model(path, weights)
    if not card.lora:
        raise UserError(
            f"{path}: a model without LoRA; hint: segue train --lora rank=16 trains adapters; a public model, all of "
            "whose weights were trained, is saved by segue export --to diffusers"
        )
    try:
        return model_with_lora(card, own).eval(), card
    except _MISFITS as error:
        raise _misfit(path, error) from error


# What a card that contradicts its tensors may run into.
_MISFITS = (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)


def _misfit(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: its weights do not fit its card ({first_line(error)}); use another checkpoint")


def _read_model(path: Path, weights: str) -> tuple[ModelCard, dict[str, Tensor], dict[str, Tensor]]:
    """Card, weights of the kind that is asked for, and all tensors of a file."""
    if weights not in ("ema", "model"):
        raise UserError(f"--weights {weights}: use ema (averaged) or model (as trained)")
    tensors, metadata = read_tensors(path)
    try:
        # The card comes first: it says which version wrote the file, and what the tensors belong to.
        data = json.loads(metadata["segue"])
        version = data["schema_version"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a segue model (no card in its metadata); give a checkpoint of `segue train`"
        ) from error
    if version not in (1, SCHEMA_VERSION):
        raise UserError(
            f"{path}: model schema {version}, this segue reads 1 and {SCHEMA_VERSION}; use the segue that wrote it"
        )
    try:
        card = _found_beside(ModelCard(**data), path.parent)
        prefix = f"{weights}."
        return card, {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, tensors
    except _MISFITS as error:
        raise _misfit(path, error) from error


def _found_beside(card: ModelCard, folder: Path) -> ModelCard:
    """The card with paths for parts that lie in the model's own folder, as `segue push` writes them."""
    codec_source, text = card.codec_source, card.text
    if codec_source.startswith(BESIDE):
        codec_source = str(folder / codec_source.removeprefix(BESIDE))
    if str(text.get("name", "")).startswith(BESIDE):
        text = text | {"name": str(folder / text["name"].removeprefix(BESIDE))}
    predictor = card.predictor
    if str(predictor.get("source", "")).startswith(BESIDE):
        predictor = predictor | {"source": str(folder / predictor["source"].removeprefix(BESIDE))}
    return replace(card, codec_source=codec_source, text=text, predictor=predictor)


def model_with_lora(card: ModelCard, adapters: dict[str, Tensor]) -> Backbone:
    """The base that a card names, with the low-rank adapters of its file on it.

    Raises:
        UserError: the base is not where it was, or is another model now.
        RuntimeError: adapters of other layers or ranks than the card says.
    """
    source = card.base["source"]
    if base_weights(source) != card.base["weights"]:
        raise UserError(f"{source}: not the weights that the adapters were trained on; hint: put those back")
    model = load_model(Path(source)).model if Path(source).is_file() else load_adapter(source)
    if isinstance(model, Adapter):
        # The window and the conditions are those of the run, which are in its own file.
        config = config_of(card)
        assert isinstance(config, AdapterConfig)
        model = adapter_of(config, model.transformer)
    add_lora(model, LoraConfig(**card.lora))
    load_trained(model, adapters)
    return model


def base_weights(source: str) -> str:
    """What tells a model's weights from others: a hash of the bytes of its file, or of its pipeline's files.

    Args:
        source: a model.safetensors, or the folder or hub name of a diffusers pipeline.

    Raises:
        UserError: there is no such model.
    """
    if Path(source).is_file():
        return sha256_of([Path(source)])
    if source.endswith(".safetensors"):
        raise UserError(f"{source}: these weights are gone, and a model with LoRA needs them; hint: put them back")
    return sha256_of(sorted(pipeline_folder("the base of LoRA", source).part("transformer").glob("*.safetensors")))


def _refuse_other_shapes(config: BackboneConfig, tensors: dict[str, Tensor]) -> None:
    """Compare shapes before anything is allocated: a card may claim a model that no memory holds.

    Raises:
        ValueError: the card describes other weights than the file holds.
    """
    # Modules take memory on the meta device, too: a card must not claim a million of them.
    if not 0 < config.depth <= len(tensors):
        raise ValueError(f"{config.depth} blocks, but {len(tensors)} tensors")
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in backbone_of(config).state_dict().items()}
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(shape)}")


def model_file(path: Path) -> Path:
    """The model.safetensors that a run folder, checkpoint folder or file name means.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    found = sorted((path / "checkpoints").glob("examples-*/model.safetensors"))
    # Names hold the examples with leading zeros, so the last by name is the newest.
    if found:
        return found[-1]
    what = "holds no checkpoint yet" if path.is_dir() else "does not exist"
    raise UserError(
        f"{path}: {what}; hint: give a run folder of `segue train`, a checkpoint folder or a model.safetensors"
    )
