"""State that depends on more than the tokens before it: rotations that change with a text's length, states kept in modules."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

import pytest
import torch
from support.models import GROWING, HYBRID, ORIGINAL, STATEFUL, UNCONTINUED, VOCAB, Whim, perturbed, tiny
from transformers import AutoConfig, AutoModelForCausalLM

import dynx
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import eager
from dynx.runtime.backends.batch import can_batch
from dynx.runtime.backends.eager import EagerBackend, LengthDependentSession
from dynx.runtime.backends.openvino import convert
from dynx.runtime.backends.stock import StockSession
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.equivalence import verify
from dynx.speculation.policy import Plain, Static
from dynx.speculation.types import Request

NEW = 40


def prompt_of(count: int) -> list[int]:
    """A prompt that repeats itself, so that lookups find something."""
    return [(7 * i + 3) % 23 for i in range(count)]


@cache
def generated(kind: str, count: int, new: int = NEW, *, cached: bool = True) -> list[int]:
    """What transformers writes with a model that has seen no other text."""
    ids = torch.tensor([prompt_of(count)])
    out = tiny(kind).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        use_cache=cached,
    )
    return out[0, count:].tolist()


def written(engine: Engine, count: int, policy: Any = None, new: int = NEW) -> list[int]:
    """What dynx writes."""
    return [token.id for token in engine.start(Request(prompt_of(count), new), policy) if token.id >= 0]


@pytest.fixture(scope="module", params=GROWING)
def growing(request: pytest.FixtureRequest) -> tuple[str, Engine]:
    """A model whose rotation changes with the length, and an engine for all its tests: texts must not leave traces."""
    kind = str(request.param)
    return kind, Engine(EagerBackend(tiny(kind)), Drafters(EagerBackend(perturbed(tiny(kind), 0.02))))


@pytest.mark.parametrize("how", ["plain", "draft", "lookup", "whim", "dynamic"])
@pytest.mark.parametrize("count", [20, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, ORIGINAL + 20])
def test_growing_rotations_write_what_generate_writes(growing: tuple[str, Engine], count: int, how: Any) -> None:
    """Before, across and beyond the end of the original context, with any drafts: transformers' text, whatever came before."""
    kind, engine = growing
    policy = {"plain": Plain(), "draft": Static("draft", 5), "lookup": Static("lookup", 5), "whim": Whim(count)}.get(
        how
    )

    assert written(engine, count, policy) == generated(kind, count)


def test_growing_rotations_are_tried_on_load(growing: tuple[str, Engine]) -> None:
    """The change is moved to a few tokens and tried there; exits and batches are left out, with the reason."""
    _, engine = growing
    target: Any = engine.target

    assert target.can_rollback.value
    assert "across the length from which they depend on it" in target.can_rollback.reason
    assert isinstance(target.open(), LengthDependentSession)
    assert target.length_dependence.limit == ORIGINAL
    assert not target.can_exit.value
    assert "depends on the length of the whole text" in target.can_exit.reason
    assert not can_batch(target).value
    assert "depends on the length of the whole text" in can_batch(target).reason
    with pytest.raises(UnsupportedModelError, match="with the length of the text"):
        convert.convert(target.model)


def test_growing_rotations_draft_no_further_than_it_pays(growing: tuple[str, Engine]) -> None:
    """No pass crosses the change, and where every length has its own frequencies none beyond it has drafts."""
    kind, engine = growing
    run = engine.start(Request(prompt_of(20), NEW + 20), Static("draft", 5))
    list(run)

    drafted = [r for r in run.rounds if r.submitted]
    assert any(r.context + r.submitted < ORIGINAL for r in drafted)
    assert not any(r.context < ORIGINAL <= r.context + r.submitted for r in drafted)
    assert any(r.context >= ORIGINAL for r in drafted) == ("longrope" in kind)
    assert engine.target.max_pass_length(10) == ORIGINAL - 10


def test_growing_prompts_are_read_in_one_pass(growing: tuple[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt longer than a chunk and than the original context has the frequencies of its whole length."""
    kind, engine = growing
    monkeypatch.setattr(eager, "PREFILL_CHUNK_TOKENS", 16)

    assert written(engine, ORIGINAL + 12) == generated(kind, ORIGINAL + 12)


def test_growing_texts_are_verified_as_written(growing: tuple[str, Engine]) -> None:
    """A text across the change is found identical, and one with another token isn't."""
    kind, engine = growing
    request, tokens = Request(prompt_of(20), NEW), generated(kind, 20)

    assert verify(engine.target, request, tokens).verdict == "identical"
    wrong = [*tokens[:32], (tokens[32] + 1) % VOCAB, *tokens[33:]]
    found = verify(engine.target, request, wrong)
    assert found.verdict == "different"
    assert found.first is not None
    assert found.first.position == 32


def test_a_session_goes_back_across_the_change(growing: tuple[str, Engine]) -> None:
    """A text cut back from beyond the change goes on as if it had never been there."""
    _, engine = growing
    text = prompt_of(ORIGINAL + 12)
    session, fresh = engine.target.open(), engine.target.open()
    session.forward(text)
    session.rollback(30)
    fresh.forward(text[:30])

    for part in (text[30:40], text[40:]):
        torch.testing.assert_close(session.forward(part), fresh.forward(part), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["phi3-longrope", "llama-longrope"])
def test_a_change_that_is_misjudged_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model wrongly thought to keep its cache across the change, or to drop it, is decoded by its own steps."""
    backend = EagerBackend(tiny(kind))
    assert backend.length_dependence is not None
    backend.length_dependence.rereads = not backend.length_dependence.rereads

    assert not backend.can_rollback.value
    assert "gives other logits where rotation (longrope) depends on" in backend.can_rollback.reason
    assert written(Engine(backend), 20) == generated(kind, 20)


def test_an_unknown_rotation_is_found_out() -> None:
    """A rotary module that stretches positions to the text's length, as no `rope_type` tells, is decoded plainly."""

    def stretched() -> Any:
        model = tiny("llama")
        inner = model.model.rotary_emb.forward

        @wraps(inner)
        def forward(x: Any, position_ids: Any) -> Any:
            return inner(x, position_ids * (1.0 + 0.1 * float(position_ids.max() > 24)))

        model.model.rotary_emb.forward = forward
        return model

    backend = EagerBackend(stretched())
    ids = torch.tensor([prompt_of(12)])
    want = stretched().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )

    assert not backend.can_rollback.value
    assert "rotates positions otherwise in a longer text" in backend.can_rollback.reason
    assert not can_batch(backend).value
    assert written(Engine(backend), 12) == want[0, 12:].tolist()
    assert generated("llama", 12) != want[0, 12:].tolist()


@pytest.mark.parametrize("kind", [*STATEFUL, *HYBRID])
def test_every_stateful_architecture_writes_what_generate_writes(kind: str) -> None:
    """With its own cache where that gives the logits of the whole text; else from the whole text, with the reason."""
    backend = EagerBackend(tiny(kind))
    assert backend.can_rollback.value == (kind not in UNCONTINUED), backend.can_rollback.reason
    cached = backend.stock.cached

    assert written(Engine(backend), 12, new=24) == generated(kind, 12, 24, cached=cached.value)
    if not cached.value:
        assert kind in cached.reason
        assert cached.reason.endswith("each token is computed from the whole text")


@pytest.mark.parametrize("kind", ["recurrent_gemma", "bamba", "minimax", "mamba", "lfm2"])
def test_texts_dont_read_each_others_state(kind: str) -> None:
    """Two texts written in turns, the second from a prompt of one token, are each what they are alone."""
    backend = EagerBackend(tiny(kind))
    assert backend.stock.cached.value, backend.stock.cached.reason
    texts, parts = [prompt_of(20), prompt_of(17)[5:]], (7, 1)
    sessions = [StockSession(backend) for _ in texts]
    rows = [[session.forward(text[:n])] for session, text, n in zip(sessions, texts, parts, strict=True)]
    for step in range(11):
        for session, text, n, row in zip(sessions, texts, parts, rows, strict=True):
            row.append(session.forward([text[n + step]]))

    for text, n, row in zip(texts, parts, rows, strict=True):
        with torch.inference_mode():
            whole = tiny(kind)(input_ids=torch.tensor([text[: n + 11]]), use_cache=False).logits[0]
        torch.testing.assert_close(torch.cat(row), whole, rtol=1e-3, atol=1e-3)


def test_a_cache_that_forgets_isnt_used() -> None:
    """A model with other logits with its cache than without computes every token from the whole text."""
    model = tiny("mamba")
    inner = model.forward

    @wraps(inner)
    def forward(input_ids: Any, **kwargs: Any) -> Any:
        if input_ids.shape[1] == 1 and kwargs.get("use_cache"):
            kwargs["cache" if "cache" in kwargs else "cache_params"] = None
        return inner(input_ids=input_ids, **kwargs)

    model.forward = forward
    backend = EagerBackend(model)

    assert not backend.stock.cached.value
    assert "mamba gives other logits with its own cache than without" in backend.stock.cached.reason
    assert written(Engine(backend), 12) == generated("mamba", 12, cached=False)


def test_a_model_that_looks_ahead_is_refused() -> None:
    """A bidirectional model's logits change with the tokens after them: neither way is decoding, so it is refused by name."""
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)

    with pytest.raises(UnsupportedModelError, match=r"bert .* logits change with the tokens after it"):
        EagerBackend(model).open()
    with pytest.raises(UnsupportedModelError, match="bert"):
        dynx.attach(model)
