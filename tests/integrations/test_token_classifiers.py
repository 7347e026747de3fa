"""An attached model that labels tokens exits early under the promise on its entities, or runs its own forward and says why."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.exits import fix_costs, keep
from support.token_folders import sentences, write_token_classifier
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import dynx
from dynx.early_exit import assemble, make_plan
from dynx.early_exit.calibrate import calibrate
from dynx.early_exit.features import Inputs
from dynx.early_exit.plan import ClassifierRequest
from dynx.errors import InvalidInput, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")

EPS = 0.1
TEXTS = sentences(120, seed=9)


@pytest.fixture
def easy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that knows most labels early, with a profile of its entities on PyTorch."""
    return learned(tmp_path / "m", monkeypatch)


def learned(folder: Path, monkeypatch: pytest.MonkeyPatch, strategy: str = "simple") -> Path:
    """Write and calibrate it."""
    fix_costs(monkeypatch)
    write_token_classifier(folder, easy=True)
    wish: dict[str, Any] = {"profile": "none", "backend": "torch", "aggregation_strategy": strategy}
    request = ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, **wish)
    assembly = assemble(make_plan(request), calibrating=True)
    texts = sentences(400)
    keep(calibrate(assembly, Inputs(texts, texts), budget=1.0, clock=iter(range(10**6)).__next__))
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, as transformers loads them."""
    return AutoModelForTokenClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def places(found: Any) -> list[Any]:
    """Entities without scores."""
    return [[(one.get("entity_group", one.get("entity")), one["start"], one["end"]) for one in each] for each in found]


@pytest.mark.parametrize("together", [1, 16])
def test_a_pipeline_leaves_early(easy: Path, together: int) -> None:
    """It gives the entities that `dynx classify` gives, in fewer layers; detached it is its own again."""
    pipe = pipeline("token-classification", str(easy), aggregation_strategy="simple", batch_size=together)
    with warnings.catch_warnings(action="ignore"):
        before = places(pipe(TEXTS))
        dynx.attach(pipe, max_disagreement=EPS)
        found = places(pipe(TEXTS))
    want = dynx.load_classifier(str(easy), max_disagreement=EPS, backend="torch")
    expected = [[(e.label, e.start, e.end) for e in each.entities] for each in want.classify(TEXTS)]
    assert pipe.model.dynx.stats.reason is None
    assert found == expected
    assert sum(a != b for a, b in zip(found, before, strict=True)) <= EPS * len(TEXTS)
    assert pipe.model.dynx.receipt.layers < 0.9 * 4 * len(TEXTS)
    assert str(pipe.model.dynx.guarantee) == str(want.stats.guarantee)
    dynx.detach(pipe)
    with warnings.catch_warnings(action="ignore"):
        assert places(pipe(TEXTS)) == before


def test_logits_have_the_shape_of_the_call(easy: Path) -> None:
    """A row for each text and a place for each token, numbers everywhere; those of texts that ran all layers are the model's."""
    model, tokenizer = load(easy)
    batch = tokenizer(TEXTS[:24], padding=True, return_tensors="pt")
    with torch.no_grad():
        own = model(**batch)
        out = dynx.attach(model, tokenizer, max_disagreement=EPS)(**batch)
    assert type(out) is type(own)
    assert out.logits.shape == own.logits.shape
    assert bool(out.logits.isfinite().all())
    assert 0 < model.dynx.stats.layers < model.dynx.stats.full
    real = batch["attention_mask"].bool()
    deep = [torch.allclose(a[m], b[m], atol=1e-4) for a, b, m in zip(out.logits, own.logits, real, strict=True)]
    assert sum(deep) == model.dynx.stats.exit_counts[4]


def test_what_the_profile_is_not_about_runs_the_models_own_forward(easy: Path) -> None:
    """Another strategy's entities, rows cut out of a text, and labels to learn from."""
    pipe = dynx.attach(pipeline("token-classification", str(easy)), max_disagreement=EPS)
    assert "aggregation strategy simple" in pipe.model.dynx.why_full_depth
    model, tokenizer = load(easy)
    dynx.attach(model, tokenizer, max_disagreement=EPS)
    batch = tokenizer(TEXTS[:24], padding=True, return_tensors="pt")
    with torch.no_grad():
        model(**{name: value[:, 1:] for name, value in batch.items()})
        assert "begin and end" in model.dynx.stats.reason
        model(**batch, labels=torch.zeros_like(batch["input_ids"]))
        assert "labels" in model.dynx.stats.reason
    with pytest.raises(InvalidInput):
        dynx.attach(load(easy)[0], tokenizer, aggregation_strategy="mean")


def test_first_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That strategy looks at words, which a forward doesn't see."""
    folder = learned(tmp_path / "m", monkeypatch, "first")
    model, tokenizer = load(folder)
    dynx.attach(model, tokenizer, max_disagreement=EPS, aggregation_strategy="first")
    assert "looks at words" in model.dynx.why_full_depth


def test_windows_over_a_text_are_refused(easy: Path) -> None:
    """The promise is on whole texts; where it's asked for in the pipeline, that shows."""
    pipe = pipeline("token-classification", str(easy), aggregation_strategy="simple", stride=4)
    with pytest.raises(UnsupportedModelError, match="stride"):
        dynx.attach(pipe, max_disagreement=EPS)
