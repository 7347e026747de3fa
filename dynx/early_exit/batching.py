"""Batches of rows that are computed together, and rows parked after a block until others resume with them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import neg
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.hidden_state import State
from dynx.early_exit.attach.pooling import COUNTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.heads import ExitHeads

    Collate = Callable[[Sequence[int]], tuple[Mapping[str, Tensor], int]]

MIN_LENGTH_RATIO = 0.75
"""Smallest ratio of lengths in a batch of parked rows: padding is computed too."""


def batches(sizes: Mapping[int, int], max_rows: int, merges_lengths: bool) -> Iterator[list[int]]:
    """Yield batches of row numbers of similar size, the longest first, so that memory runs out at once or never."""
    ordered = sorted(sizes, key=lambda number: (-sizes[number], number))
    at = 0
    while at < len(ordered):
        group = ordered[at : at + max_rows]
        if not merges_lengths:  # padding would change the answers: equal lengths only
            group = [number for number in group if sizes[number] == sizes[group[0]]]
        at += len(group)
        yield group


def fitting(sizes: Sequence[int], width: int, merges_lengths: bool) -> int:
    """Return how many rows of these sizes, the largest first, could resume with rows of `width`."""
    if not merges_lengths:
        return bisect_right(sizes, -width, key=neg) - bisect_left(sizes, -width, key=neg)
    return bisect_right(sizes, -MIN_LENGTH_RATIO * width, key=neg)


@dataclass(frozen=True)
class Batch:
    """A batch: its rows' numbers in the window, and their inputs; `width` is their tokens with padding, 1 for images."""

    numbers: NDArray[np.int64]  # (R,)
    sizes: NDArray[np.int64]  # (R,) what rows are sorted by
    inputs: Mapping[str, Tensor]
    width: int
    state: State | None = None
    """Hidden states of the block that the rows stopped after, if they did."""
    logits: Tensor | None = None  # (R, C) of the exit that they stopped at, (R, T, C) of tokens

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: NDArray[np.int64]) -> Batch:
        """Return a batch of these rows (r,)."""
        at = torch.from_numpy(rows)

        def cut(value: Tensor) -> Tensor:
            return value.index_select(0, at.to(value.device))

        return Batch(
            self.numbers[rows],
            self.sizes[rows],
            {key: cut(value) for key, value in self.inputs.items()},
            self.width,
            None if self.state is None else self.state.select(at),
            None if self.logits is None else cut(self.logits),
        )


class InFlightBatch:
    """A forward in progress: the active rows by their index in the batch, and their logits at the last exit."""

    def __init__(self, group: Batch) -> None:
        self.group = group
        self.rows = np.arange(len(group))
        self.logits = group.logits
        self.values = None if group.logits is None else group.logits.float().cpu().numpy()
        mask = group.inputs.get("attention_mask")
        self.seen = group.inputs if mask is None or COUNTED in group.inputs or not bool(mask.all()) else {}
        """The inputs that pooling needs: no mask where nothing is padded."""
        self.at: Tensor | None = None
        """`rows` for tensors, once they are fewer than the group."""

    def score_exit(
        self, exit_model: ClassifierModel, heads: ExitHeads, score: AgreementScore, k: int, hidden: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return exit k's logits of the active rows (R, C), and their agreement scores (R,)."""
        pooled = exit_model.pool(hidden, self.seen, self.at)
        self.logits = heads.logits(k, pooled, self.logits)
        values: NDArray[np.float32] = self.logits.float().cpu().numpy()
        scores = score(k, values, self.values)
        self.values = values
        return values, scores

    def keep(self, positions: NDArray[np.int64]) -> Tensor:
        """Keep only these of the active rows, by position (r,), and return the positions as a tensor."""
        kept = torch.from_numpy(positions)
        self.rows = self.rows[positions]
        self.at = torch.from_numpy(self.rows)
        if self.logits is not None and self.values is not None:
            self.logits = self.logits.index_select(0, kept.to(self.logits.device))
            self.values = self.values[positions]
        return kept


class ParkedRows:
    """The rows parked at one exit, in the order in which they stopped."""

    def __init__(self, merges_lengths: bool) -> None:
        self._groups: list[Batch] = []
        self._merges = merges_lengths

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def fitting(self, head: Batch) -> int:
        """Return how many of them could resume with a batch."""
        return sum(len(group) for group in self._groups if self._fits(group, head))

    def add(self, group: Batch) -> None:
        """Append a batch."""
        self._groups.append(group)

    def take(self, max_rows: int, collate: Collate) -> Batch:
        """Remove the first rows, at most `max_rows`, as a batch.

        `collate` returns the inputs of rows, by number, and their width.
        """
        head, taken, count = self._groups[0], list[Batch](), 0
        while self._groups and count < max_rows and self._fits(self._groups[0], head):
            group = self._groups.pop(0)
            if count + len(group) > max_rows:
                here = np.arange(max_rows - count)
                self._groups.insert(0, group.select(np.arange(max_rows - count, len(group))))
                group = group.select(here)
            taken.append(group)
            count += len(group)
        return taken[0] if len(taken) == 1 else _merge(taken, collate)

    def _fits(self, group: Batch, head: Batch) -> bool:
        if not self._merges:  # padding would change the answers: equal lengths only
            return bool(group.sizes[0] == head.sizes[0]) and group.width == head.width
        return MIN_LENGTH_RATIO * head.width <= group.width <= head.width / MIN_LENGTH_RATIO


def _merge(groups: Sequence[Batch], collate: Collate) -> Batch:
    numbers = np.concatenate([group.numbers for group in groups])
    width = groups[0].width
    states = [group.state for group in groups if group.state is not None]
    logits = [group.logits for group in groups if group.logits is not None]
    if all(group.width == width for group in groups):
        inputs: Mapping[str, Tensor] = {
            key: torch.cat([group.inputs[key] for group in groups]) for key in groups[0].inputs
        }
        state = State.merge(states)
    else:
        inputs, width = collate(numbers.tolist())
        state = State.merge(states, length=width)
        logits = [_fit(each, width) for each in logits]
    return Batch(numbers, np.concatenate([group.sizes for group in groups]), inputs, width, state, torch.cat(logits))


def _fit(logits: Tensor, width: int) -> Tensor:
    """Pad logits of tokens (R, T, C) with NaN, or truncate them, to as many tokens; return others as they are."""
    if logits.dim() != 3:
        return logits
    return torch.nn.functional.pad(logits, (0, 0, 0, width - logits.shape[1]), value=torch.nan)
