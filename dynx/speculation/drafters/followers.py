"""What followed pairs of tokens in texts that the target wrote in calibration: counts, which cost nothing to draft.

A pair narrows down what comes next much more than a single token does, and a model repeats its own turns of phrase from text to
text, far beyond the text at hand where lookup finds them. The counts hold what was written, so they are made only when asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.speculation.drafters.next_tokens import CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

PAIRS, FOLLOWING, TOKENS, NEXT, RATES = "pairs", "pair_followers", "tokens", "token_followers", "follower_rates"
"""Names of a profile's arrays: pairs (P, 2), in order, what followed them (P, `CANDIDATES`), tokens (N,) and the same of them.

And the share of each rank of a pair's followers that is right (`CANDIDATES`,).
"""

NOTHING = -1
"""Fills rows of fewer followers."""

MAX_PAIRS = 1 << 18
"""Most pairs kept, those that occurred most often: 6 MB."""


class Followers:
    """The tokens that followed most often, by the two tokens before them; `tokens` has them by one token."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        pairs = np.asarray(arrays[PAIRS], np.int64)
        self._keys, self._following = _keys(pairs), np.asarray(arrays[FOLLOWING], np.int32)
        self._known: dict[tuple[int, int], tuple[int, ...]] = {}
        self.rates: list[float] = arrays[RATES].tolist() if RATES in arrays else []
        """Shares of the ranks after pairs that are right, where they are known."""
        rows = zip(arrays[TOKENS].tolist(), arrays[NEXT].tolist(), strict=True)
        self.tokens: dict[int, tuple[int, ...]] = {token: _filled(row) for token, row in rows}

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._keys)

    def after(self, before: int, token: int) -> tuple[int, ...]:
        """Return what followed a pair, the most frequent first; nothing where it was never written."""
        pair = before, token
        found = self._known.get(pair)
        if found is None:
            key = _keys(np.array([pair], np.int64))[0]
            at = int(np.searchsorted(self._keys, key))
            there = at < len(self._keys) and self._keys[at] == key
            found = self._known[pair] = _filled(self._following[at].tolist()) if there else ()
        return found


def counted(texts: Iterable[Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Count what follows pairs of tokens and single ones in texts; return it as a profile's arrays."""
    by_pair: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    by_token: dict[int, Counter[int]] = defaultdict(Counter)
    for text in texts:
        for token, after in pairwise(text):
            by_token[token][after] += 1
        for before, token, after in zip(text, text[1:], text[2:], strict=False):
            by_pair[before, token][after] += 1
    if len(by_pair) > MAX_PAIRS:
        often = sorted(by_pair, key=lambda pair: -by_pair[pair].total())[:MAX_PAIRS]
        by_pair = defaultdict(Counter, {pair: by_pair[pair] for pair in often})
    pairs, tokens = sorted(by_pair), sorted(by_token)
    return {
        PAIRS: np.array(pairs, np.int32).reshape(-1, 2),
        FOLLOWING: _rows([by_pair[pair] for pair in pairs]),
        TOKENS: np.array(tokens, np.int32),
        NEXT: _rows([by_token[token] for token in tokens]),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]], vocab: int) -> Followers | None:
    """Read a profile's arrays; None where it has none, or they aren't what `counted` makes of tokens below `vocab`."""
    if PAIRS not in arrays:
        return None
    try:
        pairs, tokens = arrays[PAIRS], arrays[TOKENS]
        shapes = (len(pairs), 2), (len(pairs), CANDIDATES), (len(tokens),), (len(tokens), CANDIDATES)
        names = PAIRS, FOLLOWING, TOKENS, NEXT
        sound = all(arrays[name].shape == shape for name, shape in zip(names, shapes, strict=True))
        sound = sound and arrays[RATES].shape == (CANDIDATES,)
        sound = sound and all(
            not arrays[name].size or -1 <= arrays[name].min() <= arrays[name].max() < vocab for name in names
        )
    except (KeyError, TypeError):
        return None
    return Followers(arrays) if sound else None


def _keys(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each pair, in the pairs' order."""
    keys: NDArray[np.int64] = (pairs[:, 0] << 32) | pairs[:, 1]
    return keys


def _rows(counts: Sequence[Counter[int]]) -> NDArray[np.int32]:
    out = np.full((len(counts), CANDIDATES), NOTHING, np.int32)
    for row, each in zip(out, counts, strict=True):
        best = [token for token, _ in each.most_common(CANDIDATES)]
        row[: len(best)] = best
    return out


def _filled(row: Sequence[int]) -> tuple[int, ...]:
    return tuple(token for token in row if token != NOTHING)
