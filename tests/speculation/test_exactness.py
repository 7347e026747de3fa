"""Exactness: where passes of several tokens round otherwise than passes of one, greedy text is still plain decoding's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import Clock, Stub, Whim, perturbed, tiny

from dynx.runtime.backends.batch_invariant import rowwise_attention, set_batch_invariant
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.interface import Session
from dynx.runtime.decision import Decision
from dynx.speculation.engine import Drafters, Engine, Run
from dynx.speculation.exactness import RoundingBound, noise_if_exact, prepare, read_noise
from dynx.speculation.policy import Plain, Policy, Static
from dynx.speculation.timing import measure_noise
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

V = 16
PROMPT = (7, 3, 2, 5, 1, 7, 3)
ROUNDING = 0.03


def row_of(seed: int, doubt: float = 0.0) -> Callable[[Sequence[int]], Tensor]:
    """A model that looks at the last three tokens; with `doubt` an imperfect copy of it. Near-ties are common."""
    rows = torch.randn(V, V, V, V, generator=torch.Generator().manual_seed(seed))
    rows += doubt * torch.randn(V, V, V, V, generator=torch.Generator().manual_seed(seed + 1))
    return lambda prefix: rows[tuple(([0, 0, *prefix])[-3:])]


class Rounding(Stub):
    """A backend whose kernels round by width: rows of wide passes move by up to `amount`, and so do, as wide passes write other
    keys and values, all rows after those. What the prompt's own pass gives stands. `clock` gets a second for each pass.
    """

    precision = "bfloat16"

    def __init__(self, seed: int, amount: float, clock: Clock | None = None) -> None:
        super().__init__(V, row_of(seed), row_of(seed, 0.2))
        self.amount, self.clock = amount, clock or Clock()

    def open(self) -> Any:
        """A fresh sequence."""
        return RoundingSession(self)


class RoundingSession(Session):
    """A sequence in a `Rounding`."""

    def __init__(self, backend: Rounding) -> None:
        self._backend, self._inner = backend, Stub.open(backend)
        self._wide: list[bool] = []  # how each position was written

    @property
    def length(self) -> int:
        """See `Session`."""
        return self._inner.length

    @property
    def pending(self) -> int:
        """See `Session`."""
        return self._inner.pending

    def _rounded(self, rows: Tensor, count: int) -> Tensor:
        self._backend.clock.now += 1 + 0.05 * (count - 1)
        first = not self._wide
        self._wide += [count > 1 and not first] * count
        if first or not any(self._wide):
            return rows
        noise = torch.Generator().manual_seed(1000 * len(self._wide) + sum(self._wide))
        return rows + self._backend.amount * (2 * torch.rand(rows.shape, generator=noise) - 1)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session`."""
        return self._rounded(self._inner.forward(tokens, keep=keep), len(tokens))

    def rollback(self, length: int) -> None:
        """See `Session`."""
        self._inner.rollback(length)
        del self._wide[length:]

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session`."""
        self._backend.clock.now += 0.3
        return self._inner.forward_early(tokens, layers, logits=logits)

    def complete(self, count: int | None = None) -> Tensor:
        """See `Session`."""
        rows = self._inner.complete(count)
        return self._rounded(rows, len(rows))


def ids(run: Run) -> list[int]:
    return [token.id for token in run]


def engine(seed: int, amount: float = ROUNDING, *, exact: bool, clock: Clock | None = None) -> Engine:
    """A rounding target, a drafter that is often right, an exit and a lookup."""
    target = Rounding(seed, amount, clock)
    drafters = Drafters(model=Stub(V, row_of(seed, 0.2)), exit_layers=1)
    made = Engine(target, drafters, clock=target.clock)
    if exact:
        made.exact = prepare(target, 1)[0]
    return made


POLICIES: list[Callable[[], Policy | None]] = [
    lambda: Static("draft", 4),
    lambda: Static("self", 3),
    lambda: Static("lookup", 5),
    lambda: Whim(1),
    lambda: None,
]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("policy", POLICIES, ids=["draft", "self", "lookup", "whim", "dynamic"])
def test_rounding_parts_texts_and_exactness_joins_them(policy: Callable[[], Policy | None], penalty: float) -> None:
    """Of eight texts some leave plain decoding's path where widths round differently; made exact, none does."""
    request = Request(PROMPT, 120, Sampling(repetition_penalty=penalty))
    parted, ties = 0, 0
    for seed in range(8):
        want = ids(engine(seed, exact=False).start(request, Plain()))
        parted += ids(engine(seed, exact=False).start(request, policy())) != want
        run = engine(seed, exact=True).start(request, policy())
        assert ids(run) == want
        found = run.receipt().exact
        assert found is not None
        assert found.redecoded >= found.near_ties
        ties += found.near_ties

    assert parted > 0
    assert ties > 0


def test_reading_a_near_tie_again_is_not_enough() -> None:
    """A single token read after wide passes is rounded too, which is why near-ties are read again from further back."""
    assert measure_noise(Rounding(1, ROUNDING))[1] > ROUNDING / 2


def test_noise_is_what_was_put_in() -> None:
    """Rounding of up to ±0.03 moves a distance by up to 0.06, and most of that is seen; no rounding is not a bit of it."""
    noise = measure_noise(Rounding(2, ROUNDING), exit_layers=1)

    assert ROUNDING < max(noise.values()) <= 2 * ROUNDING
    assert set(measure_noise(Rounding(2, 0.0), exit_layers=1).values()) == {0.0}
    assert RoundingBound(noise).bound == 2 * max(noise.values())


def test_exactness_is_free_where_passes_agree() -> None:
    """Passes that don't round by width are found out, and then nothing is read again."""
    made = engine(3, 0.0, exact=True)
    runs = [e.start(Request(PROMPT, 60), Static("draft", 4)) for e in (made, engine(3, 0.0, exact=False))]
    assert ids(runs[0]) == ids(runs[1])
    found = runs[0].receipt()

    assert found.exact is not None
    assert (found.exact.bound, found.exact.near_ties, found.exact.redecoded) == (0.0, 0, 0)
    assert found.target_forwards == runs[1].receipt().target_forwards
    assert found.guarantee == "identical to plain decoding"
    assert "rounding" in runs[1].receipt().guarantee


def test_many_near_ties_end_in_plain_decoding() -> None:
    """Where every decision is a near-tie, exactness costs the policy's grant and its small share, not a multiple of plain."""
    clock = Clock()
    made = engine(4, 5.0, exact=True, clock=clock)
    seconds = []
    for policy in (Plain(), None):
        began = clock.now
        ids(made.start(Request(PROMPT, 300), policy))
        seconds.append(clock.now - began)

    assert seconds[1] < 1.1 * seconds[0]


def test_sampling_is_left_alone() -> None:
    """A run that samples is not exact in this sense, and says nothing of it."""
    run = engine(5, exact=True).start(Request(PROMPT, 20, Sampling(1.0, seed=3)))
    ids(run)

    assert run.receipt().exact is None


def test_a_profile_spares_the_measurement() -> None:
    """What a profile says of rounding is taken at its word; what isn't a measurement is measured."""

    class Silent(Rounding):
        def open(self) -> Any:
            raise AssertionError("a pass")

    target = Rounding(6, ROUNDING)
    stored = noise_if_exact(target, [([*PROMPT, *range(10)] * 3, 7)], 1)
    exact, decision = prepare(Silent(6, ROUNDING), 1, stored)

    assert exact.noise == {int(n): moved for n, moved in stored.items()}
    assert isinstance(decision, Decision)
    assert "calibration" in decision.reason
    assert "trial" in prepare(target, 1, {"1": "much"})[1].reason


@pytest.mark.parametrize("known", [None, {}, [], 3, {"a": 1.0}, {"2": "x"}, {"2": float("nan")}, {"2": -1.0}])
def test_no_measurement_is_made_up(known: object) -> None:
    """Anything that isn't widths and distances counts as unknown."""
    assert read_noise(known) is None


def test_ties_and_nonsense_are_near() -> None:
    """Equal logits and NaN are near-ties under any bound, wide margins are not."""
    scores = torch.tensor([[5.0, 1.0, 0.0], [2.0, 2.0, 0.0], [9.0, 1.0, 0.0]])
    exact = RoundingBound({2: 0.1})

    assert exact.first_tie(scores) == 1
    assert exact.first_tie(scores[::2]) is None
    assert exact.first_tie(scores[::2] * float("nan")) == 0
    assert exact.first_tie(torch.tensor([[5.0, 4.7, 0.0]])) is None
    assert exact.first_tie(torch.tensor([[5.0, 4.7, 0.0]]), scale=2.0) == 0
    assert RoundingBound({2: 0.0}).first_tie(scores) is None


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mistral", "gemma3_text", "phi", "opt", "mixtral"])
def test_attention_by_rows_is_attention(kind: str) -> None:
    """With attention row by row, sliding windows included, a pass gives the model's logits; and so it does switched back."""
    backend = EagerBackend(tiny(kind))
    tokens = [(5 * i + 3) % 64 for i in range(40)]

    def walk() -> Tensor:
        session = backend.open()
        return torch.cat([session.forward(tokens[at : at + 8]) for at in range(0, 40, 8)])

    before = walk()
    assert set_batch_invariant(backend).value
    torch.testing.assert_close(walk(), before, rtol=0, atol=2e-4)
    assert set_batch_invariant(backend, on=False).value
    assert torch.equal(walk(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 6])
def test_each_row_is_the_pass_of_one(dtype: torch.dtype, window: int | None) -> None:
    """Attention over several queries has, bit for bit, the rows that each query by itself is given."""
    generator = torch.Generator().manual_seed(1)
    count, seen = 5, 23
    query = torch.randn(1, 4, count, 8, generator=generator).to(dtype)
    key, value = (torch.randn(1, 2, seen, 8, generator=generator).to(dtype) for _ in range(2))
    at = torch.arange(seen - count, seen)[:, None]
    mask = torch.arange(seen) <= at
    if window:
        mask &= torch.arange(seen) > at - window
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    got = rowwise_attention(module, query, key, value, mask[None, None], scaling=0.3)[0]
    for i in range(count):
        end = seen - count + i + 1
        alone = None if window is None else mask[None, None, i : i + 1, :end]
        one = query[:, :, i : i + 1], key[:, :, :end], value[:, :, :end]
        assert torch.equal(got[:, i : i + 1], rowwise_attention(module, *one, alone, scaling=0.3)[0])


def test_other_attention_is_left_alone() -> None:
    """A model that computes attention in code of its own, and a backend with its own kernels, are told so."""
    bloom = set_batch_invariant(EagerBackend(tiny("bloom")))
    stub: Any = Stub(V, row_of(1))

    assert not bloom.value
    assert "attention" in bloom.reason
    assert "stub" in set_batch_invariant(stub).reason


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_networks_are_exact(kind: str, dtype: torch.dtype) -> None:
    """In both precisions, and with attention that can't be told to go by rows, every policy writes plain decoding's text."""
    target, drafter = (EagerBackend(model.to(dtype)) for model in (tiny(kind), perturbed(tiny(kind))))
    made = Engine(target, Drafters(model=drafter, exit_layers=1))
    request = Request((7, 30, 2, 51, 18, 7, 30, 2), 40)
    want = ids(made.start(request, Plain()))  # before anything is switched
    made.exact = prepare(target, 1)[0]

    for policy in (Static("draft", 4), Static("self", 3), Whim(2)):
        assert ids(made.start(request, policy)) == want


def test_the_command_says_what_it_did(cli: Any, tiny_folder: Path) -> None:
    """--exact writes --plain's text; JSON, --stats, --explain and --dry-run say how, and sampling is refused with the reason."""
    base = ["generate", "-m", tiny_folder, "Once upon a time", "-n", 24, "--dtype", "bfloat16"]
    plain = cli(*base, "--plain", "--json").document
    found = cli(*base, "--exact", "--json").document

    assert found["token_ids"] == plain["token_ids"]
    assert plain["receipt"]["exact"] is None
    assert plain["receipt"]["guarantee"] == "identical to plain decoding"  # which it is
    assert "rounding ties" in cli(*base, "--json").document["receipt"]["guarantee"]
    assert found["receipt"]["exact"]["near_ties"] >= 0
    assert found["receipt"]["guarantee"] == "identical to plain decoding"
    assert found["decisions"]["exact"]["reason"]
    assert "\nexact " in cli(*base, "--exact", "--stats").err
    assert "\nexact " in cli(*base, "--exact", "--explain").err
    assert "\nexact " in cli(*base, "--exact", "--dry-run").out
    assert cli(*base, "--exact", "--plain", "--json").document["decisions"]["exact"]["reason"] == "it is plain decoding"
    refused = cli(*base, "--exact", "--temperature", 0.8)
    assert refused.code == 2
    assert "--exact" in refused.err
    assert refused.out == ""
