"""Hidden states by position: what a session keeps is what transformers puts out for the same text."""

from __future__ import annotations

import pytest
import torch
from support.models import HYBRID, LAYERS, ROLLING, STATEFUL, UNCONTINUED, VOCAB, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.hidden_states import HiddenStateSession, Tap

TEXT = [(7 * i * i + 3) % VOCAB for i in range(20)]
KINDS = ["llama", "gemma2", "gpt2", "qwen3", "jamba", "qwen3_5_text", "nemotron_h", "llama-dynamic"]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_whole_text(kind: str) -> None:
    """Passes of several tokens, rolled back in between, leave at each position the states that one pass over the text has."""
    layers = [1, LAYERS]
    backend = EagerBackend(tiny(kind))
    assert backend.can_record.value, backend.can_record.reason
    backend.record(layers)
    session = backend.open()
    session.forward(TEXT[:6])
    session.forward([*TEXT[6:8], 1, 2])
    session.rollback(8)
    session.pick(TEXT[8:9])
    session.forward([*TEXT[9:11], 4], keep=1)
    session.rollback(11)
    session.forward(TEXT[11:14])
    found = session.hidden_states(3)

    assert found is not None
    with torch.inference_mode():
        out = tiny(kind)(torch.tensor([TEXT[:14]]), output_hidden_states=True, use_cache=False).hidden_states
    want = torch.cat([out[layer][0, 3:] for layer in layers], dim=-1)
    assert found[0] == 3
    torch.testing.assert_close(found[1], want, rtol=1e-3, atol=1e-3)
    assert session.hidden_states(14) is None


def test_states_of_a_tree_are_those_of_the_kept_path() -> None:
    """After a pass over a tree the states are those of the path that was kept."""
    backend = EagerBackend(tiny("llama"))
    backend.record([LAYERS])
    tree, chain = backend.open(), backend.open()
    for session in (tree, chain):
        session.forward(TEXT[:5])
    tree.forward_tree([9, 4, 33, 12], [0, 1, 0])
    tree.keep(5, [0, 3])
    chain.forward([9, 12])
    found, want = tree.hidden_states(0), chain.hidden_states(0)

    assert found is not None
    assert want is not None
    torch.testing.assert_close(found[1], want[1], rtol=1e-4, atol=1e-4)


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session keeps the latest positions; what is handed out begins with the first that it has."""
    monkeypatch.setattr("dynx.runtime.backends.hidden_states.MAX_POSITIONS", 8)
    monkeypatch.setattr("dynx.runtime.backends.hidden_states.GROWTH_POSITIONS", 2)
    backend = EagerBackend(tiny("llama"))
    whole = HiddenStateSession(backend.open(), Tap(backend.model, [LAYERS]))
    whole.forward(TEXT[:12])
    for at in range(12, 20):
        whole.forward(TEXT[at : at + 1])
    found = whole.hidden_states(0)

    assert found is not None
    first, states = found
    assert first >= 12
    assert len(states) == 20 - first
    with torch.inference_mode():
        want = tiny("llama").model(torch.tensor([TEXT])).last_hidden_state[0, first:]
    torch.testing.assert_close(states, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", sorted({*ROLLING, *STATEFUL, *HYBRID} - {*UNCONTINUED}))
def test_architectures_that_hand_over_states(kind: str) -> None:
    """Every architecture that can be rolled back hands over the states before its head, which make its logits."""
    backend = EagerBackend(tiny(kind))
    if not backend.can_rollback.value:
        assert not backend.can_record.value
        return
    assert backend.can_record.value, backend.can_record.reason
    backend.record([backend.layers])
    session = backend.open()
    rows = session.forward(TEXT[:6])
    found = session.hidden_states(0)
    assert found is not None
    with torch.inference_mode():
        made = backend.model.get_output_embeddings()(found[1])
    assert made.argmax(-1).tolist() == rows.argmax(-1).tolist()
