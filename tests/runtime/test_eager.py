"""Sessions over stock models: whatever is run, rolled back or run in two parts, the logits are the unmodified model's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import LAYERS, ROLLING, STATEFUL, UNCONTINUED, VOCAB, generated, perturbed, reference, tiny
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends import eager
from dynx.runtime.backends.eager import CounterLayer, EagerBackend, EagerSession
from dynx.runtime.backends.stock import StockSession
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Static
from dynx.speculation.types import Request

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-4}
"""Float32 logits of size 4 or so through three layers, summed in another order."""

TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(60)]


@pytest.fixture(scope="module", params=ROLLING)
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be rolled back."""
    return str(request.param)


@pytest.fixture(scope="module")
def backend(kind: str) -> EagerBackend:
    """One backend for all tests of an architecture: sessions must not leave traces."""
    return EagerBackend(tiny(kind))


@torch.inference_mode()
def truth(kind: str, tokens: list[int]) -> Tensor:
    """Logits (T, V) of the unmodified model from scratch."""
    return reference(kind)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Lengths of calls that add up to the whole of TEXT[:40]."""
    cuts = sorted(draw(st.sets(st.integers(1, 39), max_size=6)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, 40], strict=True)]


@given(lengths=splits())
@settings(max_examples=8, deadline=None)
def test_any_split_is_one_forward(kind: str, backend: EagerBackend, lengths: list[int]) -> None:
    """A text fed in any pieces gives the logits of a single pass, beyond the sliding window too."""
    session, rows, at = backend.open(), [], 0
    for n in lengths:
        rows.append(session.forward(TEXT[at : at + n]))
        at += n

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:40]), **CLOSE)
    assert session.length == 40


Step = tuple[str, int, int]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("rollback"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("early"), st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.just("abandon"), st.integers(1, 6), st.just(0)),
    ),
    min_size=1,
    max_size=9,
)


@given(start=st.integers(1, 20), steps=STEPS, offset=st.integers(0, 20), layers=st.integers(1, LAYERS - 1))
@settings(max_examples=15, deadline=None)
def test_any_history_leaves_no_trace(
    kind: str, backend: EagerBackend, start: int, steps: list[Step], offset: int, layers: int
) -> None:
    """After any sequence of passes, rollbacks, early passes completed or abandoned, logits are those of the tokens alone."""
    session, held, fresh = backend.open(), TEXT[:start], iter(TEXT[offset:] * 3)
    session.forward(held)
    for step, n, count in steps:
        tokens = [next(fresh) for _ in range(n)]
        if step == "rollback":
            held = held[: max(1, len(held) - n)]
            session.rollback(len(held))
            continue
        if step == "forward":
            got = session.forward(tokens)
        else:
            for i, token in enumerate(tokens):
                session.forward_early([token], layers, logits=i % 2 == 0)
                assert session.pending == i + 1
            if step == "abandon":
                session.rollback(len(held))
                continue
            tokens = tokens[:count]
            got = session.complete(len(tokens))
        held = held + tokens
        torch.testing.assert_close(got, truth(kind, held)[-len(tokens) :], **CLOSE)
    assert (session.length, session.pending) == (len(held), 0)


def test_early_rows_are_the_exits(kind: str, backend: EagerBackend) -> None:
    """An early pass answers with the model's own norm and head over its first layers, each token seeing those before it."""
    session = backend.open()
    session.forward(TEXT[:20])
    singly = [session.forward_early([t], 1) for t in TEXT[20:24]]
    session.rollback(20)
    at_once = session.forward_early(TEXT[20:24], 1)

    assert at_once is not None
    torch.testing.assert_close(torch.cat([row for row in singly if row is not None]), at_once, **CLOSE)
    assert not torch.allclose(at_once, truth(kind, TEXT[:24])[-4:], atol=0.1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, None])
def test_complete_takes_a_prefix(kind: str, backend: EagerBackend, count: int | None) -> None:
    """`complete(n)` judges the first n pending tokens, forgets the rest, and what follows is right."""
    session = backend.open()
    session.forward(TEXT[:10])
    session.forward_early(TEXT[10:12], 2)
    session.forward_early(TEXT[12:14], 2, logits=False)
    rows = session.complete(count)
    n = count or 4
    after = session.forward(TEXT[14:17])

    whole = truth(kind, [*TEXT[: 10 + n], *TEXT[14:17]])
    torch.testing.assert_close(rows, whole[10 : 10 + n], **CLOSE)
    torch.testing.assert_close(after, whole[10 + n :], **CLOSE)
    assert (session.length, session.pending) == (13 + n, 0)


def test_buffers_grow(kind: str, backend: EagerBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that grows many times, rolled back in between and while positions are pending, loses nothing."""
    monkeypatch.setattr(eager, "CACHE_HEADROOM_TOKENS", 2)
    session = backend.open()
    session.forward(TEXT[:3])
    for end in range(4, 60, 4):
        session.forward(TEXT[end - 1 : end + 3])
        session.rollback(end - 1)
        for token in TEXT[end - 1 : end + 3]:
            session.forward_early([token], 1, logits=False)
        got = session.complete()
        torch.testing.assert_close(got, truth(kind, TEXT[: end + 3])[end - 1 :], **CLOSE)


@pytest.mark.parametrize("keep", [None, 1, 2, 5, 7, 20])
def test_long_prompts_are_chunked(
    kind: str, backend: EagerBackend, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt longer than a chunk gives the same rows, however many are kept, and so does what follows it."""
    monkeypatch.setattr(eager, "PREFILL_CHUNK_TOKENS", 6)
    session = backend.open()
    rows, after = session.forward(TEXT[:20], keep=keep), session.forward(TEXT[20:28])

    whole = truth(kind, TEXT[:28])
    torch.testing.assert_close(rows, whole[20 - (keep or 20) : 20], **CLOSE)
    torch.testing.assert_close(after, whole[20:], **CLOSE)


def test_gate_leaves_the_model_alone(kind: str) -> None:
    """With the depth gate in place, used and failed in, the model's own forward is bit-identical to before."""
    model, ids = tiny(kind), torch.tensor([TEXT[:30]])
    with torch.inference_mode():
        before = model(input_ids=ids, use_cache=False).logits
        session = EagerBackend(model).open()
        session.forward(TEXT[:9])
        session.forward_early(TEXT[9:12], 1)
        session.complete()
        with pytest.raises(IndexError):
            session.forward_early([VOCAB + 7], 1)
        after = model(input_ids=ids, use_cache=False).logits

    assert torch.equal(before, after)


def test_rollback_and_exit_are_possible(kind: str, backend: EagerBackend) -> None:
    """Every attention-only architecture is found able to roll back and to exit early, by test."""
    assert backend.can_rollback.value, backend.can_rollback.reason
    assert backend.can_exit.value, backend.can_exit.reason
    assert "tested" in backend.can_rollback.reason
    assert "tested" in backend.can_exit.reason


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi", "gemma2"])
def test_no_layer_runs_twice(kind: str) -> None:
    """While the target drafts for itself, each layer sees each drafted position once, and the later ones only what is judged."""
    backend = EagerBackend(tiny(kind))
    assert backend.can_exit.value  # its self-test runs passes too
    ran: Counter[int] = Counter()
    for index, block in enumerate(eager.decoder_blocks(backend.model) or []):
        block.mlp.register_forward_hook(lambda m, args, out, i=index: ran.update({i: args[0].shape[1]}))
    run = Engine(backend, Drafters(exit_layers=1, lookup=False)).start(Request(TEXT[:10], 50), Static("self", 4))
    for _ in run:
        pass

    early = sum(len(r.signals) + (len(r.signals) == r.submitted) for r in run.rounds if r.signals)
    late = sum(r.submitted + 1 for r in run.rounds if r.signals)
    plain = 10 + sum(not r.signals for r in run.rounds)
    assert ran == {0: plain + early, 1: plain + late, 2: plain + late}
    assert 0 < (run.tallies["self"].acceptance or 0) < 1


def test_pending_positions_are_of_one_depth() -> None:
    """Early passes of different depths can't be mixed, and a rollback can't go forward."""
    session = EagerBackend(tiny("llama")).open()
    session.forward(TEXT[:4])
    session.forward_early(TEXT[4:5], 1)

    with pytest.raises(ValueError, match="another layer"):
        session.forward_early(TEXT[5:6], 2)
    with pytest.raises(ValueError, match="roll forward"):
        session.rollback(9)


@pytest.mark.parametrize("kind", UNCONTINUED)
def test_stateful_models_say_why(kind: str) -> None:
    """A model that can't read on from its state is left on it: no rollback, no exit, and the reason names the state."""
    backend = EagerBackend(tiny(kind))
    session = backend.open()
    session.forward(TEXT[:5])

    assert not backend.can_rollback.value
    assert not backend.can_exit.value
    assert f"{kind} keeps a recurrent state" in backend.can_rollback.reason
    assert isinstance(session, StockSession)
    session.rollback(5)
    for impossible in (
        lambda: session.rollback(4),
        lambda: session.forward_early([1], 1),
        lambda: session.complete(),
    ):
        with pytest.raises(UnsupportedModelError):
            impossible()


@pytest.mark.parametrize("kind", [*STATEFUL, "llama", "gemma2"])
def test_stock_sessions_agree(kind: str) -> None:
    """The fallback session, prompt at once and then token by token, gives the unmodified model's logits."""
    session = StockSession(EagerBackend(tiny(kind)))
    rows = [session.forward(TEXT[:7], keep=2), *[session.forward([t], keep=1) for t in TEXT[7:30]]]

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:30])[5:], **CLOSE)
    assert session.length == 30


def misplaced(layer: CounterLayer) -> int:
    """A cache that says it is empty."""
    return 0


def broken(*args: Any, **kwargs: Any) -> Any:
    """A cache that the model calls in a way it doesn't know."""
    raise TypeError("update() got an unexpected keyword argument")


@pytest.mark.parametrize(
    ("method", "fault", "words"),
    [
        ("get_seq_length", misplaced, "gives other logits on dynx's key-value cache"),
        ("update", broken, "doesn't run on dynx's key-value cache (TypeError)"),
    ],
)
def test_misbehaving_caches_are_refused(method: str, fault: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that computes otherwise on dynx's cache is decoded on its own, plainly and correctly, with the reason."""
    backend = EagerBackend(tiny("llama"))
    monkeypatch.setattr(CounterLayer, method, fault)
    decision = backend.can_rollback
    out = [t.id for t in Engine(backend, Drafters(exit_layers=1)).start(Request(TEXT[:10], 20))]

    assert not decision.value
    assert words in decision.reason
    assert backend.can_exit == decision
    assert isinstance(backend.open(), StockSession)
    assert out == generated("llama", tuple(TEXT[:10]), 20)


def test_trust_skips_the_test() -> None:
    """What calibration found is believed: no pass is spent on testing again."""
    model = tiny("llama")
    calls: list[object] = []
    model.register_forward_hook(lambda *a: calls.append(a))
    backend = EagerBackend(model, trusted=True)

    assert backend.can_rollback.value
    assert "calibrated" in backend.can_rollback.reason
    assert isinstance(backend.open(), EagerSession)
    assert not calls


def test_one_layer_has_no_exit() -> None:
    """A model of a single layer can't be cut in two, and says so."""
    decision = EagerBackend(tiny("llama", num_hidden_layers=1)).can_exit

    assert not decision.value
    assert "one layer" in decision.reason


def test_unknown_blocks_mean_no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the decoder's blocks can't be told, the exit is declined with the reason; rollback still works."""
    monkeypatch.setattr(eager, "decoder_blocks", lambda model: None)
    backend = EagerBackend(tiny("llama"))

    assert backend.can_rollback.value
    assert not backend.can_exit.value
    assert "no list of 3 decoder blocks in LlamaForCausalLM" in backend.can_exit.reason


def test_blocks_that_ignore_the_gate_mean_no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of modules that isn't what the decoder runs is found out by the self-test."""
    decoys = nn.ModuleList([nn.Identity() for _ in range(LAYERS)])
    monkeypatch.setattr(eager, "decoder_blocks", lambda model: list(decoys))

    assert not EagerBackend(tiny("llama")).can_exit.value


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model("t5", vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        AutoConfig.for_model(
            "bart",
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
        ),
    ],
    ids=lambda c: c.model_type,
)
def test_encoder_decoders_are_refused(config: Any) -> None:
    """An encoder-decoder model is an error that names what is supported."""
    model = AutoModelForSeq2SeqLM.from_config(config)

    with pytest.raises(UnsupportedModelError, match=f"{config.model_type} is an encoder-decoder model") as caught:
        EagerBackend(model)
    assert "decoder-only" in str(caught.value.hint)
    assert "Llama" in str(caught.value.hint)


def test_out_of_memory_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's failure in any kind of pass becomes a device error with advice."""
    backend = EagerBackend(tiny("llama"))
    session = backend.open()

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 3 TiB")

    monkeypatch.setattr(eager, "PREFILL_CHUNK_TOKENS", 4)
    monkeypatch.setattr(backend.model.model, "forward", full)
    for tokens in (TEXT[:3], TEXT[:10]):  # the model, and its body alone for a chunk of which no row is kept
        with pytest.raises(DeviceError, match="out of memory on cpu") as caught:
            session.forward(tokens, keep=1)
        assert "`dtype`" in str(caught.value.hint)


def test_perturbed_copies_differ() -> None:
    """The helper behind the drafters of these tests changes a model a little."""
    rows = [m(input_ids=torch.tensor([TEXT[:20]])).logits for m in (tiny("llama"), perturbed(tiny("llama")))]

    agree = (rows[0].argmax(-1) == rows[1].argmax(-1)).float().mean()
    assert 0.2 < float(agree) < 1
