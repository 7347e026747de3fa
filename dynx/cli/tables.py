"""Reads tab-separated tables as Python's csv module writes them: its dialect `excel-tab`, strictly.

A cell may stand in quotes, with tabs, line ends and doubled quotes inside. A quote in the middle of a cell is a quote. A quote at
its beginning that is closed too early, or never, is an error of that line alone: the lines after it are read afresh.
"""

from __future__ import annotations

import csv
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.cli.pieces import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynx.cli.pieces import Line

_WORDS = {
    "expected after": "text after the quote that closes a cell",
    "end of data": "a quote that opens a cell and is never closed",
    "new-line": "a carriage return outside quotes",
    "field limit": "a cell too long",
}
"""Messages for errors of the csv module, by a part of its own message."""


@dataclass(frozen=True)
class Cells:
    """One row of a table."""

    cells: Sequence[str]
    """Its cells; none where there is an error."""
    line: str
    """The row as it was written."""
    size: int
    offset: int
    error: str | None = None
    """Why it can't be read as a row."""


def table(lines: Iterator[Line], *, longest: int = MAX_LINE_BYTES) -> Iterator[Cells]:
    """Yield the rows of `lines`, which keep their carriage returns; a quoted cell may be up to `longest` bytes."""
    again: deque[Line] = deque()  # read inside quotes that were none
    csv.field_size_limit(max(csv.field_size_limit(), 2 * longest))
    while (line := again.popleft() if again else next(lines, None)) is not None:
        text = line.text.removesuffix("\r")
        if line.cut:
            yield Cells((), text, line.size, line.offset, line.error)
        elif '"' not in text and "\r" not in text:
            yield Cells(text.split("\t"), text, line.size, line.offset)
        else:
            taken = [line]
            try:
                cells = next(csv.reader(_lines_of_row(taken, again, lines, longest), "excel-tab", strict=True)) or [""]
            except csv.Error as e:
                again.extendleft(reversed(taken[1:]))
                reason = next((words for part, words in _WORDS.items() if part in str(e)), str(e))
                yield Cells((), text, line.size, line.offset, reason)
            else:
                whole = "\n".join(one.text for one in taken).removesuffix("\r")
                yield Cells(cells, whole, sum(one.size + 1 for one in taken) - 1, line.offset)


def _lines_of_row(taken: list[Line], again: deque[Line], lines: Iterator[Line], longest: int) -> Iterator[str]:
    """Yield the first line of `taken`, and the lines that continue it, which are appended there."""
    yield taken[0].text + "\n"
    size = taken[0].size
    while size <= longest:
        line = again.popleft() if again else next(lines, None)
        if line is None:
            return
        taken.append(line)
        if line.cut:
            return
        size += line.size
        yield line.text + "\n"
