"""Makes trees of candidates: which ones a pass of the target verifies beside the drafts of a chain, or in the place of the last.

Candidates are the drafts of the round's own drafter, what followed the last tokens earlier in the text, what followed the last
two in texts of calibration (`drafters.followers`), and what the target itself thought likely after a token
(`drafters.next_tokens`). Each has a probability to be accepted if its parent is. Those of the drafter's own come from the policy.
The others' are learned here, by how many tokens matched and at which rank the target had them, apart for candidates that have a
draft beside them: these count only where that one is rejected.

The likeliest nodes are taken first, by the product along their path, and the policy decides how many: as many as maximise
1 + Σ P(node) - λ·T(n + 1), under the same budget as any round. A round that no other candidate improves is left as it was.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.backends.picks import leading
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.drafters.next_tokens import CANDIDATES, NextTokens
from dynx.speculation.drafters.ngram_index import ORDER
from dynx.speculation.tree import Branches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

MAX_NODES = 24
"""Most candidates of a pass."""

MIN_BELIEF = 0.01
"""Probability below which no candidate is considered."""

MEMORY = 400.0
"""Candidates of a kind that its rate of acceptance remembers."""

PRIOR_CANDIDATES = 20.0
"""Candidates of a kind that its first estimate counts for."""

RANKS = CANDIDATES + 1
"""Ranks in the target's own candidates, and one for those that aren't among them."""

OTHER_CHOICE, WRITTEN = 4, 5
"""Stand for tokens matched where a candidate is a draft model's next choice, or followed the pair in texts of calibration."""

# Acceptance by tokens matched in the text (0 to 3) and rank among the target's own candidates (0 to 3, or none), of a 135 M chat
# model's answers to 48 questions of Spec-Bench (tests/speculation/data); then, by their rank, of a draft model's next choices and
# of what followed a pair most often.
FIRST_BELIEFS: tuple[tuple[float, ...], ...] = (
    (0.12, 0.055, 0.03, 0.022, 0.0),
    (0.20, 0.20, 0.13, 0.10, 0.056),
    (0.52, 0.32, 0.20, 0.20, 0.18),
    (0.80, 0.55, 0.53, 0.53, 0.58),
    (0.0, 0.35, 0.15, 0.08, 0.0),
    (0.35, 0.12, 0.06, 0.04, 0.0),
)

CARRIED_BELIEF = 0.97
"""Probability that a token of a row beside the trunk is the one of the row that decides."""

BESIDE_FACTOR = 1.3
"""First estimate of a candidate beside a rejected draft, over that of one by itself."""


@dataclass
class Beliefs:
    """Rates of acceptance by kind of candidate, as learned so far; all texts of an engine share them."""

    rates: list[float] = field(
        default_factory=lambda: [
            min(0.9, p * factor) for factor in (1.0, BESIDE_FACTOR) for row in FIRST_BELIEFS for p in row
        ]
    )
    counts: list[float] = field(default_factory=lambda: [PRIOR_CANDIDATES] * (2 * len(FIRST_BELIEFS) * RANKS))

    def kind(self, matched: int, rank: int, *, beside: bool) -> int:
        """Return the number of a kind."""
        return (beside * len(FIRST_BELIEFS) + matched) * RANKS + rank

    def begin(self, matched: int, rates: Sequence[float]) -> None:
        """Begin with known rates of candidates, by rank."""
        for beside in (False, True):
            for rank, rate in enumerate(rates):
                self.rates[self.kind(matched, rank, beside=beside)] = rate

    def observe(self, kind: int, *, accepted: bool) -> None:
        """Learn from a candidate whose parent was accepted."""
        count = self.counts[kind] = min(self.counts[kind] + 1, MEMORY)
        self.rates[kind] += (accepted - self.rates[kind]) / count


class Trees:
    """Makes the trees of a text.

    `followers` gives what followed the last tokens of a sequence earlier in it, `written` what followed two tokens elsewhere.
    """

    def __init__(
        self,
        table: NextTokens,
        beliefs: Beliefs,
        followers: Callable[[Sequence[int]], Sequence[tuple[int, int]]] = lambda _: (),
        most: Callable[[int], int | None] = lambda _: None,
        *,
        strict: bool = False,
        written: Callable[[int, int], Sequence[int]] = lambda _before, _token: (),
    ) -> None:
        self._table, self._beliefs, self._followers, self._most = table, beliefs, followers, most
        self._written = written
        self.strict = strict
        """Whether tokens of rows beside the trunk are drafts of the next pass."""
        self.passes = self.nodes = self.tokens = 0
        """Passes that verified trees, their candidates, and the tokens that came of them."""

    def see(self, before: Sequence[int], rows: Tensor | list[int], path: Sequence[int]) -> None:
        """Keep the target's candidates after the tokens `before`, by their rows `path` (by default 0, 1, …)."""
        for i, token in enumerate(before):
            found = leading(rows, path[i] if path else i, CANDIDATES)
            if found:
                self._table.see(token, found)

    def grow(
        self,
        policy: object,
        text: Sequence[int],
        drafts: Sequence[Draft],
        context: int,
        room: int,
        *,
        carried: bool = False,
    ) -> tuple[list[Draft], Branches] | None:
        """Return the drafts and the tree to verify in the place of a chain of `drafts`; None where the chain is as good.

        `carried`: the drafts are tokens of rows beside the trunk of the pass before.
        """
        size = getattr(policy, "tree_size", None)
        if size is None:
            return None
        limit = self._most(context)
        most = MAX_NODES if limit is None else min(MAX_NODES, limit - 1)
        survival: Sequence[float] = [CARRIED_BELIEF] * len(drafts)
        if drafts and not carried:
            survival = policy.survival_of(len(drafts))  # type: ignore[attr-defined]
        nodes = self._nodes(text, drafts, survival, most, room)
        if not nodes:
            return None
        count = size([node.belief for node in nodes], survival, context)
        nodes = nodes[:count]
        if all(node.kind < 0 for node in nodes):
            return None
        return _ordered(nodes, drafts)

    def learn(self, branches: Branches, path: Sequence[int]) -> None:
        """Learn which candidates of a verified tree were accepted; `path` are the rows that gave tokens."""
        beliefs, accepted = self._beliefs, set(path)
        chain = {branches.parents[i]: i + 1 for i in range(branches.chain)}
        for row, (parent, kind) in enumerate(zip(branches.parents, branches.kinds, strict=True), start=1):
            if kind >= 0 and parent in accepted and chain.get(parent) not in accepted:
                beliefs.observe(kind, accepted=row in accepted)

    def count(self, branches: Branches, tokens: int) -> None:
        """Count a pass over a tree, and the tokens that came of it."""
        self.passes += 1
        self.nodes += len(branches.parents)
        self.tokens += tokens

    def _nodes(
        self, text: Sequence[int], drafts: Sequence[Draft], survival: Sequence[float], most: int, room: int
    ) -> list[_Node]:
        """Return the likeliest nodes, the likeliest first and parents before children."""
        rates = self._beliefs.rates
        start = list(text[-ORDER:])
        out: list[_Node] = []
        heap: list[tuple[float, int, int, int, int, list[int], int, int]] = []
        number = 0

        def push(belief: float, token: int, parent: int, kind: int, tail: list[int], depth: int, link: int) -> None:
            nonlocal number
            number += 1
            heapq.heappush(heap, (-belief, number, token, parent, kind, tail, depth, link))

        def expand(parent: int, belief: float, tail: list[int], depth: int, link: int) -> None:
            """Push the children of a node; `link` is its place in the chain, -1 for nodes beside it."""
            own = -1
            left = belief
            if 0 <= link < len(drafts):
                own = drafts[link].token
                after = survival[link]
                push(after, own, parent, -1, [*tail[1 - ORDER :], own], depth + 1, link + 1)
                left = max(0.0, belief - after)
            if left < MIN_BELIEF:
                return
            others = drafts[link].others if own >= 0 else ()
            for token, kind in self._candidates(tail, own, others):
                push(left * rates[kind], token, parent, kind, [*tail[1 - ORDER :], token], depth + 1, -1)

        expand(0, 1.0, start, 0, 0 if drafts else -1)
        while heap and len(out) < most:
            negative, _, token, parent, kind, tail, depth, link = heapq.heappop(heap)
            if -negative < MIN_BELIEF:
                break
            out.append(_Node(token, parent, kind, -negative))
            if depth < room:
                expand(len(out), -negative, tail, depth, link)
        return out

    def _candidates(self, tail: Sequence[int], own: int, others: Sequence[int]) -> list[tuple[int, int]]:
        """Return the tokens that may follow `tail` beside the draft `own` (-1: none), and their kinds."""
        beliefs, beside, found = self._beliefs, own >= 0, dict[int, int]()
        for rank, token in enumerate(others[: CANDIDATES - 1], start=1):
            found[token] = beliefs.kind(OTHER_CHOICE, rank, beside=beside)
        ranks = {token: rank for rank, token in enumerate(self._table.after(tail[-1]))}
        if len(tail) > 1:
            for rank, token in enumerate(self._written(tail[-2], tail[-1])):
                found.setdefault(token, beliefs.kind(WRITTEN, rank, beside=beside))
        for matched, token in self._followers(tail):
            kind = beliefs.kind(matched, ranks.get(token, CANDIDATES), beside=beside)
            if token not in found or beliefs.rates[kind] > beliefs.rates[found[token]]:
                found[token] = kind
        for token, rank in ranks.items():
            found.setdefault(token, beliefs.kind(0, rank, beside=beside))
        found.pop(own, None)
        return list(found.items())


@dataclass(frozen=True, slots=True)
class _Node:
    token: int
    parent: int  # 0: the text's last token; i + 1: node i
    kind: int  # -1: of the chain
    belief: float


def _ordered(nodes: Sequence[_Node], drafts: Sequence[Draft]) -> tuple[list[Draft], Branches]:
    """Put the trunk first: the drafter's own nodes, then the likeliest child of each."""
    trunk: list[int] = []
    for i, node in enumerate(nodes):
        if node.parent == (trunk[-1] + 1 if trunk else 0) and (node.kind < 0 or not _continued(nodes, node.parent)):
            trunk.append(i)
    on_trunk = set(trunk)
    order = [*trunk, *(i for i in range(len(nodes)) if i not in on_trunk)]
    place = {0: 0, **{i + 1: at for at, i in enumerate(order, start=1)}}
    chosen = [nodes[i] for i in order]
    chain = sum(node.kind < 0 for node in nodes)
    out = [*drafts[:chain], *(Draft(node.token, node.belief) for node in chosen[chain:])]
    parents = tuple(place[node.parent] for node in chosen)
    return out, Branches(parents, len(trunk), chain, tuple(node.kind for node in chosen))


def _continued(nodes: Sequence[_Node], parent: int) -> bool:
    """Whether the drafter's own chain goes on at `parent`."""
    return any(node.kind < 0 and node.parent == parent for node in nodes)
