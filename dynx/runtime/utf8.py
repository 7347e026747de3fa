"""Decodes input as UTF-8, strictly."""

from __future__ import annotations

from dynx.errors import InvalidInput

BOM = b"\xef\xbb\xbf"
"""Byte order mark that some editors put at the start of a UTF-8 file; it isn't part of the text."""


def decode(data: bytes, what: str, *, offset: int = 0) -> str:
    """Decode UTF-8, keeping a byte order mark. Raises InvalidInput with the place of the first bad byte, from `offset` on."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidInput(
            f"{what} is not UTF-8: byte {e.object[e.start]:#04x} at offset {offset + e.start}",
            hint="convert it first, for example with iconv",
        ) from None


def read(data: bytes, what: str, *, offset: int = 0) -> str:
    """Decode a file or a stream, or its part from `offset` on, without a byte order mark at its start."""
    if offset == 0 and data.startswith(BOM):
        return decode(data[len(BOM) :], what, offset=len(BOM))
    return decode(data, what, offset=offset)


def blank(data: bytes) -> bool:
    """Whether a file or a stream holds nothing but white space, a byte order mark aside."""
    return not data.removeprefix(BOM).strip()
