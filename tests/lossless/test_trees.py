"""Trees of candidates: a pass over a tree gives its chains' logits, and the text is plain decoding's, whatever the tree."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import ROLLING, VOCAB, Bushy, Stub, generated, perturbed, tiny
from torch import Tensor

from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.acceptance import verify_greedy
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.engine import Drafters, Engine, Run
from dynx.speculation.policy import Plain
from dynx.speculation.tree import depths, visible, walk
from dynx.speculation.types import Request, Sampling
from dynx.speculation.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROMPT = (7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18)
LONG = 64
NO_TREES = {"bloom"}
"""Architectures that compute positions from the mask."""


def ids(run: Run) -> list[int]:
    return [token.id for token in run if token.id >= 0]


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draft tokens and their parents."""
    count = draw(st.integers(0, 8))
    parents = [draw(st.integers(0, i)) for i in range(count)]
    return [draw(st.integers(0, 3)) for _ in range(count)], parents


@given(tree=trees(), seed=st.integers(0, 99))
def test_a_walk_takes_what_the_target_takes(tree: tuple[list[int], list[int]], seed: int) -> None:
    """Every token is the target's own at its row, each row continues the one before, and the walk ends where no child goes on."""
    drafts, parents = tree
    own = np.random.default_rng(seed).integers(0, 4, len(drafts) + 1).tolist()
    found = walk(drafts, parents, lambda row, path: own[row])

    assert found.tokens == [own[row] for row in found.rows]
    assert found.rows[0] == 0
    for before, row in itertools.pairwise(found.rows):
        assert parents[row - 1] == before
        assert drafts[row - 1] == own[before]
    last = found.rows[-1]
    assert not [i for i, p in enumerate(parents) if p == last and drafts[i] == own[last]]


@given(drafts=st.lists(st.integers(0, 2), max_size=6), seed=st.integers(0, 99))
def test_a_tree_of_one_branch_is_a_chain(drafts: list[int], seed: int) -> None:
    """The walk through a chain keeps what the rule for chains keeps."""
    own = np.random.default_rng(seed).integers(0, 3, len(drafts) + 1).tolist()

    assert walk(drafts, range(len(drafts)), lambda row, path: own[row]).tokens == verify_greedy(drafts, own.__getitem__)


def test_depths_and_views() -> None:
    """A row's depth counts the drafts on its path, and it sees that path."""
    parents = [0, 1, 0, 3, 1]

    assert depths(parents) == [len(seen) - 1 for seen in visible(parents)]
    assert visible(parents)[5] == [0, 1, 5]


class Choices:
    """Replays a function along every path of its random draws."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.widths: list[int] = []
        self.at, self.probability = 0, 1.0

    def draw(self, weights: Tensor) -> int:
        """An index in proportion to weights."""
        odds = (weights / weights.sum()).tolist()
        if self.at == len(self.script):
            self.script.append(0)
            self.widths.append(len(odds))
        choice = self.script[self.at]
        self.probability *= odds[choice]
        self.at += 1
        return choice

    def paths(self, function: Any) -> Iterator[tuple[float, tuple[int, ...]]]:
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


def logits_after(text: Sequence[int], vocab: int = 3) -> Tensor:
    """A language model whose every prefix has its own logits."""
    number = sum((t + 1) * 7**i for i, t in enumerate(text))
    return torch.randn(vocab, generator=torch.Generator().manual_seed(number), dtype=torch.float64).float() * 1.5


def tree_after(text: Sequence[int]) -> tuple[list[Draft], list[int]]:
    """A tree that depends on the text alone: siblings, the same token under several parents, and twins."""
    shape = np.random.default_rng(sum((t + 1) * 5**i for i, t in enumerate(text)))
    parents = [int(shape.integers(0, i + 1)) for i in range(int(shape.integers(0, 6)))]
    return [Draft(int(shape.integers(0, 3)), 0.0) for _ in parents], parents


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_k=2),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=0.9, repetition_penalty=1.4),
    ],
)
def test_sampled_trees_have_the_targets_distribution(sampling: Sampling) -> None:
    """Total variation between texts verified by trees and texts sampled plainly is at most 1e-6, by enumeration."""
    prompt, length = [1, 2], 3
    verifier = Verifier(Request(prompt, length, sampling), 3, 0)
    choices = Choices()
    verifier._draw = choices.draw  # type: ignore[method-assign]

    def by_trees() -> tuple[int, ...]:
        text = list(prompt)
        while len(text) < len(prompt) + length:
            drafts, parents = tree_after(text)
            views = [[text[-1], *(drafts[row - 1].token for row in seen[1:])] for seen in visible(parents)]
            rows = torch.stack([logits_after([*text[:-1], *view]) for view in views])
            text += verifier.walk(drafts, parents, rows, text).tokens
        return tuple(text[len(prompt) : len(prompt) + length])

    found: dict[tuple[int, ...], float] = {}
    for probability, text in choices.paths(by_trees):
        found[text] = found.get(text, 0.0) + probability
    plain: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(3), repeat=length):
        probability, context = 1.0, list(prompt)
        for token in text:
            p = verifier._processors.probabilities(logits_after(context)[None], context)[0]
            probability *= float(p[token])
            context.append(token)
        plain[text] = probability
    variation = sum(abs(found.get(text, 0.0) - p) for text, p in plain.items()) / 2

    assert sum(found.values()) == pytest.approx(1)
    assert variation <= 1e-6


@pytest.fixture(scope="module", params=ROLLING)
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be rolled back."""
    return str(request.param)


def test_architectures_that_take_trees(kind: str) -> None:
    """Trees are tried on loading: positions and masks of the model's own must leave room for them."""
    found = EagerBackend(tiny(kind)).can_tree

    assert found.value == (kind not in NO_TREES), found.reason


@pytest.mark.parametrize("before", [3, 40])
def test_rows_are_those_of_chains(kind: str, before: int) -> None:
    """Each row of a tree, within a sliding window and beyond it, is the row of its own chain, and so is what follows a branch."""
    if kind in NO_TREES:
        pytest.skip("no trees")
    backend = EagerBackend(tiny(kind))
    text = [(5 * i + 2) % VOCAB for i in range(before)]
    tokens, parents = [9, 4, 33, 12, 50, 8, 21], [0, 1, 0, 3, 1, 4]
    for row, path in enumerate(visible(parents)):
        chain, own = backend.open(), backend.open()
        chain.forward(text)
        own.forward(text)
        want = chain.forward([tokens[i] for i in path])
        rows = own.forward_tree(tokens, parents)
        assert isinstance(rows, Tensor)
        torch.testing.assert_close(rows[row], want[-1], rtol=1e-4, atol=1e-4)
        own.keep(before, path)
        torch.testing.assert_close(own.forward([3, 5]), chain.forward([3, 5]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("strict", [False, True], ids=["whole", "trunk"])
def test_trees_change_nothing(kind: str, seed: int, strict: bool) -> None:
    """Arbitrary trees beside arbitrary drafts leave the greedy text as it was, in float32, token for token.

    Also where rows beside the trunk are no more than drafts.
    """
    backend = EagerBackend(tiny(kind))
    backend.exact_trunk = strict
    engine = Engine(backend, Drafters(trees=True))
    for _ in range(2):  # the second time its own candidates are known
        policy = Bushy(seed)
        run = engine.start(Request(PROMPT, LONG), policy)
        assert ids(run) == generated(kind, PROMPT, LONG)
    assert bool(policy.trees) == (kind not in NO_TREES)
    assert bool(run.receipt().tree_forwards) == bool(policy.trees)


@pytest.mark.parametrize("seed", range(2))
def test_a_draft_models_trees_change_nothing(kind: str, seed: int) -> None:
    """Nor do a draft model's second choices beside its drafts, alone or with lookup."""
    small = EagerBackend(perturbed(tiny(kind)))
    engine = Engine(EagerBackend(tiny(kind)), Drafters(small, lookup=bool(seed), trees=True))
    run = engine.start(Request(PROMPT, LONG), Bushy(seed))

    assert ids(run) == generated(kind, PROMPT, LONG)


def test_seeded_sampling_is_the_seeds(kind: str) -> None:
    """With a seed the text is the one that plain decoding samples with it, whatever the trees."""
    request = Request(PROMPT, 40, Sampling(temperature=0.8, seed=5))
    engine = Engine(EagerBackend(tiny(kind)), Drafters(trees=True))
    plain = ids(engine.start(request, Plain()))

    assert ids(engine.start(request, Bushy(1))) == plain
    assert ids(engine.start(request, Bushy(2))) == plain


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_settings_that_depend_on_the_text(seed: int) -> None:
    """Repetition penalties and the like see the path to each row, and no sibling."""
    request = Request(PROMPT, 32, Sampling(repetition_penalty=1.3))
    engine = Engine(EagerBackend(tiny("llama")), Drafters(trees=True))

    assert ids(engine.start(request, Bushy(seed))) == ids(engine.start(request, Plain()))


def test_no_trees_where_they_are_off() -> None:
    """`Drafters.trees` turns them off, and a backend without them has none."""
    off = Engine(EagerBackend(tiny("llama")), Drafters())
    stub = Engine(Stub(VOCAB, lambda text: torch.zeros(VOCAB)), Drafters(trees=True))

    assert off.start(Request(PROMPT, 4)).trees is None
    assert stub.start(Request(PROMPT, 4)).trees is None
