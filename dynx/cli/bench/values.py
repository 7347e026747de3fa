"""Reads the values of options that only `dynx bench` has: lists of numbers, tolerances, a slow-down for tests."""

from __future__ import annotations

import math

from dynx.errors import UsageError

MAX_DRAFT_LENGTH = 64
"""Largest draft length of a static arm, in tokens."""

MAX_STEPS = 1000
"""Largest number of steps of a static arm."""


def parse_lengths(text: str) -> list[int]:
    """Return static draft lengths from "1-10", "2,4" or "none". Raises UsageError."""
    return parse_numbers(text, MAX_DRAFT_LENGTH, "lengths")


def parse_steps(text: str) -> list[int]:
    """Return step counts of static arms from "6,8", "5-10" or "none". Raises UsageError."""
    return parse_numbers(text, MAX_STEPS, "steps")


def parse_numbers(text: str, limit: int, what: str) -> list[int]:
    """Return numbers from "1-10", "2,4" or "none", each once and rising. Raises UsageError, which names them `what`."""
    if text.strip() in ("", "none", "0"):
        return []
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            low, _, high = (piece.strip() for piece in part.partition("-"))
            if max(int(low), int(high or low)) > limit:
                raise ValueError
            numbers.update(range(int(low), int(high or low) + 1))
    except ValueError:
        numbers = set()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--static {text}: {what} are numbers from 1 to {limit}, like 1-10 or 2,4")
    return sorted(numbers)


def parse_tolerance(text: str) -> float:
    """Return a share from "5%" or "0.05". Raises UsageError."""
    words = text.strip()
    percent = words.endswith("%")
    try:
        value = float(words.removesuffix("%").strip()) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        hint = f"--tolerance {text.strip()}%" if not percent and 1 <= value <= 99 else "--tolerance 5%"
        raise UsageError(f"--tolerance {text}: how much slower still passes, from 0 % to 100 %", hint=hint)
    return value


def tolerance_or(text: str | None, default: float) -> float:
    """Return the share of --tolerance, or this default. Raises UsageError."""
    return default if text is None else parse_tolerance(text)


def parse_slow(text: str) -> tuple[str, float]:
    """Return an arm and a share from "dynamic=15%". Raises UsageError."""
    name, _, share = text.partition("=")
    try:
        value = float(share.strip().removesuffix("%")) / (100 if share.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not name or not 0 < value < 100:
        raise UsageError(f"DYNX_BENCH_SLOW={text}: an arm and how much slower it is, like dynamic=15%")
    return name, value
