"""A draft model that is loaded once the work is long enough to pay for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.backends.interface import Backend

MAX_LOADING_SHARE = 0.01
"""Largest share of the time so far that loading a draft model may take if nobody requested it and no profile recommends it."""


@dataclass
class LateDrafter:
    """A draft model that is loaded once its loading takes at most `MAX_LOADING_SHARE` of the time since `began`."""

    load: Callable[[], Backend]
    seconds: float  # that loading is expected to take
    began: float
    clock: Callable[[], float]

    @property
    def due(self) -> bool:
        """Whether the model may be loaded now."""
        return self.seconds <= MAX_LOADING_SHARE * (self.clock() - self.began)
