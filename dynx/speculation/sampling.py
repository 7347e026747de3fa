"""Turns logits into a distribution, or takes the most likely token.

The processors are transformers' own, in the order in which its `generate` applies them, so that a temperature or a penalty
means here what it means there. They work on float32. Letters: T rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError
from dynx.runtime.torch_on_use import torch
from dynx.speculation.processors import make_processors
from dynx.speculation.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

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
        self._made: list[Process] | None = None
        self._warpers: list[Any] = []
        if not sampling.greedy:
            from transformers.generation.logits_process import (
                TemperatureLogitsWarper,
                TopKLogitsWarper,
                TopPLogitsWarper,
            )

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

    def for_drafts(self) -> LogitsProcessors:
        """Return the processors of draft tokens, without those that may only be asked about the text itself."""
        own = self.sampling.own
        if own.prepared is None or own.prepared.pure:
            return self
        sampling = replace(self.sampling, own=replace(own, prepared=own.prepared.without_functions()))
        return LogitsProcessors(sampling, self._prompt, self._max_new_tokens, self._vocab)

    @property
    def by_position(self) -> bool:
        """Whether a row's scores depend on the tokens before it."""
        own = self.sampling.own
        return self.sampling.repetition_penalty != 1 or bool(own.values) or bool(own.prepared)

    @property
    def is_identity(self) -> bool:
        """Whether logits come back as they went in (besides their precision)."""
        return not self.by_position and not self._warpers

    def scores(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """Return processed logits (T, V) in float32; row i follows `context` and the first i drafts."""
        if self.by_position:
            score = self.row_by_row(rows, context, drafts)
            return torch.cat([score(i) for i in range(rows.shape[0])])
        rows = rows.to(dtype=torch.float32, copy=True)
        for warper in self._warpers:
            rows = warper(None, rows)
        return rows

    def row_by_row(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Callable[[int], Tensor]:
        """Return a function from i to the processed logits (1, V) of row i, which are computed when it is called.

        Called for row after row until a draft is rejected, processors see the prefixes of the text itself and no others.
        """
        rows = rows.to(dtype=torch.float32, copy=True)
        own = self.sampling.own
        if (own.values or own.prepared) and self._vocab is not None and rows.shape[-1] < self._vocab:
            rows = torch.nn.functional.pad(rows, (0, self._vocab - rows.shape[-1]), value=UNKNOWN_TOKEN_LOGIT)
        processors = self._in_order(rows)
        padding = own.prepared.padding if own.prepared else ()
        seen = torch.tensor([[*padding, *context, *drafts]], device=rows.device)
        start = len(padding) + len(context)

        def score(i: int) -> Tensor:
            row = rows[i : i + 1]
            for process in processors:
                row = process(seen[:, : start + i], row)
            return row

        return score

    def _in_order(self, rows: Tensor) -> Sequence[Process]:
        """Return all processors of a row in `generate`'s order."""
        sampling, prepared = self.sampling, self.sampling.own.prepared
        if self._made is None:
            before, after = make_processors(
                sampling.own,
                sampling.repetition_penalty,
                self._prompt,
                self._max_new_tokens,
                self._vocab or rows.shape[-1],
                rows.device,
            )
            self._made = [*before, *(prepared.processors if prepared else ()), *self._warpers, *after]
        return self._made

    def probabilities(self, rows: Tensor, context: Sequence[int], drafts: Sequence[int] = ()) -> Tensor:
        """Return the distribution (T, V) that is sampled from."""
        return self.scores(rows, context, drafts).softmax(-1)

    def distance_scale(self, length: int) -> float:
        """Return by how much processing can multiply two logits' distance in a text of up to `length` tokens; inf: unbounded."""
        if self.sampling.own.prepared:
            return math.inf
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
        return self.leading(probabilities, position, 1)[0]

    def leading(self, probabilities: Tensor, position: int, count: int) -> list[int]:
        """Return the token that `pick` returns, and those that it would return without the ones before, up to `count`."""
        noise = self.at(position)[: len(probabilities)].to(probabilities.device)
        odds = probabilities / noise
        first = int(odds.argmax())
        if count < 2:
            return [first]
        found = odds.topk(min(count, int((probabilities > 0).sum()))).indices.tolist()
        return [first, *(token for token in found if token != first)][:count]


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
