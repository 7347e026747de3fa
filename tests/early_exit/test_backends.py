"""Classifiers on other kernels and in int8: the same answers up to precision, one promise for all of it, a way back."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.classifier_folders import write_text_classifier
from support.classifiers import IMAGE, batch, classifier
from support.exits import EPS, LESSONS, assembled, fix_costs, keep, learned

from dynx.cli.remedy import calibrate_command
from dynx.early_exit import make_plan
from dynx.early_exit.assembly import is_reference
from dynx.early_exit.attach.attach import attach
from dynx.early_exit.backends import LOGIT_TOLERANCE, RANGES_PREFIX, BlockBackend, replace_blocks
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.segments import store
from dynx.errors import DeviceError, NoProfileError, UnsupportedModelError, UsageError
from dynx.runtime.backends.packed_linear import available
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from dynx.early_exit.calibrate import Findings

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(not available("int8").value, reason="no int8 kernels here"),
]
converts = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")


class Preprocessor:
    """Rows of a kind of tiny model."""

    def __init__(self, kind: str) -> None:
        self.kind: Any = "image" if kind in IMAGE else "text"
        self._name = kind

    def probe(self) -> Mapping[str, Tensor]:
        """Four rows."""
        return batch(self._name, 4)


def replaced(kind: str, backend: str, precision: str) -> tuple[Tensor, Tensor, float]:
    """Logits of the model as it was and with other blocks, whole; and the largest change where rows leave on the way."""
    model: Any = classifier(kind)
    preprocessor: Any = Preprocessor(kind)
    inputs = batch(kind, 5, seed=9)
    exit_model = attach(model, preprocessor.probe())
    want = exit_model.run(inputs).logits
    ranges: Any = {}
    if backend == OPENVINO and precision == "int8":
        from dynx.runtime.backends.openvino import blocks as openvino_blocks

        def seen() -> None:
            for seed in range(4):
                exit_model.run(batch(kind, 6, seed=seed))

        ranges = openvino_blocks.observe(exit_model.blocks, seen)
    made: Any = replace_blocks(exit_model, preprocessor, BlockBackend(backend, precision, ranges), 1)
    got = made.run(inputs).logits
    left = made.run(inputs, watch=lambda _k, _h, rows: rows != 1, exits=[2]).logits
    assert want is not None
    return want, got, float((left - got[[0, 2, 3, 4]]).abs().max())


def same(want: Tensor, got: Tensor, part: float, precision: str) -> bool:
    """Equal to what the precision allows, and not to the last bit, which would mean that nothing was replaced."""
    scale = max(1.0, float(want.abs().max()))
    gap = float((got - want).abs().max()) / scale
    return gap <= LOGIT_TOLERANCE[precision] and part <= 0.02 * scale and (precision == "float32" or gap > 0)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "albert", "vit"])
def test_int8_answers_like_the_model(kind: str) -> None:
    """With linear layers in int8, also where rows leave on the way."""
    assert same(*replaced(kind, TORCH, "int8"), "int8")


@converts
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama", "deberta-v2", "vit", "swin", "convnext"])
def test_openvino_answers_like_the_model(kind: str, precision: str) -> None:
    """Block by block, for batches and lengths that no probe had, and where rows leave on the way."""
    assert same(*replaced(kind, OPENVINO, precision), precision)


@converts
def test_what_openvino_cannot_run_is_refused() -> None:
    """One block that stands for all layers is called several times a pass, and isn't converted."""
    with pytest.raises(UnsupportedModelError, match="more than once"):
        replaced("albert", OPENVINO, "float32")


def test_wrong_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights packed with a wrong scale are found out before they answer anything."""
    from dynx.runtime.backends import packed_linear

    made = packed_linear.quantized
    monkeypatch.setattr(packed_linear, "quantized", lambda weight: (made(weight)[0], made(weight)[1] * 3))
    with pytest.raises(UnsupportedModelError, match="gives other logits in int8"):
        replaced("bert", TORCH, "int8")


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"quantize": "int4"}, UsageError, "none and int8"),
        ({"quantize": "int3"}, UsageError, "none and int8"),
        ({"backend": "compiled"}, UsageError, "torch or openvino"),
        ({"backend": "nonsense"}, UsageError, "torch or openvino"),
    ],
)
def test_what_classifiers_do_not_have(easy: Path, wish: dict[str, Any], error: type[Exception], words: str) -> None:
    """The options of language models that mean nothing here are refused by name."""
    with pytest.raises(error, match=words):
        make_plan(ClassifierRequest(str(easy), **wish))


def test_a_backend_that_is_not_there(easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO asked for by name and not installed is an error that says how to install it."""
    from dynx.runtime.backends import registry
    from dynx.runtime.decision import Decision

    monkeypatch.setattr(registry, "available", lambda: Decision(False, "OpenVINO isn't installed (pip …)"))
    with pytest.raises(DeviceError, match="isn't installed"):
        make_plan(ClassifierRequest(str(easy), backend="openvino"))


@converts
def test_openvino_in_int8_needs_a_profile(easy: Path) -> None:
    """Nobody knows how large numbers get before calibration has looked."""
    with pytest.raises(NoProfileError, match="calibration"):
        assembled(easy, backend="openvino", quantize="int8")


def test_the_profile_is_for_one_quantization(easy: Path, known: Findings) -> None:
    """A profile of the model as it is says nothing about int8, whose key is another; and the remedy names the option."""
    plan = make_plan(ClassifierRequest(str(easy), quantize="int8"))
    assert plan.profile is None
    assert plan.key.quantization == "int8"
    assert plan.decisions.quantize.value == "int8"
    assert "--quantize int8" in calibrate_command(plan.request)


def test_without_a_profile_nothing_is_promised(easy: Path) -> None:
    """int8 runs when it's asked for, and its answers carry no guarantee."""
    assembly = assembled(easy, quantize="int8")
    job = Classifier(assembly)
    assert job.window(LESSONS[:3])[0].label
    assert not is_reference(assembly)
    assert job.receipt.guarantee is None


@pytest.fixture(scope="module")
def quantized(easy: Path) -> Iterator[Findings]:
    """What calibration finds for the model in int8."""
    with pytest.MonkeyPatch.context() as patch:
        fix_costs(patch)
        yield learned(assembled(easy, max_disagreement=EPS, profile="none", quantize="int8", backend="torch"))


def test_one_promise_for_exits_and_int8(easy: Path, quantized: Findings) -> None:
    """What certifies is compared with the float32 model, the certificate is used, and a run says so."""
    keep(quantized)
    assembly = assembled(easy, max_disagreement=EPS, quantize="int8")
    job = Classifier(assembly)
    made = job.window(LESSONS)
    full = Classifier(assembled(easy, plain=True)).window(LESSONS)

    assert quantized.profile.key.quantization == "int8"
    assert quantized.profile.fitted["backend"] == TORCH
    assert quantized.profile.evidence["full_depth"]["n"] == quantized.parts[2]
    assert assembly.exit_profile is not None
    assert job.receipt.guarantee is not None
    assert job.receipt.guarantee.eps == EPS
    differ = sum(a.label != b.label for a, b in zip(made, full, strict=True))
    assert differ <= EPS * len(LESSONS)


def test_int8_that_is_too_far_off_gives_way(easy: Path, quantized: Findings) -> None:
    """Where the evidence shows no promise at full depth, the model as it is runs, and the reason is told."""
    agree = np.array(quantized.arrays["evidence.agree"])
    agree[:, -1] = False
    keep(replace(quantized, arrays={**quantized.arrays, "evidence.agree": agree}))
    assembly = assembled(easy, max_disagreement=EPS, quantize="int8")

    assert is_reference(assembly)
    assert assembly.decisions.quantize.value == "none"
    assert "differ from the full float32 model's" in assembly.decisions.quantize.reason
    assert Classifier(assembly).receipt.guarantee is not None
    with pytest.raises(NoProfileError, match="differ from"):
        assembled(easy, max_disagreement=EPS, quantize="int8", require_profile=True)


def test_a_profile_of_other_kernels_is_not_used(easy: Path, known: Findings) -> None:
    """Its evidence is of other numbers: it's passed over with a word, or refused where a profile is required."""
    keep(replace(known, profile=replace(known.profile, fitted={**known.profile.fitted, "backend": OPENVINO})))
    said: list[str] = []
    plan = make_plan(ClassifierRequest(str(easy), backend="torch"), warn=said.append)
    assert plan.profile is None
    assert "was measured with OpenVINO" in said[0]
    with pytest.raises(NoProfileError, match="was measured with OpenVINO"):
        make_plan(ClassifierRequest(str(easy), backend="torch", require_profile=True))


@converts
def test_calibration_keeps_what_openvino_needs(easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of numbers are in the profile, and a run from it has OpenVINO's blocks and the same promise."""
    fix_costs(monkeypatch)
    asked: dict[str, Any] = {"max_disagreement": EPS, "quantize": "int8", "backend": "openvino"}
    plan = make_plan(ClassifierRequest(str(easy), profile="none", **asked))
    from dynx.early_exit import assemble

    found = learned(assemble(plan, calibrating=True))
    keep(found)
    assembly = assembled(easy, max_disagreement=EPS, quantize="int8")

    assert found.profile.fitted["backend"] == OPENVINO
    assert any(name.startswith(RANGES_PREFIX) for name in found.arrays)
    assert assembly.block_backend.backend == OPENVINO
    assert assembly.decisions.backend.reason.startswith("measured to be the fastest here; it computes in int8")
    assert len(Classifier(assembly).window(LESSONS[:5])) == 5


def test_a_causal_classifier_quantizes_from_a_folder(tmp_path: Path) -> None:
    """A decoder's folder too, through the same door."""
    folder = write_text_classifier(tmp_path / "gpt2", "gpt2")
    assembly = assembled(folder, quantize="int8")
    assert assembly.block_backend.quantized
    assert Classifier(assembly).window(["one", "two words"])[1].label


@converts
@pytest.mark.parametrize("error", [RuntimeError("same dtype"), KeyError("weight"), AssertionError()])
def test_whatever_openvino_raises_leaves_it_out(
    easy: Path, known: Findings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """In a calibration and on a run of a profile that names it, with the reason; asked for by name it's one line."""
    from dynx.early_exit import assemble
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    def failing(*_: Any, **__: Any) -> None:
        raise error

    fix_costs(monkeypatch)
    monkeypatch.setattr(openvino_blocks, "replace", failing)
    monkeypatch.setattr(store, "make", failing)
    why = f"OpenVINO can't run it: {easy.name} fails on OpenVINO ({type(error).__name__}: {str(error) or 'no message'})"

    assembly = assemble(make_plan(ClassifierRequest(str(easy), profile="none", threads=1)), calibrating=True)
    learned(assembly)
    assert assembly.decisions.backend == Decision(TORCH, why)

    keep(replace(known, profile=replace(known.profile, fitted={**known.profile.fitted, "backend": OPENVINO})))
    run = assembled(easy)
    assert run.decisions.backend == Decision(TORCH, why)
    assert run.plan.profile is None

    with pytest.raises(UnsupportedModelError, match="fails on OpenVINO"):
        assembled(easy, backend="openvino", profile="none")


@converts
def test_memory_that_ran_out_is_no_fault_of_openvinos(easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command as it does elsewhere, and so does Ctrl-C."""
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    for error in (MemoryError(), RuntimeError("not enough memory: you tried to allocate"), KeyboardInterrupt()):

        def failing(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(openvino_blocks, "_converted", failing)
        with pytest.raises(type(error)) as caught:
            assembled(easy, backend="openvino", profile="none")
        assert caught.value is error


@converts
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_converting_blocks_leaves_their_weights(kind: str, precision: str) -> None:
    """Parameters and buffers are the same objects with the same bits: the rest of the model goes on with them."""
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    model, preprocessor = classifier(kind), Preprocessor(kind)
    exit_model = attach(model, preprocessor.probe())
    seen = openvino_blocks.observe(exit_model.blocks, lambda: exit_model.run(batch(kind, 6, seed=1)))
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (tensor, tensor.clone(), tensor.dtype) for name, tensor in named.items()}
    replace_blocks(exit_model, preprocessor, BlockBackend(OPENVINO, precision, seen if precision == "int8" else {}), 1)  # type: ignore[arg-type]
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        same_object, bits, dtype = before[name]
        assert tensor is same_object
        assert (tensor.dtype, torch.equal(tensor, bits)) == (dtype, True)
