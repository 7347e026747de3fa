"""Turns logits into a distribution, or takes the most likely token.

The processors are transformers' own, in the order in which its `generate` applies them, so that a temperature or a penalty
means here what it means there. They work on float32. Letters: T rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dynx.errors import ModelError
from dynx.speculation.processors import make_processors
from dynx.speculation.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.processors import Process
    from dynx.speculation.types import ModelSettings, Request

UNKNOWN_TOKEN_LOGIT = -1e4
"""Logit, in a draft model's row, of a token that only the target has: very unlikely, and finite so that penalties stay so."""


class LogitsProcessors:
    """The processors of one `Sampling`, applied to rows of logits.

    The model's own settings may depend on where the answer starts and ends: `prompt` and `max_new_tokens`. `vocab` is the
    target's; narrower rows, a draft model's, are widened to it where that matters.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int] = (), max_new_tokens: int = 0, vocab: int | None = None
    ) -> None:
        self.sampling = sampling
        self._prompt, self._max_new_tokens, self._vocab = prompt, max_new_tokens, vocab
        self._made: tuple[list[Process], list[Process]] | None = None
        self._warpers: list[Any] = []
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))

    @classmethod
    def for_request(cls, request: Request, vocab: int) -> LogitsProcessors:
        """Build a request's processors for a target of `vocab` tokens."""
        return cls(request.sampling, request.prompt, request.max_new_tokens, vocab)

    @property
    def _by_position(self) -> bool:
        """Whether a row's scores depend on the tokens before it."""
        return self.sampling.repetition_penalty != 1 or bool(self.sampling.own.values)

    @property
    def is_identity(self) -> bool:
        """Whether logits come back as they went in (besides their precision)."""
        return not self._by_position and not self._warpers

    def scores(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """Return processed logits (T, V) in float32; row i follows `context` and the first i drafts."""
        rows = rows.to(dtype=torch.float32, copy=True)
        before: Sequence[Process] = ()
        after: Sequence[Process] = ()
        seen = torch.empty(0)
        if self._by_position:
            if self.sampling.own.values and self._vocab is not None and rows.shape[-1] < self._vocab:
                rows = pad(rows, (0, self._vocab - rows.shape[-1]), value=UNKNOWN_TOKEN_LOGIT)
            if self._made is None:
                vocab = self._vocab or rows.shape[-1]
                sampling = self.sampling
                self._made = make_processors(
                    sampling.own, sampling.repetition_penalty, self._prompt, self._max_new_tokens, vocab, rows.device
                )
            before, after = self._made
            seen = torch.tensor([[*context, *drafts]], device=rows.device)
        rows = self._each(before, rows, seen, len(context))
        for warper in self._warpers:
            rows = warper(None, rows)
        return self._each(after, rows, seen, len(context))

    @staticmethod
    def _each(processors: Sequence[Process], rows: Tensor, seen: Tensor, start: int) -> Tensor:
        """`processors` on each of `rows` (T, V), the first of which follows `start` tokens of `seen` (1, N)."""
        if processors:
            for i in range(rows.shape[0]):
                row = rows[i : i + 1]
                for process in processors:
                    row = process(seen[:, : start + i], row)
                rows[i] = row[0]
        return rows

    def probabilities(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """Return the distribution (T, V) that is sampled from."""
        return self.scores(rows, context, drafts).softmax(-1)

    def distance_scale(self, length: int) -> float:
        """Return by how much processing can multiply two logits' distance in a text of up to `length` tokens; inf: unbounded."""
        own, factor = self.sampling.own.values, 1.0
        for penalty in (self.sampling.repetition_penalty, own.get("encoder_repetition_penalty", 1.0)):
            factor *= max(penalty, 1 / penalty)
        if "exponential_decay_length_penalty" in own:
            begin, base = own["exponential_decay_length_penalty"]
            try:
                factor *= 1 + abs(base ** max(0, length - len(self._prompt) - begin) - 1)
            except OverflowError:
                return math.inf
        mark = own.get("watermarking_config")
        # That scheme favours tokens by the order of the scores themselves, so the least change can make a large one.
        return math.inf if getattr(mark, "seeding_scheme", None) == "selfhash" else factor


class SeededGumbelNoise:
    """Gumbel noise fixed by seed and position of the text rather than by the order of the draws.

    The sampled token is argmax(p / e) with e ~ Exp(1) for each entry, which is distributed as p. Since e depends on the seed
    and the position alone, the token at a position is the same however many drafts came
    before it, and a drafter with the same noise proposes it as often as its distribution is close
    ("drafter-invariant" speculation, Daliri et al., arXiv 2408.07978).
    """

    def __init__(self, seed: int, vocab: int) -> None:
        self._seed, self._vocab = seed, vocab
        self._generator = torch.Generator()
        self._kept: dict[int, Tensor] = {}

    def at(self, position: int) -> Tensor:
        """Return the exponential variates of `position`, (V,), on the CPU so that every device draws the same."""
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
        """Return the token sampled from a distribution (V,) at `position`."""
        noise = self.at(position)[: len(probabilities)].to(probabilities.device)
        return int((probabilities / noise).argmax())


def check_processors(settings: ModelSettings, vocab: int) -> None:
    """Try the settings on a model of `vocab` tokens. Raises ModelError for values that they can't have."""
    if not settings.values:
        return
    sampling = Sampling(own=settings)
    try:
        for length in (1, 2):  # the first and the last position of an answer of two
            LogitsProcessors(sampling, [0], 2, vocab).scores(torch.zeros(1, vocab), [0] * length)
    except Exception as e:  # noqa: BLE001 - whatever transformers makes of values that anybody wrote
        reason = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise ModelError(
            f"the model's generation config can't be applied: {reason}", hint="correct generation_config.json"
        ) from None
