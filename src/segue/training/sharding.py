"""FSDP2: weights, gradients, Adam's moments and averaged weights, each held by one rank only, split block by block.

`train.sharding=fsdp2`. torch's own `fully_shard`, on CPUs and GPUs alike: accelerate's plugin calls the same, but not
for CPU processes. The functions here take sharded and ordinary tensors, so that the code around them is written once;
of ordinary ones they make nothing new. What has to see whole weights (checkpoints, block structure) gathers them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segue.training.config import RunConfig
from segue.types import ModelOutput, UserError


def check_sharding(config: RunConfig, accelerator) -> None:
    """
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
    if config.policy.regime.signal == "gradient-cosine":
        raise UserError(
            "train.sharding=fsdp2: regime.signal=gradient-cosine takes gradients of whole blocks, which no rank holds; "
            "take another signal, or train.sharding=none"
        )


def shard_models(config: RunConfig, accelerator, model: nn.Module, averaged: nn.Module) -> None:
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
    # Hooks are put on the tensors of an output, which torch finds in the containers that it knows.
    if ModelOutput not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(ModelOutput)
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")  # nobody writes to it
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for whole in (model, averaged):
        for part in (*whole.blocks, whole):  # the last takes what the blocks leave
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
    """What this rank holds of a tensor; shares its memory."""
    return tensor if _mesh(tensor) is None else tensor.to_local()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor. Every rank must ask: sharded ones are gathered."""
    return tensor if _mesh(tensor) is None else tensor.full_tensor()


def distribute_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as `target` is held; each rank has it and cuts out its own part."""
    if _mesh(target) is None or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def full_tensors(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor in main memory, one after the other through the device. Every rank must ask.

    Args:
        keep: whether this rank wants them; {} where not.
    """
    kept = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor.detach())
        if keep:
            kept[name] = gathered.cpu().contiguous()
    return kept


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together; of sharded ones over all ranks, in one exchange."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([to_local(t) for t in tensors])))
    mesh = _mesh(tensors[0])
    if mesh is not None:
        square = norm.square()
        torch.distributed.all_reduce(square, group=mesh.get_group())
        norm = square.sqrt()
    return norm


@contextmanager
def gathered_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks that hold whole weights meanwhile, on every rank; what is changed in them is kept.

    Every rank must change them alike.
    """
    sharded = [block for block in blocks if is_sharded(block)]
    held = [list(block.parameters()) for block in sharded]
    for block in sharded:
        block.unshard()
    yield
    with torch.no_grad():
        for block, parts in zip(sharded, held):
            for part, changed in zip(parts, block.parameters()):
                to_local(part).copy_(to_local(distribute_like(changed.detach(), part)))
            block.reshard()


def _mesh(tensor: Tensor):
    """The ranks that a tensor is split over; None where it is not. Ordinary tensors have no such attribute."""
    return getattr(tensor, "device_mesh", None)
