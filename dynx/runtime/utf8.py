"""Bytes from outside as text, strictly."""

from __future__ import annotations

from dynx.errors import UsageError

BOM = b"\xef\xbb\xbf"
"""The mark that some editors put at the start of a UTF-8 file. It is no part of the text."""


def decode(data: bytes, what: str, *, offset: int = 0) -> str:
    """`data` as UTF-8, a mark in front kept. Raises UsageError naming the offset of the first bad byte, counted from `offset`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(
            f"{what} is not UTF-8: byte {e.object[e.start]:#04x} at offset {offset + e.start}",
            hint="convert it first, for example with iconv",
        ) from None


def read(data: bytes, what: str, *, offset: int = 0) -> str:
    """The text of a file or a stream, or of the part of it from `offset` on: `decode`, without a byte order mark at its start."""
    if offset == 0 and data.startswith(BOM):
        return decode(data[len(BOM) :], what, offset=len(BOM))
    return decode(data, what, offset=offset)


def blank(data: bytes) -> bool:
    """Whether a file or a stream holds nothing but white space, a byte order mark aside."""
    return not data.removeprefix(BOM).strip()
