"""Asks a target what it thinks likely after single tokens, for a profile: what trees begin with before a text teaches more.

One pass over a tree answers for many tokens: all are children of the same root, so none sees another. Tokens that the target
wrote in calibration come first, then those with the lowest ids, which byte-pair encoding learned first because they are the most
frequent. The answers are the model's; nothing of a text is in them but which tokens were asked about first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.runtime.backends.picks import leading
from dynx.speculation.draft_vocabulary import order
from dynx.speculation.drafters.next_tokens import CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.costs import CostCurve
    from dynx.speculation.traces import Text

TOKENS_PER_PASS = 64
"""Tokens asked about in a pass: rows of logits take memory."""

MAX_TOKENS = 16384
"""Most tokens to ask about; more are rare in any text."""

MAX_FLAT_COST = 1.5
"""Cost of a pass of several tokens, in passes of one, up to which trees can pay."""


def can_pay(passes: CostCurve) -> bool:
    """Whether a pass of a few tokens costs so little more than one of one that trees can pay."""
    return passes(4) <= MAX_FLAT_COST * passes(1)


def ask(
    target: Backend, texts: Sequence[Text], root: int, *, budget: float, clock: Callable[[], float]
) -> dict[int, list[int]]:
    """Return the likeliest next tokens after each of the tokens asked about in `budget` seconds, all of them after `root`."""
    if not target.can_tree.value or not texts:
        return {}
    began, out = clock(), dict[int, list[int]]()
    wanted = order([(text.tokens, text.prompt) for text in texts], min(target.vocab, MAX_TOKENS))
    session = target.open()
    for start in range(0, len(wanted), TOKENS_PER_PASS):
        part = wanted[start : start + TOKENS_PER_PASS]
        rows = session.forward_tree([root, *part], [0] * len(part), picks=True)
        for row, token in enumerate(part, start=1):
            if found := leading(rows, row, CANDIDATES):
                out[token] = found
        session.rollback(0)
        if clock() - began > budget:
            break
    return out


def to_json(found: Mapping[int, Sequence[int]]) -> dict[str, list[int]]:
    """Return the candidates as a profile stores them."""
    return {str(token): list(candidates) for token, candidates in found.items()}


def from_json(stored: Any, vocab: int) -> dict[int, tuple[int, ...]]:
    """Read what `to_json` wrote; anything else, and tokens that the model lacks, are left out."""
    try:
        found = {int(token): tuple(map(int, candidates)) for token, candidates in stored.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
    return {
        token: candidates
        for token, candidates in found.items()
        if 0 <= token < vocab and candidates and all(0 <= each < vocab for each in candidates[:CANDIDATES])
    }
