"""Answer rows by segments: rows exit at borders, and those that remain fill batches again before the next segment.

The first segment takes the rows in batches of similar length, the longest first. What doesn't exit waits at the border until
several batches of rows wait there, or the inputs end. So every segment computes full batches, however many rows have left, and
several in turn. How much waits at a time is bounded. Equal rows are computed once.

Letters: R rows, T tokens, D hidden size, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from dynx.early_exit.attach.pooling import COUNTED
from dynx.early_exit.batching import batches
from dynx.early_exit.engine import DEFAULT_BATCH_SIZE, Answer, Exits
from dynx.early_exit.segments.scoring import exit_logits, given
from dynx.early_exit.segments.waiting import Border, Waiting, padded_rows, padded_tokens, repeated, with_rows
from dynx.errors import DeviceError, InvalidInput
from dynx.runtime.memory import is_out_of_memory
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.segments.model import SegmentedModel

    Inputs = Mapping[str, NDArray[Any]]

Input = TypeVar("Input")


class SegmentEngine(Generic[Input]):
    """A segmented classifier with exits at its borders, or with none.

    `collate`, `length` and `identity` are those of `Engine`; `exits` must have a depth for each of the model's borders. `limit`
    is the most tokens that the model takes, None for any number.
    """

    def __init__(
        self,
        model: SegmentedModel,
        collate: Callable[[Sequence[Input]], Mapping[str, Tensor]],
        *,
        length: Callable[[Input], int] = lambda _: 1,
        identity: Callable[[Input], Hashable] | None = None,
        exits: Exits | None = None,
        batch: int = DEFAULT_BATCH_SIZE,
        limit: int | None = None,
    ) -> None:
        if batch < 1:
            raise InvalidInput(f"a batch of {batch} rows")
        if exits is not None and exits.depths != model.borders:
            raise InvalidInput(f"exits after blocks {exits.depths} of a model cut after {model.borders}")
        self.model = model
        self.exits = exits if exits is not None and exits.active else None
        self.batch = batch
        self.block_calls = 0
        """Block calls times rows computed so far."""
        self._collate, self._length, self._identity, self._limit = collate, length, identity, limit
        self._heads = [] if exits is None else exits.heads.as_arrays()

    def window(self, rows: Sequence[Input]) -> list[Answer]:
        """Answer `rows`, in order. DeviceError: out of memory."""
        first: dict[Hashable, int] = {}
        sizes: dict[int, int] = {}
        duplicates = []
        for number, row in enumerate(rows):
            known = number if self._identity is None else first.setdefault(self._identity(row), number)
            if known == number:
                sizes[number] = self._length(row)
            else:
                duplicates.append((number, known))
        answers: dict[int, Answer] = {}
        merges = self.model.merges_lengths and not self.model.needed_later("input_ids")  # whose padding isn't zeros
        borders = [Border(merges) for _ in self.model.borders]
        try:
            with torch_threads(BESIDE_ANOTHER_RUNTIME):
                for numbers in batches(sizes, self.batch, self.model.merges_lengths):
                    self._start(numbers, [rows[number] for number in numbers], answers, borders)
                    for k in reversed(range(len(borders))):
                        if not borders[k].is_full(self.batch):
                            continue
                        while borders[k].count >= self.batch:
                            self._run(k + 1, borders[k].take(self.batch), answers, borders)
                for k, border in enumerate(borders):
                    while border.count:
                        self._run(k + 1, border.take(self.batch), answers, borders)
        except Exception as e:
            if is_out_of_memory(e):
                raise DeviceError("out of memory", hint=f"try `batch_size` {max(1, self.batch // 2)}") from e
            raise
        finally:
            self.block_calls += sum(answer.layers for answer in answers.values())
        for number, known in duplicates:
            answer = answers[known]
            answers[number] = Answer(answer.logits, answer.exit, 0, answer.score, repeated=True)
        return [answers[number] for number in range(len(rows))]

    def _start(
        self, numbers: Sequence[int], rows: Sequence[Input], answers: dict[int, Answer], borders: list[Border]
    ) -> None:
        """Run a batch through the first segment."""
        collated = self._collate(rows)
        inputs = self._padded({name: collated[name].numpy() for name in given(self.model, collated)})
        out = [array[: len(rows)] for array in self.model.run(0, with_rows(inputs, self._rows(len(rows))))]
        later = {name: value for name, value in inputs.items() if name == COUNTED or self.model.needed_later(name)}
        self._leave(0, out, np.asarray(numbers), later, None, answers, borders)

    def _run(self, number: int, group: Waiting, answers: dict[int, Answer], borders: list[Border]) -> None:
        """Run rows through a later segment."""
        rows = self._rows(len(group))
        padded = self.model.run(number, with_rows(group.inputs, rows), repeated(group.hidden, rows))
        out = [array[: len(group)] for array in padded]
        self._leave(number, out, group.numbers, group.inputs, group.logits, answers, borders)

    def _rows(self, count: int) -> int:
        """Return how many rows are computed for `count`."""
        return padded_rows(count, self.batch)

    def _padded(self, inputs: Inputs) -> Inputs:
        """Pad the tokens of texts, where padding changes no answer and the model takes that many."""
        if self.model.kind != "text" or not self.model.merges_lengths:
            return inputs
        return padded_tokens(inputs, self._limit)

    def _leave(
        self,
        number: int,
        out: Sequence[NDArray[np.float32]],
        rows: NDArray[np.int64],
        inputs: Inputs,
        previous: NDArray[np.float32] | None,
        answers: dict[int, Answer],
        borders: list[Border],
    ) -> None:
        """Answer the rows that exit behind this segment; the others wait for the next."""
        model, exits = self.model, self.exits
        if number == len(model) - 1:
            for row, answer in zip(rows.tolist(), out[0].copy(), strict=True):
                answers[row] = Answer(answer, None, model.depth, None)
            return
        hidden, pooled = out
        logits: NDArray[np.float32] | None = None
        if exits is None:
            remaining = np.arange(len(rows))
        else:
            logits = exit_logits(self._heads[number], pooled, previous, inputs.get(COUNTED))
            scores = exits.score(number, logits, previous)
            exiting = scores >= exits.thresholds[number]
            depth, numbers = model.borders[number], rows.tolist()
            for i in exiting.nonzero()[0].tolist():
                answers[numbers[i]] = Answer(logits[i], number, depth, float(scores[i]))
            remaining = (~exiting).nonzero()[0]
            logits = logits[remaining]
        if len(remaining):
            kept = {name: value[remaining] for name, value in inputs.items()}
            borders[number].add(Waiting(rows[remaining], kept, hidden[remaining], logits))
