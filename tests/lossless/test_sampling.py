"""Sampling: with a seed the text is plain decoding's, without one its distribution is; transformers' knobs mean the same here.

The chi-square tests state what they can see. Their draws are seeded, so that they pass or fail for good.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.made_tokenizers import letters
from support.models import Stub, Whim, perturbed, reference, tiny

from dynx.errors import UsageError
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation import verifier as verifier_module
from dynx.speculation.acceptance import excess, verify_block
from dynx.speculation.drafters import translated
from dynx.speculation.drafters.translated import TranslatedBackend
from dynx.speculation.drafters.translation import Translation
from dynx.speculation.engine import Drafters, Engine, Run
from dynx.speculation.policy import Plain, Policy, Static
from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

PROMPT = (7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18)

SETTINGS = [
    Sampling(1.0),
    Sampling(0.7, top_k=5),
    Sampling(1.3, top_p=0.8),
    Sampling(0.9, top_k=20, top_p=0.9, repetition_penalty=1.2),
]


def ids(run: Run) -> list[int]:
    return [token.id for token in run]


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(repetition_penalty=1.3)], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_are_generates(kind: str, sampling: Sampling) -> None:
    """Temperature, top-k, top-p and penalty give, position by position, the scores that transformers' `generate` reports."""
    model, prompt = reference(kind), torch.tensor([PROMPT])
    torch.manual_seed(3)
    knobs: dict[str, Any] = {"do_sample": False}
    if not sampling.greedy:
        knobs = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **knobs,
    )
    written = out.sequences[0, len(PROMPT) :].tolist()
    rows = torch.cat(out.logits)

    # All rows of a round at once, the text's own tokens as drafts.
    got = LogitsProcessors(sampling).scores(rows, PROMPT, written[:-1])
    torch.testing.assert_close(got, torch.cat(out.scores), rtol=0, atol=0)


def test_scores_leave_logits_alone() -> None:
    """The rows that come in are not changed: the caller may still need them."""
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    before = rows.clone()
    LogitsProcessors(Sampling(0.5, top_k=3, repetition_penalty=1.5)).scores(rows, [1, 2], [3, 4])

    assert torch.equal(rows, before)
    assert LogitsProcessors(Sampling()).is_identity
    assert not LogitsProcessors(Sampling(repetition_penalty=1.1)).is_identity


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral", "bloom"])
def test_seeded_text_is_plains(kind: str, sampling: Sampling) -> None:
    """With a seed every drafter and policy writes exactly what plain decoding writes with it."""
    target, drafter = EagerBackend(tiny(kind)), EagerBackend(perturbed(tiny(kind)))
    engine = Engine(target, Drafters(model=drafter, exit_layers=1))
    seeded = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, seed=17)
    request = Request(PROMPT, 40, seeded)
    want = ids(engine.start(request, Plain()))
    policies: list[Policy | None] = [Static("draft", 4), Static("self", 3), Static("lookup", 5), Whim(1), None, None]
    for policy in policies:
        assert ids(engine.start(request, policy)) == want


def test_drafts_are_sometimes_right() -> None:
    """With a seed and without one drafts are kept now and then, or the tests around this one show nothing."""
    target, drafter = EagerBackend(tiny("llama")), EagerBackend(perturbed(tiny("llama"), 0.2))
    engine = Engine(target, Drafters(model=drafter, lookup=False), entropy=itertools.count(1).__next__)
    rates = []
    for seed in (11, None):
        run = engine.start(Request(PROMPT, 100, Sampling(1.0, seed=seed)), Static("draft", 3))
        ids(run)
        rates.append(run.tallies["draft"].acceptance or 0)

    assert 0.1 < rates[0] < 1
    assert 0.1 < rates[1] < 1


@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(repetition_penalty=1.3)], ids=str)
def test_an_equal_drafter_is_always_right(sampling: Sampling, seed: int | None) -> None:
    """A drafter with the target's own weights sees temperature, filters and penalty as the target does: every draft stays."""
    engine = Engine(EagerBackend(tiny("llama")), Drafters(model=EagerBackend(tiny("llama")), lookup=False))
    engine.entropy = itertools.count(1).__next__
    run = engine.start(Request(PROMPT, 41, replace(sampling, seed=seed)), Static("draft", 4))
    ids(run)

    assert run.tallies["draft"].acceptance == 1


def test_seeds_differ() -> None:
    """Another seed is another text, and the same seed the same."""
    engine = Engine(EagerBackend(tiny("llama")))
    texts = [ids(engine.start(Request(PROMPT, 30, Sampling(1.0, seed=s)))) for s in (0, 1, 2, 2**32, 0)]

    assert texts[0] == texts[4]
    assert len({tuple(t) for t in texts}) == 4


def test_unseeded_texts_differ() -> None:
    """Without a seed two runs differ, torch's own seed being the same or not."""
    engine = Engine(EagerBackend(tiny("llama")))
    texts = set()
    for _ in range(3):
        torch.manual_seed(0)
        texts.add(tuple(ids(engine.start(Request(PROMPT, 30, Sampling(1.0))))))

    assert len(texts) == 3


def test_noise_is_of_the_position() -> None:
    """The variates of a position are the same whenever they are asked for, and unlike its neighbours'."""
    noise, again = SeededGumbelNoise(5, 50), SeededGumbelNoise(5, 50)
    first = [noise.at(i).clone() for i in range(200)]  # more than are remembered

    assert all(torch.equal(again.at(i), first[i]) for i in reversed(range(200)))
    assert len({tuple(row.tolist()) for row in first}) == 200
    assert all(bool((row > 0).all()) for row in first)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda p: sum(p) > 0.1), st.integers(0, 2**63 - 1))
@settings(max_examples=100, deadline=None)
def test_impossible_tokens_are_never_picked(weights: list[float], seed: int) -> None:
    """A token that top-k or top-p removed isn't picked, whatever the seed."""
    row = torch.tensor(weights)

    assert float(row[SeededGumbelNoise(seed, len(weights)).pick(row, 3)]) > 0


# What a chi-square test can see: with N draws over cells of d degrees of freedom, a deviation of Cohen's size
# w = sqrt(sum (p' - p)^2 / p) is missed with the probability that a noncentral chi-square (d, N w^2) stays below the bar.

ALPHA = 1e-4
"""Chance that a correct engine is called wrong, had the seeds not been fixed."""


def chi_square(counts: Mapping[Any, int], exact: Mapping[Any, float], effect: float) -> float:
    """The p-value of the counts; cells expected fewer than five times are pooled.

    0 if something impossible was written. Fails if it couldn't see a deviation of size `effect` with a probability of 0.99.
    """
    n = sum(counts.values())
    rare = [cell for cell, p in exact.items() if p * n < 5]
    expected = [p * n for cell, p in exact.items() if p * n >= 5]
    observed = [float(counts.get(cell, 0)) for cell, p in exact.items() if p * n >= 5]
    if rare:
        expected.append(sum(exact[cell] for cell in rare) * n)
        observed.append(float(sum(counts.get(cell, 0) for cell in rare)))
    degrees = len(expected) - 1
    power = stats.ncx2.sf(stats.chi2.isf(ALPHA, degrees), degrees, n * effect**2)
    assert power >= 0.99, f"power {power:.3f} with {n} draws over {degrees + 1} cells"
    if any(exact.get(cell, 0.0) <= 0 for cell in counts):
        return 0.0
    return float(stats.chisquare(observed, np.array(expected) * (sum(observed) / sum(expected))).pvalue)


V = 8
FREE = Sampling(0.8, top_k=4)
DRAWS = 3000
EFFECT = 0.18
"""Cohen's w that DRAWS must show with power 0.99, asserted; the three mutants below have about 0.22, 0.46 and 0.53."""


def table(seed: int, sharpness: float = 1.5) -> Callable[[Sequence[int]], Tensor]:
    """A model of V tokens that looks at the last two; after the prompt it says 3, so that the drafts start at once."""
    rows = torch.randn(V, V, V, generator=torch.Generator().manual_seed(seed)) * sharpness
    rows[2, 1] = torch.nn.functional.one_hot(torch.tensor(3), V) * 60.0
    return lambda prefix: rows[prefix[-2], prefix[-1]]


LOOK_BACK = (1, 3, 5, 3, 6, 2, 1)
"""Tokens 1 3 have stood here before: after them lookup says 5 3 6."""

TARGET = table(6)
NEAR = table(2, 0.8)


def exact_joint() -> dict[tuple[int, ...], float]:
    """The distribution of the second to fourth token, by enumeration."""
    processors, out = LogitsProcessors(FREE), {}
    for cell in itertools.product(range(V), repeat=3):
        text, probability = [*LOOK_BACK, 3], 1.0
        for token in cell:
            probability *= float(processors.probabilities(TARGET(text)[None].double(), text)[0, token])
            text.append(token)
        if probability > 0:
            out[cell] = probability
    return out


def stubbed(vocab: int = V) -> Engine:
    """The tables' engine, its entropy replaced by a counter; `vocab` is the drafter's, cut or padded with what can't be."""

    def near(prefix: Sequence[int]) -> Tensor:
        known = all(token < vocab for token in prefix[-2:])
        return torch.nn.functional.pad(
            NEAR(prefix)[:vocab] if known else torch.zeros(min(vocab, V)), (0, max(0, vocab - V))
        )

    drafters = Drafters(model=Stub(vocab, near), exit_layers=1)
    return Engine(Stub(V, TARGET, NEAR), drafters, entropy=itertools.count(1).__next__)


def written(policy: Callable[[int], Policy], engine: Engine | None = None) -> dict[tuple[int, ...], int]:
    """How often each continuation came out of the whole engine."""
    counts: dict[tuple[int, ...], int] = {}
    engine = engine or stubbed()
    for seed in range(DRAWS):
        first, *rest = ids(engine.start(Request(LOOK_BACK, 4, FREE), policy(seed)))
        assert first == 3
        counts[tuple(rest)] = counts.get(tuple(rest), 0) + 1
    return counts


@pytest.mark.parametrize("how", ["plain", "draft", "self", "lookup", "any"])
def test_free_sampling_has_the_targets_distribution(how: Any) -> None:
    """Without a seed the joint distribution of a round's two drafts and its bonus token is the target's.

    3000 draws over 64 cells (temperature 0.8, top-k 4 of 8 tokens, three tokens), false alarm 1e-4: a deviation of Cohen's w
    0.18 is seen with power 0.99 or more, which the helper asserts.
    """
    policies: dict[str, Callable[[int], Policy]] = {
        "plain": lambda s: Plain(),
        "any": lambda s: Whim(s, prefixes=False),
    }

    assert chi_square(written(policies.get(how, lambda s: Static(how, 2))), exact_joint(), EFFECT) > ALPHA


@pytest.mark.parametrize("vocab", [V - 2, V + 3])
def test_other_vocabulary_sizes_keep_the_distribution(vocab: int) -> None:
    """A drafter whose table is cut short or padded, as checkpoints' are, changes the distribution no more than its like does."""
    assert chi_square(written(lambda s: Static("draft", 2), stubbed(vocab)), exact_joint(), EFFECT) > ALPHA


@pytest.mark.parametrize("least", [0.1, 2.0], ids=["shared tokens", "text"])
def test_another_tokenizer_keeps_the_distribution(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter whose tokens have other ids, and partly other texts, changes the distribution no more than its like does.

    Both ways: drawn among the tokens that both have, and as text that is drafted as if it were certain.
    """
    monkeypatch.setattr(translated, "LEAST_SHARED", least)
    translation = Translation(letters("abcdefgh"), letters("hgxfdcba,ab,fc"))
    assert len(translation.shared.to_own) == V - 1  # no e
    own = torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(9))
    drafter = TranslatedBackend(Stub(11, lambda prefix: own[([0, *prefix])[-2], prefix[-1]]), translation)
    engine = Engine(Stub(V, TARGET), Drafters(drafter, lookup=False), entropy=itertools.count(1).__next__)
    kept: set[int] = set()
    for seed in range(60):
        run = engine.start(Request(LOOK_BACK, 4, FREE), Static("draft", 2))
        assert ids(run)[0] == 3, seed
        kept |= {done.kept for done in run.rounds}

    assert kept >= {0, 1}
    assert chi_square(written(lambda s: Static("draft", 2), engine), exact_joint(), EFFECT) > ALPHA


def test_free_drafts_are_sometimes_kept() -> None:
    """The distribution above is that of rounds in which drafts stay, are rejected at once and later."""
    engine = stubbed()
    for origin in ("draft", "self", "lookup"):
        kept = set()
        for _ in range(60):
            run = engine.start(Request(LOOK_BACK, 4, FREE), Static(origin, 2))
            ids(run)
            kept.add(run.rounds[0].kept)
        assert kept == {0, 1, 2}, origin


Uniform = Any
Draw = Any


def skip_residual(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: after a rejection draws from the target instead of from what the drafter undersupplies."""
    out = verify_block(drafts, q, p, uniform, draw)
    return out if len(out) > len(drafts) else [*out[:-1], draw(p[len(out) - 1])]


def reuse_uniform(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: one uniform draw judges all drafts, token by token."""
    u = uniform()
    for i, x in enumerate(drafts):
        if u * q[i, x] >= p[i, x]:
            return [*drafts[:i], draw(excess(p[i], q[i], p[i]))]
    return [*drafts, draw(p[len(drafts)])]


def bonus_from_the_wrong_row(drafts: list[int], q: Tensor, p: Tensor, uniform: Uniform, draw: Draw) -> list[int]:
    """Mutant: after full acceptance draws from the row before the last."""
    out = verify_block(drafts, q, p, uniform, draw)
    return [*drafts, draw(p[len(drafts) - 1])] if drafts and len(out) > len(drafts) else out


@pytest.mark.parametrize("mutant", [skip_residual, reuse_uniform, bonus_from_the_wrong_row], ids=lambda f: f.__name__)
def test_mutants_of_the_rule_are_caught(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test on the same draws rejects an engine with each of three plausible mistakes."""
    monkeypatch.setattr(verifier_module, "verify_block", mutant)

    assert chi_square(written(lambda s: Static("draft", 2)), exact_joint(), EFFECT) < ALPHA


def test_real_models_have_the_distribution_too() -> None:
    """A real network exiting early, its cache rolled back between rounds, writes two free tokens as exact enumeration has them.

    700 draws over at most 25 cells (top-k 5 of 8 tokens, two tokens), false alarm 1e-4: Cohen's w 0.33 with power 0.99.
    """
    target = EagerBackend(tiny("gpt2", vocab=V, n_layer=2))
    sampling, prompt = Sampling(2.0, top_k=5), (1, 3, 5)
    processors, exact, pairs = (
        LogitsProcessors(sampling),
        dict[tuple[int, ...], float](),
        list(itertools.product(range(V), repeat=2)),
    )
    with torch.inference_mode():
        rows = target.model(input_ids=torch.tensor([[*prompt, a] for a in range(V)])).logits[:, -2:]
    for a, b in pairs:
        probability = (
            processors.probabilities(rows[a, :1], prompt)[0, a]
            * processors.probabilities(rows[a, 1:], [*prompt, a])[0, b]
        )
        if probability > 0:
            exact[a, b] = float(probability)
    counts: dict[tuple[int, ...], int] = {}
    engine = Engine(target, Drafters(exit_layers=1, lookup=False), entropy=itertools.count(1).__next__)
    stayed = set()
    for _ in range(700):
        run = engine.start(Request(prompt, 3, sampling), Static("self", 1))
        out = tuple(ids(run)[:2])
        stayed.add(run.rounds[0].kept)
        counts[out] = counts.get(out, 0) + 1

    assert stayed == {0, 1}
    assert chi_square(counts, exact, 0.33) > ALPHA


def test_seeded_tokens_have_the_distribution() -> None:
    """Over many seeds a seeded token is distributed as the target says, and so is a pair at neighbouring positions.

    10000 seeds over 25 cells, false alarm 1e-4: Cohen's w 0.09 with power 0.99.
    """
    row = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    counts: dict[int, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    for seed in range(10000):
        noise = SeededGumbelNoise(seed, 5)
        a, b = noise.pick(row, 40), noise.pick(row, 41)
        counts[a] = counts.get(a, 0) + 1
        pairs[a, b] = pairs.get((a, b), 0) + 1
    single = {i: float(row[i]) for i in range(5)}

    assert chi_square(counts, single, 0.09) > ALPHA
    assert chi_square(pairs, {(i, j): single[i] * single[j] for i in range(5) for j in range(5)}, 0.09) > ALPHA


def test_seeded_positions_have_the_distribution() -> None:
    """Over many positions of one seed tokens are distributed as the target says, neighbours independently.

    10000 positions over 25 cells, false alarm 1e-4: Cohen's w 0.09 with power 0.99.
    """
    row = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    noise = SeededGumbelNoise(12, 5)
    picks = [noise.pick(row, i) for i in range(10001)]
    pairs: dict[tuple[int, int], int] = {}
    for pair in itertools.pairwise(picks):
        pairs[pair] = pairs.get(pair, 0) + 1

    assert chi_square(pairs, {(i, j): float(row[i] * row[j]) for i in range(5) for j in range(5)}, 0.09) > ALPHA


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("temperature", [5e-324, 1e-38, 9e-7, 0, 0.0])
def test_a_temperature_near_zero_is_greedy(temperature: float, seed: int | None) -> None:
    """Below what float32 can divide by, the text is the likeliest token's at each position, which is its limit."""
    target = EagerBackend(tiny("llama"))
    engine = Engine(target, Drafters(EagerBackend(perturbed(tiny("llama")))))
    sampling = Sampling(temperature, top_k=5, top_p=0.9, seed=seed)

    assert sampling.greedy
    for policy in (Plain(), Static("draft", 3)):
        assert ids(engine.start(Request(PROMPT, 24, sampling), policy)) == ids(engine.start(Request(PROMPT, 24)))


@pytest.mark.parametrize("temperature", [1e-6, 1e-5, 2, 1e30])
def test_any_other_temperature_samples(temperature: float) -> None:
    """The coldest and the hottest give numbers that can be drawn from; whole numbers are taken for what they are."""
    rows = torch.tensor([[60.0, 59.0, -80.0], [-3e4, 3e4, 0.0]])
    p = LogitsProcessors(Sampling(temperature, repetition_penalty=2)).probabilities(rows, [0], [1])

    assert bool(p.isfinite().all())
    assert torch.allclose(p.sum(-1), torch.ones(2))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": float("inf")}, {"repetition_penalty": 1e-38}, {"repetition_penalty": float("inf")}],
    ids=str,
)
def test_what_overflows_is_refused(wrong: dict[str, float]) -> None:
    """Settings that leave no numbers are an error of their own, not one from inside."""
    with pytest.raises(UsageError, match="can't sample with"):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_the_whole_engine_with_seeds_has_the_distribution() -> None:
    """Over many seeds the drafted text of the whole engine is distributed as the target's, three tokens jointly.

    3000 seeds over 64 cells, false alarm 1e-4: Cohen's w 0.18 with power 0.99.
    """
    counts: dict[tuple[int, ...], int] = {}
    engine = stubbed()
    for seed in range(DRAWS):
        sampling = Sampling(FREE.temperature, FREE.top_k, seed=seed)
        cell = tuple(ids(engine.start(Request(LOOK_BACK, 4, sampling), Static("draft", 2)))[1:])
        counts[cell] = counts.get(cell, 0) + 1

    assert chi_square(counts, exact_joint(), EFFECT) > ALPHA
