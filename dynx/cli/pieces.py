"""Splits a stream of bytes into lines as they arrive; a line that isn't valid text carries its error, and reading goes on.

Bytes that aren't UTF-8 stay in a line's text as Python's `surrogateescape` keeps them, so that it can still name a file, which on
Linux any bytes do. `shown` and `escape` (in `classify.output`) write such a text as UTF-8 again.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from dynx.errors import UsageError
from dynx.runtime.utf8 import BOM, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 16 << 20
"""Largest line in bytes; a stream without line ends must not fill the memory."""

MAX_BYTES_WITHOUT_LINE_END = 1 << 30
"""Bytes after which a stream without a line end is an error."""

SHOWN_BYTES = 200
"""Bytes kept of a line that is too long, to show it."""

_FOREIGN = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
"""Byte order marks of UTF-16 and UTF-32, in which zeros and line ends can't be read as bytes."""


class Line(NamedTuple):
    """One line without its line end."""

    text: str
    size: int
    """Bytes that it takes in memory."""
    error: str | None = None
    """Why it isn't valid text: bytes that aren't UTF-8, or too many of them."""
    offset: int = 0
    """Offset of its first byte in the stream."""
    cut: bool = False
    """Whether it was too long, and `text` is only its beginning."""


def shown(text: str) -> str:
    """Return `text` as valid UTF-8, with U+FFFD in place of other bytes."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def not_utf8(data: bytes, offset: int = 0) -> str | None:
    """Return a message about the first byte that isn't UTF-8, counted from `offset`; None where all are."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        return f"not UTF-8: byte {data[e.start]:#04x} at offset {offset + e.start}"
    return None


def undecoded(text: str, offset: int) -> str | None:
    """Return the message of `not_utf8`, for a cell of the row that begins at `offset`."""
    if text.isascii():
        return None
    bad = next((c for c in text if "\udc80" <= c <= "\udcff"), None)
    return None if bad is None else f"not UTF-8: byte {ord(bad) - 0xDC00:#04x} in the row at offset {offset}"


def lines(stream: BinaryIO, what: str, end: bytes = b"\n", *, keep: bool = False) -> Iterator[Line]:
    """Yield each line without its carriage return (unless `keep`) and without a byte order mark at the start.

    Raises UsageError where `stream` can't be read, has no line ends, or begins as UTF-16 or UTF-32 does.
    """
    for offset, piece in pieces(stream, what, end):
        data, start = piece, offset
        if offset == 0:
            if piece.startswith(_FOREIGN):
                decode(piece.lstrip(b"\0"), what)
            if piece.startswith(BOM):
                data, start = piece[len(BOM) :], len(BOM)
        if end == b"\n" and not keep:
            data = data.removesuffix(b"\r")
        yield line_of(data, len(piece), start)


def line_of(data: bytes, size: int, offset: int, longest: int = MAX_LINE_BYTES) -> Line:
    """Return `data` as a line, with an error if it isn't valid text."""
    if size > longest:
        head = data[:SHOWN_BYTES].decode("utf-8", "surrogateescape") + "…"
        return Line(head, SHOWN_BYTES, f"longer than the {longest >> 20} MiB that a line may have", offset, cut=True)
    try:
        return Line(data.decode("utf-8"), size, None, offset)
    except UnicodeDecodeError:
        return Line(data.decode("utf-8", "surrogateescape"), size, not_utf8(data, offset), offset)


def pieces(
    stream: BinaryIO, what: str, end: bytes = b"\n", *, longest: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Yield each piece of `stream` as soon as its `end` arrives, with its offset; after the last end only if not empty.

    Of one longer than `longest` bytes the beginning comes at once, itself longer than `longest`, and the rest is passed over.
    Raises UsageError where there are no ends at all, and where `stream` can't be read.
    """
    offset, held = 0, 0  # of the piece that is being read
    parts: list[bytes] = []
    for chunk in _chunks(stream, what):
        *whole, rest = chunk.split(end)
        for last in whole:
            if held <= longest:
                yield offset, b"".join([*parts, last]) if parts else last
            offset += held + len(last) + len(end)
            parts, held = [], 0
        if not rest:
            continue
        if held <= longest:
            parts.append(rest)
            if held + len(rest) > longest:
                yield offset, b"".join(parts)
                parts = []
        held += len(rest)
        if held > max(MAX_BYTES_WITHOUT_LINE_END, longest):
            raise UsageError(f"{what} has more than {held >> 20} MiB without a line end, from offset {offset}")
    if parts:
        yield offset, b"".join(parts)


def _chunks(stream: BinaryIO, what: str) -> Iterator[bytes]:
    # Below the buffer: a daemon thread that waits inside it holds its lock, on which the interpreter's exit would abort.
    source: Any = getattr(stream, "raw", stream)
    read = getattr(source, "read1", source.read)
    while True:
        try:
            chunk = read(CHUNK_BYTES)
        except OSError as e:
            raise UsageError(f"can't read {what}: {e.strerror or e}") from None
        if chunk is None:  # non-blocking, as a program that shares the terminal may have left it
            select.select([source], [], [])
        elif chunk:
            yield chunk
        else:
            return
