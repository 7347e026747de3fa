"""Rows that wait between two segments, and their arrays padded to more tokens or rows.

Letters: R rows, T tokens, D hidden size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.batching import MIN_LENGTH_RATIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[Any]]

MAX_WAITING_BATCHES = 8
"""Batches of rows that wait at a border before the next segment runs: several runs of one segment in turn find its weights in
the processor's cache."""

MAX_WAITING_BYTES = 64 << 20
"""Most bytes of hidden states that wait at a border beyond one batch."""

TOKEN_STEP, ROW_STEP = 4, 8
"""Batches are padded to a multiple of so many tokens, and of so many rows where they have more than four.

OpenVINO makes kernels for each new shape: on a model of 6 layers of 256 that took as long as a batch of 32 itself.
"""


@dataclass(frozen=True)
class Waiting:
    """Rows at a border: their numbers, the inputs that later segments take, hidden states, and logits of the last exit."""

    numbers: NDArray[np.int64]  # (R,)
    inputs: Inputs
    hidden: NDArray[np.float32]  # (R, T, D)
    logits: NDArray[np.float32] | None  # (R, C), or (R, T, C) of tokens

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def width(self) -> int:
        """T; of an image whatever its hidden states have there."""
        return int(self.hidden.shape[1])

    def select(self, rows: NDArray[np.int64] | slice) -> Waiting:
        """Return these rows."""
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        logits = None if self.logits is None else self.logits[rows]
        return Waiting(self.numbers[rows], inputs, self.hidden[rows], logits)


class Border:
    """The rows that wait behind one segment, in the order in which they came."""

    def __init__(self, merges_lengths: bool) -> None:
        self._groups: list[Waiting] = []
        self._merges = merges_lengths
        self.count = 0

    def add(self, group: Waiting) -> None:
        """Append rows."""
        self._groups.append(group)
        self.count += len(group)

    def is_full(self, batch: int) -> bool:
        """Whether the next segment should run, in batches of this size."""
        if self.count < batch:
            return False
        waiting = sum(group.hidden.nbytes for group in self._groups)
        return self.count >= MAX_WAITING_BATCHES * batch or waiting > MAX_WAITING_BYTES

    def take(self, most: int) -> Waiting:
        """Remove the first rows, at most `most`, as far as their lengths are similar."""
        head, taken, count = self._groups[0], list[Waiting](), 0
        while self._groups and count < most and self._fits(self._groups[0], head):
            group = self._groups.pop(0)
            if count + len(group) > most:
                self._groups.insert(0, group.select(slice(most - count, None)))
                group = group.select(slice(0, most - count))
            taken.append(group)
            count += len(group)
        self.count -= count
        return taken[0] if len(taken) == 1 else _merged(taken)

    def _fits(self, group: Waiting, head: Waiting) -> bool:
        if not self._merges:  # padding would change the answers: equal lengths only
            return group.hidden.shape[1:] == head.hidden.shape[1:]
        return MIN_LENGTH_RATIO * head.width <= group.width <= head.width / MIN_LENGTH_RATIO


def _merged(groups: Sequence[Waiting]) -> Waiting:
    """Put rows of similar lengths together, padded on the right."""
    width = max(group.width for group in groups)
    logits = [
        widened(group.logits, group.width, width, np.nan) if group.logits.ndim == 3 else group.logits
        for group in groups
        if group.logits is not None
    ]
    return Waiting(
        np.concatenate([group.numbers for group in groups]),
        {
            name: np.concatenate([widened(group.inputs[name], group.width, width) for group in groups])
            for name in groups[0].inputs
        },
        np.concatenate([widened(group.hidden, group.width, width) for group in groups]),
        np.concatenate(logits) if logits else None,
    )


def widened(values: NDArray[Any], width: int, wanted: int, filler: float = 0) -> NDArray[Any]:
    """Pad values (R, T, …) of `width` tokens, with zeros by default."""
    if width == wanted or values.ndim < 2 or values.shape[1] != width:
        return values
    out = np.full((len(values), wanted, *values.shape[2:]), filler, values.dtype)
    out[:, :width] = values
    return out


def with_rows(inputs: Inputs, rows: int) -> Inputs:
    """Add copies of the first row to each input until there are `rows`."""
    return {name: repeated(value, rows) for name, value in inputs.items()}


def repeated(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Add copies of the first row until there are `rows`."""
    missing = rows - len(values)
    return values if missing <= 0 else np.concatenate([values, np.repeat(values[:1], missing, axis=0)])


def padded_rows(count: int, batch: int) -> int:
    """Return how many rows are computed for `count`, in batches of `batch`."""
    if count <= 2:
        return count
    return 4 if count <= 4 <= batch else min(max(count, batch), -(-count // ROW_STEP) * ROW_STEP)


def padded_tokens(inputs: Inputs, limit: int | None) -> Inputs:
    """Pad the tokens of texts where a model takes that many: at most `limit`, None for any number."""
    width = next(value.shape[1] for value in inputs.values() if value.ndim > 1)
    wanted = -(-width // TOKEN_STEP) * TOKEN_STEP
    if limit is not None and wanted > limit:
        return inputs
    return {name: widened(value, width, wanted) for name, value in inputs.items()}
