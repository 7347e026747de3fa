"""A classifier run stage by stage: all rows of a window reach a border before any of them goes on.

So a group's rows can be compared at a border, however they were batched. What waits at a border are hidden states and the inputs
that later layers take.

Letters: r rows of a batch, F features of an exit, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from dynx.early_exit.batching import Batch, ParkedRows
from dynx.early_exit.segments.waiting import Border, Waiting, padded_rows, padded_tokens, repeated, with_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.preprocessing import Example
    from dynx.early_exit.segments.model import SegmentedModel

    T = TypeVar("T", Batch, Waiting)
    Collate = Callable[[Sequence[Example]], Mapping[str, Tensor]]


class Stages(Protocol):
    """A model cut at borders. One window at a time: `begin` its batches, then for each border `keep` and `advance`."""

    borders: tuple[int, ...]
    """The blocks that stages end after, without the last."""
    depth: int
    merges_lengths: bool

    def begin(self, numbers: Sequence[int], rows: Sequence[Example]) -> Tensor:
        """Run a batch to the first border, where it waits; return its features (r, F)."""

    def keep(self, k: int, active: NDArray[np.bool_]) -> None:
        """Drop the rows that wait at border k and aren't active, by number (n,)."""

    def advance(self, k: int, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Run what waits at border k on, in batches; yield numbers (r,) and features (r, F), or logits (r, C) at the end."""

    def clear(self) -> None:
        """Drop all that waits."""


class TorchStages:
    """Stages of a model that exits are attached to, on PyTorch."""

    def __init__(self, exit_model: ClassifierModel, collate: Collate, borders: Sequence[int]) -> None:
        self.borders, self.depth = tuple(borders), exit_model.depth
        self.merges_lengths = exit_model.merges_lengths
        self._exit_model, self._collate = exit_model, collate
        self._rows: dict[int, Example] = {}
        self.clear()

    def clear(self) -> None:
        """Drop all that waits."""
        self._waiting = [list[Batch]() for _ in self.borders]
        self._rows = {}

    def begin(self, numbers: Sequence[int], rows: Sequence[Example]) -> Tensor:
        """Run a batch to the first border."""
        self._rows.update(zip(numbers, rows, strict=True))
        inputs, width = self._inputs(numbers)
        sizes = np.asarray([row.size for row in rows])
        return self._run(0, Batch(np.asarray(numbers), sizes, inputs, width), None)

    def keep(self, k: int, active: NDArray[np.bool_]) -> None:
        """Drop rows."""
        self._waiting[k] = _active_parts(self._waiting[k], active)

    def advance(self, k: int, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Run the rows that wait, merged into full batches."""
        parked = ParkedRows(self.merges_lengths)
        for group in sorted(self._waiting[k], key=lambda group: -group.width):
            parked.add(group)
        self._waiting[k] = []
        while len(parked):
            group = parked.take(batch, self._inputs)
            yield group.numbers, self._run(k + 1, group, self.borders[k])

    def _inputs(self, numbers: Sequence[int]) -> tuple[Mapping[str, Tensor], int]:
        inputs = self._collate([self._rows[number] for number in numbers])
        return inputs, int(inputs[self._exit_model.model.main_input_name].shape[1])

    def _run(self, number: int, group: Batch, start: int | None) -> Tensor:
        """Run one stage; rows wait behind it, except the last."""
        last = number == len(self.borders)
        stop = None if last else self.borders[number]
        out = self._exit_model.run(group.inputs, start=None if start is None else group.state, stop=stop)
        if last:
            if out.logits is None:
                raise RuntimeError("a full run gave no logits")
            return out.logits
        if out.state is None:
            raise RuntimeError("a stage gave no hidden states")
        nothing = torch.zeros(len(group), 1)
        self._waiting[number].append(Batch(group.numbers, group.sizes, group.inputs, group.width, out.state, nothing))
        return self._exit_model.pool(out.state.hidden, group.inputs)


class SegmentStages:
    """Stages of a model whose segments run on OpenVINO; `limit` is the most tokens that it takes."""

    def __init__(self, model: SegmentedModel, collate: Collate, batch: int, limit: int | None) -> None:
        self.borders, self.depth, self.merges_lengths = model.borders, model.depth, model.merges_lengths
        self._model, self._collate, self._batch, self._limit = model, collate, batch, limit
        self._merges = model.merges_lengths and not model.needed_later("input_ids")  # whose padding isn't zeros
        self.clear()

    def clear(self) -> None:
        """Drop all that waits."""
        self._waiting = [list[Waiting]() for _ in self.borders]

    def begin(self, numbers: Sequence[int], rows: Sequence[Example]) -> Tensor:
        """Run a batch to the first border."""
        collated, model = self._collate(rows), self._model
        inputs: Mapping[str, NDArray[np.int64]] = {name: collated[name].numpy() for name in model.input_names}
        if model.merges_lengths:
            inputs = padded_tokens(inputs, self._limit)
        out = model.run(0, with_rows(inputs, padded_rows(len(rows), self._batch)))
        later = {name: value for name, value in inputs.items() if model.needed_later(name)}
        return self._kept(0, np.asarray(numbers), later, out)

    def keep(self, k: int, active: NDArray[np.bool_]) -> None:
        """Drop rows."""
        self._waiting[k] = _active_parts(self._waiting[k], active)

    def advance(self, k: int, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Run the rows that wait, merged into full batches."""
        border = Border(self._merges)
        for group in sorted(self._waiting[k], key=lambda group: -group.width):
            border.add(group)
        self._waiting[k] = []
        while border.count:
            group = border.take(batch)
            rows = padded_rows(len(group), batch)
            out = self._model.run(k + 1, with_rows(group.inputs, rows), repeated(group.hidden, rows))
            if k + 1 == len(self.borders):
                yield group.numbers, torch.from_numpy(out[0][: len(group)].copy())
            else:
                yield group.numbers, self._kept(k + 1, group.numbers, group.inputs, out)

    def _kept(
        self,
        number: int,
        numbers: NDArray[np.int64],
        inputs: Mapping[str, NDArray[np.int64]],
        out: Sequence[NDArray[np.float32]],
    ) -> Tensor:
        """Have rows wait behind a stage; return copies of their features, as the arrays are the segment's own."""
        hidden, features = (array[: len(numbers)].copy() for array in out)
        self._waiting[number].append(Waiting(numbers, inputs, hidden, None))
        return torch.from_numpy(features)


def _active_parts(waiting: Sequence[T], active: NDArray[np.bool_]) -> list[T]:
    """Return the active rows of batches that wait; `active` is by number (n,)."""
    kept = []
    for group in waiting:
        at = active[group.numbers].nonzero()[0]
        if len(at):
            kept.append(group if len(at) == len(group) else group.select(at))
    return kept
