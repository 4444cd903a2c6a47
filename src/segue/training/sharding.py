"""FSDP2: weights, gradients, Adam's moments and averaged weights, each held by one rank only, split block by block.

`train.sharding=fsdp2`. torch's own `fully_shard`, on CPUs and GPUs alike: accelerate's plugin calls the same, but not
for CPU processes. The functions here take sharded and ordinary tensors alike, and return ordinary ones as they are.
Checkpoints and block structure need whole weights, and gather them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from segue.models.backbone import Backbone
from segue.training.config import RunConfig
from segue.types import ModelOutput, UserError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def check_sharding(config: RunConfig, accelerator) -> None:
    """Refuse a sharding that this run cannot have.

    Raises:
        UserError: this run cannot be sharded, or accelerate was told to shard it by itself.
    """
    if config.train.sharding == "none":
        if str(accelerator.distributed_type).endswith("FSDP"):
            raise UserError(
                "accelerate is set up for FSDP, which segue does not leave to it: answer no to FSDP in accelerate's "
                "config, and give --set train.sharding=fsdp2"
            )
        return
    if accelerator.num_processes == 1:
        raise UserError(
            "train.sharding=fsdp2 on a single process: start several (torchrun --nproc_per_node 2 -m segue.cli.main "
            "train ...), or set train.sharding=none; a run that goes on has it in its config.json"
        )
    if config.optim.kind != "adamw":
        raise UserError(
            f"train.sharding=fsdp2: optim.kind={config.optim.kind} was not tried on weights that no rank holds whole; "
            "take optim.kind=adamw, or train.sharding=none"
        )
    if config.train.compile:
        raise UserError("train.sharding=fsdp2 and train.compile=true were not tried together; leave one of them out")
    if config.policy.regime.signal == "gradient-cosine":
        raise UserError(
            "train.sharding=fsdp2: regime.signal=gradient-cosine takes gradients of whole blocks, which no rank holds; "
            "take another signal, or train.sharding=none"
        )


def shard_models(config: RunConfig, accelerator, model: Backbone, averaged: Backbone) -> None:
    """Put the averaged model on this rank's device; under fsdp2 split both models over the ranks, in place.

    Each rank builds the whole model in its main memory first, so that it begins with the weights that the seed gives.

    Raises:
        UserError: a torch without FSDP2.
    """
    if config.train.sharding == "none":
        averaged.to(accelerator.device)
        return
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise UserError(f"train.sharding=fsdp2 needs torch 2.7 or newer, this is {torch.__version__}") from error
    # FSDP2 puts hooks on the tensors of an output, and finds them only in containers that are registered.
    if ModelOutput not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(ModelOutput)
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")  # nobody writes to it
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in (model, averaged):
        for part in (*network.blocks, network):  # the last holds the weights outside the blocks
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


def wrap(accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimiser as the loop's steps use them: a sharded model exchanges gradients by itself."""
    if is_sharded(model):
        return model, accelerator.prepare(optimizer)
    return accelerator.prepare(model, optimizer)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_models` has split it."""
    return any(_mesh(p) is not None for p in model.parameters())


def to_local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; shares its memory."""
    return tensor if _mesh(tensor) is None else cast("DTensor", tensor).to_local()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor. All ranks must call this: sharded tensors are gathered."""
    return tensor if _mesh(tensor) is None else cast("DTensor", tensor).full_tensor()


def distribute_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, split as `target` is; every rank has the whole, and keeps its own part."""
    if _mesh(target) is None or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    held = cast("DTensor", target)
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def full_tensors(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The whole tensors in main memory, gathered one after the other on the device. All ranks must call this.

    Args:
        keep: whether this rank needs them; {} where not.
    """
    kept = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor.detach())
        if keep:
            kept[name] = gathered.cpu().contiguous()
    return kept


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together; of sharded ones over all ranks, in one exchange."""
    return norms_of(tensors)[0]


def norms_of(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`norm_of`, and the norms [n] of the tensors, of sharded ones of the parts that this rank holds."""
    each = torch.stack(torch._foreach_norm([to_local(t) for t in tensors]))
    norm = torch.linalg.vector_norm(each)
    mesh = _mesh(tensors[0])
    if mesh is not None:
        # Squares add up over ranks, norms do not.
        square = norm.square()
        torch.distributed.all_reduce(square, group=mesh.get_group())
        norm = square.sqrt()
    return norm, each


@contextmanager
def gathered_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which every rank holds whole weights of blocks. Changes are kept; all ranks must make the same."""
    # Gather; the parts stay as they are until the block lets its whole weights go.
    sharded = [cast("FSDPModule", block) for block in blocks if is_sharded(block)]
    held = [list(cast(nn.Module, block).parameters()) for block in sharded]
    for block in sharded:
        block.unshard()
    yield
    # Each rank takes over its own part of what was changed, before the whole weights are let go.
    with torch.no_grad():
        for block, parts in zip(sharded, held):
            for part, changed in zip(parts, cast(nn.Module, block).parameters()):
                to_local(part).copy_(to_local(distribute_like(changed.detach(), part)))
            block.reshard()


def _mesh(tensor: Tensor):
    """The ranks that a tensor is split over; None where it is not. Ordinary tensors have no such attribute."""
    return getattr(tensor, "device_mesh", None)
