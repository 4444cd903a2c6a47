"""Low-rank adapters (LoRA, DoRA) on the linear layers of a model's blocks, by peft: training moves them alone.

    y = W x + B A x        A [rank, in], B [out, rank], B = 0 at the start (LoRA, arXiv 2106.09685); W stays as it is

The scale alpha / rank is 1, so that a rank changes the capacity and not the rate. DoRA (arXiv 2402.09353) also trains
the norm of each row of W + B A. The model keeps its class and its blocks: only its linear layers are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segue.types import UserError, import_extra

PEFT_PREFIX = "base_model.model."  # of the names in a folder that peft loads
NAMED = 12  # layers named in a message
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of training all weights.

    Attributes:
        rank: of the adapters; 0 = none: all weights are trained.
        dora: train the norms of the rows as well (DoRA).
        targets: linear layers that get adapters, as ends of their names with commas, such as "attention.qkv,mlp_in"; ""
            = all inside the blocks.
    """

    rank: int = 0
    dora: bool = False
    targets: str = ""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; give 1 or more, or 0 for full fine-tuning")
        if self.rank == 0 and (self.dora or self.targets):
            raise UserError("lora.dora and lora.targets need a rank; hint: --lora rank=16")


def lora_config(text: str) -> LoraConfig:
    """What `--lora` says: "rank=16", "rank=16,dora".

    Raises:
        UserError: anything else.
    """
    rank, dora = 0, False
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name == "rank" and value.isdecimal() and int(value) > 0:
            rank = int(value)
        elif item.strip() == "dora":
            dora = True
        else:
            raise UserError(f"--lora {text}: '{item.strip()}' is none of its parts; hint: --lora rank=16,dora")
    if rank == 0:
        raise UserError(f"--lora {text}: no rank; hint: --lora rank=16,{text}")
    return LoraConfig(rank, dora)


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters on linear layers of `model.blocks`, in place, and freeze everything else.

    A is drawn from torch's global generator, which the caller seeds.

    Raises:
        UserError: peft is missing, the targets match no layer (the line names layers that could match), or DoRA is to
            train the norm of a row of zeros.
    """
    peft = import_extra("peft", "finetune")
    names = target_layers(model, config.targets)
    if config.dora:
        _refuse_zero_rows(model, names)
    # The names are whole ones, so that peft matches these layers and no others.
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=names, use_dora=config.dora)
    peft.inject_adapter_in_model(settings, model)


def target_layers(model: nn.Module, targets: str) -> list[str]:
    """Whole names of the linear layers inside `model.blocks` whose names end in one of `targets`; "": all.

    Raises:
        UserError: one of the targets matches none.
    """
    inside = {id(module) for block in _blocks(model) for module in block.modules()}
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    wanted = [target.strip() for target in targets.split(",") if target.strip()]
    if not wanted:
        return linear
    for target in wanted:
        if not any(_ends_in(name, target) for name in linear):
            raise UserError(f"lora.targets={target} matches no linear layer of the blocks; there are {_kinds(linear)}")
    return [name for name in linear if any(_ends_in(name, target) for target in wanted)]


def has_lora(model: nn.Module) -> bool:
    """Whether `add_lora` has put adapters on a model."""
    return hasattr(model, "peft_config")


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a run's file must hold, as entries of the state_dict: with adapters them alone, else everything.

    Of a wrapper around a diffusers model its small frozen conditions as well, which are the run's own.
    """
    state = model.state_dict()
    if not has_lora(model):
        return state
    inner = "transformer." if hasattr(model, "transformer") else ""
    return {name: value for name, value in state.items() if ".lora_" in name or not name.startswith(inner)}


def load_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `trained_tensors`.

    Raises:
        RuntimeError: other tensors, or of other shapes.
    """
    if has_lora(model) and tensors.keys() != trained_tensors(model).keys():
        odd = sorted(tensors.keys() ^ trained_tensors(model).keys())
        raise RuntimeError(f"other adapters: {odd[0]} and {len(odd) - 1} more")
    model.load_state_dict(tensors, strict=not has_lora(model))


def averaged_copy(model: Network) -> Network:
    """A copy whose weights will be the running average; frozen weights are shared, and take no memory twice."""
    own = trained_tensors(model)
    shared = {id(p): p for name, p in model.named_parameters() if name not in own}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


class Bfloat16Linear(nn.Linear):
    """A linear layer that holds its matrix and computes in bfloat16, as it would under autocast, wherever it is called.

    Its input and output have whatever type the rest of the model computes in.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return F.linear(x.to(torch.bfloat16), self.weight, bias).to(x.dtype)


def freeze_as_bfloat16(model: nn.Module) -> None:
    """Hold the frozen matrices of the blocks' linear layers in bfloat16, in place: half of a large model's memory.

    Norms, biases and what stands outside the blocks stay float32: they take little memory, and lose most by it.
    """
    for layer in (layer for block in _blocks(model) for layer in block.modules()):
        if type(layer) is nn.Linear and not layer.weight.requires_grad:
            layer.weight.data = layer.weight.data.to(torch.bfloat16)
            layer.__class__ = Bfloat16Linear


def merge_lora(model: Network) -> Network:
    """Add the adapters to the weights, in place, and take them off: the plain model, which computes the same."""
    if not has_lora(model):
        return model
    layer_kind = import_extra("peft.tuners.lora", "finetune").LoraLayer
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, layer_kind)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    return model.requires_grad_(True)


def save_peft(model: nn.Module, folder: Path, *, below: str = "", base: str = "", tensors: Any = None) -> None:
    """Write the adapters as a folder that peft.PeftModel.from_pretrained loads onto the same model, without segue.

    Args:
        model: with adapters.
        folder: new or empty; gets adapter_config.json and adapter_model.safetensors.
        below: name of the submodule that peft will be given, where the model is a wrapper around another's.
        base: name or path of the base model, for peft's records.
        tensors: the adapters by the model's names; the model's own where None.
    """
    prefix = f"{below}." if below else ""
    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.deepcopy(_settings(model))
    settings.target_modules = sorted(name.removeprefix(prefix) for name in settings.target_modules)
    settings.base_model_name_or_path = base
    settings.save_pretrained(str(folder))
    kept = {}
    for name, value in (tensors or trained_tensors(model)).items():
        # peft names adapters in its files without the adapter's own name.
        plain = name.removeprefix(prefix).replace(".default", "")
        kept[f"{PEFT_PREFIX}{plain}"] = value.detach().cpu().contiguous()
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})


def describe_lora(model: nn.Module) -> str:
    """One line: which layers have adapters, and how much is trained."""
    layer_kind = import_extra("peft.tuners.lora", "finetune").LoraLayer
    layers = sum(isinstance(module, layer_kind) for module in model.modules())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    settings = _settings(model)
    kind = "DoRA" if settings.use_dora else "LoRA"
    return f"{kind}: rank {settings.r} on {layers} layers, {trained / 1e6:.2f} M of {total / 1e6:.2f} M weights trained"


def _settings(model: nn.Module) -> Any:
    """peft's own settings of the adapters."""
    return cast(Any, model).peft_config["default"]


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    return list(cast(Any, model).blocks)


def _refuse_zero_rows(model: nn.Module, names: Sequence[str]) -> None:
    """DoRA divides by the norms of rows. A layer that is still at its initial zeros has none."""
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight")
        if not weight.is_meta and not bool(weight.any(dim=1).all()):
            raise UserError(f"--lora dora: {name} has rows of zeros, which have no norm; hint: leave dora away")


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _kinds(names: Sequence[str]) -> str:
    """The layers of a block by the ends of their names, once each: "attention.qkv, attention.out, mlp_in"."""
    kinds = list(dict.fromkeys(_in_block(name) for name in names))
    more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
    return ", ".join(kinds[:NAMED]) + more


def _in_block(name: str) -> str:
    """What follows the block's number."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else name
