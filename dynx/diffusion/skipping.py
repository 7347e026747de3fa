"""Decide when the next network call can be skipped, by AdaptiveDiffusion's rule (Ye et al. 2024) on uneven grids.

Where a trajectory is straight its speed changes evenly, and the third-order difference of the latents is small: with dᵢ the
mean |xᵢ - xᵢ₋₁|, the next call is skipped if |(dᵢ + dᵢ₋₂)/2 - dᵢ₋₁| ≤ δ·dᵢ₋₁. The paper's steps are equal; here they
aren't, so d is divided by the arc length of the step (`Noise.arc`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dynx.diffusion.schedule import Noise, Schedule


class Skipping:
    """Decide after every step of a run whether the next is skipped, for the whole batch or not at all."""

    def __init__(self, schedule: Schedule, noise: Noise) -> None:
        self.threshold, self.warmup, self.longest = schedule.skip, schedule.warmup, schedule.longest_skip
        self._noise = noise
        self._speeds: deque[Tensor] = deque(maxlen=3)
        self._steps = 0
        self._row = 0

    def note(self, before: Tensor, after: Tensor, sigma: float, sigma_after: float) -> None:
        """Record a step; latents are (B, …), as the network takes them."""
        self._steps += 1
        if self.threshold > 0:
            distance = self._noise.arc(sigma) - self._noise.arc(sigma_after)
            self._speeds.append((after.float() - before.float()).flatten(1).abs().mean(1) / distance)

    def next_is_skipped(self, *, last: bool) -> bool:
        """Return whether the next step skips the network; the `last` step never does."""
        skipped = not last and self._may_skip()
        self._row = self._row + 1 if skipped else 0
        return skipped

    def _may_skip(self) -> bool:
        if self._steps < self.warmup or len(self._speeds) < 3 or self._row >= self.longest:
            return False
        first, middle, latest = self._speeds
        return bool((((latest + first) / 2 - middle).abs() <= self.threshold * middle).all())
