"""The target's own candidates: after each token, the likeliest next ones as the target last gave them there.

The rows of a verification show more than the token that was taken. What came second after a word is often what comes first
after it elsewhere, so the candidates are kept by the token before them and cost nothing to draft. The table holds what was
written, so it lives as long as the engine that fills it, and no longer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CANDIDATES = 4
"""Candidates kept for each token."""

MAX_TOKENS = 32768
"""Tokens with candidates, the most lately seen: some ten megabytes."""


class NextTokens:
    """Candidates by the token before them, of `limit` tokens at most; `first` are those of tokens that weren't seen yet."""

    def __init__(self, first: Mapping[int, tuple[int, ...]] | None = None, limit: int = MAX_TOKENS) -> None:
        self._first, self._limit = first or {}, limit
        self._after: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of tokens with candidates."""
        return len(self._after)

    def see(self, token: int, candidates: Sequence[int]) -> None:
        """Keep the likeliest tokens after `token`, the likeliest first, in place of earlier ones."""
        self._after[token] = tuple(candidates)
        self._after.move_to_end(token)
        if len(self._after) > self._limit:
            self._after.popitem(last=False)

    def after(self, token: int) -> tuple[int, ...]:
        """Return the candidates after `token`, the likeliest first; none where it wasn't seen."""
        return self._after.get(token) or self._first.get(token, ())
