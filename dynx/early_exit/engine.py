"""Answer rows with early exit: each runs only the blocks that its exit rule requires.

Batches of similar length run through the model, the longest first. Rows exit after a block, and the rest of the batch continues
in the same forward. Where few rows are left they are parked, and rows parked at the same exit resume together. Equal rows are
computed once. Answers come in the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.hidden_state import State
from dynx.early_exit.batching import Batch, InFlightBatch, ParkedRows, batches, fitting
from dynx.errors import DeviceError, InvalidInput
from dynx.runtime.memory import is_out_of_memory
from dynx.runtime.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.heads import ExitHeads

Input = TypeVar("Input")

DEFAULT_BATCH_SIZE = 32
"""Rows computed together by default."""

RESUME_COST_IN_BLOCK_OVERHEADS = 2.5
"""Cost of resuming a parked batch (embeddings and masks made again, states merged), in units of a block's overhead: the part of
its cost that doesn't depend on the batch size, mostly Python and small kernels."""

NO_ROWS = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Exits:
    """Where rows may exit: after the blocks `depths` (ascending, from 1), by as many heads and scores.

    `thresholds` (K,): a row exits at the first exit whose score reaches its threshold; infinity means never.
    """

    depths: tuple[int, ...]
    heads: ExitHeads
    score: AgreementScore
    thresholds: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Raise InvalidInput where the parts don't fit each other."""
        sizes = {len(self.depths), len(self.heads), len(self.score), len(self.thresholds)}
        if len(sizes) != 1 or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 1:
            raise InvalidInput(f"exits after blocks {self.depths} don't fit their heads, scores and thresholds")

    @property
    def active(self) -> bool:
        """Whether any row could exit."""
        return bool(np.isfinite(self.thresholds).any())


@dataclass(frozen=True)
class Answer:
    """The answer to a row: `logits` (C,) float32 of the head it exited at; `exit` is that head's number, None for full depth.

    Of a model that labels tokens they are (T, C), with the padding of the row's batch, and NaN for tokens that don't count.
    """

    logits: NDArray[np.float32]
    exit: int | None
    layers: int  # block calls computed for it
    score: float | None  # of agreement with the full model, where it exited early
    repeated: bool = False  # the same as an earlier row, and not computed again


class Engine(Generic[Input]):
    """A classifier with exits attached, and how its rows become tensors.

    `collate` makes a batch, padded on the right, ready for the model; `length` is what rows are sorted by (tokens; the same
    for all images); `identity` tells rows apart, so that equal ones are computed once: None for never. `threads` is the number
    that PyTorch computes with; None: as many as it has.
    """

    def __init__(
        self,
        exit_model: ClassifierModel,
        collate: Callable[[Sequence[Input]], Mapping[str, Tensor]],
        *,
        length: Callable[[Input], int] = lambda _: 1,
        identity: Callable[[Input], Hashable] | None = None,
        exits: Exits | None = None,
        batch: int = DEFAULT_BATCH_SIZE,
        threads: int | None = None,
    ) -> None:
        if batch < 1:
            raise InvalidInput(f"a batch of {batch} rows")
        if exits is not None and exits.depths[-1] >= exit_model.depth:
            raise InvalidInput(f"an exit after block {exits.depths[-1]} of {exit_model.depth} saves nothing")
        self.exit_model = exit_model
        self.exits = exits if exits is not None and exits.active else None
        self.batch = batch
        self.block_calls = 0
        """Block calls times rows computed so far."""
        self._collate, self._length, self._identity = collate, length, identity
        self._threads = threads

    def window(self, rows: Sequence[Input]) -> list[Answer]:
        """Answer `rows`, in order. DeviceError: out of memory."""
        first: dict[Hashable, int] = {}
        fresh, duplicates = [], []
        for number, row in enumerate(rows):
            known = number if self._identity is None else first.setdefault(self._identity(row), number)
            if known == number:
                fresh.append(number)
            else:
                duplicates.append((number, known))
        forward = _WindowForward(
            self.exit_model, self.exits, self.batch, lambda which: self._collate([rows[i] for i in which])
        )
        try:
            with torch.inference_mode(), torch_threads(self._threads):
                sizes = {number: self._length(rows[number]) for number in fresh}
                waiting = sorted(sizes.values(), reverse=True)  # in the order in which batches take them
                for numbers in batches(sizes, self.batch, self.exit_model.merges_lengths):
                    waiting = waiting[len(numbers) :]
                    forward.add(numbers, [sizes[number] for number in numbers], waiting)
                forward.finish()
        except Exception as e:
            if is_out_of_memory(e):
                raise DeviceError("out of memory", hint=f"try `batch_size` {max(1, self.batch // 2)}") from e
            raise
        finally:
            self.block_calls += sum(answer.layers for answer in forward.answers.values())
        for number, known in duplicates:
            answer = forward.answers[known]
            forward.answers[number] = Answer(answer.logits, answer.exit, 0, answer.score, repeated=True)
        return [forward.answers[number] for number in range(len(rows))]


class _WindowForward:
    """The forward of one window of rows through the model."""

    def __init__(
        self,
        exit_model: ClassifierModel,
        exits: Exits | None,
        batch: int,
        collate: Callable[[Sequence[int]], Mapping[str, Tensor]],
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self._exit_model, self._exits, self._batch, self._inputs = exit_model, exits, batch, collate
        self._depths = () if exits is None else exits.depths
        self._parked = [ParkedRows(exit_model.merges_lengths) for _ in self._depths]
        self._waiting: Sequence[int] = ()
        """The sizes of rows that haven't started yet, the largest first."""

    def add(self, numbers: Sequence[int], sizes: Sequence[int], waiting: Sequence[int]) -> None:
        """Run a batch of rows, by number, and parked rows that fill batches now; those of the sizes `waiting` will follow."""
        self._waiting = waiting
        self._run(Batch(np.asarray(numbers), np.asarray(sizes), *self._collate(numbers)))
        for k in reversed(range(len(self._depths))):
            while len(self._parked[k]) >= self._batch:
                self._resume(k)

    def finish(self) -> None:
        """Run all parked rows."""
        for k, parked in enumerate(self._parked):
            while len(parked):
                self._resume(k)

    def _resume(self, k: int) -> None:
        """Resume a batch of the rows parked at exit k."""
        self._run(self._parked[k].take(self._batch, self._collate), k + 1)

    def _collate(self, numbers: Sequence[int]) -> tuple[Mapping[str, Tensor], int]:
        inputs = self._inputs(numbers)
        text = self._exit_model.kind == "text"
        return inputs, int(inputs[self._exit_model.model.main_input_name].shape[1]) if text else 1

    def _run(self, group: Batch, first: int = 0) -> None:
        """Run one forward from where these rows stopped, with the exits from number `first`."""
        exit_model, depths = self._exit_model, self._depths[first:]
        watch = partial(self._leave_exit, InFlightBatch(group)) if depths else None
        run = exit_model.run(group.inputs, start=group.state, watch=watch, exits=depths)
        if run.logits is not None:
            numbers = group.numbers[run.rows.cpu().numpy()].tolist()
            for number, logits in zip(numbers, run.logits.float().cpu().numpy(), strict=True):
                self.answers[number] = Answer(logits, None, exit_model.depth, None)

    def _leave_exit(self, in_flight: InFlightBatch, depth: int, hidden: Tensor, _rows: Tensor) -> Tensor | None:
        """Answer the rows that exit at this depth and park the rest where few are left; return who continues, None for all."""
        exits, group, rows, k = self._exits, in_flight.group, in_flight.rows, self._depths.index(depth)
        if exits is None:
            raise RuntimeError("a callback without exits")
        values, scores = in_flight.score_exit(self._exit_model, exits.heads, exits.score, k, hidden)
        exits_here = scores >= exits.thresholds[k]
        exiting = exits_here.nonzero()[0].tolist()
        if not exiting:
            return None
        numbers = group.numbers[rows].tolist()
        for i in exiting:
            self.answers[numbers[i]] = Answer(values[i], k, depth, float(scores[i]))
        if len(exiting) == len(rows):
            return NO_ROWS
        active = (~exits_here).nonzero()[0]
        kept = in_flight.keep(active)
        if self._should_park(k, group, len(active)) and self._can_park(group, hidden):
            state = State(depth, hidden.index_select(0, kept.to(hidden.device)))
            self._parked[k].add(replace(group.select(in_flight.rows), state=state, logits=in_flight.logits))
            return NO_ROWS
        return kept

    def _should_park(self, k: int, group: Batch, count: int) -> bool:
        """Tell whether parking the `count` rows of a batch that are active after exit k costs less than continuing with them.

        With overhead a per block and cost b per row, m blocks cost m·(a + b·r) for r rows on their own, and r/J of
        m·(a + b·J) + c·a where J of them resume together and c is `RESUME_COST_IN_BLOCK_OVERHEADS`: the same at
        r/J = m/(m + c).
        """
        m = self._exit_model.depth - self._depths[k]
        return count < self._together(k, group, count) * m / (m + RESUME_COST_IN_BLOCK_OVERHEADS)

    def _together(self, k: int, group: Batch, count: int) -> float:
        """Return how many rows will resume together with `count` of a batch, if they are parked at exit k.

        Rows parked at an earlier exit, and rows that haven't started, are expected to come as far as those of the batch did.
        """
        here = count + self._parked[k].fitting(group)
        before = sum(parked.fitting(group) for parked in self._parked[:k])
        later = before + fitting(self._waiting, group.width, self._exit_model.merges_lengths)
        return min(self._batch, here + later * count / len(group))

    def _can_park(self, group: Batch, hidden: Tensor) -> bool:
        """Tell whether these rows can resume: models that pad texts themselves pad to lengths that differ between batches."""
        return self._exit_model.kind != "text" or hidden.shape[1] == group.width
