"""A decision: a value and the reason that is shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A value, and in one clause why it isn't another."""

    value: T
    reason: str
