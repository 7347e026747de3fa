"""An attached classifier exits early under its profile's promise, or runs its own forward and says why."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.classifier_folders import sentences, write_text_classifier
from support.exits import EPS, LAYERS, assembled, keep, learned
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

import dynx
from dynx.errors import InvalidInput, NoProfileError, UnsupportedModelError
from dynx.integrations.transformers import classifier_inputs
from dynx.integrations.transformers.classifier import rows_together

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("known")

TEXTS = sentences(96, seed=5)


def load(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, as transformers loads them."""
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def attached(folder: Path, **options: Any) -> tuple[Any, Any]:
    """The same, attached."""
    model, tokenizer = load(folder)
    return dynx.attach(model, tokenizer, **{"max_disagreement": EPS, **options}), tokenizer


def batch(tokenizer: Any, texts: list[str] = TEXTS[:32]) -> Any:
    """A padded batch."""
    return tokenizer(texts, padding=True, return_tensors="pt")


def test_a_pipeline_leaves_early(easy: Path) -> None:
    """`pipeline("text-classification")` gives the labels that `dynx classify` gives, in fewer layers."""
    model, tokenizer = attached(easy)
    found = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32)(TEXTS)

    want = dynx.load_classifier(str(easy), max_disagreement=EPS)
    expected = list(want.classify(TEXTS))
    assert [one["label"] for one in found] == [one.label for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert model.dynx.stats.reason is None
    assert model.dynx.receipt.layers < LAYERS * len(TEXTS)
    assert model.dynx.receipt.exit_counts == want.stats.exit_counts
    assert str(model.dynx.guarantee) == str(want.stats.guarantee)


def test_trainers_predict_leaves_early(easy: Path, tmp_path: Path) -> None:
    """Without labels in the data set."""
    model, tokenizer = attached(easy)
    rows = [dict(tokenizer(text)) for text in TEXTS]
    options = TrainingArguments(tmp_path, per_device_eval_batch_size=32, report_to=[], use_cpu=True)
    out = Trainer(model, options, processing_class=tokenizer).predict(rows)  # type: ignore[arg-type]

    expected = list(dynx.load_classifier(str(easy), max_disagreement=EPS).classify(TEXTS))
    names = model.config.id2label
    assert [names[int(i)] for i in out.predictions.argmax(-1)] == [one.label for one in expected]
    assert model.dynx.stats.reason is None
    assert model.dynx.receipt.inputs == len(TEXTS)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": torch.zeros(32, dtype=torch.long)}, "labels are given"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states is set"),
    "attentions": ({"output_attentions": True}, "output_attentions is set"),
    "positions": ({"position_ids": torch.zeros(1, 1, dtype=torch.long)}, "position_ids is given"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_exits_dont_do_runs_the_models_own_forward(easy: Path, name: str) -> None:
    """Bit for bit, with the reason."""
    given, reason = REASONS[name]
    (model, tokenizer), (plain, _) = attached(easy), load(easy)
    inputs = batch(tokenizer)
    with torch.no_grad():
        got, want = model(**inputs, **given), plain(**inputs, **given)

    assert torch.equal(got.logits, want.logits)
    assert got.keys() == want.keys()
    assert model.dynx.stats.reason == reason


def test_gradients_and_training_run_the_models_own_forward(easy: Path) -> None:
    """Gradients arrive, and dropout drops."""
    model, tokenizer = attached(easy)
    model(**batch(tokenizer)).logits.sum().backward()
    assert model.classifier.weight.grad is not None
    assert "gradients are recorded" in model.dynx.stats.reason

    model.train()
    with torch.no_grad():
        model(**batch(tokenizer))
    assert model.dynx.stats.reason == "the model is in training mode"


@torch.no_grad()
def test_inputs_that_the_profile_isnt_about_run_the_models_own_forward(easy: Path) -> None:
    """Holes and left padding, padding without a mask, pairs, texts that are too long."""
    (model, tokenizer), (plain, _) = attached(easy), load(easy)
    inputs = dict(batch(tokenizer))
    left = {name: value.flip(1) for name, value in inputs.items()}
    cases = {
        "the attention mask hides more than padding on the right": left,
        "rows may end in padding that no attention mask hides": {"input_ids": inputs["input_ids"]},
        "pairs of texts are given, and the profile is about single ones": {
            **inputs,
            "token_type_ids": torch.ones_like(inputs["input_ids"]),
        },
    }
    for reason, given in cases.items():
        assert torch.equal(model(**given).logits, plain(**given).logits)
        assert model.dynx.stats.reason == reason

    tokens = torch.full((32, model.config.max_position_embeddings + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=tokens)
    assert "the profile is about texts of at most" in model.dynx.stats.reason


@torch.no_grad()
def test_tuples_and_types_are_the_models_own(easy: Path) -> None:
    """`return_dict=False`, and the class of the output."""
    (model, tokenizer), (plain, _) = attached(easy), load(easy)
    inputs = batch(tokenizer)
    out, want = model(**inputs), plain(**inputs)
    assert (type(out), out.keys(), out.logits.shape, out.logits.dtype) == (
        type(want),
        want.keys(),
        want.logits.shape,
        want.logits.dtype,
    )
    assert model.dynx.stats.reason is None
    assert isinstance(model(**inputs, return_dict=False), tuple)


@torch.no_grad()
def test_changed_weights_run_the_models_own_forward(easy: Path) -> None:
    """In place, or as new parameters; the promise was about others."""
    model, tokenizer = attached(easy)
    model(**batch(tokenizer))
    assert model.dynx.stats.reason is None
    model.classifier.bias.add_(1)
    model(**batch(tokenizer))
    assert model.dynx.stats.reason == "its weights were changed or moved since it was attached"

    dynx.attach(dynx.detach(model), tokenizer)
    assert "its weights aren't those in" in model.dynx.why_full_depth


@torch.no_grad()
def test_a_copy_runs_on_its_own_weights(easy: Path) -> None:
    """A deep copy of an attached model doesn't compute with the original."""
    model, tokenizer = attached(easy)
    other = copy.deepcopy(model)
    other.classifier.bias.fill_(50)
    assert float(other(**batch(tokenizer)).logits.min()) > 10
    assert "copy" in other.dynx.stats.reason
    assert float(model(**batch(tokenizer)).logits.max()) < 10


@torch.no_grad()
def test_hooks_on_its_modules_run_the_models_own_forward(easy: Path) -> None:
    """A hook on a block sees every call of it."""
    model, tokenizer = attached(easy)
    seen: list[int] = []
    last = model.bert.encoder.layer[-1]
    handle = last.register_forward_hook(lambda *_: seen.append(1))
    model(**batch(tokenizer))
    assert (len(seen), model.dynx.stats.reason) == (1, "hooks wait for the calls of its modules")
    handle.remove()
    model(**batch(tokenizer), output_hidden_states=True)  # transformers leaves hooks of its own behind
    model(**batch(tokenizer))
    assert (len(seen), model.dynx.stats.reason) == (1, None)


def test_rows_of_one_call_are_grouped_by_length() -> None:
    """Equal lengths stay together; where padding costs more than further batches, calls are cut up."""
    seconds = {1: 3e-3, 32: 1e-3}
    assert rows_together([20] * 32, 32, seconds) == 32
    assert rows_together([5] * 16 + [60] * 16, 32, seconds) == 16
    assert rows_together([5] * 64, 32, seconds) == 32
    assert rows_together(list(range(1, 33)), 32, {1: 1e-3, 32: 1e-3}) == 32
    assert rows_together([7], 1, seconds) == 1
    assert rows_together(list(range(1, 33)), 32, seconds) == 8
    assert rows_together(list(range(1, 33)), 32, seconds, 0.4) == 16  # little is left to save on padding
    assert rows_together([1, 100], 2, {8: 1e-3}) == 2


def test_attaching_twice_is_one_attachment_and_detaching_restores(easy: Path) -> None:
    """The original method object, and nothing left behind."""
    model, tokenizer = load(easy)
    before, names = model.forward, set(vars(model))
    dynx.attach(model, tokenizer, max_disagreement=EPS)
    first = model.dynx
    assert inspect.signature(model.forward) == inspect.signature(before)
    assert dynx.attach(model, tokenizer, max_disagreement=EPS) is model
    assert dynx.attach(model).dynx is first

    assert dynx.detach(model) is model
    assert model.forward == before
    assert model.forward.__func__ is type(model).forward
    assert set(vars(model)) == names
    assert dynx.detach(model) is model


def test_without_a_profile_every_call_is_the_models_own(tmp_path: Path) -> None:
    """The reason is told, and an error where a profile is required."""
    model, tokenizer = attached(write_text_classifier(tmp_path / "other"))
    with torch.no_grad():
        model(**batch(tokenizer))
    assert "no profile is used" in model.dynx.stats.reason
    with pytest.raises(NoProfileError, match="no profile fits"):
        attached(tmp_path / "other", require_profile=True)


def test_other_preprocessing_is_refused(easy: Path) -> None:
    """A tokenizer that cuts texts elsewhere, or another one, has no promise."""
    model, tokenizer = load(easy)
    tokenizer.model_max_length = 8
    dynx.attach(model, tokenizer, max_disagreement=EPS)
    assert "its tokenizer cuts texts to 8 tokens" in model.dynx.why_full_depth


def test_bad_input_names_the_reason(easy: Path) -> None:
    """What can't be attached, and options that aren't any."""
    model, tokenizer = load(easy)
    with pytest.raises(InvalidInput, match="`assistant` is no option of an attached classifier"):
        dynx.attach(model, tokenizer, assistant=model)
    with pytest.raises(UnsupportedModelError, match="Linear has no generate"):
        dynx.attach(torch.nn.Linear(2, 2))
    model.bert.forward = model.bert.forward
    with pytest.raises(UnsupportedModelError, match="bert's forward was replaced"):
        dynx.attach(model, tokenizer)


@torch.no_grad()
def test_blocks_run_on_the_profiles_backend(easy: Path, steady: None) -> None:
    """Rows exit early on OpenVINO where the profile was measured there, and the model's own forward stays PyTorch's."""
    pytest.importorskip("openvino", reason="OpenVINO isn't installed")
    keep(learned(assembled(easy, max_disagreement=EPS, profile="none", backend="openvino")))
    (model, tokenizer), (plain, _) = attached(easy), load(easy)
    inputs = batch(tokenizer)
    found = model(**inputs).logits.argmax(-1)
    assert model.dynx.stats.reason is None

    names = model.config.id2label
    expected = dynx.load_classifier(str(easy), max_disagreement=EPS)
    assert expected.decisions.backend.value == "openvino"
    assert [names[int(i)] for i in found] == [one.label for one in expected.classify(TEXTS[:32])]
    inputs["output_attentions"] = True
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


@torch.no_grad()
def test_threads_take_turns(easy: Path) -> None:
    """Calls from several threads give what one after the other gives."""
    model, tokenizer = attached(easy)
    batches = [batch(tokenizer, TEXTS[i : i + 24]) for i in range(0, 96, 24)]
    want = [model(**one).logits for one in batches]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            found[i] = model(**batches[i]).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], want[i]) for i in range(4))


def test_single_texts_do_not_leave_under_a_profile_of_pairs() -> None:
    """Where token types tell pairs from single texts, each row must be a pair; a tokenizer that doesn't mark them can't tell."""
    ids = torch.ones(2, 4, dtype=torch.long)
    pair, single = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])

    def reason(types: torch.Tensor | None, *, marked: bool) -> str | None:
        given = {"input_ids": ids, **({} if types is None else {"token_type_ids": types})}
        return classifier_inputs.reason_of_texts(given, None, None, pairs=True, marked=marked)

    said = "single texts are given, and the profile is about pairs"
    assert reason(torch.stack([pair, pair]), marked=True) is None
    assert reason(torch.stack([pair, single]), marked=True) == said
    assert reason(None, marked=True) == said
    assert reason(None, marked=False) is None
