"""A draft model with a cut head: the same logits for what is kept, and the same text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import Clock, Stub, perturbed, scripted, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.trimmed import LEFT_OUT_LOGIT, can_trim, trim, untrim
from dynx.speculation import draft_vocabulary
from dynx.speculation.draft_vocabulary import choose_draft_vocabulary, coverage, order
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain, Static
from dynx.speculation.timing import Samples
from dynx.speculation.traces import Text, read_model
from dynx.speculation.types import Request, Sampling

PROMPT = [7, 30, 2, 51, 18, 7, 30, 2, 44, 9]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi"])
def test_kept_tokens_have_their_logits(kind: str) -> None:
    """Those given and those read; all others are very unlikely. The whole head comes back as it was."""
    backend, whole = EagerBackend(tiny(kind)), EagerBackend(tiny(kind))
    assert can_trim(backend)
    trim(backend, [1, 5, 9, 1000])
    got, want = backend.open().forward(PROMPT), whole.open().forward(PROMPT)
    kept = sorted({1, 5, 9, *PROMPT})
    torch.testing.assert_close(got[:, kept], want[:, kept])
    left = [token for token in range(64) if token not in kept]
    assert float(got[:, left].max()) < float(got[:, kept].min())
    untrim(backend)
    assert torch.equal(backend.open().forward(PROMPT), want)


def test_a_head_doesnt_grow_without_end() -> None:
    """Beyond twice the kept tokens it begins anew, with those of the text at hand."""
    backend = EagerBackend(tiny("llama"))
    trim(backend, range(4))
    head: Any = backend.model.get_output_embeddings()
    backend.open().forward(list(range(10, 18)))
    backend.open().forward(list(range(30, 34)))
    assert set(head.kept.tolist()) == {*range(4), *range(30, 34)}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.8, seed=5), Sampling(0.9, top_k=5, repetition_penalty=1.2)]
)
def test_the_text_is_the_same(sampling: Sampling) -> None:
    """Whatever the head can't say; free sampling stays possible."""
    target, small = EagerBackend(tiny("llama")), EagerBackend(perturbed(tiny("llama"), 0.05))
    trim(small, range(0, 64, 2))
    engine = Engine(target, Drafters(small, lookup=False))
    plain = [t.id for t in engine.start(Request(PROMPT, 40, sampling), Plain())]
    run = engine.start(Request(PROMPT, 40, sampling), Static("draft", 3))
    out = [t.id for t in run]
    assert len(out) == len(plain)
    if sampling.greedy or sampling.seed is not None:
        assert out == plain
    assert run.tallies["draft"].accepted > 0


def test_what_a_cut_head_could_say_is_what_calibration_counts() -> None:
    """A pass over a whole text has read the tokens that drafts come before; those don't count as drafted."""
    target = EagerBackend(tiny("llama"))
    text = Text(
        [*PROMPT, *(t.id for t in Engine(target, Drafters(lookup=False)).start(Request(PROMPT, 30)))], len(PROMPT)
    )
    assert all(read_model(target, text, 64, Sampling()).right[len(PROMPT) - 1 :])
    small = EagerBackend(tiny("llama"))
    trim(small, [0])
    right = read_model(small, text, 64, Sampling()).right
    seen = [token in text.tokens[:at] for at, token in enumerate(text.tokens)]
    assert right[len(PROMPT) - 1 :] == seen[len(PROMPT) :]
    assert not all(seen[len(PROMPT) :])


def test_which_heads_can_be_cut() -> None:
    """Only linear ones that PyTorch runs."""
    assert not can_trim(Stub(8, scripted(8, [])))
    model = tiny("llama")
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    assert not can_trim(EagerBackend(model, trusted=True))


def test_order_and_coverage() -> None:
    """What was written comes first, the prompts don't count; then the lowest ids. Each half is judged by the other."""
    texts = [([90, 80, 80, 70], 1), ([90, 80, 60], 1)]
    assert order(texts, 3) == [80, 70, 60]
    assert order(texts, 5) == [80, 70, 60, 0, 1]
    assert coverage(texts, 2) == pytest.approx((1 + 2) / 5)
    assert coverage([([80, 80, 80], 1), ([80, 80], 1)], 1) == 1
    assert coverage([([5, 5], 2)], 1) == 0


@pytest.mark.parametrize(("price", "pays"), [(1.0, True), (0.0, False)], ids=["dear head", "free head"])
def test_calibration_decides(price: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is cut where the time that it saves is worth the tokens that it can't say, and the samples are corrected."""
    monkeypatch.setattr(draft_vocabulary, "SIZES", (8, 16))
    clock, backend = Clock(), EagerBackend(tiny("llama"))
    run = backend.run

    def timed(tokens: Any, cache: Any, keep: Any) -> Any:
        head = backend.model.get_output_embeddings()
        clock.now += 1.0 + price * len(getattr(head, "kept", range(64)))
        return run(tokens, cache, keep)

    monkeypatch.setattr(backend, "run", timed)
    texts = [Text([3, 40, 41, 42, 40, 41], 1), Text([3, 41, 40, 42, 42, 41], 1)]
    samples = Samples({("target", 1, 32): [100.0] * 4, ("draft", 1, 32): [65.0] * 4})
    kept = choose_draft_vocabulary(backend, texts, samples, clock)
    if pays:
        assert kept is not None
        assert set(kept) >= {40, 41, 42}
        assert max(samples.cells["draft", 1, 32]) < 40
    else:
        assert kept is None
        assert can_trim(backend)
        assert samples.cells["draft", 1, 32] == [65.0] * 4
    assert LEFT_OUT_LOGIT < 0
