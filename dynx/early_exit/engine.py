"""Rows in, answers out, each with no more blocks than its exit rule asks for.

Batches of like length go through the model, the longest first. At every exit rows leave, and the rest of the batch goes on
without them in the same forward. Where few are left, they stop and wait: rows that stopped at one exit go on together. Rows
that are the same are computed once. Answers come in the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.hidden_state import State
from dynx.early_exit.batching import Flight, Group, Waiting, batches
from dynx.errors import DeviceError, InvalidInput
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.attach.model import Attachment
    from dynx.early_exit.heads import AgreementScore, ExitHeads

Row = TypeVar("Row")

BATCH = 32
"""Rows computed together unless the caller says otherwise."""

RESUMING = 2.5
"""What a stopped batch pays for going on (embeddings and masks made anew, states put together), in units of what a block costs
whatever its batch, which is Python and small kernels for the most part."""

NOBODY = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Exits:
    """Where rows may leave: after the blocks `depths` (rising, from 1), by heads and scores of the same number.

    `thresholds` (K,): a row leaves at the first exit whose score reaches its threshold; infinity is never.
    """

    depths: tuple[int, ...]
    heads: ExitHeads
    score: AgreementScore
    thresholds: NDArray[np.float64]

    def __post_init__(self) -> None:
        """InvalidInput where the parts don't belong together."""
        sizes = {len(self.depths), len(self.heads), len(self.score), len(self.thresholds)}
        if len(sizes) != 1 or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 1:
            raise InvalidInput(f"exits after blocks {self.depths} don't fit their heads, scores and thresholds")

    @property
    def active(self) -> bool:
        """Whether any row could leave."""
        return bool(np.isfinite(self.thresholds).any())


@dataclass(frozen=True)
class Answer:
    """What a row got: `logits` (C,) float32 of the head it left by; `exit` is that head's number, None for the model's own."""

    logits: NDArray[np.float32]
    exit: int | None
    layers: int  # block calls computed for it
    score: float | None  # of agreeing with the full model, where it left early
    repeated: bool = False  # the same as an earlier row, and not computed again


class Engine(Generic[Row]):
    """A classifier with exits attached, and how its rows become tensors.

    `collate` makes a batch, padded on the right, ready for the model; `length` is what rows are sorted by (tokens; the same
    for all images); `identity` tells rows apart, so that equal ones are computed once: None for never.
    """

    def __init__(
        self,
        attachment: Attachment,
        collate: Callable[[Sequence[Row]], Mapping[str, Tensor]],
        *,
        length: Callable[[Row], int] = lambda _: 1,
        identity: Callable[[Row], Hashable] | None = None,
        exits: Exits | None = None,
        batch: int = BATCH,
    ) -> None:
        if batch < 1:
            raise InvalidInput(f"a batch of {batch} rows")
        if exits is not None and exits.depths[-1] >= attachment.depth:
            raise InvalidInput(f"an exit after block {exits.depths[-1]} of {attachment.depth} saves nothing")
        self.attachment = attachment
        self.exits = exits if exits is not None and exits.active else None
        self.batch = batch
        self.blocks = 0
        """Block calls times rows so far: what was really computed."""
        self._collate, self._length, self._identity = collate, length, identity

    def window(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to `rows`, in order. DeviceError: out of memory."""
        first: dict[Hashable, int] = {}
        fresh, twins = [], []
        for number, row in enumerate(rows):
            known = number if self._identity is None else first.setdefault(self._identity(row), number)
            if known == number:
                fresh.append(number)
            else:
                twins.append((number, known))
        work = _Work(self.attachment, self.exits, self.batch, lambda which: self._collate([rows[i] for i in which]))
        try:
            with torch.inference_mode():
                to_come = len(fresh)
                sizes = {number: self._length(rows[number]) for number in fresh}
                for numbers in batches(sizes, self.batch, self.attachment.merges_lengths):
                    to_come -= len(numbers)
                    work.add(numbers, [sizes[number] for number in numbers], to_come)
                work.finish()
        except Exception as e:
            if is_out_of_memory(e):
                raise DeviceError("out of memory", hint=f"try `batch_size` {max(1, self.batch // 2)}") from e
            raise
        finally:
            self.blocks += sum(answer.layers for answer in work.answers.values())
        for number, known in twins:
            answer = work.answers[known]
            work.answers[number] = Answer(answer.logits, answer.exit, 0, answer.score, repeated=True)
        return [work.answers[number] for number in range(len(rows))]


class _Work:
    """A window on its way through the model."""

    def __init__(
        self,
        attachment: Attachment,
        exits: Exits | None,
        batch: int,
        collate: Callable[[Sequence[int]], Mapping[str, Tensor]],
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self._attachment, self._exits, self._batch, self._inputs = attachment, exits, batch, collate
        self._depths = () if exits is None else exits.depths
        self._waiting = [Waiting(attachment.merges_lengths) for _ in self._depths]
        self._to_come = 0
        """Rows that no forward has seen yet."""

    def add(self, numbers: Sequence[int], sizes: Sequence[int], to_come: int) -> None:
        """Work on a batch of rows, by number, and on those of before that now fill batches; `to_come` others will follow."""
        self._to_come = to_come
        self._run(Group(np.asarray(numbers), np.asarray(sizes), *self._collate(numbers)))
        for k in reversed(range(len(self._depths))):
            while len(self._waiting[k]) >= self._batch:
                self._go_on(k)

    def finish(self) -> None:
        """Work on whatever waits."""
        for k, waiting in enumerate(self._waiting):
            while len(waiting):
                self._go_on(k)

    def _go_on(self, k: int) -> None:
        """With a batch of the rows that stopped at exit k."""
        self._run(self._waiting[k].take(self._batch, self._collate), k + 1)

    def _collate(self, numbers: Sequence[int]) -> tuple[Mapping[str, Tensor], int]:
        inputs = self._inputs(numbers)
        text = self._attachment.kind == "text"
        return inputs, int(inputs[self._attachment.model.main_input_name].shape[1]) if text else 1

    def _run(self, group: Group, first: int = 0) -> None:
        """One forward, from where these rows stopped, with a look at the exits from number `first`."""
        attachment, depths = self._attachment, self._depths[first:]
        watch = partial(self._look, Flight(group)) if depths else None
        run = attachment.run(group.inputs, start=group.state, watch=watch, exits=depths)
        if run.logits is not None:
            numbers = group.numbers[run.rows.cpu().numpy()].tolist()
            for number, logits in zip(numbers, run.logits.float().cpu().numpy(), strict=True):
                self.answers[number] = Answer(logits, None, attachment.depth, None)

    def _look(self, flight: Flight, depth: int, hidden: Tensor, _rows: Tensor) -> Tensor | None:
        """Answer the rows that leave at this depth, stop those that had better wait: who goes on, None for all."""
        exits, group, rows, k = self._exits, flight.group, flight.rows, self._depths.index(depth)
        if exits is None:
            raise RuntimeError("a look without exits")
        values, scores = flight.look(self._attachment, exits.heads, exits.score, k, hidden)
        leaves = scores >= exits.thresholds[k]
        going = leaves.nonzero()[0].tolist()
        if not going:
            return None
        numbers = group.numbers[rows].tolist()
        for i in going:
            self.answers[numbers[i]] = Answer(values[i], k, depth, float(scores[i]))
        if len(going) == len(rows):
            return NOBODY
        stay = (~leaves).nonzero()[0]
        kept = flight.keep(stay)
        if self._should_wait(k, len(stay)) and self._can_wait(group, hidden):
            state = State(depth, hidden.index_select(0, kept.to(hidden.device)))
            self._waiting[k].add(replace(group.select(flight.rows), state=state, logits=flight.logits))
            return NOBODY
        return kept

    def _should_wait(self, k: int, count: int) -> bool:
        """Whether so many rows, still there after exit k, had better wait for others than go on by themselves.

        With a for a block and b for a row in it, m blocks cost m·(a + b·r) for r rows by themselves, and r/R of
        m·(a + b·R) + RESUMING·a in a batch of R: the same where r/R = m/(m + RESUMING).
        """
        m = self._attachment.depth - self._depths[k]
        if count >= self._batch * m / (m + RESUMING):
            return False
        return self._to_come > 0 or any(map(len, self._waiting[: k + 1]))

    def _can_wait(self, group: Group, hidden: Tensor) -> bool:
        """Models that pad texts by themselves do so to lengths that differ between batches."""
        return self._attachment.kind != "text" or hidden.shape[1] == group.width
