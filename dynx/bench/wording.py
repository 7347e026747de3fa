"""Formats numbers and facts as text: counts, percentages, three significant digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynx.bench.measurements import JSON


def count(number: int, noun: str) -> str:
    """Return `1 round` or `3 rounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(rate: float) -> str:
    """Return a share in per cent with one decimal; only a true 1 is printed as 100 %."""
    return f"{100 if rate >= 1 else min(round(100 * rate, 1), 99.9):g} %"


def three_digits(number: float) -> str:
    """Return at least three significant digits without an exponent: 0.00123, 1.23, 123, 12345."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 1 else f"{number:.3g}"


def in_words(value: JSON) -> str:
    """Return a header fact on one line: `torch 2.8.0, transformers 5.2.0`."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(item)}" for name, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(in_words(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
