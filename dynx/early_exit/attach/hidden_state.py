"""Rows on their way through a classifier: stopped after a block, or out at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Watch = Callable[[int, Tensor, Tensor], Tensor | None]
    """Asked after a block which rows go on; see `ExitModel.run`."""


@dataclass(frozen=True)
class State:
    """Rows stopped after a block: `hidden` (R, …) are its outputs, `depth` counts the block calls done."""

    depth: int
    hidden: Tensor

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def select(self, rows: Tensor) -> State:
        """These rows alone: positions (r,) or a mask (R,)."""
        rows = rows.to(self.hidden.device)
        return State(self.depth, self.hidden[rows])

    def fit(self, length: int) -> State:
        """With `length` tokens: padded on the right with zeros, or cut. For hidden states (R, T, D)."""
        short = length - self.hidden.shape[1]
        return self if short == 0 else State(self.depth, F.pad(self.hidden, (0, 0, 0, short)))

    @staticmethod
    def merge(states: Sequence[State], *, length: int | None = None) -> State:
        """The rows of all, in order, brought to the longest or to `length` tokens.

        The inputs they're resumed with must be padded to the same length, on the right. ValueError: none, or states of
        different depths or of shapes that don't go together.
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
    """What came of a run: `rows` (R,) of the inputs were still active at its end, in order.

    `logits` (R, C) where they went through the whole model, `state` where the run was told to stop at a block. Both are None
    when no row was left.
    """

    rows: Tensor
    logits: Tensor | None
    state: State | None
