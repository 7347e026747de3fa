"""Checks that a text is what plain decoding writes, by scoring all of it in one pass without drafts or their cache.

The answer is teacher-forced: row i holds the plain model's logits after the prompt and the first i tokens as written.
If it picks each token itself, plain decoding writes the same text, by induction. After a first difference the rest follows a
text that plain decoding wouldn't have written; differences there are counted and mean little. Letters: N tokens of the answer,
V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from dynx.runtime.backends.stock import StockSession
from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.types import Request

Verdict = Literal["identical", "rounding", "different", "plausible", "implausible"]

RELATIVE_ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
"""How far a logit moves when the same sums are done in another order, relative to the largest logit of its row: a pass over
one position, over several and over a whole text use different kernels. About a thousand units of float32's last place
and four of the half precisions', whose rounding between layers weighs more than the sums."""

MAX_DEVIATIONS = 4.0
"""Standard deviations from the expected log-likelihood beyond which a sampled text isn't from this model."""


@dataclass(frozen=True)
class Difference:
    """A token that the plain model wouldn't have taken."""

    position: int  # in the answer, from 0
    written: int
    preferred: int
    margin: float  # how far below the preferred token, in logits; inf for a token of no probability
    rounding: float  # the largest margin that rounding alone can make here, in logits

    @property
    def tie(self) -> bool:
        """Whether rounding explains it."""
        return self.margin <= self.rounding


@dataclass(frozen=True)
class Verification:
    """The plain model's verification of an answer."""

    tokens: int
    rule: Literal["greedy", "seed", "chance"]
    differences: int
    """Tokens that it wouldn't have taken, the first and those after it; of a chance text those it could not have."""

    first: Difference | None
    smallest_margin: float | None
    """How close the closest decision was, in logits; None where none was made."""

    log_likelihood: float
    """Mean of log p over the answer, under the distribution that is sampled from."""

    deviation: float | None
    """Of a chance text: standard deviations between its log-likelihood and the expected one."""

    @property
    def verdict(self) -> Verdict:
        """One word."""
        if self.rule == "chance":
            odd = self.deviation is not None and abs(self.deviation) > MAX_DEVIATIONS
            return "implausible" if odd or (self.first and not self.first.tie) else "plausible"
        if self.first is None:
            return "identical"
        return "rounding" if self.first.tie else "different"


def verify(target: Backend, request: Request, tokens: Sequence[int]) -> Verification:
    """Score `tokens`, an answer to `request`, again."""
    sampling, prompt = request.sampling, list(request.prompt)
    rule: Literal["greedy", "seed", "chance"] = (
        "greedy" if sampling.greedy else "chance" if sampling.seed is None else "seed"
    )
    if not tokens:
        return Verification(0, rule, 0, None, None, 0.0, None)
    rows = plain_rows(target, [*prompt, *tokens], len(tokens)).cpu()  # (N, V)
    largest = rows.float().abs().amax(-1)  # (N,)
    processors = LogitsProcessors(sampling, prompt, request.max_new_tokens, target.vocab)
    scores = processors.scores(rows, prompt, list(tokens))
    written = torch.tensor(list(tokens), device=scores.device)
    log_p = scores.log_softmax(-1)  # (N, V)
    choice = scores
    if rule == "seed" and sampling.seed is not None:
        noise = SeededGumbelNoise(sampling.seed, target.vocab)
        at = [noise.at(len(prompt) + i)[: scores.shape[-1]] for i in range(len(tokens))]
        choice = log_p.double() - torch.stack(at).to(scores.device).log()  # argmax p / e
    got = log_p.gather(-1, written[:, None])[:, 0]  # (N,)
    scale = 1.0 if sampling.greedy else 1 / sampling.temperature
    distance_scale = processors.distance_scale(len(prompt) + len(tokens))
    distance_scale = distance_scale if math.isfinite(distance_scale) else 1.0
    rounding = RELATIVE_ROUNDING.get(target.precision, RELATIVE_ROUNDING["bfloat16"]) * largest * scale * distance_scale
    if rule == "chance":
        wrong = torch.isneginf(got)
        margins = torch.where(wrong, math.inf, 0.0)
        smallest = None
    else:
        best = choice.topk(2, -1)
        margins = best.values[:, 0] - choice.gather(-1, written[:, None])[:, 0]
        wrong = choice.argmax(-1) != written  # of equals the first, as decoding does; topk takes any
        gaps = best.values[:, 0] - best.values[:, 1]
        gaps = gaps[gaps.isfinite()]  # where only one token is allowed, nothing is close
        smallest = float(gaps.min()) / scale if len(gaps) else None
    first = None
    if bool(wrong.any()):
        i = int(wrong.int().argmax())
        first = Difference(i, tokens[i], int(choice[i].argmax()), float(margins[i]) / scale, float(rounding[i]) / scale)
    return Verification(
        len(tokens), rule, int(wrong.sum()), first, smallest, float(got.mean()), _deviation(log_p, got, rule)
    )


def _deviation(log_p: Tensor, got: Tensor, rule: str) -> float | None:
    """How many standard deviations the log-likelihood is off what sampling from these distributions gives."""
    if rule != "chance" or bool(torch.isneginf(got).any()):
        return None
    p = log_p.double().exp()
    finite = log_p.double().masked_fill(p == 0, 0.0)
    mean = (p * finite).sum(-1)
    variance = float(((p * finite**2).sum(-1) - mean**2).clamp_min(0).sum())
    return float(got.double().sum() - mean.sum()) / math.sqrt(variance) if variance > 1e-12 else 0.0


def plain_rows(target: Backend, tokens: Sequence[int], count: int) -> Tensor:
    """Logits (count, V) before each of the last `count` tokens: by the library's own forward where there is one."""
    model = target.model
    if target.max_pass_length(0) is not None:  # a pass over the whole text has one length, and decoding many
        session = StockSession(cast("EagerBackend", target), cached=True)
        prompt = len(tokens) - count
        rows = [session.forward(tokens[:prompt], keep=1), *(session.forward([each]) for each in tokens[prompt:-1])]
        return torch.cat(rows)
    if not isinstance(model, torch.nn.Module):
        return target.open().forward(tokens[:-1], keep=count)
    ids = torch.tensor([list(tokens[:-1])], device=getattr(model, "device", None))
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits[0, -count:]
    return logits
