"""Entities on OpenVINO: segments give what PyTorch gives token by token, and the promise is tested on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.exits import fix_costs, keep
from support.token_folders import sentences, write_token_classifier

from dynx.early_exit import assemble, make_plan
from dynx.early_exit.assembly import attach_exits, load_model
from dynx.early_exit.backends import probes_of
from dynx.early_exit.calibrate import calibrate
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.entities.labels import EntityLabels, entity_set
from dynx.early_exit.features import Inputs, collect_any
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.sample_certificate import certify
from dynx.early_exit.segments import store
from dynx.early_exit.token_features import TokenFeatures
from dynx.errors import UnsupportedModelError
from dynx.runtime.certify import leaves_at

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.assembly import LoadedClassifier

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytestmark = pytest.mark.usefixtures("alone")

EPS = 0.1
DEFAULTS: dict[str, Any] = {"threads": 1, "max_disagreement": EPS}
FRESH = sentences(120, seed=9)
CLOSE = 2e-3
LOOSE = 0.4
"""Share of texts that may differ in int8: of random weights a tenth does, as their labels are nearly tied."""


def loaded(folder: Path, backend: str = "openvino", **wish: Any) -> LoadedClassifier:
    return assemble(make_plan(ClassifierRequest(str(folder), **{**DEFAULTS, "backend": backend, **wish})))


def rows_of(assembly: LoadedClassifier, texts: list[str]) -> list[Example]:
    """The texts as tokens."""
    return [row for row in assembly.preprocessor.rows(texts) if isinstance(row, Example)]


def source_of(folder: Path) -> tuple[Any, Any, LoadedClassifier]:
    """The model with exits attached, two batches of its inputs, and the assembly that it belongs to."""
    assembly = loaded(folder, "torch", profile="none")
    model, preprocessor = load_model(assembly.plan, dtype="float32", max_length=None)
    exit_model = attach_exits(model, preprocessor).model
    return exit_model, probes_of(preprocessor.probe(), "text"), assembly


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
def test_segments_label_tokens_like_the_model(kind: str, tmp_path: Path) -> None:
    """Hidden states at every border and the logits of every token, in batches that no probe had."""
    exit_model, probes, assembly = source_of(write_token_classifier(tmp_path / kind, kind))
    model = store.make(exit_model, probes, (1, 3), precision="float32", ranges={}, threads=1, folder=None)
    for texts in (sentences(5, 3), sentences(1, 4), sentences(7, 5)):
        inputs = assembly.preprocessor.collate(rows_of(assembly, texts))
        real = inputs["attention_mask"].numpy() != 0
        seen: list[Any] = []

        def watch(_k: int, hidden: Any, _rows: Any, seen: list[Any] = seen) -> None:
            seen.append(hidden.numpy())

        out = exit_model.run(inputs, watch=watch, exits=(1, 3)).logits
        features, logits = model.run_all({name: inputs[name].numpy() for name in model.input_names})
        np.testing.assert_allclose(logits[real], out.numpy()[real], atol=CLOSE)
        for ours, theirs in zip(features, seen, strict=True):
            np.testing.assert_allclose(ours[real], theirs[real], atol=CLOSE * max(1.0, float(np.abs(theirs).max())))


def test_wrong_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is converted is compared with the model before it is used: another label of one token shows."""
    exit_model, probes, _ = source_of(write_token_classifier(tmp_path / "m"))
    from dynx.early_exit.segments.model import SegmentedModel

    run_all = SegmentedModel.run_all

    def wrong(self: Any, inputs: Any) -> Any:
        features, logits = run_all(self, inputs)
        logits[0, 1] = -logits[0, 1]
        return features, logits

    monkeypatch.setattr(SegmentedModel, "run_all", wrong)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        store.make(exit_model, probes, (2,), precision="float32", ranges={}, threads=1, folder=None)


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedClassifier:
    """A model that knows most labels early, under the profile of its calibration on OpenVINO in float32."""
    fix_costs(monkeypatch)
    folder = write_token_classifier(tmp_path / "m", easy=True)
    wish: dict[str, Any] = {"backend": "openvino", "dtype": "float32"}
    request = ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, profile="none", **wish)
    assembly = assemble(make_plan(request), calibrating=True)
    texts = sentences(400)
    found = calibrate(assembly, Inputs(texts, texts), budget=1.0, clock=iter(range(10**6)).__next__)
    assert assembly.segments is not None, assembly.decisions.backend
    keep(found)
    return loaded(folder, dtype="float32")


def test_texts_leave_early_and_keep_the_promise(calibrated: LoadedClassifier) -> None:
    """Without the model's weights in PyTorch; what is certified are PyTorch's entities."""
    assert calibrated.segments is not None
    assert calibrated.exit_profile is not None, calibrated.why_full_depth
    job = Classifier(calibrated)
    full = Classifier(loaded(calibrated.plan.source.folder, "torch", profile="none"))
    mine, theirs = job.window(FRESH), full.window(FRESH)
    differ = sum(entity_set(a.entities) != entity_set(b.entities) for a, b in zip(mine, theirs, strict=True))
    assert differ <= EPS * len(FRESH)
    assert job.receipt.layers < 0.9 * full.receipt.layers
    assert sum(job.receipt.exit_counts.values()) == len(FRESH)
    assert job.receipt.guarantee is not None


def test_the_engine_does_what_was_simulated(calibrated: LoadedClassifier) -> None:
    """In batches of mixed lengths, waiting and merged at borders, texts leave where their evidence says, with its entities."""
    known, labels = calibrated.exit_profile, calibrated.labels
    assert known is not None
    assert calibrated.segments is not None
    assert isinstance(labels, EntityLabels)
    calibrated.segments = calibrated.segments.at(known.fitted.depths)
    rows = rows_of(calibrated, FRESH)
    seen = collect_any(calibrated, rows, known.fitted.depths, None)
    assert isinstance(seen, TokenFeatures)
    scores, agree = seen.evaluate(known.fitted.heads, known.fitted.score, 0.0)
    exits = leaves_at(np.asarray(known.certificate.thresholds), scores)
    answers = calibrated.engine(known.exits(), batch=7).window(rows)
    found = [len(known.fitted.depths) if a.exit is None else a.exit for a in answers]
    assert sum(a != b for a, b in zip(found, exits.tolist(), strict=True)) <= 2  # rounding of a score, in other batches
    same = [a == b for a, b in zip(labels.sets(rows, [a.logits for a in answers]), seen.truth, strict=True)]
    assert not [i for i, own in enumerate(found) if own == exits[i] and same[i] != agree[i, own]]


def test_full_depth_is_pytorchs(calibrated: LoadedClassifier) -> None:
    """Whole, without exits: the same entities and, but for rounding, the same scores."""
    full = loaded(calibrated.plan.source.folder, "torch", profile="none")
    theirs = Classifier(full).window(FRESH)
    rows = rows_of(calibrated, FRESH)
    mine = calibrated.labels.read(rows, calibrated.engine().window(rows), ())
    for own, their in zip(mine, theirs, strict=True):
        assert entity_set(own.entities) == entity_set(their.entities)
        assert [e.score for e in own.entities] == pytest.approx([e.score for e in their.entities], abs=CLOSE)


def test_a_sample_of_a_run_is_answered_by_the_full_model(calibrated: LoadedClassifier) -> None:
    """The bound is about the other texts, and those of the sample get PyTorch's own entities."""
    job = Classifier(calibrated)
    texts = sentences(1200, seed=4)
    words = certify(job, texts)
    guarantee = job.receipt.guarantee
    assert guarantee is not None
    theirs = Classifier(loaded(calibrated.plan.source.folder, "torch", profile="none")).window(texts)
    differ = [entity_set(a.entities) != entity_set(b.entities) for a, b in zip(job.window(texts), theirs, strict=True)]
    assert sum(differ) <= EPS * len(texts)
    assert (guarantee.basis == "job") == ("of the other" in words), words


def test_int8_and_blocks_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration rounds a model of tokens to int8 where asked; without a profile its blocks run on OpenVINO."""
    fix_costs(monkeypatch)
    folder = write_token_classifier(tmp_path / "m", easy=True)
    full = Classifier(loaded(folder, "torch", profile="none")).window(FRESH)
    plain = Classifier(loaded(folder, profile="none")).window(FRESH)
    assert [entity_set(each.entities) for each in plain] == [entity_set(each.entities) for each in full]
    wish: dict[str, Any] = {"backend": "openvino", "quantize": "int8"}
    request = ClassifierRequest(str(folder), threads=1, max_disagreement=LOOSE, profile="none", **wish)
    assembly = assemble(make_plan(request), calibrating=True)
    texts = sentences(400)
    keep(calibrate(assembly, Inputs(texts, texts), budget=1.0, clock=iter(range(10**6)).__next__))
    assert assembly.segments is not None, assembly.decisions.backend
    assert assembly.segments.precision == "int8"
    found = Classifier(loaded(folder, quantize="int8", max_disagreement=LOOSE)).window(FRESH)
    differ = sum(entity_set(a.entities) != entity_set(b.entities) for a, b in zip(found, full, strict=True))
    assert differ <= LOOSE * len(FRESH)
