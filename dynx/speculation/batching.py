"""Many answers at a time: which of them share the next round, and whose prompt is read in its pass.

The rounds themselves are those of `rounds`, in which every text is what it is alone. The next answer takes a free place at once,
and where passes are ragged its prompt is read in the same passes, up to `PASS_TOKENS` tokens at a time.

    batch = Batch(engine, sequences=8, more=next_row_or_none)
    row = batch.sequence(request)
    batch.admit([row])
    for token in row:        # moves the whole batch as far as this row's next token
        ...

Prompts that begin alike share what was read of them first: one that would read the same tokens as another in progress waits for
it. Where the key-value cache is full the newest sequence gives its place up. It keeps what it has written and goes on when
another is done.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput
from dynx.runtime.backends.batch_rows import CHUNK_TOKENS, batches, open_batch
from dynx.runtime.backends.interface import Part
from dynx.runtime.memory import CacheFull
from dynx.speculation.drafters.batch import BatchDrafter
from dynx.speculation.policy import AVERAGING_ROUNDS, Pace, Plain
from dynx.speculation.rounds import Rounds
from dynx.speculation.sequence import SequenceRun
from dynx.speculation.shared_costs import BatchCosts, SharedCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.speculation.engine import Engine
    from dynx.speculation.policy import Policy
    from dynx.speculation.types import Request

PASS_TOKENS = CHUNK_TOKENS
"""Tokens of a pass, those of sequences that are being written included, up to which prompts are read in it."""

MIN_CHUNK_TOKENS = 32
"""Tokens of prompts that a pass may read however many sequences are being written."""

MIN_SHARED_TOKENS = 16
"""Tokens that must be the same as another's for a prompt to wait until they are read."""


class Batch:
    """Up to `sequences` answers in progress on an engine's target; `more` gives the next one, or None while there is none.

    `policy` makes each text's policy; by default it is the engine's own, at the prices of passes that are shared.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: int,
        *,
        more: Callable[[], SequenceRun | None] = lambda: None,
        costs: BatchCosts | None = None,
        speculate: bool = True,
        policy: Callable[[Request], Policy] | None = None,
    ) -> None:
        able = batches(engine.target)
        if not able.value:
            raise InvalidInput(f"no batches: {able.reason}")
        self._engine, self._most, self._more = engine, sequences, more
        self._target = open_batch(engine.target)
        small = engine.drafters.model if speculate else None
        self._drafter = BatchDrafter(small, engine.target.vocab) if small is not None and batches(small).value else None
        pace = Pace(rounds=AVERAGING_ROUNDS * sequences)
        self.costs = SharedCosts(costs or BatchCosts(), pace, ragged=self._target.ragged)
        self._rounds = Rounds(engine.clock, self._target, self.costs)
        self._speculate = speculate
        self._policy = policy or (lambda request: engine.policy(request, self.costs) if speculate else Plain())
        self._sequences: list[SequenceRun] = []
        self._suspended: deque[SequenceRun] = deque()  # gave their place up, the oldest first
        self._full = False  # whether the cache was too full for all of them, and nobody has left since

    def sequence(self, request: Request) -> SequenceRun:
        """Create an answer that is not yet in the batch. Raises InvalidInput as `Engine.start` does."""
        self._engine.check(request)
        drafters = self._engine.shared_drafters(request, self._drafter) if self._speculate else {}
        return SequenceRun(self.step, self._engine, request, self._policy(request), drafters)

    @property
    def size(self) -> int:
        """Answers in progress."""
        return len(self._sequences) + len(self._suspended)

    def admit(self, sequences: Sequence[SequenceRun]) -> None:
        """Add `sequences` to the batch."""
        for row in sequences:
            if not row.begin():
                continue
            row.session = self._target.open()
            self._sequences.append(row)
            if not self._target.ragged:
                began = self._engine.clock()
                with self._engine.computing():
                    rows = self._target.read(row.session, row.text)[None]
                row.take_prompt(rows, self._engine.clock() - began)

    def step(self) -> None:
        """Fill free places and run one round."""
        with self._engine.computing():
            self._refill()
            if self._sequences:
                self._round()

    def _refill(self) -> None:
        for row in [row for row in self._sequences if row.done or row.stop_if_full()]:
            self._leave(row)
        while len(self._sequences) < self._most and not self._full:
            if self._suspended:
                row = self._suspended.popleft()
                row.session = self._target.open()
                self._sequences.append(row)
                continue
            found = self._more()
            if found is None:
                break
            self.admit([found])
            for row in [row for row in self._sequences[-1:] if row.done or row.stop_if_full()]:
                self._leave(row)

    def _leave(self, row: SequenceRun) -> None:
        self._sequences.remove(row)
        row.leave()
        self._full = False

    def _suspend_newest(self) -> None:
        """Take the newest sequence out of the batch until another is done; what it has written stays."""
        row = self._sequences[-1]
        self._leave(row)
        self._suspended.appendleft(row)
        self._full = True

    def _prompts(self, room: int) -> list[Part]:
        """Return the parts of the next pass that read prompts, of about `room` tokens."""
        parts: list[Part] = []
        reading: list[SequenceRun] = []
        for row in self._sequences:
            if not row.unread or room < 1:
                continue
            start = row.session.reuse(row.text)
            if any(_begin_alike(other.text, row.text, start + MIN_SHARED_TOKENS) for other in reading):
                continue  # what it would read is about to be read for another
            reading.append(row)
            left = row.unread
            size = min(left, room)
            if left - size == 1:
                size -= 1  # a last pass of one token would round differently
            if size < min(left, 2):
                continue
            parts.append(Part(row.session, row.text[start : start + size], 1, row.picks))
            room -= size
        return parts

    def _round(self) -> None:
        rows = [row for row in self._sequences if not row.unread]
        reading: list[Part] = []

        def read(tokens: int) -> Sequence[Part]:
            reading.extend(self._prompts(max(PASS_TOKENS - tokens, MIN_CHUNK_TOKENS)))
            return reading

        try:
            kept = self._rounds.run(rows, read if self._target.ragged else None)
        except CacheFull:
            if len(self._sequences) < 2:
                raise
            self._suspend_newest()
            return
        by_session = {id(row.session): row for row in self._sequences}
        for part, (out, seconds) in zip(reading, self._rounds.read, strict=True):
            by_session[id(part.session)].take_prompt(out, seconds)
        for row, (new, origin) in zip(rows, kept, strict=True):
            row.append(new, origin)


def _begin_alike(one: Sequence[int], other: Sequence[int], count: int) -> bool:
    """Whether two texts of more than `count` tokens begin with the same `count` tokens."""
    return min(len(one), len(other)) > count and one[:count] == other[:count]
