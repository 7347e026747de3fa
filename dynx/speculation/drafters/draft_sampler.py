"""Samples draft tokens the way the target's tokens will be sampled."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dynx.runtime.backends.picks import likeliest_with_probability
from dynx.runtime.torch_on_use import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise


class DraftSampler:
    """Picks a token from a drafter's logits (V,): the argmax, by seeded Gumbel noise, or drawn.

    Temperature, filters, penalty and the model's own settings are the target's, since acceptance compares the two distributions.
    """

    def __init__(self, processors: LogitsProcessors, noise: SeededGumbelNoise | None, seed: int) -> None:
        self._greedy = processors.sampling.greedy
        self._processors = processors.for_drafts()
        self._noise = noise
        self._seed = seed

    @cached_property
    def _generator(self) -> Generator:
        return torch.Generator().manual_seed(self._seed)

    @property
    def takes_likeliest(self) -> bool:
        """Whether it picks the argmax of the logits as they are."""
        return self._greedy and self._processors.is_identity

    def __call__(self, row: Tensor, context: Sequence[int], drafted: Sequence[int]) -> tuple[int, float, Tensor | None]:
        """Return the token, its probability, and the distribution if the acceptance rule needs it."""
        if self._greedy:
            if not self._processors.is_identity:
                row = self._processors.scores(row[None], [*context, *drafted])[0]
            token, probability = likeliest_with_probability(row)
            return token, probability, None
        probabilities = self._processors.probabilities(row[None], [*context, *drafted])[0]
        probabilities = probabilities.cpu()  # so that every device draws the same
        if self._noise is not None:
            token = self._noise.pick(probabilities, len(context) + len(drafted))
            return token, float(probabilities[token]), None
        token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return token, float(probabilities[token]), probabilities
