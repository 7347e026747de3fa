"""Answer rows by segments: rows exit at borders, and those that remain fill batches again before the next segment.

The first segment takes the rows in batches of similar length, the longest first. What doesn't exit waits at the border until
several batches of rows wait there, or the inputs end. So every segment computes full batches, however many rows have left, and
several in turn. How much waits at a time is bounded. Equal rows are computed once.

Letters: R rows, T tokens, D hidden size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from dynx.early_exit.batching import MIN_LENGTH_RATIO, batches
from dynx.early_exit.engine import DEFAULT_BATCH_SIZE, Answer, Exits
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

MAX_WAITING_BATCHES = 8
"""Batches of rows that wait at a border before the next segment runs: several runs of one segment in turn find its weights in
the processor's cache."""

TOKEN_STEP, ROW_STEP = 4, 8
"""Batches are padded to a multiple of so many tokens, and of so many rows where they have more than four.

OpenVINO makes kernels for each new shape: on a model of 6 layers of 256 that took as long as a batch of 32 itself.
"""

MAX_WAITING_BYTES = 64 << 20
"""Most bytes of hidden states that wait at a border beyond one batch."""


@dataclass(frozen=True)
class _Waiting:
    """Rows at a border: their numbers, the inputs that later segments take, hidden states, and logits of the last exit."""

    numbers: NDArray[np.int64]  # (R,)
    inputs: Inputs
    hidden: NDArray[np.float32]  # (R, T, D)
    logits: NDArray[np.float32] | None  # (R, C)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def width(self) -> int:
        """T; of an image whatever its hidden states have there."""
        return int(self.hidden.shape[1])

    def select(self, rows: NDArray[np.int64] | slice) -> _Waiting:
        """Return these rows."""
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        logits = None if self.logits is None else self.logits[rows]
        return _Waiting(self.numbers[rows], inputs, self.hidden[rows], logits)


class _Border:
    """The rows that wait behind one segment, in the order in which they came."""

    def __init__(self, merges_lengths: bool) -> None:
        self._groups: list[_Waiting] = []
        self._merges = merges_lengths
        self.count = 0

    def add(self, group: _Waiting) -> None:
        """Append rows."""
        self._groups.append(group)
        self.count += len(group)

    def is_full(self, batch: int) -> bool:
        """Whether the next segment should run, in batches of this size."""
        if self.count < batch:
            return False
        waiting = sum(group.hidden.nbytes for group in self._groups)
        return self.count >= MAX_WAITING_BATCHES * batch or waiting > MAX_WAITING_BYTES

    def take(self, most: int) -> _Waiting:
        """Remove the first rows, at most `most`, as far as their lengths are similar."""
        head, taken, count = self._groups[0], list[_Waiting](), 0
        while self._groups and count < most and self._fits(self._groups[0], head):
            group = self._groups.pop(0)
            if count + len(group) > most:
                self._groups.insert(0, group.select(slice(most - count, None)))
                group = group.select(slice(0, most - count))
            taken.append(group)
            count += len(group)
        self.count -= count
        return taken[0] if len(taken) == 1 else _merged(taken)

    def _fits(self, group: _Waiting, head: _Waiting) -> bool:
        if not self._merges:  # padding would change the answers: equal lengths only
            return group.hidden.shape[1:] == head.hidden.shape[1:]
        return MIN_LENGTH_RATIO * head.width <= group.width <= head.width / MIN_LENGTH_RATIO


def _merged(groups: Sequence[_Waiting]) -> _Waiting:
    """Put rows of similar lengths together, padded on the right."""
    width = max(group.width for group in groups)
    logits = [group.logits for group in groups if group.logits is not None]
    return _Waiting(
        np.concatenate([group.numbers for group in groups]),
        {
            name: np.concatenate([_widened(group.inputs[name], group.width, width) for group in groups])
            for name in groups[0].inputs
        },
        np.concatenate([_widened(group.hidden, group.width, width) for group in groups]),
        np.concatenate(logits) if logits else None,
    )


def _widened(values: NDArray[Any], width: int, wanted: int) -> NDArray[Any]:
    """Pad values (R, T, …) of `width` tokens with zeros."""
    if width == wanted or values.ndim < 2 or values.shape[1] != width:
        return values
    out = np.zeros((len(values), wanted, *values.shape[2:]), values.dtype)
    out[:, :width] = values
    return out


def _with_rows(inputs: Inputs, rows: int) -> Inputs:
    return {name: _repeated(value, rows) for name, value in inputs.items()}


def _repeated(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Add copies of the first row until there are `rows`."""
    missing = rows - len(values)
    return values if missing <= 0 else np.concatenate([values, np.repeat(values[:1], missing, axis=0)])


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
        borders = [_Border(merges) for _ in self.model.borders]
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
        self, numbers: Sequence[int], rows: Sequence[Input], answers: dict[int, Answer], borders: list[_Border]
    ) -> None:
        """Run a batch through the first segment."""
        collated = self._collate(rows)
        inputs = self._padded({name: collated[name].numpy() for name in self.model.input_names})
        out = [array[: len(rows)] for array in self.model.run(0, _with_rows(inputs, self._rows(len(rows))))]
        later = {name: value for name, value in inputs.items() if self.model.needed_later(name)}
        self._leave(0, out, np.asarray(numbers), later, None, answers, borders)

    def _run(self, number: int, group: _Waiting, answers: dict[int, Answer], borders: list[_Border]) -> None:
        """Run rows through a later segment."""
        rows = self._rows(len(group))
        padded = self.model.run(number, _with_rows(group.inputs, rows), _repeated(group.hidden, rows))
        out = [array[: len(group)] for array in padded]
        self._leave(number, out, group.numbers, group.inputs, group.logits, answers, borders)

    def _rows(self, count: int) -> int:
        """Return how many rows are computed for `count`."""
        if count <= 2:
            return count
        return 4 if count <= 4 <= self.batch else min(max(count, self.batch), -(-count // ROW_STEP) * ROW_STEP)

    def _padded(self, inputs: Inputs) -> Inputs:
        """Pad the tokens of texts, where padding changes no answer and the model takes that many."""
        if self.model.kind != "text" or not self.model.merges_lengths:
            return inputs
        width = next(value.shape[1] for value in inputs.values() if value.ndim > 1)
        wanted = -(-width // TOKEN_STEP) * TOKEN_STEP
        if self._limit is not None and wanted > self._limit:
            return inputs
        return {name: _widened(value, width, wanted) for name, value in inputs.items()}

    def _leave(
        self,
        number: int,
        out: Sequence[NDArray[np.float32]],
        rows: NDArray[np.int64],
        inputs: Inputs,
        previous: NDArray[np.float32] | None,
        answers: dict[int, Answer],
        borders: list[_Border],
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
            logits = self._heads[number](pooled, previous)
            scores = exits.score(number, logits, previous)
            exiting = scores >= exits.thresholds[number]
            depth, numbers = model.borders[number], rows.tolist()
            for i in exiting.nonzero()[0].tolist():
                answers[numbers[i]] = Answer(logits[i], number, depth, float(scores[i]))
            remaining = (~exiting).nonzero()[0]
            logits = logits[remaining]
        if len(remaining):
            kept = {name: value[remaining] for name, value in inputs.items()}
            borders[number].add(_Waiting(rows[remaining], kept, hidden[remaining], logits))
