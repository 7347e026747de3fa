"""The form in which dynx decides: a value and the reason that the user is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """`value`, and in one clause why it is not another."""

    value: T
    reason: str
