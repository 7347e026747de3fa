"""When the next network call can be left out: AdaptiveDiffusion's rule (Ye et al. 2024), made independent of the grid.

Where a trajectory is straight its speed changes evenly, and the third-order difference of the latents is small: with dᵢ the
mean |xᵢ - xᵢ₋₁|, the next call is skipped if |(dᵢ + dᵢ₋₂)/2 - dᵢ₋₁| ≤ δ·dᵢ₋₁. The paper's steps are equal. Ours are not, so d is
divided by the step's share of the way (`Noise.arc`), or uneven steps would look like bends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dynx.diffusion.schedule import Noise, Schedule


class Skipping:
    """Decides for one run, after every step, about the next; the whole batch is skipped or none of it."""

    def __init__(self, schedule: Schedule, noise: Noise) -> None:
        self.threshold, self.warmup, self.longest = schedule.skip, schedule.warmup, schedule.longest_skip
        self._noise = noise
        self._speeds: deque[Tensor] = deque(maxlen=3)
        self._steps = 0
        self._row = 0

    def note(self, before: Tensor, after: Tensor, sigma: float, sigma_after: float) -> None:
        """A step was made; latents (B, …) as the network takes them."""
        self._steps += 1
        if self.threshold > 0:
            distance = self._noise.arc(sigma) - self._noise.arc(sigma_after)
            self._speeds.append((after.float() - before.float()).flatten(1).abs().mean(1) / distance)

    def next_is_skipped(self, *, last: bool) -> bool:
        """Whether the next step does without the network. The `last` one never does: it decides the picture."""
        skipped = not last and self._may_skip()
        self._row = self._row + 1 if skipped else 0
        return skipped

    def _may_skip(self) -> bool:
        if self._steps < self.warmup or len(self._speeds) < 3 or self._row >= self.longest:
            return False
        first, middle, latest = self._speeds
        return bool((((latest + first) / 2 - middle).abs() <= self.threshold * middle).all())
