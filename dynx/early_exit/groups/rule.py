"""When a row's part in the result of its group is decided, and when two results of a group are the same.

At an exit each row has an estimate of the value that the full model would give it. A row leaves when its estimate lies so far
from what would change the result, in units of the exit's usual error, that the exit's threshold is reached. The functions work on
groups of up to D rows at a time, so that a simulation and the engine decide by the same code.

Letters: G groups, D rows of the largest group, K exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

MIN_MARGIN = 1e-3
"""Margin in logits below which padding or another kernel may change the result: such a row never leaves."""

TIE = 1e-5
"""Difference of two values, relative to the larger one or to 1, that rounding alone may explain."""


class GroupRule(Protocol):
    """What of a group's values is its result."""

    def margins(self, values: Floats, active: Mask) -> Floats:
        """Return how far each active row (G, D) is from changing the result, by the values so far; 0 where it may change it."""

    def decided(self, active: Mask) -> Mask:
        """Return the active rows (G, D) of groups whose result no further layer can change."""

    def chosen(self, values: Floats, active: Mask) -> Mask:
        """Return which rows (G, D) make the result, by their final values; rows that left earlier aren't active."""

    def agrees(self, chosen: Mask, full: Floats, valid: Mask) -> Mask:
        """Tell for each group (G,) whether the chosen rows are those of the full model's values (G, D)."""


@dataclass(frozen=True)
class TopK:
    """The result is the k rows with the highest values; a row leaves that is too far below the k-th.

    Rows in the result run all layers, so that their values are the full model's. With `ends_decided` a group ends as soon as only
    k rows are left.
    """

    k: int
    ends_decided: bool = False

    def _kth(self, values: Floats, active: Mask) -> Floats:
        """Return the k-th highest value of each group (G, 1); -inf where there are no more than k rows."""
        shown = np.where(active, values, -np.inf)
        size = shown.shape[1]
        if size <= self.k:
            return np.full((len(shown), 1), -np.inf)
        kth: Floats = np.partition(shown, size - self.k, axis=1)[:, size - self.k, None]
        return kth

    def margins(self, values: Floats, active: Mask) -> Floats:
        """Return how far each row is below the k-th."""
        below = self._kth(values, active) - np.where(active, values, np.inf)
        return np.where(below >= MIN_MARGIN, below, 0.0)

    def decided(self, active: Mask) -> Mask:
        """Return all rows of groups that have only k left."""
        few: Mask = active.sum(1, keepdims=True) <= self.k
        return active & few if self.ends_decided else np.zeros_like(active)

    def chosen(self, values: Floats, active: Mask) -> Mask:
        """Return the k highest, the first of equal ones."""
        order = np.argsort(np.where(active, -values, np.inf), axis=1, kind="stable")
        out = np.zeros_like(active)
        np.put_along_axis(out, order[:, : self.k], values=True, axis=1)
        return out & active

    def agrees(self, chosen: Mask, full: Floats, valid: Mask) -> Mask:
        """Tell whether no row that isn't chosen has a higher value than one that is, beyond rounding."""
        low = np.where(chosen, full, np.inf).min(axis=1)
        high = np.where(valid & ~chosen, full, -np.inf).max(axis=1)
        slack = TIE * np.maximum(1.0, np.abs(np.where(np.isfinite(low), low, 0.0)))
        same: Mask = high <= low + slack
        return same


@dataclass(frozen=True)
class Positive:
    """The result is the set of rows with a value above 0; a row leaves that is far from it on either side."""

    def margins(self, values: Floats, active: Mask) -> Floats:
        """Return how far each row is from 0."""
        away = np.abs(values)
        return np.where(active & (away >= MIN_MARGIN), away, 0.0)

    def decided(self, active: Mask) -> Mask:
        """Return none: rows leave each by itself."""
        return np.zeros_like(active)

    def chosen(self, values: Floats, active: Mask) -> Mask:
        """Return those above 0, of the estimates of rows that left too."""
        out: Mask = (values > 0) & np.isfinite(values)
        return out

    def agrees(self, chosen: Mask, full: Floats, valid: Mask) -> Mask:
        """Tell whether the same rows are above 0, beyond rounding."""
        near = np.abs(full) <= TIE
        same: Mask = ((chosen == (full > 0)) | near | ~valid).all(axis=1)
        return same


def padded(values: NDArray[np.float64], sizes: NDArray[np.int64], fill: float = -np.inf) -> Floats:
    """Return the values of rows (R,) by group (G, D); `sizes` (G,) are the rows of each, in order."""
    out = np.full((len(sizes), int(sizes.max(initial=0))), fill)
    out[valid_places(sizes)] = values
    return out


def valid_places(sizes: NDArray[np.int64]) -> Mask:
    """Return which places (G, D) hold a row."""
    places: Mask = np.arange(int(sizes.max(initial=0)))[None] < sizes[:, None]
    return places
