"""Rows in, answers out, each with no more blocks than its exit rule asks for.

A window of rows is worked off stage by stage: all of it up to the first exit, in batches of like length; those that didn't
leave, batched anew, up to the next; and so on to the model's own head. So batches stay full however few rows go deep, and
padding shrinks with every stage. Rows that are the same are computed once. Answers come in the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach import State
from dynx.errors import DeviceError, UnsupportedModelError, UsageError
from dynx.runtime.loading import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.attach import Attachment
    from dynx.early_exit.heads import AgreementScore, ExitHeads

Row = TypeVar("Row")

BATCH = 32
"""Rows computed together unless the caller says otherwise."""


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
        """UsageError where the parts don't belong together."""
        sizes = {len(self.depths), len(self.heads), len(self.score), len(self.thresholds)}
        if len(sizes) != 1 or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 1:
            raise UsageError(f"exits after blocks {self.depths} don't fit their heads, scores and thresholds")

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


class _Pending:
    """A row on its way: its number, where it stands, and what the last exit said."""

    __slots__ = ("hidden", "logits", "number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.hidden: Tensor | None = None
        self.logits: Tensor | None = None


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
            raise UsageError(f"a batch of {batch} rows")
        if exits is not None and exits.depths[-1] >= attachment.depth:
            raise UsageError(f"an exit after block {exits.depths[-1]} of {attachment.depth} saves nothing")
        self.attachment = attachment
        self.exits = exits if exits is not None and exits.active else None
        self.batch = batch
        self.blocks = 0
        """Block calls times rows so far: what was really computed."""
        self._collate, self._length, self._identity = collate, length, identity

    def window(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to `rows`, in order.

        DeviceError: out of memory. UnsupportedModelError: it pads texts to a length of its own, as Longformer does.
        """
        answers: list[Answer | None] = [None] * len(rows)
        first: dict[Hashable, int] = {}
        twins: list[tuple[int, int]] = []
        pending = []
        for number, row in enumerate(rows):
            known = number if self._identity is None else first.setdefault(self._identity(row), number)
            if known == number:
                pending.append(_Pending(number, self._length(row)))
            else:
                twins.append((number, known))
        try:
            self._work(rows, pending, answers)
        except Exception as e:
            if is_out_of_memory(e):
                raise DeviceError("out of memory", hint=f"try --batch-size {max(1, self.batch // 2)}") from e
            raise
        for number, known in twins:
            answer = answers[known]
            if answer is not None:
                answers[number] = Answer(answer.logits, answer.exit, 0, answer.score, repeated=True)
        return [answer for answer in answers if answer is not None]

    def _work(self, rows: Sequence[Row], pending: list[_Pending], answers: list[Answer | None]) -> None:
        done = 0
        for k, depth in enumerate(self.exits.depths if self.exits else ()):
            left = []
            for group in self._groups(pending):
                left += self._stage(rows, group, k, done, depth, answers)
            pending, done = left, depth
        for group in self._groups(pending):
            self._finish(rows, group, done, answers)

    def _groups(self, pending: Sequence[_Pending]) -> Iterator[list[_Pending]]:
        """Batches of like length, the longest first: memory runs out at once or never."""
        ordered = sorted(pending, key=lambda row: (-row.size, row.number))
        at = 0
        while at < len(ordered):
            group = ordered[at : at + self.batch]
            if not self.attachment.merges_lengths:  # padding would change the answers: equal lengths only
                group = [row for row in group if row.size == group[0].size]
            yield group
            at += len(group)

    def _inputs(
        self, rows: Sequence[Row], group: Sequence[_Pending], done: int
    ) -> tuple[Mapping[str, Tensor], State | None]:
        inputs = self._collate([rows[row.number] for row in group])
        if not done:
            return inputs, None
        states = [State(done, row.hidden[None]) for row in group if row.hidden is not None]
        text = self.attachment.kind == "text"  # rows stopped beside others, and so padded to other lengths
        return inputs, State.merge(states, length=self._width(inputs) if text else None)

    def _width(self, inputs: Mapping[str, Tensor]) -> int:
        return int(inputs[self.attachment.model.main_input_name].shape[1])

    def _stage(
        self,
        rows: Sequence[Row],
        group: Sequence[_Pending],
        k: int,
        done: int,
        depth: int,
        answers: list[Answer | None],
    ) -> list[_Pending]:
        """Bring a batch to exit k; answer those that leave there, and return the others."""
        exits, attachment = self.exits, self.attachment
        if exits is None:
            raise RuntimeError("a stage without exits")
        inputs, start = self._inputs(rows, group, done)
        state = attachment.run(inputs, start=start, stop=depth).state
        if state is None:
            raise RuntimeError("a run that was told to stop gave no state")
        if attachment.kind == "text" and state.hidden.shape[1] != self._width(inputs):
            raise UnsupportedModelError(
                f"{type(attachment.model).__name__} pads by itself, so stopped rows can't go on together"
            )
        self.blocks += len(group) * (depth - done)
        before = [row.logits for row in group if row.logits is not None]
        previous = torch.stack(before) if before else None
        logits = exits.heads.logits(k, attachment.pool(state.hidden, inputs), previous)
        scores = exits.score(k, logits, previous)
        leaves = scores >= exits.thresholds[k]
        left = []
        for i, row in enumerate(group):
            if leaves[i]:
                answers[row.number] = Answer(logits[i].float().cpu().numpy(), k, depth, float(scores[i]))
            else:
                row.hidden, row.logits = state.hidden[i].clone(), logits[i]
                left.append(row)
        return left

    def _finish(self, rows: Sequence[Row], group: Sequence[_Pending], done: int, answers: list[Answer | None]) -> None:
        inputs, start = self._inputs(rows, group, done)
        logits = self.attachment.run(inputs, start=start).logits
        if logits is None:
            raise RuntimeError("a full run gave no logits")
        self.blocks += len(group) * (self.attachment.depth - done)
        for row, values in zip(group, logits.float().cpu().numpy(), strict=True):
            answers[row.number] = Answer(values, None, self.attachment.depth, None)
