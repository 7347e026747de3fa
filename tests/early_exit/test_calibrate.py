"""Learning exits: what is refused, what is left out, and what the profile says when nothing pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier
from support.exits import EPS, LESSONS, assembled, fix_costs, keep, learned

from dynx.early_exit import calibrate as learning
from dynx.early_exit import exit_fitting
from dynx.early_exit.assembly import Reference
from dynx.early_exit.exit_depths import candidates
from dynx.early_exit.features import Inputs, collect
from dynx.early_exit.preprocessing import Example
from dynx.errors import UnsupportedModelError, UsageError
from dynx.runtime.certify import split

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings

pytestmark = pytest.mark.usefixtures("alone")


def test_findings(findings: Findings) -> None:
    """Three disjoint parts, a certificate on the last alone, and a summary that says what it is worth."""
    assert findings.certificate is not None
    assert findings.inputs == sum(findings.parts) == len(LESSONS)
    assert findings.certificate.n == findings.parts[2]
    assert findings.certificate.disagreements <= EPS * findings.parts[2]
    assert findings.power.startswith(f"{findings.parts[2]} of {len(LESSONS)} inputs certify")
    assert "of 4 layers on average" in findings.summary
    assert findings.profile.decision["summary"] == findings.summary
    assert sum(row["inputs"] for row in findings.profile.evidence["by_class"]) == findings.parts[2]
    assert sum(row["disagreements"] for row in findings.profile.evidence["by_class"]) == (
        findings.certificate.disagreements
    )


def test_fresh_inputs_differ_no_more_than_promised(known: Findings, easy: Path) -> None:
    """Of inputs that calibration never saw, a share within ε; and exits were taken."""
    from dynx.early_exit.classifier import Classifier

    fresh = sentences(600, seed=1)
    dynamic = Classifier(assembled(easy, max_disagreement=EPS))
    plain = Classifier(assembled(easy, plain=True))
    pairs = list(zip(dynamic.window(fresh), plain.window(fresh), strict=True))

    assert sum(a.label != b.label for a, b in pairs) <= EPS * len(fresh)
    assert all(a.label == b.label and abs(a.score - b.score) < 1e-5 for a, b in pairs if a.exit is None)  # type: ignore[operator]
    assert dynamic.receipt.mean_layers < 0.8 * dynamic.receipt.depth  # type: ignore[operator]


def test_repeated_inputs_count_once(steady: None, easy: Path) -> None:
    """Neither a line that comes again nor one that reads the same to the model makes evidence."""
    doubled = [*LESSONS, *LESSONS, *(f" {text}".strip() for text in LESSONS)]

    assert learned(assembled(easy, max_disagreement=EPS), doubled).inputs == len(LESSONS)


def test_too_few_inputs(easy: Path, tmp_path: Path) -> None:
    """Said with what is needed, and how many can't be read."""
    with pytest.raises(UsageError, match=r"^1 different inputs; at least 60 are needed") as caught:
        learned(assembled(easy), ["the same"] * 500)
    assert "1,490 or more" in str(caught.value.hint)

    vit = assembled(write_image_classifier(tmp_path / "vit"))
    broken = [tmp_path / f"{i}.png" for i in range(90)]
    with pytest.raises(UsageError, match=r"^0 different inputs \(90 can't be read\)"):
        learning.calibrate(vit, Inputs(broken, list(map(str, broken))), budget=1.0, clock=lambda: 0.0)


def test_pictures(steady: None, tmp_path: Path) -> None:
    """The same for images; a broken one is counted and left out."""
    vit = write_image_classifier(tmp_path / "vit")
    files = write_pictures(tmp_path / "pictures", 80)
    (tmp_path / "pictures" / "000.png").write_text("no picture")
    found = learning.calibrate(
        assembled(vit, max_disagreement=0.4), Inputs(files, list(map(str, files))), budget=1.0, clock=lambda: 0.0
    )

    assert (found.inputs, found.unreadable) == (79, 1)


def test_a_model_without_exits(tmp_path: Path) -> None:
    """Calibrating it is an error, with the reason."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    bart = write_text_classifier(tmp_path / "bart", "bart", **sizes, **heads)
    with pytest.raises(UnsupportedModelError, match="an encoder and a decoder"):
        learned(assembled(bart))


def test_exits_that_never_pay(monkeypatch: pytest.MonkeyPatch, easy: Path) -> None:
    """The profile says full depth at which ε, and a later run gives that as its reason."""
    fix_costs(monkeypatch, check=5.0)
    found = learned(assembled(easy, max_disagreement=EPS, profile="none"))
    keep(found)
    later = assembled(easy, max_disagreement=EPS)

    assert found.fitted is None or not found.certificate.active  # type: ignore[union-attr]
    assert "full depth" in found.summary
    assert later.exit_profile is None
    assert later.decisions.exits.reason == found.summary


def test_a_profile_of_nothing(monkeypatch: pytest.MonkeyPatch, easy: Path) -> None:
    """Where no rule is left at all, there are no arrays, and the reason is kept."""
    monkeypatch.setattr(exit_fitting, "learn", lambda *_, **__: None)
    found = learned(assembled(easy, profile="none"))
    keep(found)

    assert found.arrays == {}
    assert assembled(easy).decisions.exits.reason == (
        "full depth: no exit is right often enough to pay for looking, within 2 %"
    )


def test_slower_on_the_clock(monkeypatch: pytest.MonkeyPatch, easy: Path) -> None:
    """Exits that should pay and don't when it is tried: full depth, now and later."""
    fix_costs(monkeypatch, clock=0.93)
    found = learned(assembled(easy, max_disagreement=EPS, profile="none"))
    keep(found)

    assert found.summary == "full depth: on the clock exits within 10 % make it 0.93x as fast"
    assert "0.93x" in assembled(easy, max_disagreement=EPS).decisions.exits.reason


def test_bfloat16_is_held_to_float32(steady: None, easy: Path) -> None:
    """The evidence of another precision is about the float32 model: full depth may differ too, and counts."""
    assembly = assembled(easy, max_disagreement=EPS, dtype="bfloat16", profile="none")
    found = learned(assembly)
    truth = Reference(assembled(easy)).logits(LESSONS).argmax(1)
    third = split(len(LESSONS), learning.SEED)[2]

    assert found.profile.key.dtype == "bfloat16"
    assert found.arrays["evidence.agree"].shape == (len(third), len(found.profile.fitted["depths"]) + 1)
    assert found.arrays["evidence.classes"].tolist() == truth[third].tolist()


def test_collecting_sees_what_the_model_says(easy: Path) -> None:
    """Batched by length, in the order of the rows: logits equal those of each row by itself."""
    assembly = assembled(easy, plain=True)
    texts = sentences(40)
    rows = [row for row in assembly.preprocessor.rows(texts) if isinstance(row, Example)]
    seen = collect(assembly, rows, (1, 3), None)
    alone = np.stack([assembly.engine().window([row])[0].logits for row in rows])

    np.testing.assert_allclose(seen.logits.numpy(), alone, rtol=1e-4, atol=1e-5)
    assert [len(features) for features in seen.pooled] == [40, 40]
    assert seen.reference_logits is seen.logits
    with pytest.raises(UsageError, match="no inputs"):
        collect(assembly, [], (1,), None)


@pytest.mark.parametrize(("depth", "exits"), [(1, 0), (2, 1), (12, 11), (13, 12), (24, 12), (100, 12)])
def test_where_exits_are_tried(depth: int, exits: int) -> None:
    """After every block but the last, or a dozen evenly spaced."""
    tried = candidates(depth)

    assert len(tried) == exits
    assert list(tried) == sorted(set(tried))
    assert all(0 < d < depth for d in tried)
