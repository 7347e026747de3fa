"""The decode loop over a batch of sequences; each answer is the one that decoding it alone gives.

A round drafts, verifies and rolls back like `engine`'s, for all sequences together: each has its own draft tokens, its own
acceptance rule and its own length. The next answer takes a free place at once, and where passes are ragged its prompt is read
in the same passes, up to `PASS_TOKENS` tokens at a time. What is drafted is decided in `batch_drafting`.

    batch = Batch(engine, sequences=8, more=next_row_or_none)
    row = batch.sequence(request)
    batch.admit([row])
    for token in row:        # moves the whole batch as far as this row's next token
        ...

Prompts that begin alike share what was read of them first: one that would read the same tokens as another in progress waits for
it. Where the key-value cache is full the newest sequence gives its place up. It keeps what it has written and goes on when
another is done.

Times are seconds. Letters: T rows of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput
from dynx.runtime.backends.batch_rows import CHUNK_TOKENS, batches, open_batch
from dynx.runtime.backends.interface import Part
from dynx.runtime.memory import CacheFull
from dynx.speculation.batch_drafting import BatchCosts, Drafting
from dynx.speculation.drafters.batch import BatchDrafter
from dynx.speculation.policy import Round
from dynx.speculation.sequence import SequenceRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.runtime.backends.batch_rows import Rows
    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.drafters.base import Draft
    from dynx.speculation.engine import Engine
    from dynx.speculation.types import Request

PASS_TOKENS = CHUNK_TOKENS
"""Tokens of a pass, those of sequences that are being written included, up to which prompts are read in it."""

MIN_CHUNK_TOKENS = 32
"""Tokens of prompts that a pass may read however many sequences are being written."""

MIN_SHARED_TOKENS = 16
"""Tokens that must be the same as another's for a prompt to wait until they are read."""


class Batch(Drafting):
    """Up to `sequences` answers in progress on an engine's target; `more` gives the next one, or None while there is none."""

    def __init__(
        self,
        engine: Engine,
        sequences: int,
        *,
        more: Callable[[], SequenceRun | None] = lambda: None,
        costs: BatchCosts | None = None,
        speculate: bool = True,
    ) -> None:
        able = batches(engine.target)
        if not able.value:
            raise InvalidInput(f"no batches: {able.reason}")
        small = engine.drafters.model if speculate else None
        drafter = BatchDrafter(small, engine.target.vocab) if small is not None and batches(small).value else None
        super().__init__(engine, open_batch(engine.target), drafter, costs or BatchCosts(), speculate=speculate)
        self._most, self._more = sequences, more
        self._sequences: list[SequenceRun] = []
        self._suspended: deque[SequenceRun] = deque()  # gave their place up, the oldest first
        self._full = False  # whether the cache was too full for all of them, and nobody has left since

    def sequence(self, request: Request) -> SequenceRun:
        """Create an answer that is not yet in the batch. Raises InvalidInput as `Engine.start` does."""
        self._engine.check(request)
        return SequenceRun(self.step, self._engine, request)

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
                self._read(row, rows, self._engine.clock() - began)

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
        row.session.close()
        row.session = None
        if self._drafter is not None:
            self._drafter.leave(row)
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
            parts.append(Part(row.session, row.text[start : start + size], 1, row.simple))
            room -= size
        return parts

    def _round(self) -> None:
        clock = self._engine.clock
        start = clock()
        rows = [row for row in self._sequences if not row.unread]
        proposed, origins, tokens_behind, most = self._drafts(rows)
        drafted = clock()
        drafts = [own[:n] for own, n in zip(proposed, most, strict=True)]
        parts = [
            Part(row.session, [row.text[-1], *(d.token for d in own)], None, row.simple)
            for row, own in zip(rows, drafts, strict=True)
        ]
        widths = [len(part.tokens) for part in parts]
        reading = self._prompts(max(PASS_TOKENS - sum(widths), MIN_CHUNK_TOKENS)) if self._target.ragged else []
        try:
            found = self._target.forward([*parts, *reading])
        except CacheFull:
            if len(self._sequences) < 2:
                raise
            self._suspend_newest()
            return
        kept = [row.verify(own, out) for row, own, out in zip(rows, drafts, found, strict=False)]
        verified = clock()
        tokens = self._target.tokens(widths)
        whole = tokens + sum(len(part.tokens) for part in reading)
        if rows:
            self.costs.observe(whole, verified - drafted)
        by_session = {id(row.session): row for row in self._sequences}
        for part, out in zip(reading, found[len(parts) :], strict=True):
            seconds = (verified - drafted) * len(part.tokens) / whole
            self._read(by_session[id(part.session)], out, seconds)
        for row, new in zip(rows, kept, strict=True):
            row.session.rollback(len(row.text) - 1 + len(new))
        spent = (verified - drafted) * tokens / whole if whole else 0.0
        finished = clock()
        for r, (row, new) in enumerate(zip(rows, kept, strict=True)):
            made, own, origin = proposed[r], drafts[r], origins[r]
            if made and origin is not None:
                self._learn(self._acceptance_model(row, origin), made, len(own), len(new) - 1)
            share = widths[r] / sum(widths) if self._target.ragged else 1 / len(rows)
            drafting = (drafted - start) / len(rows)
            done = Round(
                len(row.text) - 1,
                origin if made else None,
                tokens_behind,
                [d.signal for d in made],
                len(own),
                len(new) - 1,
                drafting if made else 0.0,
                spent * share,
                drafting + spent * share + (finished - verified) / len(rows),
            )
            row.append(new, done, len(rows))
        if rows and not reading:
            passes = self._drafting + verified - drafted
            total = sum(map(len, kept))
            self._pace.book(len(rows), total, clock() - start, passes, speculated=any(proposed))

    def _read(self, row: SequenceRun, out: Rows, seconds: float) -> None:
        """Record that some of a sequence's text was read in a pass, the logits or the pick after it being `out`."""
        row.spend_on_prompt(seconds)
        row.session.publish(row.text[: min(row.session.length, len(row.request.prompt))])
        if not row.tokens and row.session.length == len(row.text):
            row.take_first(row.verify([], out), self._engine.clock())

    @staticmethod
    def _learn(acceptance_model: AcceptanceModel, made: Sequence[Draft], submitted: int, kept: int) -> None:
        for i in range(min(kept + 1, submitted)):
            acceptance_model.observe(made[i].signal, i + 1, 1.0 if i < kept else 0.0)
        if kept == submitted < len(made):
            acceptance_model.expect(acceptance_model(made[kept].signal, kept + 1))


def _begin_alike(one: Sequence[int], other: Sequence[int], count: int) -> bool:
    """Whether two texts of more than `count` tokens begin with the same `count` tokens."""
    return min(len(one), len(other)) > count and one[:count] == other[:count]
