"""What a GPU of a given memory trains: the largest batch of each size of the backbone. Counted, not tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segue.models.dit import DiTConfig
from segue.models.step_memory import StepKind, memory_need

GPU_GIB = (8, 12, 16, 24, 80)
# Of the activations: what an allocator keeps between blocks of many sizes, gradients on their way back. 0 to 0.7 was
# measured with glibc.
GAPS = 0.25
# What CUDA itself keeps of a GPU: its context, kernels, room for matrix products. A round figure, not measured here.
CUDA_BYTES = 2**30


@dataclass(frozen=True)
class Fit:
    """What a GPU of so much memory trains, in bf16 autocast over float32 weights.

    Attributes:
        weights: bytes of weights, gradients, moments and average.
        example: bytes that another example of a batch adds.
        batches: GiB -> the largest batch; 0: not one example.
    """

    weights: int
    example: int
    batches: dict[int, int]


def fit_of(config: DiTConfig, frames: int, sizes_gib: Sequence[int] = GPU_GIB) -> Fit:
    """How large a batch of rows of `frames` frames fits a GPU of each size; counted, not tried."""
    # The activations are a part for each example, and a part for all: the weights' copies in 2 bytes. From two examples
    # on: where a batch is one, some tensors are views that are copies otherwise.
    two, four = (memory_need(config, batch, frames, kind=StepKind(bfloat16=True)) for batch in (2, 4))
    example = round((1 + GAPS) * (four.activations - two.activations) / 2)
    always = two.weights + max(0, round((1 + GAPS) * two.activations) - 2 * example) + CUDA_BYTES
    batches = {gib: max(0, (gib * 2**30 - always) // example) for gib in sizes_gib}
    return Fit(two.weights, example, batches)
