"""Pairs, rankings and candidate labels on OpenVINO: segments give what PyTorch gives, and the promise is tested on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.exits import fix_costs, keep
from support.pair_folders import NLI, fix_group_costs, pairs, queries, write_pair_classifier

from dynx.early_exit import assemble, calibrate, group_calibrate, make_plan
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.features import Inputs
from dynx.early_exit.group_classifier import GroupClassifier
from dynx.early_exit.items import GROUPED, Pair, Query
from dynx.early_exit.plan import ClassifierRequest

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.assembly import LoadedClassifier

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone", "fixed_costs")]

EPS = 0.1
ASKED = [Query(query, tuple(documents)) for query, documents in queries(120, 6)]
FRESH = [Query(query, tuple(documents)) for query, documents in queries(40, 6, seed=9)]
LABELS = ("wood", "a king", "gold", "a fox")


@pytest.fixture
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and clock fixed."""
    fix_costs(monkeypatch)
    fix_group_costs(monkeypatch)


def loaded(folder: Path, backend: str, **wish: Any) -> LoadedClassifier:
    return assemble(make_plan(ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, backend=backend, **wish)))


def learned(folder: Path, items: list[Any], **wish: Any) -> LoadedClassifier:
    """Calibrate on OpenVINO in float32, keep the profile, and load under it."""
    wish |= {"backend": "openvino", "dtype": "float32"}
    names = [item if isinstance(item, str) else item.name for item in items]
    assembly = assemble(
        make_plan(ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, profile="none", **wish)),
        calibrating=True,
    )
    learn = group_calibrate.calibrate if wish.get("form") in GROUPED else calibrate.calibrate
    found = learn(assembly, Inputs(items, names), budget=1.0, clock=iter(range(10**6)).__next__)
    assert assembly.segments is not None, assembly.decisions.backend
    keep(found)
    return loaded(folder, **wish)


def test_rankings(tmp_path: Path) -> None:
    """Fewer layers than all; the first documents are PyTorch's in all but the share promised, and their scores are too."""
    folder = write_pair_classifier(tmp_path / "m", easy=True)
    assembly = learned(folder, ASKED, form="ranking", top_k=2)
    assert assembly.segments is not None
    assert assembly.group_profile is not None, assembly.why_full_depth
    job, full = (GroupClassifier(each) for each in (assembly, loaded(folder, "torch", form="ranking", top_k=2)))
    mine, theirs = job.window(FRESH), full.window(FRESH)
    same = [{d.index for d in m.documents} == {d.index for d in t.documents} for m, t in zip(mine, theirs, strict=True)]
    assert sum(not each for each in same) <= EPS * len(FRESH)
    for m, t, equal in zip(mine, theirs, same, strict=True):
        if equal:
            assert sorted(d.score for d in m.documents) == pytest.approx(sorted(d.score for d in t.documents), abs=1e-3)
    assert job.receipt.layers < full.receipt.layers == 4 * full.receipt.rows


def test_all_documents_run_all_layers(tmp_path: Path) -> None:
    """Under the profile of the first two, an order of all documents is the full model's, on whatever computes."""
    folder = write_pair_classifier(tmp_path / "m", easy=True)
    learned(folder, ASKED, form="ranking", top_k=2)
    job = GroupClassifier(loaded(folder, "auto", form="ranking"))
    full = GroupClassifier(loaded(folder, "torch", form="ranking", profile="none"))
    for m, t in zip(job.window(FRESH), full.window(FRESH), strict=True):
        assert [d.index for d in m.documents] == [d.index for d in t.documents]


@pytest.mark.parametrize("multi_label", [False, True])
def test_candidate_labels(tmp_path: Path, multi_label: bool) -> None:
    """Labels of texts are PyTorch's in all but the share promised."""
    folder = write_pair_classifier(tmp_path / "m", labels=NLI, easy=True)
    wish: dict[str, Any] = {"form": "zero-shot", "candidates": LABELS, "multi_label": multi_label}
    assembly = learned(folder, [query.query for query in ASKED], **wish)
    texts = [query.query for query in FRESH]
    mine = GroupClassifier(assembly).window(texts)
    theirs = GroupClassifier(loaded(folder, "torch", profile="none", **wish)).window(texts)
    assert sum(m.label != t.label for m, t in zip(mine, theirs, strict=True)) <= EPS * len(texts)


def test_pairs(tmp_path: Path) -> None:
    """Token types reach every segment that takes them: labels are PyTorch's, and fewer layers run."""
    folder = write_pair_classifier(tmp_path / "m", labels=NLI, easy=True)
    assembly = learned(folder, [Pair(*pair) for pair in pairs(200, longest=8)], form="pair")
    fresh = [Pair(*pair) for pair in pairs(60, seed=7, longest=8)]
    job, full = Classifier(assembly), Classifier(loaded(folder, "torch", form="pair", profile="none"))
    mine, theirs = job.window(fresh), full.window(fresh)
    assert sum(m.label != t.label for m, t in zip(mine, theirs, strict=True)) <= EPS * len(fresh)
    early = np.asarray([m.exit is not None for m in mine])
    assert early.any() == (assembly.exit_profile is not None), assembly.why_full_depth
    for m, t in zip(mine, theirs, strict=True):
        if m.exit is None:
            assert dict(m.scores) == pytest.approx(dict(t.scores), abs=1e-3)


def test_an_arithmetic_that_changes_too_many_results_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are ranked alike as far as their noise tells, and results aren't: the next fastest that keeps them computes."""
    from dynx.early_exit import segment_choice
    from dynx.early_exit.segments.model import SegmentedModel

    folder = write_pair_classifier(tmp_path / "m", easy=True)
    monkeypatch.setattr(segment_choice, "precisions", lambda _plan: ["float32", "bfloat16"])
    monkeypatch.setattr(segment_choice, "too_many_differ", lambda *_: None)
    seconds = {"bfloat16": 1.0, "float32": 2.0}
    monkeypatch.setattr(segment_choice, "race", lambda engines, *_, **__: {n: seconds.get(n, 9.0) for n in engines})
    run_all = SegmentedModel.run_all

    def noisy(self: Any, inputs: Any) -> Any:
        features, logits = run_all(self, inputs)
        if self.precision == "bfloat16" and len(logits) > 8:  # after the check on load
            logits = logits + np.random.default_rng(len(logits)).normal(size=logits.shape).astype(np.float32) * 9
        return features, logits

    monkeypatch.setattr(SegmentedModel, "run_all", noisy)
    request = ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, profile="none", form="ranking", top_k=2)
    assembly = assemble(make_plan(request), calibrating=True)
    names = [item.name for item in ASKED]
    found = group_calibrate.calibrate(assembly, Inputs(ASKED, names), budget=1.0, clock=iter(range(10**6)).__next__)
    assert "in bfloat16" in assembly.decisions.backend.reason
    assert "results differ" in assembly.decisions.backend.reason
    assert assembly.block_backend.precision == "float32"
    assert found.certificate is not None
    assert found.certificate.active
