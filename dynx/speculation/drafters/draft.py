"""A draft token, as drafters give it to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Draft:
    """A draft token.

    `signal` rises with the drafter's confidence. `probabilities` (V,) is the distribution it was drawn from, kept only where the
    acceptance rule needs it; None stands for certainty. `others` are the drafter's next choices for its place, the best first.
    """

    token: int
    signal: float
    probabilities: Tensor | None = None
    others: Sequence[int] = ()
