"""From a wish to a classifier: which profile is used, what it allows, and the reason wherever it allows nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.classifier_folders import write_image_classifier, write_text_classifier
from support.classifiers import classifier
from support.commands import train_tokenizer
from support.exits import EPS, LAYERS, assembled, keep, write_easy

from dynx.cli.remedy import calibrate_command, telling_the_remedy
from dynx.early_exit import make_plan
from dynx.early_exit.attach.full_depth import FullDepthModel
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.profile_data import from_profile, to_arrays, to_json
from dynx.early_exit.types import EXACT_GUARANTEE
from dynx.errors import NoProfileError, UsageError
from dynx.runtime.certify import certify
from dynx.runtime.profile_store import ProfileStore, profiles_folder

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings

pytestmark = pytest.mark.usefixtures("alone")


def why(folder: Path, **wish: Any) -> str:
    """The reason why no input may leave early."""
    assembly = assembled(folder, **wish)
    assert assembly.exit_profile is None
    assert assembly.decisions.exits.value == "none"
    return assembly.decisions.exits.reason


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"max_disagreement": 0.0}, "`max_disagreement` 0"),
        ({"max_disagreement": float("nan")}, "`max_disagreement` nan"),
        ({"confidence": 1.0}, "`confidence` 1"),
        ({"require_profile": True, "plain": True}, "contradict"),
        ({"require_profile": True, "profile": "none"}, "contradict"),
        ({"profile": "0f3a"}, "no profile"),
    ],
)
def test_wishes_that_make_no_sense(easy: Path, wish: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_plan(ClassifierRequest(str(easy), **wish))


def test_confidence_keeps_no_noise() -> None:
    """1 - 0.95 is 0.05, and one more input isn't asked for because of the last bit."""
    assert ClassifierRequest().delta == 0.05
    assert ClassifierRequest(confidence=0.9).delta == 0.1


def test_a_profile_is_used(known: Findings, easy: Path) -> None:
    """The exits that calibration found, under the certificate that it found."""
    assembly = assembled(easy, max_disagreement=EPS)

    assert known.certificate is not None
    assert assembly.exit_profile is not None
    assert assembly.exit_profile.certificate == known.certificate
    assert assembly.exit_profile.guarantee.basis == "profile"
    assert assembly.exit_profile.guarantee.n == known.parts[2]
    assert assembly.decisions.exits.value.startswith("after layer 1")


def test_another_promise_is_certified_from_the_stored_evidence(known: Findings, easy: Path) -> None:
    """Stricter means fewer exits and looser more, by the same test on the same inputs; too strict means none."""
    found = known.fitted
    assert found is not None
    _, evidence = from_profile(known.profile.fitted, known.profile.measured, known.arrays)
    layers = []
    for eps in (0.05, EPS, 0.3):
        exit_profile = assembled(easy, max_disagreement=eps).exit_profile
        assert exit_profile is not None
        expected = certify(
            found.rules, evidence.scores, evidence.agree, found.costs_at(32), eps, 0.05, classes=evidence.classes
        )
        assert exit_profile.certificate == expected
        layers.append(expected.cost)

    assert layers == sorted(layers, reverse=True)
    assert layers[0] > layers[-1]
    assert "too few" in why(easy, max_disagreement=0.001)


def test_a_profile_survives_its_json(findings: Findings) -> None:
    """Heads, score, rules, costs and evidence come back the same; anything else is refused."""
    fitted, evidence = from_profile(findings.profile.fitted, findings.profile.measured, findings.arrays)
    again = to_arrays(fitted, evidence)

    assert to_json(fitted)[0].items() <= findings.profile.fitted.items()
    assert again.keys() == findings.arrays.keys()
    assert all(np.array_equal(again[name], findings.arrays[name]) for name in again)
    for name in ("rules.thresholds", "evidence.scores", "evidence.agree", "evidence.classes"):
        torn = {**findings.arrays, name: findings.arrays[name][..., :-1]}
        with pytest.raises(ValueError, match="don't fit"):
            from_profile(findings.profile.fitted, findings.profile.measured, torn)
    with pytest.raises(KeyError):
        from_profile(findings.profile.fitted, findings.profile.measured, {})


def test_a_profile_with_foreign_contents_is_passed_over(findings: Findings, easy: Path) -> None:
    """Whole by its checksums and still not for this model: one warning, and full depth."""
    deep = {**findings.profile.fitted, "depths": [LAYERS + d for d in findings.profile.fitted["depths"]]}
    fewer = {**findings.arrays, "heads.0.bias": findings.arrays["heads.0.bias"][:-1]}
    for fitted, arrays in (
        (deep, findings.arrays),
        ({**findings.profile.fitted, "depths": "x"}, findings.arrays),
        (findings.profile.fitted, fewer),
        ({**findings.profile.fitted, "rules": None}, findings.arrays),
    ):
        keep(replace(findings, profile=replace(findings.profile, fitted=fitted), arrays=arrays))
        heard: list[str] = []
        assembly = assembled(easy, max_disagreement=EPS, warn=heard.append)
        assert assembly.exit_profile is None
        assert len(heard) == 1
        assert "can't be used" in heard[0]
        with pytest.raises(NoProfileError, match="can't be used"):
            assembled(easy, max_disagreement=EPS, require_profile=True)


def test_torn_arrays(known: Findings, easy: Path) -> None:
    """A file cut short is told in one warning, and the model runs plain."""
    (blob,) = profiles_folder().glob("*.safetensors")
    blob.write_bytes(blob.read_bytes()[:-10])
    heard: list[str] = []
    assembly = assembled(easy, max_disagreement=EPS, warn=heard.append)

    assert assembly.exit_profile is None
    assert len(heard) == 1
    assert "torn" in heard[0]
    assert "no profile; calibrating" in assembly.decisions.exits.reason


def test_evidence_speaks_only_of_what_it_saw(known: Findings, easy: Path) -> None:
    """Texts cut shorter, and a precision of its own, are other promises."""
    assert "cut to the model's own number of tokens" in why(easy, max_disagreement=EPS, max_length=16)
    assert "no profile" in why(easy, max_disagreement=EPS, dtype="bfloat16")
    with pytest.raises(NoProfileError, match="cut to"):
        assembled(easy, max_length=16, require_profile=True)
    with pytest.raises(UsageError, match=r"doesn't fit: it was measured in float32, not bfloat16$"):
        make_plan(ClassifierRequest(str(easy), profile=known.profile.key.id, dtype="bfloat16", threads=1))


def test_reasons_to_run_plain(known: Findings, easy: Path) -> None:
    """Asked for, or nothing known."""
    assert why(easy, plain=True) == "plain execution was asked for"
    assert why(easy, profile="none") == "no profile was asked for"


def test_exits_that_were_slower_on_the_clock(findings: Findings, easy: Path) -> None:
    """Whatever the costs promise: not used at that ε and batch; a looser promise or another batch is another matter."""
    measured = {**findings.profile.measured, "clock": [0.9, 0.8, 0.95]}
    keep(replace(findings, profile=replace(findings.profile, measured=measured)))

    assert "0.90x as fast on the clock" in why(easy, max_disagreement=EPS)
    assert "0.90x as fast on the clock" in why(easy, max_disagreement=EPS / 2)
    assert assembled(easy, max_disagreement=2 * EPS).exit_profile is not None
    assert assembled(easy, max_disagreement=EPS, batch_size=8).exit_profile is not None


def test_exits_that_cost_more_than_they_save(findings: Findings, easy: Path) -> None:
    """By costs of the nearest batch size."""
    seconds = findings.profile.measured["seconds_by_batch"]
    dear = {**seconds, "1": {**seconds["1"], "check": [9.0] * len(seconds["1"]["check"])}}
    measured = {**findings.profile.measured, "seconds_by_batch": dear}
    keep(replace(findings, profile=replace(findings.profile, measured=measured)))

    assert "would cost more than they save" in why(easy, max_disagreement=EPS, batch_size=2)
    assert assembled(easy, max_disagreement=EPS).exit_profile is not None


def test_a_profile_that_came_with_the_model(findings: Findings, easy: Path, tmp_path: Path) -> None:
    """`exits.json`, as --export writes it, for these very weights in this precision; one of the user's own comes first."""
    folder = tmp_path / "carried"
    shutil.copytree(easy, folder)
    keep(findings)
    store = ProfileStore(profiles_folder(), lambda _: None)
    store.export(findings.profile.key.id, folder / "exits.json")
    assert assembled(folder, max_disagreement=EPS).plan.bundled is False
    store.remove(findings.profile.key.id)

    assembly = assembled(folder, max_disagreement=EPS)
    assert assembly.exit_profile is not None
    assert assembly.exit_profile.guarantee.basis == "model"
    assert assembly.decisions.profile.reason == "came with the model"
    assert "measured elsewhere" in assembly.decisions.exits.reason
    assert make_plan(ClassifierRequest(str(folder), dtype="bfloat16")).profile is None

    shutil.copy(folder / "exits.json", write_text_classifier(tmp_path / "other") / "exits.json")
    assert make_plan(ClassifierRequest(str(tmp_path / "other"))).profile is None

    (folder / "exits.json").write_text("{}")
    heard: list[str] = []
    assert make_plan(ClassifierRequest(str(folder)), warn=heard.append).profile is None
    assert len(heard) == 1
    assert "exits.json ignored" in heard[0]


def test_a_required_profile(easy: Path) -> None:
    """Its lack is an error that names the command, with what was asked for."""
    wish = ClassifierRequest(str(easy), require_profile=True, dtype="bfloat16", max_length=16, threads=2)
    with pytest.raises(NoProfileError, match="no profile fits") as caught, telling_the_remedy(wish):
        make_plan(wish)

    assert caught.value.hint is not None
    assert calibrate_command(wish) in caught.value.hint
    assert sorted(calibrate_command(wish).split(" --")) == sorted(
        f"dynx calibrate -m {easy} --data FILE --dtype bfloat16 --max-length 16 --threads 2".split(" --")
    )


def test_models_that_run_whole(tmp_path: Path) -> None:
    """No exits, with the reason, and the full model's answers: an encoder with a decoder, and no padding token."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    bart = write_text_classifier(tmp_path / "bart", "bart", **sizes, **heads, eos_token_id=0)
    classifier("gpt2", vocab_size=400, pad_token_id=None).save_pretrained(tmp_path / "gpt2")
    train_tokenizer().save_pretrained(tmp_path / "gpt2")

    assert "an encoder and a decoder" in why(bart)
    assert why(tmp_path / "gpt2") == "neither model nor tokenizer has a padding token"
    assembly = assembled(tmp_path / "gpt2")
    assert isinstance(assembly.exit_model, FullDepthModel)
    assert assembly.batch == 1
    assert assembly.decisions.batch.value == 1


def test_rows_that_a_whole_model_cannot_take_together(tmp_path: Path) -> None:
    """BART refuses batches whose rows hold different numbers of end tokens, which anybody may write: one at a time then."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    folder = write_text_classifier(tmp_path / "bart", "bart", **sizes, **heads, eos_token_id=0)
    assembly = assembled(folder)
    rows = [row for row in assembly.preprocessor.rows(["<|end|><|end|>", "a<|end|>"]) if not isinstance(row, str)]
    together = assembly.engine().window(rows)
    alone = [assembly.engine().window([row])[0] for row in rows]

    assert rows[0].size == rows[1].size
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, rtol=1e-5, atol=1e-6)


def test_options_of_other_models(easy: Path, tmp_path: Path) -> None:
    """A tolerance is for numbers, and a length for texts."""
    with pytest.raises(UsageError, match="`within` is for models that give numbers"):
        assembled(easy, within=0.1)
    with pytest.raises(UsageError, match="`max_length` is about texts"):
        assembled(write_image_classifier(tmp_path / "vit"), max_length=16)


def test_full_depth_promises_exactness_in_float32_alone(easy: Path) -> None:
    """The model's own answers are what is promised; another precision or shorter texts were measured by nobody."""
    from dynx.early_exit.classifier import Classifier

    assert Classifier(assembled(easy)).receipt.guarantee == EXACT_GUARANTEE
    assert Classifier(assembled(easy, max_length=64)).receipt.guarantee == EXACT_GUARANTEE
    assert Classifier(assembled(easy, max_length=16)).receipt.guarantee is None
    assert Classifier(assembled(easy, dtype="bfloat16")).receipt.guarantee is None


def test_a_regression_and_its_tolerance(steady: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was certified within one tolerance says nothing of another."""
    from support import classifiers
    from support.exits import learned

    monkeypatch.setattr(classifiers, "CLASSES", 1)
    folder = write_easy(tmp_path / "number")
    with pytest.raises(UsageError, match="gives numbers"):
        learned(assembled(folder, max_disagreement=EPS, profile="none"))
    keep(learned(assembled(folder, max_disagreement=EPS, within=0.5, profile="none")))

    assert assembled(folder, max_disagreement=EPS, within=0.5).exit_profile is not None
    assert "a tolerance of 0.5" in why(folder, max_disagreement=EPS, within=0.2)
    assert "a tolerance of 0.5" in why(folder, max_disagreement=EPS)
