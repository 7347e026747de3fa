"""Reads lines of stdin, and checks whether the next one has arrived."""

from __future__ import annotations

import os
import select
from collections import deque
from typing import TYPE_CHECKING

from dynx.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

CHUNK_BYTES = 1 << 16

MAX_LINE_BYTES = 16 << 20
"""Largest line in bytes; a stream without line ends must not fill the memory."""

MAX_BYTES_WITHOUT_LINE_END = 1 << 30
"""Bytes after which a stream without a line end is an error."""

MAX_BATCH_ROWS = 256
"""Largest batch that --batch takes, in sequences."""


class Beginning(bytes):
    """The beginning of a line that is too long."""

    size: int
    """Bytes of the whole line."""


class Arrivals:
    """Lines of a stream, and whether the next one has arrived. Reads past the stream's own buffer."""

    def __init__(self, stream: BinaryIO) -> None:
        self._fd = stream.fileno()
        self._lines: deque[bytes] = deque()
        self._parts: list[bytes] = []  # of a line that hasn't ended
        self._size = 0  # of that line; where it's too long, the parts are its beginning
        self._ended = False

    def readline(self) -> bytes:
        """Wait for the next line; b"" at the end; a `Beginning` of one that is too long.

        Raises UsageError where there are no line ends.
        """
        while not self._lines and not self._ended:
            self._read()
        if not self._lines and self._size > MAX_BYTES_WITHOUT_LINE_END:
            raise UsageError(f"stdin has more than {self._size >> 20} MiB without a line end")
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
        data = os.read(self._fd, CHUNK_BYTES)
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._keep(part)
            self._end(b"\n")
        self._keep(rest)
        if self._size > MAX_BYTES_WITHOUT_LINE_END:
            self._ended = True
        elif not data:
            self._ended = True
            if self._size:
                self._end(b"")

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_LINE_BYTES:
            self._parts.append(part)

    def _end(self, end: bytes) -> None:
        line = b"".join([*self._parts, end])
        if self._size > MAX_LINE_BYTES:
            line = Beginning(line)
            line.size = self._size + len(end)
        self._lines.append(line)
        self._parts, self._size = [], 0


def rows_asked(batch: str) -> int | None:
    """Parse the number of --batch, None for auto. Raises UsageError."""
    if batch == "auto":
        return None
    if not (batch.isascii() and batch.isdigit() and 1 <= int(batch) <= MAX_BATCH_ROWS):
        raise UsageError(f"--batch {batch}: must be auto or a number from 1 to {MAX_BATCH_ROWS}")
    return int(batch)
