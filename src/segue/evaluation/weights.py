"""Weights of published networks that are rebuilt here: safetensors, under the names of the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.types import UserError, first_line


def read_weights(option: str, path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: no such file, a pickle, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{option}: no file {path}; hint: docs/metrics.md says how its weights are had")
    # By its name first: a pickle could run code when it is opened.
    if path.suffix != ".safetensors":
        raise UserError(
            f"{option}: {path.name} is no .safetensors file (pickles are not read); hint: convert it once with the "
            "lines in docs/metrics.md, 'PANNs and VGGish'"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{option}: {path} is damaged ({first_line(error)}); hint: convert the checkpoint anew"
        ) from error


def fill(option: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network (it may be on the meta device) with its weights from `tensors`, frozen, in float32; others are ignored.

    Raises:
        UserError: a weight is missing, or of another shape.
    """
    # The counters of normalisations are no weights.
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    lacking = [k for k in wanted if k not in tensors]
    if lacking:
        raise UserError(
            f"{option}: the file lacks {len(lacking)} of {len(wanted)} weights ({lacking[0]}...); hint: convert the "
            "whole published checkpoint"
        )
    for name, value in wanted.items():
        check_shape(option, name, tensors[name], value.shape)
    # Assigned, not copied: the network may be on the meta device, which has no memory to copy into.
    network.load_state_dict({k: tensors[k].float() for k in wanted}, strict=False, assign=True)
    return network.eval().requires_grad_(False)


def check_shape(option: str, name: str, tensor: Tensor, shape: tuple[int, ...] | torch.Size) -> None:
    """
    Raises:
        UserError: it has another shape, or holds values that are not finite.
    """
    if tensor.shape != torch.Size(shape):
        raise UserError(
            f"{option}: {name} is {list(tensor.shape)}, not {list(shape)}; this is another network than the published"
        )
    if not torch.isfinite(tensor).all():
        raise UserError(f"{option}: {name} holds values that are not finite; hint: convert the checkpoint anew")
