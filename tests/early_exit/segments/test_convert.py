"""Segments of many architectures on OpenVINO: the same hidden states and logits as the model, in parts and as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.classifiers import IMAGE, batch, classifier

from dynx.early_exit.attach.attach import attach
from dynx.early_exit.backends import probes_of
from dynx.early_exit.segments import store
from dynx.errors import UnsupportedModelError

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytestmark = pytest.mark.usefixtures("alone")

KINDS = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "albert",
    "modernbert",
    "gpt2",
    "llama",
    "vit",
    "dinov2",
]


def attached(kind: str) -> Any:
    """A tiny classifier with exits."""
    return attach(classifier(kind), batch(kind, 4))


def segmented(exit_model: Any, kind: str, borders: tuple[int, ...], precision: str = "float32", **settings: Any) -> Any:
    """It in segments."""
    probes = probes_of(batch(kind, 4), "image" if kind in IMAGE else "text")
    settings = {"ranges": {}, "threads": 1, "folder": None, **settings}
    return store.make(exit_model, probes, borders, precision=precision, **settings)


def arrays(model: Any, inputs: Any) -> dict[str, Any]:
    """What the segments take of a batch."""
    return {name: inputs[name].numpy() for name in model.input_names}


def run_by_torch(exit_model: Any, inputs: Any, borders: tuple[int, ...]) -> tuple[list[Any], Any]:
    """Features at each border and logits, as PyTorch has them."""
    features: list[Any] = []
    out = exit_model.run(
        inputs, watch=lambda _k, hidden, _rows: features.append(exit_model.pool(hidden, inputs).numpy()), exits=borders
    )
    return features, out.logits.numpy()


@pytest.mark.parametrize("borders", [(), (2,), (1, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_segments_answer_like_the_model(kind: str, borders: tuple[int, ...]) -> None:
    """For batches and lengths that no probe had: features at every border, and the logits."""
    exit_model = attached(kind)
    model = segmented(exit_model, kind, borders)
    for rows, seed in ((5, 3), (1, 4), (7, 5)):
        inputs = batch(kind, rows, seed=seed)
        want, logits = run_by_torch(exit_model, inputs, borders)
        features, got = model.run_all(arrays(model, inputs))
        np.testing.assert_allclose(got, logits, atol=2e-3 * max(1.0, float(np.abs(logits).max())))
        for ours, theirs in zip(features, want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * max(1.0, float(np.abs(theirs).max())))


def test_rows_go_on_without_the_others() -> None:
    """A later segment gives a row the same logits without those that exited before it."""
    exit_model = attached("bert")
    model = segmented(exit_model, "bert", (1, 3))
    inputs = arrays(model, batch("bert", 6, seed=2))
    _, want = model.run_all(inputs)
    hidden = model.run(0, inputs)[0][[1, 4]]
    left = {name: value[[1, 4]] for name, value in inputs.items()}
    hidden = model.run(1, left, hidden)[0].copy()
    np.testing.assert_allclose(model.run(2, left, hidden)[0], want[[1, 4]], atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_precisions_are_near(precision: str) -> None:
    """Rounded answers are close to the model's and not equal to them, which would mean that nothing was rounded."""
    from dynx.runtime.backends.openvino import blocks as openvino_blocks
    from dynx.runtime.backends.openvino.tracing import multiplies_bfloat16

    if precision == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this processor has no instructions for bfloat16")
    exit_model = attached("bert")
    ranges = openvino_blocks.observe(exit_model.blocks, lambda: exit_model.run(batch("bert", 6, seed=1)))
    model = segmented(exit_model, "bert", (2,), precision, ranges=ranges)
    inputs = batch("bert", 6, seed=1)
    _, want = run_by_torch(exit_model, inputs, (2,))
    _, got = model.run_all(arrays(model, inputs))
    gap = float(np.abs(got - want).max()) / max(1.0, float(np.abs(want).max()))
    assert 0 < gap <= store.LOGIT_TOLERANCE[precision]


def test_int8_is_in_every_segment() -> None:
    """The graphs round what their linear layers read and multiply with, exits attached or not."""
    from dynx.early_exit.segments.convert import convert
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    exit_model = attached("bert")
    ranges = openvino_blocks.observe(exit_model.blocks, lambda: exit_model.run(batch("bert", 6, seed=1)))
    for graph in convert(exit_model, probes_of(batch("bert", 4), "text"), (2,), ranges=ranges):
        rounded = sum(node.get_type_name() == "FakeQuantize" for node in graph.get_ops())
        assert rounded >= 2 * 6 * 2  # inputs and weights of six linear layers in each of two blocks


def test_the_model_stays_as_it_was() -> None:
    """Converting changes neither its answers, nor its forwards, nor how it computes attention."""
    exit_model = attached("bert")
    inputs = batch("bert", 5, seed=7)
    before = exit_model.run(inputs).logits
    attention = exit_model.model.config._attn_implementation
    forwards = [module.__dict__.get("forward") for module in exit_model.model.modules()]
    segmented(exit_model, "bert", (2,))
    assert torch.equal(exit_model.run(inputs).logits, before)
    assert exit_model.model.config._attn_implementation == attention
    assert [module.__dict__.get("forward") for module in exit_model.model.modules()] == forwards


def test_blocks_that_change_shapes_are_refused() -> None:
    """A Swin's hidden states get smaller on the way, so those behind a border can't stand for the embeddings' output."""
    with pytest.raises(UnsupportedModelError, match="SwinForImageClassification"):
        segmented(attached("swin"), "swin", (2,))


def test_wrong_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that drop a block are found out before they are kept."""
    from dynx.early_exit.segments import convert

    made = convert.convert
    monkeypatch.setattr(
        convert, "convert", lambda model, probes, borders, **how: made(model, probes, (1, 3), **how)[::2]
    )
    with pytest.raises(UnsupportedModelError, match="gives other"):
        segmented(attached("bert"), "bert", (2,))
