"""A tap and block signatures for any stack of blocks, by forward hook; the model's code stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from segue.stage.block_structure import block_weights, signatures
from segue.stage.ssl_guidance import tap_index
from segue.types import UserError


class Attachment:
    """What `attach` returns. Usable as a context manager, which removes the hook at its end.

    Attributes:
        blocks: the stack.
        index: of the tapped block.
    """

    def __init__(self, blocks: Sequence[nn.Module], at: float, prepended: int) -> None:
        self.blocks, self.index, self._prepended = list(blocks), tap_index(at, len(blocks)), prepended
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
        """[B, N, D] tokens that left the tapped block in the last forward pass, prepended ones dropped.

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
        """Forget the last tokens, and with them the graph that they hold on to."""
        self._hidden = None

    def signatures(self) -> Tensor:
        """[L, 2, D, D] signatures of the blocks (`segue.stage.block_structure.signatures`).

        Raises:
            UserError: a block's readers and writers of the residual stream cannot be told from their names.
        """
        with torch.no_grad():
            return signatures([block_weights(block) for block in self.blocks])

    def remove(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()
        self.clear()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach(blocks: Iterable[nn.Module], at: float = 0.33, prepended: int = 0) -> Attachment:
    """Tap a stack of blocks: the tokens after one of them, and signatures of all.

        with segue.attach(model.transformer_blocks, at=0.33) as tap:
            model(...)
            tap.hidden          # [B, N, D]
            tap.signatures()    # [L, 2, D, D]

    Args:
        blocks: an nn.ModuleList, nn.Sequential or list of blocks, in order; each returns tokens [B, N, D], or a tuple
            that begins with them.
        at: which block: a share of the depth below 1, or an index from 1 upwards (`tap_index` in stage/ssl_guidance).
        prepended: tokens before the clip's own that stand for no time: 1 for Stable Audio's global token.

    Raises:
        UserError: not a list of blocks, or a tap outside it.
    """
    try:
        blocks = list(blocks)
    except TypeError as error:
        raise UserError(
            f"attach: {type(blocks).__name__} is no list of blocks; give one, such as model.blocks"
        ) from error
    if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
        raise UserError("attach: give a list of one or more blocks (torch modules), such as model.blocks")
    return Attachment(blocks, at, prepended)
