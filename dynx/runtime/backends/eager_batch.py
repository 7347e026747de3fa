"""A batch on PyTorch: sequences that come and go, as rows of one `BatchSession` (see `batch_rows`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime.backends.batch import BatchSession
from dynx.runtime.backends.picks import likeliest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.runtime.backends.interface import Part


class EagerRow:
    """A sequence in an `EagerBatch`."""

    def __init__(self, batch: EagerBatch) -> None:
        self._batch = batch
        self.length = 0

    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.length = length

    def reuse(self, tokens: Sequence[int]) -> int:
        """Return 0: nothing is shared."""
        return self.length

    def publish(self, tokens: Sequence[int]) -> None:
        """Do nothing: nothing is shared."""

    def close(self) -> None:
        """Leave the batch."""
        self._batch.leave(self)


class EagerBatch:
    """Rows of a `BatchSession`. A row that leaves makes room for the next one, or is removed before the next pass."""

    ragged = False

    def __init__(self, backend: EagerBackend) -> None:
        self._backend = backend
        self._session = BatchSession(backend)
        self._rows: list[EagerRow | None] = []  # None: has left
        self._read: list[tuple[EagerRow, BatchSession]] = []  # not in the batch yet

    @property
    def room(self) -> int | None:
        """Tokens that a row may be wide for the sake of the others; None without a limit."""
        return self._session.room

    def open(self) -> EagerRow:
        """Start an empty sequence."""
        return EagerRow(self)

    def leave(self, row: EagerRow) -> None:
        """Forget a row."""
        self._rows = [None if each is row else each for each in self._rows]
        self._read = [(each, session) for each, session in self._read if each is not row]

    def tokens(self, widths: Sequence[int]) -> int:
        """Return the tokens that a pass of sequences of these widths computes."""
        return len(widths) * max(widths, default=0)

    def read(self, row: EagerRow, tokens: Sequence[int]) -> Tensor:
        """Read a prompt; return the logits (V,) after it. The row joins the batch with its next pass."""
        own = BatchSession(self._backend)
        out = own.prefill(tokens)
        self._read.append((row, own))
        row.length = len(tokens)
        return out

    def forward(self, parts: Sequence[Part]) -> list[Tensor | list[int]]:
        """Run one pass; return each part's rows. Rows without a part stay as they are."""
        whole = [part for part in parts if not part.session.length]
        first = {id(part.session): self.read(part.session, part.tokens)[None] for part in whole}
        going = {id(part.session): part for part in parts if id(part.session) not in first}
        rows: dict[int, Tensor] = {}
        if going:
            self._join()
            self._session.rollback([0 if row is None else row.length for row in self._rows])
            tokens = [going[id(row)].tokens if id(row) in going else [] for row in self._rows]
            for out, row in zip(self._session.forward(tokens), self._rows, strict=True):
                if row is not None and id(row) in going:
                    rows[id(row)] = out[: len(going[id(row)].tokens)]
                    row.length += len(going[id(row)].tokens)
        found: list[Tensor | list[int]] = []
        for part in parts:
            own = first.get(id(part.session))
            if own is None:
                own = rows[id(part.session)]
                own = own if part.keep is None else own[-part.keep :]
            found.append(likeliest(own) if part.picks else own)
        return found

    def _join(self) -> None:
        """Put the rows that were read in the places of those that left, or behind the others."""
        self._session.rollback(
            [n if r is None else r.length for r, n in zip(self._rows, self._session.lengths, strict=True)]
        )
        for at in range(len(self._rows)):
            if self._rows[at] is None and self._read:
                self._rows[at], session = self._read.pop(0)
                self._session.replace(at, session)
        for at in reversed(range(len(self._rows))):
            if self._rows[at] is None:
                del self._rows[at]
                self._session.remove(at)
        if self._read:
            self._session.admit([session for _, session in self._read])
            self._rows.extend(row for row, _ in self._read)
            self._read = []
