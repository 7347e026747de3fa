"""From logits to a distribution, or straight to the most likely token.

The processors are transformers' own, in the order in which its `generate` applies them, so that a temperature or a penalty
means here what it means there. They work on float32. Letters: T rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.types import Sampling


class Warp:
    """The processors of one `Sampling`, applied to rows of logits."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        penalty = float(sampling.repetition_penalty)  # transformers' processors refuse an int
        self._penalty: Any = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self._warpers: list[Any] = []
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))

    @property
    def idle(self) -> bool:
        """Whether logits come back as they went in (besides their precision)."""
        return self._penalty is None and not self._warpers

    def scores(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """Processed logits (T, V) in float32; row i follows `context` and the first i drafts."""
        rows = rows.to(dtype=torch.float32, copy=True)
        if self._penalty is not None:
            seen = [*context, *drafts]
            for i in range(rows.shape[0]):
                ids = torch.tensor([seen[: len(context) + i]], device=rows.device)
                rows[i] = self._penalty(ids, rows[i : i + 1])[0]
        for warper in self._warpers:
            rows = warper(None, rows)
        return rows

    def probabilities(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """The distribution that is sampled from, (T, V)."""
        return self.scores(rows, context, drafts).softmax(-1)


class PositionNoise:
    """Randomness that belongs to a position of the text rather than to the order of the draws.

    The sampled token is argmax(p / e) with e ~ Exp(1) for each entry, which is distributed as p. Since e depends on the seed
    and the position alone, whoever chooses the token at that position, and after however many drafts, chooses the same
    one; and a drafter that uses the same noise guesses it as often as its distribution is close
    ("drafter-invariant" speculation, Daliri et al., arXiv 2408.07978).
    """

    def __init__(self, seed: int, vocab: int) -> None:
        self._seed, self._vocab = seed, vocab
        self._generator = torch.Generator()
        self._kept: dict[int, Tensor] = {}

    def at(self, position: int) -> Tensor:
        """The exponential variates of `position`, (V,), on the CPU so that every device draws the same."""
        if position not in self._kept:
            # PyTorch's Mersenne Twister uses 32 bits of a seed; a multiplicative hash spreads the user's seeds over them,
            # so that the positions of two seeds don't meet.
            self._generator.manual_seed((((self._seed * 0x9E3779B97F4A7C15) >> 32) + position) & 0xFFFFFFFF)
            if len(self._kept) > 64:
                self._kept.clear()
            # float64: in float32 one variate in 2^24 is exactly 0, which would hand a large vocabulary's tail a token
            # about every hundred positions.
            noise = torch.empty(self._vocab, dtype=torch.float64)
            self._kept[position] = noise.exponential_(generator=self._generator).clamp_min_(1e-300)
        return self._kept[position]

    def pick(self, probabilities: Tensor, position: int) -> int:
        """The token of a distribution (V,) at `position`."""
        noise = self.at(position)[: len(probabilities)].to(probabilities.device)
        return int((probabilities / noise).argmax())
