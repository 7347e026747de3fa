"""`dynx generate --lines`: answers many prompts in their order, batched where that is faster.

Lines are read as they arrive and no further ahead than there is room for: a prompt that is there now may join a batch, and one
that isn't is never waited for while another could be written. What is wrong with a prompt is told when its turn comes, and the
others are answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.cli.generate.answers import answer, show
from dynx.cli.generate.model import make_request
from dynx.cli.prompts import BadPrompt, Prompt
from dynx.cli.stdin import rows_asked
from dynx.errors import DynxError
from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.console import Terminal
    from dynx.cli.generate.output import Printer
    from dynx.cli.options.generate import Options
    from dynx.cli.stdin import Arrivals
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.batch_size import BatchChoice
    from dynx.speculation.batching import Batch
    from dynx.speculation.sequence import SequenceRun

MAX_PROMPTS_AHEAD = 64
"""Largest number of prompts read ahead, to count those that wait."""


@dataclass
class _Turn:
    """An answer in progress, or the error of its prompt."""

    index: int
    prompt: Prompt | BadPrompt
    row: SequenceRun | None = None
    error: DynxError | None = None


class Lines:
    """The prompts of one command; `arrivals` tells which have arrived."""

    def __init__(
        self,
        prompts: Iterator[Prompt | BadPrompt],
        arrivals: Arrivals,
        options: Options,
        assembly: LoadedGenerator,
        printer: Printer,
        terminal: Terminal,
    ) -> None:
        self._prompts, self._arrivals, self._terminal = prompts, arrivals, terminal
        self._options, self._assembly, self._printer = options, assembly, printer
        self._begun = self._failed = 0  # answers
        self._waiting: deque[Prompt | BadPrompt] = deque()  # read, not begun
        self._turns: deque[_Turn] = deque()  # begun in the batch, not shown
        self._broken: DynxError | None = None  # what ended the reading
        self._ended = False
        self._choice: BatchChoice | None = None
        self._batch: Batch | None = None
        self._written = self._seconds = 0.0  # tokens, and seconds for them, one at a time

    def answer_all(self) -> int:
        """Write every answer; return how many prompts have none. Raises what ends the reading, after the answers before it."""
        while True:
            if not self._waiting:
                self._read()
            if not self._waiting:
                break
            self._look_ahead(MAX_PROMPTS_AHEAD)
            choice = self._choose(len(self._waiting))
            if choice.sequences > 1 and len(self._waiting) >= choice.min_waiting:
                self._together(choice)
            else:
                self._alone()
        if self._broken is not None:
            raise self._broken
        return self._failed

    def _read(self) -> None:
        """Wait for a prompt, unless there are no more."""
        if self._ended:
            return
        try:
            self._waiting.append(next(self._prompts))
        except StopIteration:
            self._ended = True
        except DynxError as e:
            self._ended, self._broken = True, e

    def _look_ahead(self, most: int) -> None:
        """Take the prompts that have arrived."""
        while len(self._waiting) < most and not self._ended and self._arrivals.ready():
            self._read()

    def _choose(self, waiting: int) -> BatchChoice:
        from dynx.speculation.batch_size import choose

        if self._choice is None or waiting > self._choice.until:
            self._choice = choose(
                self._assembly,
                asked=rows_asked(self._options.batch),
                waiting=waiting,
                tokens=self._options.max_new_tokens,
                single=self._written / self._seconds if self._written > 1 and self._seconds > 0 else None,
            )
            decision = self._assembly.decisions.batch = self._choice.decision
            self._terminal.detail(f"batch: {decision.value} ({decision.reason})")
        return self._choice

    def _alone(self) -> None:
        """Answer the next prompt outside a batch."""
        turn = self._next_turn()
        if isinstance(turn.prompt, Prompt):
            try:
                receipt = answer(turn.index, turn.prompt, self._options, self._assembly, self._printer).receipt()
            except InputError as e:
                turn.error = e
            else:
                self._written += receipt.tokens
                self._seconds += receipt.seconds
        self._tell(turn)

    def _next_turn(self) -> _Turn:
        prompt = self._waiting.popleft()
        index, self._begun = self._begun, self._begun + 1
        return _Turn(index, prompt, error=prompt.error if isinstance(prompt, BadPrompt) else None)

    def _tell(self, turn: _Turn) -> None:
        """Write the error of a prompt in its place."""
        if turn.error is not None:
            self._failed += 1
            self._printer.failure(turn.index, turn.prompt, turn.error, self._assembly)

    def _together(self, choice: BatchChoice) -> None:
        """Answer the waiting prompts in a batch, and those that join it, until it is empty."""
        from dynx.speculation.batching import Batch

        if self._batch is None:
            engine = choice.engine or self._assembly.engine
            self._batch = Batch(
                engine, choice.sequences, more=self._next_row, costs=choice.costs, speculate=not self._options.plain
            )
        self._batch.step()
        while self._turns:
            turn = self._turns.popleft()
            self._tell(turn)
            if turn.row is not None and isinstance(turn.prompt, Prompt):
                show(turn.index, turn.prompt, turn.row, self._options, self._assembly, self._printer)
            if not self._turns:
                self._batch.step()

    def _next_row(self) -> SequenceRun | None:
        """Return the next valid prompt, if one has arrived."""
        while self._batch is not None:
            self._look_ahead(1)
            if not self._waiting:
                break
            turn = self._next_turn()
            self._turns.append(turn)
            if not isinstance(turn.prompt, Prompt):
                continue
            try:
                turn.row = self._batch.sequence(make_request(turn.prompt, self._options, self._assembly))
            except InputError as e:
                turn.error = e
                continue
            return turn.row
        return None
