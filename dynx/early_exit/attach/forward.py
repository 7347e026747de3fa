"""One forward of a classifier with exits: its blocks compute only the active rows.

A block takes and returns the whole batch but computes only those rows. So embeddings, masks, modules between blocks, and norm,
pooler and head after the last get tensors of the usual shapes. Where the next block takes this block's output tensor itself, the
finished rows are never filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.early_exit.attach.arguments import item_at, map_leaves, tensors_of
from dynx.early_exit.attach.hidden_state import State
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from dynx.early_exit.attach.arguments import Path
    from dynx.early_exit.attach.blocks import Block
    from dynx.early_exit.attach.hidden_state import Watch


class ForwardStopped(Exception):  # noqa: N818 - not an error
    """Stops the model's forward early; `run` catches it."""


@dataclass
class PartialForward:
    """A forward in progress, with the active rows and their hidden states."""

    blocks: Sequence[Block]
    batch: int
    rows: Tensor
    start: State | None
    watch: Watch | None
    exits: Collection[int]
    stop: int | None
    shape: tuple[int, ...]
    """Shape of one row of the inputs."""
    done: int = 0
    state: State | None = None
    active: Tensor | None = None
    """Hidden states of the active rows, once they are fewer than the batch."""
    placeholder: Tensor | None = None
    """The tensor that was returned to the model in their place."""
    placeholder_is_empty: bool = False
    """Whether that tensor has only the shape, and no values."""
    selected: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Arguments reduced to the active rows, by identity."""

    def call(self, module: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run in place of `module`'s forward, `inner`."""
        if self.done == len(self.blocks) or self.blocks[self.done].module is not module:
            raise UnsupportedModelError("the blocks ran in another order than when exits were attached")
        block = self.blocks[self.done]
        self.done += 1
        if self.start is not None and self.done <= self.start.depth:
            return self._skip_block(block, self.start, inner, args, kwargs)
        if self.active is None:
            output = inner(*args, **kwargs)
            hidden: Tensor = item_at(output, block.output_path)
        else:
            output = None
            hidden = self._compute_active(block, self.active, inner, args, kwargs)
        kept = self._rows_kept(hidden)
        if kept is not None:
            output = None
            hidden = hidden.index_select(0, kept)
            self.rows = self.rows[kept.to(self.rows.device)]
            self.selected.clear()
        if self.stop == self.done:
            self.state = State(self.done, hidden)
            raise ForwardStopped
        if output is not None:
            return output
        self.active, self.placeholder_is_empty = hidden, self.done < len(self.blocks) and block.direct
        self.placeholder = (
            hidden.new_zeros(()).expand(self.batch, *hidden.shape[1:])
            if self.placeholder_is_empty
            else self._scatter(hidden)
        )
        return block.wrap_output(self.placeholder)

    def _rows_kept(self, hidden: Tensor) -> Tensor | None:
        """Call `watch` after an exit's block; return the positions that continue, None for all."""
        if self.watch is None or self.done not in self.exits:
            return None
        answer = self.watch(self.done, hidden, self.rows)
        if answer is None:
            return None
        count = hidden.shape[0]
        if answer.dim() != 1 or (answer.dtype == torch.bool and answer.shape[0] != count):
            raise ValueError(f"an answer of shape {tuple(answer.shape)} for {count} active rows")
        if answer.numel() == 0:
            self.rows = self.rows[:0]
            raise ForwardStopped
        kept = answer.nonzero()[:, 0] if answer.dtype == torch.bool else torch.unique(answer)
        if kept.numel() == 0:
            self.rows = self.rows[:0]
            raise ForwardStopped
        if not 0 <= int(kept[0]) <= int(kept[-1]) < count:
            raise ValueError(f"positions outside the {count} active rows")
        return None if kept.numel() == count else kept.to(hidden.device)

    def _scatter(self, hidden: Tensor) -> Tensor:
        """Put the active rows at their places in a batch whose other rows are zero."""
        rows = self.rows.to(hidden.device)
        return hidden.new_zeros(self.batch, *hidden.shape[1:]).index_copy_(0, rows, hidden)

    def _compute_active(
        self, block: Block, active: Tensor, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Compute the block's hidden states of the active rows from arguments for the whole batch."""
        copies = {
            path: block.copies(path, value, self.batch)
            for path, value in tensors_of((args, kwargs)).items()
            if value is not self.placeholder
        }
        whole = None in copies.values()
        given = self._scatter(active) if whole and self.placeholder_is_empty else self.placeholder if whole else active

        def cut(path: Path, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value is self.placeholder:
                return given
            return value if whole else self._select_active(value, copies[path] or 0)

        args, kwargs = map_leaves((args, kwargs), cut)
        hidden: Tensor = item_at(inner(*args, **kwargs), block.output_path)
        return hidden.index_select(0, self.rows.to(hidden.device)) if whole else hidden

    def _select_active(self, value: Tensor, copies: int) -> Tensor:
        """Select the active rows of an argument that holds `copies` of each row."""
        if copies == 0:
            return value
        if id(value) not in self.selected:
            rows = self.rows.to(value.device)
            if copies > 1:
                rows = (rows[:, None] * copies + torch.arange(copies, device=rows.device)).flatten()
            made = value.index_select(0, rows)
            self.selected[id(value)] = (value, made)  # the original too: its identity must not be taken by another
        return self.selected[id(value)][1]

    def _skip_block(
        self, block: Block, start: State, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return an output in place of a block that was computed earlier: its shape only, or the saved state after the last."""
        into: Tensor = item_at((args, kwargs), block.hidden)
        shape = tuple(into.shape[1:]) if block.keeps_shape else block.shapes.get(tuple(into.shape[1:]))
        if self.done == start.depth:
            if shape is not None and tuple(start.hidden.shape[1:]) != shape:
                raise ValueError(
                    f"a state of shape {tuple(start.hidden.shape)} for blocks that return {(self.batch, *shape)}"
                )
            return block.wrap_output(start.hidden)
        if shape is None:  # a size that no probe had: computing is the safe way to know what comes out
            return inner(*args, **kwargs)
        return block.wrap_output(into if block.keeps_shape else into.new_zeros(self.batch, *shape))
