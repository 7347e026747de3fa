"""Lines of `dynx draw --lines` that are JSON objects: a prompt with a size and a seed of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from dynx.errors import UsageError

FIELDS = ("prompt", "size", "seed")
"""What an object may have; only the prompt must be there."""

SEED_LIMIT = 1 << 63
"""Number of seeds; torch takes at most 64 bits."""


@dataclass(frozen=True)
class Record:
    """The picture that a line is for; None means what the command line gives."""

    prompt: str
    size: tuple[int, int] | None = None
    seed: int | None = None


def parse_record(line: str, count: int) -> Record:
    """Return the picture that a line is for: a JSON object's fields, or any other line as a prompt.

    `count` is the number of consecutive seeds that are drawn. Raises UsageError for an object that can't be used.
    """
    if not line.lstrip().startswith("{"):
        return Record(line)
    try:
        found = json.loads(line)
    except ValueError:
        return Record(line)  # braces are text too
    if not isinstance(found.get("prompt"), str):
        raise UsageError("the line is a JSON object without a text as its prompt")
    if unknown := [name for name in found if name not in FIELDS]:
        raise UsageError(f"the line has the field {unknown[0]}; it can have {', '.join(FIELDS)}")
    return Record(found["prompt"], _size(found.get("size")), _seed(found.get("seed"), count))


def _size(value: Any) -> tuple[int, int] | None:
    if value is None or isinstance(value, str):
        return parse_size(value, "the line's size")
    sides = [value, value] if isinstance(value, int) else value
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and 0 < side < 100_000 for side in sides):
        return sides[0], sides[1]
    raise UsageError(f"the line's size {json.dumps(value)[:40]}: must be WxH, one number, or a list of both")


def _seed(value: Any, count: int) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= SEED_LIMIT - count):
        return value
    raise UsageError(f"the line's seed {json.dumps(value)[:40]}: must be a whole number from 0")


def parse_size(text: str | None, what: str = "--size") -> tuple[int, int] | None:
    """Parse width and height in pixels. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})(?:[x×X*]([0-9]{1,5}))?", text.strip())
    if found is None:
        raise UsageError(f"{what} {text}: must be width and height in pixels, such as 512x768, or one number for both")
    return int(found[1]), int(found[2] or found[1])
