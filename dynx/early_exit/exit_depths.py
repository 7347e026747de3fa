"""The blocks of a classifier after which exits are tried."""

from __future__ import annotations

MAX_CANDIDATE_EXITS = 12
"""Most exits tried on one model; in deeper ones they are evenly spaced."""


def candidates(depth: int) -> tuple[int, ...]:
    """Choose the blocks after which exits are tried: all but the last, or evenly spaced ones of a deep model."""
    if depth - 1 <= MAX_CANDIDATE_EXITS:
        return tuple(range(1, depth))
    return tuple(sorted({round(depth * (k + 1) / (MAX_CANDIDATE_EXITS + 1)) for k in range(MAX_CANDIDATE_EXITS)}))
