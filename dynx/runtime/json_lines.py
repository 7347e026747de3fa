"""Reads one line of JSON lines: an object, and a field of it by its name or dotted path."""

from __future__ import annotations

import json
import math
from typing import Any


class NotAnObjectError(ValueError):
    """A line isn't a JSON object; the message says why."""


class NoFieldError(KeyError):
    """An object lacks a field."""


def parse_object(line: str) -> dict[str, Any]:
    """Return the object on a line, read strictly. Raises NotAnObjectError."""
    if not line.strip():
        raise NotAnObjectError("an empty line, not JSON")
    try:
        value = parse(line)
    except json.JSONDecodeError as e:
        raise NotAnObjectError(f"not JSON: {e.msg} at character {e.pos + 1}") from None
    except UnicodeEncodeError:
        raise NotAnObjectError("not text: half of a surrogate pair") from None
    except RecursionError:
        raise NotAnObjectError("JSON is nested too deeply") from None
    except ValueError as e:
        raise NotAnObjectError(f"not JSON: {e}") from None
    if not isinstance(value, dict):
        raise NotAnObjectError("not a JSON object")
    return value


def parse(text: str) -> Any:
    """Parse JSON that has no key twice, no number beyond a float, and only text that UTF-8 can hold.

    Raises json.JSONDecodeError, UnicodeEncodeError, RecursionError, or ValueError.
    """
    value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def field_of(value: dict[str, Any], name: str) -> Any:
    """Return a field by its key, or by a dotted path of keys and places in lists, counted from 0: `turns.0`.

    A key that has dots itself goes first. Raises NoFieldError.
    """
    if name in value:
        return value[name]
    found: Any = value
    for part in name.split("."):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise NoFieldError(name)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from JSON pairs. Raises ValueError for a key that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'the key "{next(key for key in keys if keys.count(key) > 1)[:40]}" occurs twice')
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is too large")
    return value
