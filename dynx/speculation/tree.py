"""A tree of candidates for one verification pass, and the walk through it once the target has answered.

The pass has a row for each node. Row 0 is the text's last token, row i + 1 draft i; `parents[i]` is the row that draft i
continues, and every parent comes before its children. A chain, in which each draft continues the one before it, is a tree of
one branch.

Candidates are fixed before the target's tokens are known, so the walk is exact under every rule that names a token at a row:
the argmax, the token of a seed's noise, or a token drawn from the row's distribution. That token is appended, and where a child
has it, its row goes on. No ratio is needed. At each row the chance to go on is the sum of the target's probabilities of
its children, the most that any rule gives for candidates that are certain.

Beside the trunk, the chain with which a tree begins, keys lie at other places than in a chain's pass, and sums are rounded in
another order. Where a text must be plain decoding's to the bit, tokens of rows beside the trunk are drafts of the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.speculation.round_costs import Costs


@dataclass(frozen=True)
class Walk:
    """The tokens to append, the last of them the target's own, and the rows that gave them, one each, from 0 on."""

    tokens: list[int]
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Branches:
    """The shape of a tree whose drafts are verified: for each the row that it continues.

    The first `trunk` drafts are a chain, and of these the first `chain` those of the round's own drafter. Rows up to there are
    computed as in a pass over a chain, whatever else the tree has.
    """

    parents: tuple[int, ...]
    trunk: int
    chain: int
    kinds: tuple[int, ...] = ()  # by draft: what is learned of it; -1 for the drafter's own


def depths(parents: Sequence[int]) -> list[int]:
    """Return the number of drafts up to each row, its own included: 0 for row 0.

    >>> depths([0, 1, 0])
    [0, 1, 2, 1]
    """
    out = [0]
    for parent in parents:
        out.append(out[parent] + 1)
    return out


def is_chain(parents: Sequence[int]) -> bool:
    """Whether each draft continues the one before it."""
    return all(parent == row for row, parent in enumerate(parents))


def visible(parents: Sequence[int]) -> list[list[int]]:
    """Return for each row the rows that it attends to: its ancestors and itself, in order.

    >>> visible([0, 1, 0])
    [[0], [0, 1], [0, 1, 2], [0, 3]]
    """
    out = [[0]]
    for row, parent in enumerate(parents, start=1):
        out.append([*out[parent], row])
    return out


def walk(drafts: Sequence[int], parents: Sequence[int], pick: Callable[[int, Sequence[int]], int]) -> Walk:
    """Follow the target's own tokens through the tree; `pick(row, path)` gives its token at a row after the drafts on `path`.

    >>> walk([4, 5, 6], [0, 1, 0], lambda row, path: [6, 0, 0, 7][row])
    Walk(tokens=[6, 7], rows=[0, 3])
    """
    children: dict[tuple[int, int], int] = {}
    for at, (token, parent) in enumerate(zip(drafts, parents, strict=True), start=1):
        children.setdefault((parent, token), at)
    tokens: list[int] = []
    rows = [0]
    while True:
        token = pick(rows[-1], tokens)
        child = children.get((rows[-1], token))
        tokens.append(token)
        if child is None:
            return Walk(tokens, rows)
        rows.append(child)


def best_size(
    costs: Costs,
    price: float,
    regret_budget: float,
    beliefs: Sequence[float],
    survival: Sequence[float],
    context: int,
) -> int:
    """Return how many nodes, the likeliest first, bring most tokens for their time at `price` tokens a second.

    0 where the chain of drafts with `survival` brings as much, or where the pass could cost more than `regret_budget` plain
    passes allow.
    """
    if not costs.target.known or (costs.foreign and not costs.widest_here):
        return 0
    chain, most = len(survival), min(len(beliefs), costs.max_drafts("lookup"))
    passes = costs.verifying("lookup", max(most, chain), context)
    limit = (regret_budget + 1) * costs.target(1, context)
    best, best_worth, tokens = 0, 1 + sum(survival) - price * passes[chain], 1.0
    for n, belief in enumerate(beliefs[:most], start=1):
        tokens += belief
        worth = tokens - price * passes[n]
        if worth > best_worth and passes[n] + costs.extra_risk("lookup", n, context) <= limit:
            best, best_worth = n, worth
    return best
