"""A drafter's second choices: what it would draft without its first, wherever drafts are certain."""

from __future__ import annotations

import pytest
import torch
from support.models import VOCAB, Bushy, perturbed, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.drafters.batch import BatchDrafter, SharedModelDrafter
from dynx.speculation.drafters.draft_sampler import OTHER_CHOICES, DraftSampler
from dynx.speculation.drafters.model import ModelDrafter
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain
from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise
from dynx.speculation.types import Request, Sampling

PROMPT = (7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18)
SETTINGS = [
    Sampling(),
    Sampling(repetition_penalty=1.4),
    Sampling(temperature=0.8, seed=5),
    Sampling(1.2, top_k=9, seed=3),
]


def sampler(sampling: Sampling) -> DraftSampler:
    noise = None if sampling.seed is None else SeededGumbelNoise(sampling.seed, VOCAB)
    return DraftSampler(LogitsProcessors(sampling), noise, seed=0)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_others_are_drafted_without_those_before(sampling: Sampling) -> None:
    """Each next choice is the draft of the same row with the choices before it left out."""
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 3
    pick = sampler(sampling)
    draft = pick(row.clone(), PROMPT, [3], 2)

    left, found = row.clone(), []
    for _ in range(3):
        found.append(pick(left, PROMPT, [3]).token)
        left[found[-1]] = -1e9
    if sampling.top_k:  # leaving a token out lets another one in
        assert draft.token == found[0]
    else:
        assert [draft.token, *draft.others] == found


def test_others_have_a_chance() -> None:
    """A choice that sampling's filters exclude isn't among them."""
    row = torch.zeros(VOCAB)
    row[5] = 9.0

    assert sampler(Sampling(1.0, top_k=1, seed=2))(row, PROMPT, [], 2).others == []


def test_drawn_drafts_have_none() -> None:
    """A draft that is drawn comes with its distribution, and with no others."""
    draft = sampler(Sampling(1.0))(torch.zeros(VOCAB), PROMPT, [], 2)

    assert draft.probabilities is not None
    assert not draft.others


@pytest.mark.parametrize("sampling", SETTINGS[:3], ids=str)
def test_batches_have_the_same(sampling: Sampling) -> None:
    """A draft model that several texts share gives the second choices that it gives each alone."""
    backend = EagerBackend(perturbed(tiny("llama")))
    alone = ModelDrafter(backend, sampler(sampling), VOCAB)
    shared = SharedModelDrafter(BatchDrafter(backend, VOCAB), sampler(sampling))
    for drafter in (alone, shared):
        drafter.reset()
        drafter.sync(list(PROMPT))
    for _ in range(3):
        want, found = alone.propose(), shared.propose()
        assert want is not None
        assert found is not None
        assert (found.token, list(found.others)) == (want.token, list(want.others))
        assert len(found.others) == OTHER_CHOICES


@pytest.mark.parametrize("seed", range(2))
def test_seeded_trees_are_the_seeds(seed: int) -> None:
    """Trees of a draft model's choices leave the text that plain decoding samples with a seed, and some are second choices."""
    request = Request(PROMPT, 48, Sampling(temperature=0.9, seed=11))
    target = EagerBackend(tiny("llama"))
    engine = Engine(target, Drafters(EagerBackend(perturbed(tiny("llama"))), lookup=False, trees=True))
    policy = Bushy(seed)
    run = engine.start(request, policy)

    assert [t.id for t in run] == [t.id for t in engine.start(request, Plain())]
    assert policy.trees
