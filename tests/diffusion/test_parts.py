"""Text encoders answer each text once, bit for bit; parts on other kernels don't touch the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import pipelines

from dynx.diffusion import backends, parts
from dynx.diffusion.engine import Engine
from dynx.diffusion.parts import DECODER, KeptTexts
from dynx.runtime.backends.network import NetworkBackend

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "pixart", "flux"])
def test_a_text_is_encoded_once(name: str) -> None:
    """A second picture of the same prompt encodes nothing, and is the pipeline's own to the bit."""
    pipe = pipelines.pipeline(name)
    before = pipelines.own_state(pipe)
    engine, encoded = Engine(pipe), 0
    for seed in (1, 2):
        asked = pipelines.request(name, (seed,))
        drawn = engine.draw(asked)
        assert np.array_equal(pipelines.pixels(drawn), pipelines.directly(name, asked))
        encoded = engine.parts.texts.encoded if seed == 1 else encoded
    assert engine.parts.texts.encoded == encoded > 0
    assert pipelines.own_state(pipe) == before
    assert all("forward" not in module.__dict__ for module in engine.parts.modules().values())


def test_other_calls_are_other_answers() -> None:
    """Equal tensors alone share one; tensors that aren't ids, and arguments of other kinds, are never kept."""
    kept = KeptTexts()
    made = iter(range(100))

    def ask(*args: object, **kwargs: object) -> float:
        return float(kept.answer("text_encoder", lambda: torch.tensor(float(next(made))), (args, kwargs)))

    ids = torch.tensor([[1, 2]])
    assert ask(ids) == ask(torch.tensor([[1, 2]])) == 0
    assert ask(torch.tensor([[1, 3]])) == 1
    assert ask(torch.tensor([[1, 2]], dtype=torch.int32)) == 2
    assert ask(ids, attention_mask=ids) == 3
    assert ask(torch.ones(2)) != ask(torch.ones(2))
    assert ask(ids, object()) != ask(ids, object())
    assert kept.answer("text_encoder_2", lambda: torch.tensor(50.0), ((ids,), {})) == 50


def test_kept_answers_cannot_be_changed_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets one may write into it; the oldest go first."""
    kept = KeptTexts()
    call = ((torch.tensor([1]),), {})
    kept.answer("a", lambda: torch.zeros(2), call).fill_(7)
    assert float(kept.answer("a", lambda: torch.ones(2), call).sum()) == 0
    monkeypatch.setattr(parts, "MAX_KEPT_BYTES", 16)
    for i in range(5):
        kept.answer("a", lambda: torch.zeros(2), ((torch.tensor([i]),), {}))
    kept.answer("a", lambda: torch.zeros(2), call)
    assert kept.encoded == 6


def test_the_decoder_on_other_kernels_leaves_the_reference_alone() -> None:
    """The calls that a request leads to are known without running the network; the reference decodes as loaded."""
    pipe, asked = pipelines.stable_diffusion(), pipelines.request("stable-diffusion", (1,))
    engine = Engine(pipe)
    own = pipelines.pixels(engine.draw(asked))
    calls = backends.part_calls(engine, asked)
    assert calls.keys() == {"text_encoder", DECODER}
    decoder = NetworkBackend(pipe.vae.decoder, "torch-eager", dtype="bfloat16", threads=1, cache=None)
    engine.parts.kernels = backends.prepare_parts({DECODER: decoder}, calls, [DECODER])

    changed = pipelines.pixels(engine.draw(asked))

    assert decoder.passed == 0
    assert 0 < np.abs(changed - own).max() < 0.1
    assert np.array_equal(pipelines.pixels(engine.reference.draw(asked)), own)
