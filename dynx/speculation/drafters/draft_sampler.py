"""Samples draft tokens the way the target's tokens will be sampled."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dynx.runtime.backends.picks import leading, likeliest_with_probability
from dynx.runtime.torch_on_use import torch
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise


OTHER_CHOICES = 2
"""Choices besides its first that trees may verify of a draft model's."""


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

    def __call__(self, row: Tensor, context: Sequence[int], drafted: Sequence[int], others: int = 0) -> Draft:
        """Return a draft from logits (V,), with its distribution if the acceptance rule needs that.

        Where it doesn't, the draft comes with up to `others` next choices: what the argmax would be without those before, under
        the same noise where a seed is set.
        """
        if self._greedy:
            if not self._processors.is_identity:
                row = self._processors.scores(row[None], [*context, *drafted])[0]
            token, probability = likeliest_with_probability(row)
            return Draft(token, log_odds(probability), None, leading(row[None], 0, others + 1)[1:] if others else ())
        probabilities = self._processors.probabilities(row[None], [*context, *drafted])[0]
        probabilities = probabilities.cpu()  # so that every device draws the same
        if self._noise is not None:
            token, *rest = self._noise.leading(probabilities, len(context) + len(drafted), others + 1)
            return Draft(token, log_odds(float(probabilities[token])), None, rest)
        token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return Draft(token, log_odds(float(probabilities[token])), probabilities)
