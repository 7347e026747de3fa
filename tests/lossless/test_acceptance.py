"""Acceptance rules: the text's distribution is the target's, exactly, and a rule that is slightly wrong is caught."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynx.speculation.acceptance import excess, one_hot, verify_block, verify_greedy, verify_tokenwise

V = 3
LONGEST = 3
Rule = Callable[..., list[int]]
Model = Callable[[tuple[int, ...]], Tensor]
Uniform = Callable[[], "Chance"]
Draw = Callable[[Tensor], int]
Stop = Callable[[tuple[int, ...]], bool]
TOLERANCE = 1e-6


class Chance:
    """Stands for a uniform draw; comparing it asks the oracle which way to go and notes the odds."""

    def __init__(self, oracle: Oracle, scale: float = 1.0) -> None:
        self.oracle, self.scale = oracle, scale

    def __mul__(self, scale: object) -> Chance:
        return Chance(self.oracle, self.scale * float(scale))  # type: ignore[arg-type]

    def __lt__(self, bar: object) -> bool:
        below = min(max(float(bar) / self.scale, 0.0), 1.0) if self.scale > 0 else float(float(bar) > 0)  # type: ignore[arg-type]
        return self.oracle.choose([below, 1 - below]) == 0

    def __ge__(self, bar: object) -> bool:
        return not self < bar


class Oracle:
    """Replays a function along every path of its random choices."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.at = 0
        self.widths: list[int] = []
        self.probability = 1.0

    def choose(self, odds: Sequence[float]) -> int:
        """Which of several ways this path takes; notes its probability."""
        if self.at == len(self.script):
            self.script.append(0)
            self.widths.append(len(odds))
        choice = self.script[self.at]
        self.probability *= odds[choice]
        self.at += 1
        return choice

    def uniform(self) -> Chance:
        """A uniform draw."""
        return Chance(self)

    def draw(self, weights: Tensor) -> int:
        """An index in proportion to weights."""
        return self.choose((weights / weights.sum()).tolist())

    def paths(self, function: Callable[[], list[int]]) -> Iterator[tuple[float, list[int]]]:
        """Every path's probability and result."""
        while True:
            self.at, self.probability = 0, 1.0
            out = function()
            yield self.probability, out
            while self.script and self.script[-1] + 1 == self.widths[-1]:
                self.script.pop()
                self.widths.pop()
            if not self.script:
                return
            self.script[-1] += 1


def random_model(seed: int, sharpness: float) -> Model:
    """A language model over V tokens: each prefix has its own distribution."""
    rows: dict[tuple[int, ...], Tensor] = {}

    def row(prefix: tuple[int, ...]) -> Tensor:
        if prefix not in rows:
            number = seed * 1000 + sum((t + 1) * 5**i for i, t in enumerate(prefix))
            generator = torch.Generator().manual_seed(number)
            rows[prefix] = (torch.randn(V, generator=generator, dtype=torch.float64) * sharpness).softmax(-1)
        return rows[prefix]

    return row


def joint(model: Model, length: int) -> dict[tuple[int, ...], float]:
    """The distribution of the first `length` tokens."""
    out = {}
    for text in itertools.product(range(V), repeat=length):
        probability = 1.0
        for i in range(length):
            probability *= float(model(text[:i])[text[i]])
        out[text] = probability
    return out


def speculated(rule: Rule, p: Model, q: Model, stop: Stop) -> dict[tuple[int, ...], float]:
    """The distribution of the first LONGEST+1 tokens of one round of `rule`, what is missing drawn from the target.

    `stop` decides from the drafts so far whether another is drawn.
    """
    total: dict[tuple[int, ...], float] = dict.fromkeys(itertools.product(range(V), repeat=LONGEST + 1), 0.0)

    def one_round(drafts: tuple[int, ...], weight: float) -> None:
        if len(drafts) < LONGEST and not stop(drafts):
            for x in range(V):
                chance = float(q(drafts)[x])
                if chance > 0:
                    one_round((*drafts, x), weight * chance)
            return
        k = len(drafts)
        q_rows = torch.stack([q(drafts[:i]) for i in range(k)]) if k else torch.empty(0, V, dtype=torch.float64)
        p_rows = torch.stack([p(drafts[:i]) for i in range(k + 1)])
        oracle = Oracle()
        for chance, out in oracle.paths(lambda: rule(list(drafts), q_rows, p_rows, oracle.uniform, oracle.draw)):
            if chance:
                finish(tuple(out), weight * chance)

    def finish(text: tuple[int, ...], weight: float) -> None:
        if len(text) == LONGEST + 1:
            total[text] += weight
            return
        for x in range(V):
            finish((*text, x), weight * float(p(text)[x]))

    one_round((), 1.0)
    return total


def distance(a: dict[tuple[int, ...], float], b: dict[tuple[int, ...], float]) -> float:
    """Total variation."""
    return sum(abs(a[k] - b[k]) for k in a) / 2


STOPS: list[Stop] = [
    lambda d: False,
    lambda d: len(d) >= 1,
    lambda d: sum(d) >= 2,  # depends on what was drawn: a stopping time, as confidence is
    lambda d: bool(d) and d[-1] == 0,
]


def worst(rule: Rule) -> float:
    """The largest total variation over drafters, targets and stopping rules."""
    pairs = [(random_model(1, 1.0), random_model(2, 1.0)), (random_model(3, 2.5), random_model(4, 0.4))]
    pairs.append((pairs[0][0], pairs[0][0]))  # p = q: nothing is ever rejected, and nothing may divide by zero
    pairs.append((pairs[0][0], lambda d: one_hot((len(d) * 2 + sum(d)) % V, V, torch.empty(0, dtype=torch.float64))))
    target, drafter = pairs[1]
    pairs.append((lambda d: _without_one(target(d)), drafter))
    return max(distance(speculated(rule, p, q, stop), joint(p, LONGEST + 1)) for p, q in pairs for stop in STOPS)


def _without_one(row: Tensor) -> Tensor:
    """What top-k leaves: a zero in the support."""
    cut = row.clone()
    cut[int(cut.argmin())] = 0
    return cut / cut.sum()


@pytest.mark.parametrize("rule", [verify_tokenwise, verify_block])
def test_rule_is_lossless(rule: Rule) -> None:
    """Whatever the drafter and however it stops, total variation from the target is at most 1e-6, by enumeration."""
    assert worst(rule) <= TOLERANCE


def skip_residual(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: after a rejection draws from p instead of the excess."""
    for i, x in enumerate(drafts):
        if uniform() * q[i, x] >= p[i, x]:
            return [*drafts[:i], draw(p[i])]
    return [*drafts, draw(p[len(drafts)])]


def reuse_uniform(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: one uniform draw serves all drafts, so surviving one makes surviving the next likelier."""
    lowest = 0.0  # the draw is known to lie above the largest bar that it failed to reach, in [0, survived)
    survived = 1.0
    for i, x in enumerate(drafts):
        bar = min(float(p[i, x] / q[i, x]), 1.0)
        if bar < survived:
            chance = (bar - lowest) / (survived - lowest)
            if not uniform() < chance:
                return [*drafts[:i], draw(excess(p[i], q[i], p[i]))]
            survived = bar
    return [*drafts, draw(p[len(drafts)])]


def bonus_off_by_one(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: the token after full acceptance comes from the row before."""
    out = verify_tokenwise(drafts, q, p, lambda: uniform(), draw)  # type: ignore[arg-type, return-value]
    return [*drafts, draw(p[len(drafts) - 1])] if drafts and len(out) > len(drafts) else out


def prune_unlikely(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: drops a sampled tail because its tokens look unlikely to the drafter, the trap named in the module."""
    keep = next((i for i, x in enumerate(drafts) if q[i, x] < 0.3), len(drafts))
    return verify_tokenwise(drafts[:keep], q[:keep], p[: keep + 1], uniform, draw)  # type: ignore[arg-type]


def block_without_memory(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: block verification whose residual forgets the running weight."""
    count, kept, weight = len(drafts), 0, 1.0
    for i, x in enumerate(drafts, start=1):
        weight = min(weight * float(p[i - 1, x] / q[i - 1, x]), 1.0)
        mass = float((weight * p[i] - q[i]).clamp_min(0).sum()) if i < count else 0.0
        chance = weight if i == count else (mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1.0)
        if uniform() < chance:
            kept = i
    if kept == count:
        return [*drafts, draw(p[count])]
    return [*drafts[:kept], draw(excess(p[kept], q[kept], p[kept]))]


@pytest.mark.parametrize(
    "mutant",
    [skip_residual, reuse_uniform, bonus_off_by_one, prune_unlikely, block_without_memory],
    ids=lambda f: f.__name__,
)
def test_mutants_are_caught(mutant: Rule) -> None:
    """Each of five plausible mistakes moves the distribution by far more than the tolerance."""
    assert worst(mutant) > 1000 * TOLERANCE


def expected_kept(rule: Rule, p: Model, q: Model, stop: Stop = STOPS[0]) -> float:
    """Mean number of tokens that a round of at most LONGEST drafts appends."""
    total = 0.0

    def one_round(drafts: tuple[int, ...], weight: float) -> None:
        nonlocal total
        k = len(drafts)
        if k < LONGEST and not stop(drafts):
            for x in range(V):
                if chance := float(q(drafts)[x]):
                    one_round((*drafts, x), weight * chance)
            return
        q_rows = torch.stack([q(drafts[:i]) for i in range(k)]) if k else torch.empty(0, V, dtype=torch.float64)
        p_rows = torch.stack([p(drafts[:i]) for i in range(k + 1)])
        oracle = Oracle()
        call = partial(rule, list(drafts), q_rows, p_rows, oracle.uniform, oracle.draw)
        total += sum(weight * chance * len(out) for chance, out in oracle.paths(call))

    one_round((), 1.0)
    return total


@pytest.mark.parametrize("stop", STOPS, ids=["never", "length", "sum", "token"])
@pytest.mark.parametrize("seed", range(6))
def test_block_keeps_at_least_as_many(seed: int, stop: Stop) -> None:
    """Block verification's expected tokens per round are never below tokenwise acceptance's, however drafting stops."""
    p, q = random_model(seed, 1.5), random_model(seed + 50, 1.0)

    assert expected_kept(verify_block, p, q, stop) >= expected_kept(verify_tokenwise, p, q, stop) - 1e-9


@pytest.mark.parametrize("stop", STOPS, ids=["never", "length", "sum", "token"])
def test_block_is_tokenwise_for_certain_drafters(stop: Stop) -> None:
    """A drafter that can say only one thing, as lookup, has as many of its drafts kept under either rule."""
    p = random_model(7, 1.5)

    def certain(drafts: tuple[int, ...]) -> Tensor:
        return one_hot((len(drafts) * 2 + sum(drafts)) % V, V, torch.empty(0, dtype=torch.float64))

    block, tokenwise = (expected_kept(rule, p, certain, stop) for rule in (verify_block, verify_tokenwise))
    assert block == pytest.approx(tokenwise, abs=1e-12)


def test_block_gains_somewhere() -> None:
    """On at least one pair block verification keeps strictly more, or preferring it would be pointless."""
    gains = [
        expected_kept(verify_block, p, q) - expected_kept(verify_tokenwise, p, q)
        for p, q in ((random_model(s, 1.5), random_model(s + 50, 1.0)) for s in range(6))
    ]

    assert max(gains) > 0.01


@given(st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(0, 5), min_size=7, max_size=7))
@settings(max_examples=200, deadline=None)
def test_picked_tokens_are_the_targets(drafts: list[int], picks: list[int]) -> None:
    """Greedy and coupled acceptance append the target's own picks, as many as drafts matched, plus one."""
    out = verify_greedy(drafts, lambda i: picks[i])

    matched = next((i for i, d in enumerate(drafts) if d != picks[i]), len(drafts))
    assert out == picks[: matched + 1]


def test_excess_of_equal_rows_falls_back() -> None:
    """p = q leaves no residual; the stand-in is drawn from instead of dividing by zero."""
    row = torch.tensor([0.5, 0.5])

    assert excess(row, row, row) is row
