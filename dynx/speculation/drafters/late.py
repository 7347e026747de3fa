"""A draft model that is loaded once the work is long enough to pay for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.backends.interface import Backend

LOADING_SHARE = 0.01
"""Share of the time so far that loading a draft model may take which nobody asked for and no profile recommends."""


@dataclass
class LateDrafter:
    """A draft model that is loaded once that takes at most `LOADING_SHARE` of the time since `began`."""

    load: Callable[[], Backend]
    seconds: float  # that loading is expected to take
    began: float
    clock: Callable[[], float]

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self.seconds <= LOADING_SHARE * (self.clock() - self.began)
