"""Bytes from outside as text, strictly."""

from __future__ import annotations

from dynx.errors import UsageError


def decode(data: bytes, what: str, *, offset: int = 0) -> str:
    """`data` as UTF-8. Raises UsageError naming the offset of the first bad byte, counted from `offset`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(
            f"{what} is not UTF-8: byte {e.object[e.start]:#04x} at offset {offset + e.start}",
            hint="convert it first, for example with iconv",
        ) from None
