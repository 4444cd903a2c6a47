"""torch.compile on the blocks of a model (train.compile)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from segue.types import UserError, first_line


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Let torch compile each block, in its first calls. One by one: blocks are alike, and share what was compiled.

    Hooks on the blocks go on working. A copy of a block, such as the averaged model's, is not compiled.

    Args:
        blocks: of the model; changed in place.
        backend: of torch.compile.
    """
    for block in blocks:
        # As nn.Module.compile does it; torch leaves this attribute out of copies and of the state.
        block._compiled_call_impl = _compiled(block._call_impl, backend)


def _compiled(call: Callable, backend: str) -> Callable:
    """A compiled function. Where it cannot be compiled, the run ends in one line: nothing else is computed instead."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    inner = torch.compile(call, backend=backend)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)  # the error around it names the backend alone
            raise UserError(
                f"train.compile=true: torch cannot compile the model here ({first_line(cause)}); hint: set "
                "train.compile=false, or install a C++ compiler and, on a GPU, triton"
            ) from error

    return guarded
