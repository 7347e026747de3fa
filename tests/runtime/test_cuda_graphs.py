"""Captured passes: replayed on the same memory, they are the model's own, wherever in a text and whatever was rolled back.

The device is a tape (`tape.Recorder`), which forgets Python as a graphics processor's capturing does.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import ROLLING, VOCAB, generated, perturbed, reference, tiny
from support.tape import Recorder, Tape

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import cuda_graphs
from dynx.runtime.backends.eager import EagerBackend, EagerSession
from dynx.runtime.backends.stock import StockSession
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain, Static
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from torch import Tensor

REFUSED = {"opt"}
"""Architectures that count positions in Python."""

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-4}
TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(120)]


def load(model: Any) -> tuple[cuda_graphs.CudaGraphBackend, Recorder]:
    """A backend, and what it captures with."""
    capturer = Recorder()
    return cuda_graphs.load(model, capture=capturer), capturer


@pytest.fixture(scope="module", params=sorted(set(ROLLING) - REFUSED))
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be captured."""
    return str(request.param)


@pytest.fixture(scope="module")
def backend(kind: str) -> cuda_graphs.CudaGraphBackend:
    """One backend for all tests of an architecture: sessions must not leave traces."""
    return load(tiny(kind))[0]


@torch.inference_mode()
def truth(kind: str, tokens: list[int]) -> Tensor:
    """Logits (T, V) of the unmodified model from scratch."""
    logits: Tensor = reference(kind)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cant_be_captured_is_refused(kind: str) -> None:
    """With a reason, as any foreign model would be."""
    with pytest.raises(
        UnsupportedModelError, match=rf"{kind} (can't be captured|gives other logits when it is replayed)"
    ):
        load(tiny(kind))


@pytest.mark.parametrize("lengths", [[40] + [1] * 12, [7, 1, 2, 3, 5, 8, 11, 1], [33, 32, 31, 1], [1, 1, 1, 20, 4]])
def test_any_split_is_one_forward(kind: str, backend: cuda_graphs.CudaGraphBackend, lengths: list[int]) -> None:
    """In passes of any widths, captured or not, the logits are those of the whole."""
    session, at, rows = backend.open(), 0, []
    for length in lengths:
        rows.append(session.forward(TEXT[at : at + length]))
        at += length

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:at]), **CLOSE)


def test_a_rollback_leaves_no_trace(kind: str, backend: cuda_graphs.CudaGraphBackend) -> None:
    """What was rolled back is as if it had never been read, however often the same capturing ran since."""
    session = backend.open()
    session.forward(TEXT[:10])
    for junk, width in ((3, 5), (9, 2), (1, 8)):
        session.forward([junk] * width)
        session.rollback(10)
    rows = session.forward(TEXT[10:16])

    assert session.length == 16
    torch.testing.assert_close(rows, truth(kind, TEXT[:16])[10:], **CLOSE)


def test_early_exits_run_without_graphs(kind: str, backend: cuda_graphs.CudaGraphBackend) -> None:
    """Some layers ahead and the rest afterwards are the whole, between captured passes."""
    if not backend.can_exit.value:
        pytest.skip(backend.can_exit.reason)
    session = backend.open()
    session.forward(TEXT[:9])
    session.forward(TEXT[9:11])
    for token in TEXT[11:14]:
        session.forward_early([token], 1)
    rows = [session.complete(), session.forward(TEXT[14:17])]

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:17])[11:], **CLOSE)


def test_texts_share_graphs_but_nothing_else() -> None:
    """A text that ends leaves its cache to the next; two at a time have two, and don't see each other."""
    backend, capturer = load(tiny("llama"))
    gc.collect()
    before = capturer.captured
    for start in (0, 30):
        session = backend.open()
        session.forward(TEXT[start : start + 40])
        rows = session.forward(TEXT[start + 40 : start + 43])
        torch.testing.assert_close(rows, truth("llama", TEXT[start : start + 43])[40:], **CLOSE)
        del session
        gc.collect()
    assert capturer.captured == before  # loading captured three tokens already

    one, two = backend.open(), backend.open()
    one.forward(TEXT[:40])
    two.forward(TEXT[40:77])
    torch.testing.assert_close(one.forward(TEXT[40:43]), truth("llama", TEXT[:43])[40:], **CLOSE)
    torch.testing.assert_close(two.forward(TEXT[77:80]), truth("llama", TEXT[40:80])[37:], **CLOSE)
    assert capturer.captured == before + 1


def test_rows_stay() -> None:
    """What was returned isn't written over by the next replay."""
    session = load(tiny("llama"))[0].open()
    session.forward(TEXT[:40])
    rows = session.forward([1, 2])
    copy = rows.clone()
    session.forward([3, 4])

    assert torch.equal(rows, copy)


def test_caches_grow_by_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text moves to a cache twice as long, and what it held comes along."""
    monkeypatch.setattr(cuda_graphs, "INITIAL_CACHE_TOKENS", 48)
    backend, _ = load(tiny("llama"))
    session = backend.open()
    assert isinstance(session, cuda_graphs.CudaGraphSession)
    lengths, rows = {session._cache.length}, [session.forward(TEXT[:10])]
    for at in range(10, 120, 5):
        rows.append(session.forward(TEXT[at : at + 5]))
        lengths.add(session._cache.length)

    assert lengths == {48, 96, 192}
    torch.testing.assert_close(torch.cat(rows), truth("llama", TEXT), **CLOSE)


def test_no_graph_reaches_beyond_the_context() -> None:
    """Learned positions end there: the last passes are as wide as asked, and run without graphs."""
    model = tiny("gpt2", n_positions=64)
    backend, capturer = load(model)
    session, rows = backend.open(), []
    rows.append(session.forward(TEXT[:50]))
    for at, width in ((50, 5), (55, 7), (62, 1)):
        rows.append(session.forward(TEXT[at : at + width]))
    before = capturer.replayed
    rows.append(session.forward([TEXT[63]]))
    assert capturer.replayed == before + 1  # one token fits
    session.rollback(59)
    session.forward(TEXT[59:64])
    assert capturer.replayed == before + 1  # six don't, where five are asked for

    with torch.inference_mode():
        want = model(input_ids=torch.tensor([TEXT[:64]]), use_cache=False).logits[0]
    torch.testing.assert_close(torch.cat(rows), want, **CLOSE)


@pytest.mark.parametrize("policy", [Plain, lambda: Static("draft", 5), lambda: Static("self", 3), lambda: None])
def test_the_engine_writes_the_same_text(policy: Any) -> None:
    """Speculation with target and drafter captured writes what transformers' greedy decoding writes, token for token."""
    target, capturer = load(tiny("llama"))
    drafter, _ = load(perturbed(tiny("llama"), 0.3))
    run = Engine(target, Drafters(drafter, 1)).start(Request(TEXT[:10], 60), policy())

    assert [token.id for token in run] == generated("llama", tuple(TEXT[:10]), 60)
    assert capturer.replayed > 5


def test_greedy_decoding_reads_no_number_by_itself() -> None:
    """A guess is read off the device in one go, and a judged draft in one go: nothing else waits for it."""
    target, _ = load(tiny("llama"))
    drafter, _ = load(perturbed(tiny("llama"), 0.3))
    engine, text = Engine(target, Drafters(drafter, lookup=False)), []
    for tape in (nullcontext(), Tape()):  # the first text captures
        tokens = iter(engine.start(Request(TEXT[:40], 60), Static("draft", 4)))
        text = [next(tokens).id for _ in range(5)]  # the prompts' own passes are over
        with tape:
            text += [token.id for token in tokens]
        del tokens
        gc.collect()

    assert text == generated("llama", tuple(TEXT[:40]), 60)


def test_seeded_texts_are_eager_texts() -> None:
    """Sampling reads rows the same way."""
    target, _ = load(tiny("qwen2"))
    request = Request(TEXT[:10], 40, Sampling(0.9, seed=5))
    texts = [
        [token.id for token in Engine(backend, Drafters(perturbed_backend())).start(request, Static("draft", 4))]
        for backend in (target, EagerBackend(tiny("qwen2")))
    ]
    assert texts[0] == texts[1]


def perturbed_backend() -> EagerBackend:
    """A drafter."""
    return EagerBackend(perturbed(tiny("qwen2"), 0.3))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_random_walks(steps: list[tuple[int, int]]) -> None:
    """Any passes and rollbacks leave what a fresh reading gives."""
    session, held = WALKER.open(), []
    for width, back in steps:
        tokens = [(31 * len(held) + 7 * i) % VOCAB for i in range(width)]
        if len(held) + width > 200:
            break
        session.forward(tokens)
        held += tokens
        keep = max(0, len(held) - back)
        session.rollback(keep)
        del held[keep:]
    rows = session.forward([5, 6])

    torch.testing.assert_close(rows, truth("llama", [*held, 5, 6])[-2:], **CLOSE)


WALKER = cuda_graphs.load(tiny("llama"), capture=Recorder())


def test_numbers_that_python_held_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that tells its position as a number is right where it was captured and wrong elsewhere, so it is refused."""
    monkeypatch.setattr(cuda_graphs.SlotLayer, "get_seq_length", lambda self: self.owner.position)
    with pytest.raises(UnsupportedModelError, match="other logits when it is replayed"):
        load(tiny("llama"))


def test_waiting_for_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads a number off the device can't be captured, and the reason is given."""
    model = tiny("llama")
    inner = model.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        return out if float(out[0].sum()) < 1e30 else None

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="can't be captured"):
        load(model)


def test_a_processor_captures_nothing() -> None:
    """The real capturer is for devices that have one."""
    with pytest.raises(UnsupportedModelError, match="captures no graphs on cpu"):
        cuda_graphs.load(tiny("llama"))


def test_a_state_that_cant_go_back_is_left_alone() -> None:
    """As on every backend."""
    backend = cuda_graphs.CudaGraphBackend(tiny("llama"), Recorder())
    assert isinstance(backend.open(), EagerSession)
    backend.__dict__["can_rollback"] = type(backend.can_rollback)(False, "for a test")
    assert isinstance(backend.open(), StockSession)
