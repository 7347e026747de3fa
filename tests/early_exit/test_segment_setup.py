"""Runs from a profile of segments: what the cache has starts without weights, what it lacks starts on PyTorch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.exits import EPS, LESSONS, assembled, fix_costs, keep, learned

from dynx.early_exit import assemble, make_plan
from dynx.early_exit.assembly import is_reference
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.segments import store
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def found(easy: Path, monkeypatch: pytest.MonkeyPatch) -> Findings:
    """What a calibration on OpenVINO finds, kept in this test's cache with its segments."""
    fix_costs(monkeypatch)
    request = ClassifierRequest(
        str(easy), profile="none", backend="openvino", dtype="float32", threads=1, max_disagreement=EPS
    )
    made = learned(assemble(make_plan(request), calibrating=True))
    keep(made)
    return made


def timed(found: Findings, conversion: float) -> Findings:
    """The same with times of a conversion and of inputs, four times as fast on OpenVINO."""
    times = {"conversion": conversion, "input": {TORCH: 0.004, OPENVINO: 0.001}}
    changed = replace(found, profile=replace(found.profile, measured={**found.profile.measured, "segments": times}))
    keep(changed)
    return changed


def forget_segments() -> None:
    """Empty the cache of what was converted."""
    shutil.rmtree(cache_folder() / "segments")


def labels(assembly: Any) -> list[str | None]:
    """All lessons' labels."""
    return [prediction.label for prediction in Classifier(assembly).window(LESSONS)]


def test_a_profile_keeps_how_the_model_was_cut(found: Findings) -> None:
    """Precision and borders, which are where rows may exit."""
    cut = found.profile.fitted["segments"]
    assert cut["precision"] == "float32"
    assert cut["borders"] == found.profile.fitted["depths"]
    assert found.profile.evidence["full_depth"]["n"] == found.parts[2]


def test_what_the_cache_has_reads_no_weights(found: Findings, easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run needs tokenizer, config and graphs; its labels are the full model's but for what ε allows."""
    full = labels(assembled(easy, plain=True))
    from dynx.runtime import loading

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(loading, "load_classifier", never)
    assembly = assembled(easy, max_disagreement=EPS)
    assert assembly.segments is not None
    assert assembly.exit_profile is not None
    assert assembly.decisions.backend.value == OPENVINO
    assert "float32, cut after layer" in assembly.decisions.backend.reason
    job = Classifier(assembly)
    made = [prediction.label for prediction in job.window(LESSONS)]
    assert sum(a != b for a, b in zip(made, full, strict=True)) <= EPS * len(LESSONS)
    assert job.receipt.mean_layers is not None
    assert job.receipt.mean_layers < job.receipt.depth


def test_what_the_cache_lacks_is_converted(found: Findings, easy: Path) -> None:
    """Once: the next run finds it."""
    forget_segments()
    assert labels(assembled(easy, max_disagreement=EPS))
    assert any((cache_folder() / "segments").rglob("facts.json"))


def test_a_torn_cache_is_made_anew(found: Findings, easy: Path) -> None:
    """Files that OpenVINO can't read are as good as none."""
    for file in (cache_folder() / "segments").rglob("*.xml"):
        file.write_text("torn")
    assembly = assembled(easy, max_disagreement=EPS)
    assert assembly.segments is not None
    assert labels(assembly)


def test_a_quick_start_moves_over_when_it_pays(found: Findings, easy: Path) -> None:
    """PyTorch answers until converting has paid, exactly; then the profile's exits take over, and the receipt says when."""
    timed(found, conversion=1e-9)
    forget_segments()
    plan = make_plan(ClassifierRequest(str(easy), threads=1, max_disagreement=EPS))
    assembly = assemble(plan, quick_start=True)
    assert assembly.pending is not None
    assert assembly.decisions.backend.value == TORCH
    job = Classifier(assembly)
    assert job.receipt.guarantee is not None
    first = job.window(LESSONS[:50])
    assert {prediction.layers for prediction in first} == {job.receipt.depth}
    assert assembly.segments is None
    later = job.window(LESSONS[50:])
    assert assembly.segments is not None
    assert job.receipt.backend.startswith("PyTorch for 50 inputs, then OpenVINO (float32")
    assert job.receipt.guarantee.eps == EPS
    assert min(prediction.layers for prediction in later) < job.receipt.depth


def test_a_short_run_never_converts(found: Findings, easy: Path) -> None:
    """An hour of conversion doesn't pay for some hundred texts."""
    timed(found, conversion=3600.0)
    forget_segments()
    assembly = assemble(make_plan(ClassifierRequest(str(easy), threads=1, max_disagreement=EPS)), quick_start=True)
    assert labels(assembly) == labels(assembled(easy, plain=True))
    assert assembly.segments is None
    assert not (cache_folder() / "segments").exists()


def test_what_cannot_be_converted_runs_on_pytorch(found: Findings, easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and without the profile, whose evidence is of other numbers."""
    forget_segments()

    def failing(*_: Any, **__: Any) -> None:
        raise UnsupportedModelError("no such operation")

    monkeypatch.setattr(store, "make", failing)
    said: list[str] = []
    assembly = assembled(easy, max_disagreement=EPS, warn=said.append)
    assert is_reference(assembly)
    assert assembly.decisions.backend.reason == "OpenVINO can't run it: no such operation"
    assert assembly.plan.profile is None
    assert said
    assert "no such operation" in said[0]


def test_a_precision_asked_for_is_kept(found: Findings, easy: Path) -> None:
    """float32 by name isn't answered in int8 because a profile measured that."""
    fitted = {**found.profile.fitted, "segments": {**found.profile.fitted["segments"], "precision": "bfloat16"}}
    keep(replace(found, profile=replace(found.profile, fitted=fitted)))
    assembly = assembled(easy, max_disagreement=EPS, dtype="float32")
    assert is_reference(assembly)
    assert "bfloat16" in assembly.decisions.profile.reason


@pytest.mark.parametrize("where", ["segments", "whole"])
def test_arithmetic_that_is_too_far_off_gives_way(found: Findings, easy: Path, where: str) -> None:
    """Whether in segments or in one piece: the float32 model answers, exactly."""
    profile, arrays = found.profile, dict(found.arrays)
    if where == "segments":
        arrays["evidence.agree"] = np.array(arrays["evidence.agree"])
        arrays["evidence.agree"][:, -1] = False
    else:
        evidence = {**profile.evidence, "full_depth": {"n": found.parts[2], "disagreements": found.parts[2]}}
        profile = replace(profile, evidence=evidence)
    keep(replace(found, profile=profile, arrays=arrays))
    assembly = assembled(easy, max_disagreement=EPS)
    assert is_reference(assembly)
    assert "differ from the full float32 model's" in assembly.decisions.exits.reason  # type: ignore[union-attr]


def test_an_alarm_turns_to_the_float32_model(found: Findings, easy: Path) -> None:
    """What an audit rejects may be the arithmetic itself, so afterwards PyTorch answers."""
    assembly = assembled(easy, max_disagreement=EPS)
    alarms: list[str] = []
    job = Classifier(assembly, audit=1.0, on_alarm=alarms.append)
    assert job.audit is not None
    job.audit.alarmed = True
    job.window(LESSONS[:20])
    assert alarms
    want = labels(assembled(easy, plain=True))
    assert [prediction.label for prediction in job.window(LESSONS)] == want
