"""Functions of batches answer as the commands do, add columns to what they are given, and keep bad rows to themselves."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier
from support.exits import EPS
from support.pipelines import ddim

from dynx.api import load_classifier, load_generator
from dynx.early_exit.audit import audited
from dynx.errors import InvalidInput
from dynx.jobs.functions import AUDIT_SEED, Classify, Draw, Generate
from dynx.jobs.row_function import seed_of
from dynx.runtime.inputs import InputError
from dynx.speculation import batch_size

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings
    from dynx.jobs.row_function import RowFunction


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of texts."""
    return write_text_classifier(tmp_path_factory.mktemp("text"))


def test_classify_is_the_classifiers(classifier: Path) -> None:
    """Labels, scores and layers are those of `load_classifier`; other columns stay as they are."""
    texts = sentences(40)
    known = list(load_classifier(str(classifier)).classify(texts))
    out = Classify(str(classifier), column="body")({"body": np.asarray(texts, dtype=object), "id": np.arange(40)})
    assert out["label"] == [p.label for p in known]
    assert out["score"] == pytest.approx([p.score for p in known])
    assert out["error"] == [None] * 40
    assert list(out["id"]) == list(range(40))


def test_tables_of_pyarrow_come_back_as_tables(classifier: Path) -> None:
    """With the declared types, also where every cell is empty."""
    pa = pytest.importorskip("pyarrow", reason="dynx[jobs] isn't installed")
    out = Classify(str(classifier))(pa.table({"text": sentences(3)}))
    assert out.schema.field("exit").type == pa.int32()
    assert out.num_rows == 3


def test_bad_rows_have_errors(classifier: Path) -> None:
    """What isn't a text, or couldn't be read, is an error in its row."""
    out = Classify(str(classifier)).rows(["fine", InputError("half a row"), ["a", "list"]], [0, 1, 2])
    assert [row.get("error") for row in out] == [None, "half a row", "not a text"]
    with pytest.raises(InvalidInput, match="no `column`"):
        Classify(str(classifier))({"body": ["x"]})


def test_an_image_that_can_t_be_read(tmp_path: Path) -> None:
    """It is an error, and the others have labels."""
    paths = [str(path) for path in write_pictures(tmp_path / "pictures", 3)]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    out = Classify(str(write_image_classifier(tmp_path / "model"))).rows([*paths, str(tmp_path / "bad.png")], range(4))
    assert [row.get("error") is None for row in out] == [True, True, True, False]


def test_generate_is_plain_decoding_whatever_the_batch(tiny_folder: Path) -> None:
    """Texts in float32 are those of one prompt after the other."""
    prompts = ["Once upon a time", "The king", "She said to the fox", "The miller", "", "A garden"]
    model = load_generator(str(tiny_folder), dtype="float32")
    expected = [model.generate(p, max_new_tokens=12).text if p else None for p in prompts]
    for batch in (1, 4):
        one = Generate(str(tiny_folder), batch=batch, dtype="float32", decoding={"max_new_tokens": 12})
        out = one({"prompt": prompts})
        assert out["text"] == expected
        assert out["error"][4] == "an empty prompt"


def test_costs_travel_between_machines_of_a_kind(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one measures as JSON gives another the same size of batches, and the same texts, without measuring."""
    curve = {"reference_context": 0, "seconds_per_context_token": 0.0, "seconds_by_width": {"1": 0.01, "64": 0.02}}
    measured: list[Any] = []

    def measure(*arguments: Any, **options: Any) -> Any:
        measured.append(arguments)
        return batch_size.from_json({"target": curve})

    monkeypatch.setattr(batch_size, "measure_batches", measure)
    settings: dict[str, Any] = {"dtype": "float32", "backend": "torch", "decoding": {"max_new_tokens": 64}}
    prompts = ["Once upon a time", "The king", "She said to the fox", "The miller"] * 4
    one, other = Generate(str(tiny_folder), **settings), Generate(str(tiny_folder), **settings)
    costs = json.loads(json.dumps(one.measure_costs(len(prompts))))
    other.use_costs(costs)
    assert (other._choice.sequences, other._choice.min_waiting) == (one._choice.sequences, one._choice.min_waiting)
    assert costs["sequences"] == one._choice.sequences > 1
    chosen = other._choice
    found = [[row["text"] for row in function.rows(prompts, range(16))] for function in (one, other)]
    assert found[0] == found[1]
    assert other._choice is chosen
    assert len(measured) == 1


def test_a_rows_text_depends_on_seed_and_row_alone(tiny_folder: Path) -> None:
    """Sampling with a seed gives a row the same text in any company, and another row another one."""
    settings: dict[str, Any] = {"dtype": "float32", "decoding": {"max_new_tokens": 12, "temperature": 1.0}, "seed": 5}
    prompts = ["Once upon a time"] * 6
    together = Generate(str(tiny_folder), batch=4, **settings).rows(prompts, range(6))
    backwards = Generate(str(tiny_folder), batch=3, **settings).rows(prompts, range(5, -1, -1))
    alone = Generate(str(tiny_folder), batch=1, **settings).rows(prompts[:1], [2])
    texts = [row["text"] for row in together]
    assert texts == [row["text"] for row in backwards][::-1]
    assert alone[0]["text"] == texts[2]
    assert len(set(texts)) > 1
    assert len({seed_of(5, row) for row in range(1000)} | {seed_of(6, row) for row in range(1000)}) == 2000


def test_the_backend_travels(tiny_folder: Path) -> None:
    """Every worker computes with the sender's, and says so."""
    function = Generate(str(tiny_folder), dtype="float32")
    function.prepare()
    assert function.options["backend"] == "torch-eager"
    function.open()
    assert function.identity["backend"] == "torch-eager"


def test_conversations_and_long_prompts(tiny_folder: Path) -> None:
    """A prompt that doesn't fit is an error in its row."""
    out = Generate(str(tiny_folder), batch=2, dtype="float32", decoding={"max_new_tokens": 4}).rows(
        ["The king", "the fox and " * 200, "The queen"], range(3)
    )
    assert [row.get("error") is None for row in out] == [True, False, True]


def test_draw_gives_a_png_for_each_row(tmp_path: Path) -> None:
    """The same seed and row give the same bytes."""
    ddim().save_pretrained(tmp_path / "pipe")
    first, second = (Draw(str(tmp_path / "pipe"), seed=3, steps=2).rows(["", ""], [0, 1]) for _ in range(2))
    assert [row["picture"][:4] for row in first] == [b"\x89PNG"] * 2
    assert [row["picture"] for row in first] == [row["picture"] for row in second]
    assert first[0]["picture"] != first[1]["picture"]


@pytest.mark.parametrize("made", [Classify("mood"), Generate("story"), Draw("emoji")])
def test_functions_travel(made: RowFunction) -> None:
    """Before a model is loaded a function is a few hundred bytes, which Ray and Spark send to other processes."""
    assert len(pickle.dumps(made)) < 2000


def test_an_error_of_one_row_is_found_among_many(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the engine raises because of it."""
    function = Classify(str(classifier))
    function.open()
    whole = function.answer

    def answer(values: Any, keys: Any) -> Any:
        if "bad" in values:
            raise torch.OutOfMemoryError("no room")
        return whole(values, keys)

    monkeypatch.setattr(function, "answer", answer)
    out = function.rows([*sentences(20), "bad", *sentences(20)], range(41))
    assert [i for i, row in enumerate(out) if row.get("error")] == [20]


@pytest.mark.parametrize("here", [True, False])
def test_a_profile_travels_with_the_function(
    known: Findings, easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """Exits are those of the machine that sent it, also where the cache is empty; scores are the same."""
    texts = sentences(60)
    function = Classify(str(easy), max_disagreement=EPS)
    function.prepare()
    sent = pickle.loads(pickle.dumps(function))  # noqa: S301 - what was just written
    if not here:
        monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "elsewhere"))
    rows = sent.rows(texts, range(60))
    assert sent.identity["exits"] is not None
    assert any(row["exit"] is not None for row in rows)
    bare = Classify(str(easy), max_disagreement=EPS)
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert all(row["exit"] is None for row in bare.rows(texts, range(60)))
    bare.prepare()
    assert bare.options["profile"] == "none"


def test_audited_rows_are_drawn_by_their_numbers(known: Findings, easy: Path) -> None:
    """The same rows in any window, each compared with the full model."""
    texts = sentences(200)
    function = Classify(str(easy), max_disagreement=EPS, audit=0.2)
    whole = function.rows(texts, range(200))
    halves = function.rows(texts[:90], range(90)) + function.rows(texts[90:], range(90, 200))
    drawn = [i for i, row in enumerate(whole) if row["audited"]]
    assert drawn == [i for i in range(200) if audited(i, 0.2, AUDIT_SEED)]
    assert drawn == [i for i, row in enumerate(halves) if row["audited"]]
    by_key = Classify(str(easy), max_disagreement=EPS, audit=0.2, key="n")({"text": texts, "n": np.arange(200)})
    assert [i for i, found in enumerate(by_key["audited"]) if found] == drawn
    with pytest.raises(InvalidInput, match="`key`"):
        function({"text": texts})
    full = Classify(str(easy), plain=True).rows(texts, range(200))
    assert all((whole[i]["label"] == full[i]["label"]) == whole[i]["agrees"] for i in drawn)
