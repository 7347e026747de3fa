"""Lines of stdin, and whether the next one is there yet."""

from __future__ import annotations

import os
import select
from collections import deque
from typing import TYPE_CHECKING

from dynx.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

CHUNK = 1 << 16

LIMIT = 256
"""Rows of a batch that may be asked for."""


class Arrivals:
    """Lines of a stream, and whether the next one is there already. Reads past the stream's own buffer."""

    def __init__(self, stream: BinaryIO) -> None:
        self._fd = stream.fileno()
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    def readline(self) -> bytes:
        """The next line, waited for; b"" at the end."""
        while not self._lines and not self._ended:
            self._read()
        return self._lines.popleft() if self._lines else b""

    def ready(self) -> bool:
        """Whether a line that isn't empty, or the end, has arrived."""
        while not self._ended and not any(line.strip() for line in self._lines):
            try:
                there = select.select([self._fd], [], [], 0)[0]
            except OSError:  # Windows asks sockets only; then each prompt is waited for by itself
                return False
            if not there:
                return False
            self._read()
        return True

    def _read(self) -> None:
        data = os.read(self._fd, CHUNK)
        self._ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(line + b"\n" for line in lines)
        if self._ended and self._rest:
            self._lines.append(self._rest)
            self._rest = b""


def rows_asked(batch: str) -> int | None:
    """The number that --batch asks for, None for auto. Raises UsageError."""
    if batch == "auto":
        return None
    if not (batch.isascii() and batch.isdigit() and 1 <= int(batch) <= LIMIT):
        raise UsageError(f"--batch {batch}: must be auto or a number from 1 to {LIMIT}")
    return int(batch)
