"""Hidden tokens of a model's blocks by forward hook, signatures of their weights, and how much each block matters.

The model's code stays unchanged. Hooks work under DistributedDataParallel, FSDP2 and non-reentrant checkpointing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segue.types import UserError


def tap_index(tap: float, depth: int) -> int:
    """The index of the block whose output is tapped.

    A share s < 1 is the block after which about s of the blocks are passed: 0.33 of 8 is the third, index 2. From 1
    upwards `tap` is the index itself.

    Raises:
        UserError: the tap lies outside the stack.
    """
    if depth < 1 or not 0 <= tap < max(depth, 1) or (tap >= 1 and tap != int(tap)):
        raise UserError(
            f"alignment.tap is {tap:g}, but the model has {depth} blocks; "
            f"give a share of the depth below 1 or a block index up to {depth - 1}"
        )
    return int(tap) if tap >= 1 else max(0, math.floor(tap * depth + 0.5) - 1)


class Tap:
    """A forward hook on one block of a stack; `attach` makes it. As a context manager it removes the hook at its end.

    Attributes:
        blocks: the stack.
        index: of the tapped block.
    """

    def __init__(self, blocks: Sequence[nn.Module], at: float, prepended: int) -> None:
        self.blocks = list(blocks)
        self.index = tap_index(at, len(blocks))
        self._prepended = prepended
        self._hidden: Tensor | None = None
        self._hook = self.blocks[self.index].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        output = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise UserError(
                f"attach: block {self.index} returns {type(output).__name__}, not tokens [B, N, D]; "
                "give the list of transformer blocks"
            )
        self._hidden = output

    @property
    def hidden(self) -> Tensor:
        """[B, N, D] output of the tapped block in the last forward pass, without the prepended tokens.

        Raises:
            UserError: no forward pass yet, or one whose graph is lost to reentrant checkpointing.
        """
        if self._hidden is None:
            raise UserError("attach: no tokens yet; run the model before you ask for them")
        trains = any(p.requires_grad for p in self.blocks[self.index].parameters())
        if trains and torch.is_grad_enabled() and not self._hidden.requires_grad:
            raise UserError(
                "attach: the tapped tokens carry no gradient; run the model with gradients first, "
                "and checkpoint blocks with use_reentrant=False"
            )
        return self._hidden[:, self._prepended :]

    def clear(self) -> None:
        """Drop the last tokens, and with them their graph."""
        self._hidden = None

    def signatures(self) -> Tensor:
        """[L, 2, D, D] signatures of the blocks (variants/block_weights.py).

        Raises:
            UserError: a block's projections from and to the residual stream cannot be told from their names.
        """
        from segue.stage.variants.block_weights import block_weights, signatures

        with torch.no_grad():
            return signatures([block_weights(block) for block in self.blocks])

    def remove(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()
        self.clear()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach(blocks: Iterable[nn.Module], at: float = 0.33, prepended: int = 0) -> Tap:
    """Tap a stack of blocks: the tokens after one of them, and the signatures of all.

        with segue.attach(model.transformer_blocks, at=0.33) as tap:
            model(...)
            tap.hidden          # [B, N, D]
            tap.signatures()    # [L, 2, D, D]

    Args:
        blocks: an nn.ModuleList, nn.Sequential or list of blocks, in order; each returns tokens [B, N, D], or a tuple
            that begins with them.
        at: which block: a share of the depth below 1, or an index from 1 upwards (`tap_index`).
        prepended: tokens before those of the clip that belong to no time: 1 for the global token of Stable Audio.

    Raises:
        UserError: not a list of blocks, or a tap outside it.
    """
    return Tap(list_of_blocks(blocks, "attach"), at, prepended)


def list_of_blocks(blocks: Iterable[nn.Module], caller: str) -> list[nn.Module]:
    """Blocks as a list.

    Raises:
        UserError: not a list of blocks; `caller` begins the message.
    """
    try:
        blocks = list(blocks)
    except TypeError as error:
        raise UserError(
            f"{caller}: {type(blocks).__name__} is no list of blocks; hint: give one, such as model.blocks"
        ) from error
    if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
        raise UserError(f"{caller}: hint: give a list of one or more blocks (torch modules), such as model.blocks")
    return blocks


def width_of(block: nn.Module) -> int:
    """D: the commonest side of a block's linear layers.

    Raises:
        UserError: it has none.
    """
    sides = [side for module in block.modules() if isinstance(module, nn.Linear) for side in module.weight.shape]
    if not sides:
        raise UserError(f"block {type(block).__name__} has no linear layer; give the list of transformer blocks")
    # Sorted: of sides equally common the smallest is taken, not the one that a set happens to begin with.
    return max(sorted(set(sides)), key=sides.count)


def block_input(args: tuple, kwargs: dict) -> Tensor:
    """The residual stream among a block's arguments: its first tensor."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UserError("a block was called without a tensor; attach to the list of transformer blocks")


@torch.no_grad()
@contextmanager
def skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each of the blocks is the identity on its residual stream.

    Args:
        blocks: blocks whose first tensor argument and (first) output are the residual stream.

    Raises:
        UserError: a block's output has another shape than its input; raised where the block is called.
    """

    def skip(_block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        stream = block_input(args, kwargs)
        first = output[0] if isinstance(output, tuple) else output
        if first.shape != stream.shape:
            raise UserError(f"a block maps {list(stream.shape)} to {list(first.shape)}; no residual stream to restore")
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handles = [block.register_forward_hook(skip, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def causal_scores(model_forward: Callable[[], Tensor], blocks: Sequence[nn.Module]) -> list[float]:
    """How much each block contributes to the prediction: relative change when its residual branches are cut out.

    Block l is replaced by the identity on its residual stream and the prediction compared with the whole model's:
    ||v_l - v|| / ||v||. Blocks with high scores are the better taps in audio flow matching (AG-REPA, arXiv 2603.01006);
    one forward pass a block, no gradient. A model that predicts nothing yet scores 0 everywhere.

    Args:
        model_forward: the prediction [B, C, L] on a fixed batch, without dropout.
        blocks: as `skipped` takes them.

    Raises:
        UserError: a block's output has another shape than its input.
    """
    # float64: what one block changes may be small beside the prediction.
    whole = model_forward().detach().double()
    scale = float(whole.norm())
    scores = []
    for block in blocks:
        with skipped([block]):
            change = float((model_forward().detach().double() - whole).norm())
        scores.append(change / scale if scale > 0 else 0.0)
    return scores
