"""Verification: four lossless rules that decide which draft tokens are accepted, each a pure function of its arguments.

    greedy     keep drafts while they are the target's most likely token
    coupled    the target samples with noise fixed by seed and position; keep drafts while they are what it sampled
    tokenwise  keep draft i with probability min(1, p/q), else draw from the excess of p over q
               (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1)
    block      test the whole draft by the product of its ratios; never keeps fewer than tokenwise
               (Sun et al. 2024, arXiv 2403.10444, algorithm 2)

All take `drafts` x_1 … x_K and the target's K+1 rows; row i (counted from 0) follows the first i drafts. They return the tokens
to append: the kept drafts and one token of the target's own.

A trap for callers: tokenwise and block need drafts whose number was decided *before* each next one was drawn. Dropping
the tail of a sampled draft because its tokens look unlikely biases what is left, and with it the text. Under greedy and
coupled any prefix may be verified, since the text doesn't depend on the drafts there at all.

Letters: K drafts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dynx.runtime.torch_on_use import torch

if TYPE_CHECKING:
    from torch import Tensor

Pick = Callable[[int], int]
"""Maps i to the target's own token after i drafts."""

Uniform = Callable[[], float]
"""Draws uniformly from [0, 1)."""

Draw = Callable[["Tensor"], int]
"""Draws an index in proportion to non-negative weights (V,), not all zero."""


def verify_greedy(drafts: Sequence[int], pick: Pick) -> list[int]:
    """Accept drafts while they are what the target picks, then append its pick: the greedy and the coupled rule.

    >>> verify_greedy([4, 5, 6], lambda i: [4, 5, 9, 7][i])
    [4, 5, 9]
    """
    kept: list[int] = []
    for i, draft in enumerate(drafts):
        token = pick(i)
        kept.append(token)
        if token != draft:
            return kept
    kept.append(pick(len(drafts)))
    return kept


def verify_tokenwise(drafts: Sequence[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Accept each draft by its own test. `q` (K, V) is what the drafts were drawn from, `p` (K+1, V) the target's."""
    for i, x in enumerate(drafts):
        if uniform() * q[i, x] >= p[i, x]:  # reject with probability 1 - min(1, p/q); never when p >= q
            return [*drafts[:i], draw(excess(p[i], q[i], p[i]))]
    return [*drafts, draw(p[len(drafts)])]


def verify_block(drafts: Sequence[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Accept the longest prefix whose joint test succeeds. Shapes as in `verify_tokenwise`.

    `weight` is the paper's p_i: the running ratio of target to drafter over the prefix, never above 1. A prefix of i < K
    drafts passes with probability A/(A + 1 - weight), A the mass of max(weight·p - q, 0) over the next token: what the
    target still wants and the drafter undersupplies. The whole draft passes with probability `weight`.

    The paper fixes the draft's length; a length that the drafts themselves decide, as confidence does, is as good, if it is
    decided before each next one is drawn. At a prefix where drafting stops P(this or more is accepted) is `weight`. Where it goes
    on, the next draft brings E[next weight] = Σ min(weight·p, q) = weight - A, by induction however each branch ends; of the
    other 1 - weight + A the test above takes A. So it is `weight` at every prefix, which is all that the proof of losslessness
    uses, and never less than tokenwise's product of min(1, p/q). For drafts that were certain (q = 1) the two are equal.
    """
    count, kept, weight, kept_weight = len(drafts), 0, 1.0, 1.0
    for i, x in enumerate(drafts, start=1):
        ratio = float(p[i - 1, x] / q[i - 1, x])
        weight = min(weight * ratio, 1.0)
        if i < count:
            mass = float((weight * p[i] - q[i]).clamp_min(0).sum())
            rest = mass + 1.0 - weight
            chance = mass / rest if rest > 0 else 1.0  # weight 1 and p = q: nothing to correct
        else:
            chance = weight
        if uniform() < chance:
            kept, kept_weight = i, weight
    if kept == count:
        return [*drafts, draw(p[count])]
    return [*drafts[:kept], draw(excess(kept_weight * p[kept], q[kept], p[kept]))]


def excess(want: Tensor, had: Tensor, otherwise: Tensor) -> Tensor:
    """Return max(want - had, 0) over (V,), the weights to draw from after a rejection.

    Rounding can leave nothing where p = q; a rejection then had probability zero up to that rounding, and `otherwise` stands in.
    """
    left = (want - had).clamp_min(0)
    return left if bool(left.sum() > 0) else otherwise


def one_hot(token: int, vocab: int, like: Tensor) -> Tensor:
    """Return the distribution (V,) that gives `token` all the probability."""
    row = torch.zeros(vocab, dtype=like.dtype, device=like.device)
    row[token] = 1
    return row
