"""Hidden states of rows that stopped after a block, and the outcome of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Watch = Callable[[int, Tensor, Tensor], Tensor | None]
    """Called after a block to choose the rows that continue; see `ExitModel.run`."""


@dataclass(frozen=True)
class State:
    """Rows stopped after a block: `hidden` (R, …) are its outputs, `depth` counts the block calls done."""

    depth: int
    hidden: Tensor

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def select(self, rows: Tensor) -> State:
        """Select rows by positions (r,) or a mask (R,)."""
        rows = rows.to(self.hidden.device)
        return State(self.depth, self.hidden[rows])

    def fit(self, length: int) -> State:
        """Pad hidden states (R, T, D) on the right with zeros, or truncate them, to `length` tokens."""
        short = length - self.hidden.shape[1]
        return self if short == 0 else State(self.depth, F.pad(self.hidden, (0, 0, 0, short)))

    @staticmethod
    def merge(states: Sequence[State], *, length: int | None = None) -> State:
        """Concatenate the rows of all states, in order, at the longest or at `length` tokens.

        The inputs that they are resumed with must be padded to the same length, on the right. ValueError: none, or states of
        different depths or of shapes that don't match.
        """
        if not states:
            raise ValueError("no states to merge")
        depths = sorted({state.depth for state in states})
        if len(depths) > 1:
            raise ValueError(f"states stopped after different blocks: {', '.join(map(str, depths))}")
        if states[0].hidden.dim() == 3:
            widest = max(int(state.hidden.shape[1]) for state in states) if length is None else length
            states = [state.fit(widest) for state in states]
        elif length is not None:
            raise ValueError("only hidden states of tokens have a length")
        if len({state.hidden.shape[1:] for state in states}) > 1:
            raise ValueError("states of different shapes")
        return State(depths[0], torch.cat([state.hidden for state in states]))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: `rows` (R,) of the inputs were active at its end, in order.

    `logits` (R, C) where they ran all layers, `state` where the run was to stop after a block. Both are None when no row was
    active.
    """

    rows: Tensor
    logits: Tensor | None
    state: State | None
