"""Entities on the command line: from calibration to use and measurement, and what doesn't fit a model that labels tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.exits import fix_costs
from support.token_folders import sentences, write_token_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("alone")

EPS = ("--max-disagreement", "0.1")


def places(line: str) -> Any:
    """An answer without scores, whose last digits depend on the batch."""
    return [(each["entity_group"], each["start"], each["end"]) for each in json.loads(line)["entities"]]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that knows most labels early; costs and clock are fixed."""
    fix_costs(monkeypatch)
    return write_token_classifier(tmp_path / "m", easy=True)


def written(path: Path, count: int, seed: int) -> Path:
    """A file of sentences."""
    path.write_text("".join(f"{text}\n" for text in sentences(count, seed)))
    return path


def test_entities_from_calibration_to_bench(cli: Cli, model: Path, tmp_path: Path) -> None:
    """A run under the profile says so; bench judges it on fresh texts, beside transformers' pipeline, with gates."""
    learn, test = written(tmp_path / "learn", 400, 0), written(tmp_path / "test", 40, 5)
    made = cli("calibrate", "-m", model, *EPS, "--data", learn)
    assert made.code == 0, made.err
    assert "exits after layer" in made.out
    used = cli(
        "classify", "-m", model, *EPS, "--require-profile", "--verify", "--stats", "--explain", stdin=test.read_bytes()
    )
    assert used.code == 0, used.err
    assert "inputs     40" in used.err
    assert "40 audited answers" in used.err
    other = cli("classify", "-m", model, *EPS, "--require-profile", "--aggregation-strategy", "max", "a text")
    assert other.code == 4
    assert "aggregation strategy simple" in other.err

    gates = ("--require-identical", "--min-speedup", "0.01")
    bench = cli(
        *("bench", "-m", model, *EPS, *gates, "--data", test, "--runs", "1", "--json"),
        *("--arm", "hf=transformers", "--with", "--batch-size 12"),
    )
    document = bench.document
    arms = {arm["name"]: arm for arm in document["arms"]}
    assert document["unit"] == "texts"
    assert arms["hf pipeline"]["identical"] == arms["bucketed"]["identical"] == 1.0
    assert arms["dynamic"]["facts"]["mean_layers"] < arms["plain"]["facts"]["mean_layers"]
    judged = {gate["name"]: gate for gate in document["gates"]}
    assert len(judged) == 3
    assert bench.code == (0 if all(gate["verdict"] == "pass" for gate in document["gates"]) else 3)


def test_the_table_has_a_line_for_each_entity(cli: Cli, model: Path) -> None:
    """Places cut the word out of the text; a text without entities and one that can't be read have a line of their own."""
    texts = sentences(12)
    stdin = "\n".join([*texts, ""]).encode() + b"\xff\n"
    result = cli("classify", "-m", model, "--skip-empty", stdin=stdin)
    assert result.code == 1
    cells = [line.split("\t") for line in result.out.splitlines()]
    assert {len(each) for each in cells} == {6}
    assert list(dict.fromkeys(each[5] for each in cells))[:12] == texts
    for label, _, start, end, word, text in cells[:-1]:
        if label:
            own = text[int(start) : int(end)]
            assert own.lower().replace(" ", "")[:3] == word.removeprefix("##").replace(" ", "")[:3]
    assert cells[-1][1].startswith("error: ")


def test_json_has_what_the_pipeline_gives(cli: Cli, model: Path, tmp_path: Path) -> None:
    """The keys are transformers'; an interrupted output continues after its last complete line."""
    text = sentences(1)[0]
    (plain,) = cli("classify", "-m", model, "--jsonl", text).documents
    alone = cli("classify", "-m", model, "--json", "--aggregation-strategy", "none", text).document
    assert plain["schema"] == alone["schema"] == "dynx.entities/1"
    assert {tuple(each) for each in plain["entities"]} == {("entity_group", "score", "word", "start", "end")}
    assert {tuple(each) for each in alone["entities"]} == {("entity", "score", "index", "word", "start", "end")}
    out, stdin = tmp_path / "out", "\n".join(sentences(9)).encode()
    assert cli("classify", "-m", model, "--jsonl", "--resume", out, stdin=stdin).code == 0
    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])
    assert cli("classify", "-m", model, "--jsonl", "--resume", out, stdin=stdin).code == 0
    assert list(map(places, out.read_text().splitlines())) == list(map(places, whole.splitlines()))


def test_a_job_has_a_column_of_entities(cli: Cli, model: Path, tmp_path: Path) -> None:
    """A list for each row, the same as without a job."""
    rows = sentences(20)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    out = tmp_path / "out"
    done = cli("classify", "-m", model, "--input", source, "--output", out, "--column", "text", "--jsonl")
    assert done.code == 0, done.err
    files = sorted((out / "parts").glob("*.jsonl"))
    found = [line for file in files for line in file.read_text().splitlines()]
    expected = cli("classify", "-m", model, "--jsonl", stdin="\n".join(rows).encode()).out.splitlines()
    assert list(map(places, found)) == list(map(places, expected))
    assert all(json.loads(line)["layers"] == 4 for line in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scores",), "--scores is for models that label whole inputs"),
        (("--top-k", "2"), "--top-k is for models that label whole inputs"),
        (("--per-class",), "--per-class"),
        (("--within", "1"), "--within"),
        (("--aggregation-strategy", "mean"), "--aggregation-strategy mean: one of none, simple, first, average, max"),
        (("--pair", "a,b"), "labels the tokens of single texts"),
    ],
)
def test_options_that_do_not_fit(cli: Cli, model: Path, arguments: tuple[str, ...], said: str) -> None:
    """Each is refused in a line that names the option."""
    result = cli("classify", "-m", model, *arguments, stdin=b'{"a": "x", "b": "y"}\n')
    assert result.code == 2, result.err
    assert said in result.err
