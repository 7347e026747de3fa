"""`dynx bench` by category of prompts, and its arms of static prompt lookup."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from dynx.bench.builtin_inputs import CHATS
from dynx.cli.bench.generation import in_turn
from dynx.speculation.calibration_prompts import chats

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

SHORT = ("--runs", 1, "-n", 4, "--static", "none")
ROWS = [
    {"question": "Once upon a time", "category": "story", "meta": {"level": 1}},
    {"question": "The fox", "category": "story", "meta": {"level": 2}},
    {"question": "The king", "category": "story", "meta": {"level": 2}},
    {"question": "The hen", "category": "fable", "meta": {"level": 1}},
    {"question": "A little girl", "category": "fable", "meta": {"level": 1}},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts with a category, and a level further inside."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def categories(result: Result) -> dict[str, int]:
    """Cases by category."""
    return {each["name"]: each["cases"] for each in result.document.get("categories", [])}


def test_prompts_with_a_category_are_reported_by_it(cli: Cli, tiny_folder: Path, data: Path) -> None:
    """A field `category` is reported without being asked for, with as many prompts of each; --by names another, or none."""
    options = ("bench", "-m", tiny_folder, *SHORT, "--data", data, "--json")

    by_default, by_level, by_none = cli(*options), cli(*options, "--by", "meta.level"), cli(*options, "--by", "none")
    assert (by_default.code, by_default.err) == (0, "")
    assert categories(by_default) == {"story": 2, "fable": 2}
    assert [arm["name"] for arm in by_default.document["categories"][0]["arms"]] == ["plain", "dynamic"]
    assert categories(by_level) == {"1": 2, "2": 2}
    assert categories(by_none) == {}
    assert by_none.document["cases"] == 4


def test_chats_have_questions_of_their_own(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """Without --data a chat is measured on questions of all kinds that fit, and on none that calibration learns from."""
    model = shutil.copytree(tiny_folder, tmp_path / "chat")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}", encoding="utf-8"
    )

    chat = cli("bench", "-m", model, *SHORT, "--chat", "--json")
    plain = cli("bench", "-m", model, *SHORT, "--json")

    assert (chat.code, plain.code) == (0, 0), chat.err + plain.err
    fitting = categories(chat)
    assert set(fitting.values()) == {1}
    assert 3 <= len(fitting) < len(CHATS) == len({kind for kind, _ in CHATS})  # this model has few positions
    assert fitting.keys() <= {kind for kind, _ in CHATS}
    assert categories(plain) == {}
    learned = {message["content"] for messages in chats() for message in messages}
    assert learned.isdisjoint(text for _, text in CHATS)


def test_the_table_has_a_row_for_each_category(cli: Cli, tiny_folder: Path, data: Path) -> None:
    """The table by category stands between the arms and the sentences."""
    result = cli("bench", "-m", tiny_folder, *SHORT, "--data", data)

    assert "story (2)" in result.out
    assert result.out.index("fable (2)") < result.out.index("of plain")


def test_a_gate_of_each_category(cli: Cli, tiny_folder: Path, data: Path) -> None:
    """--each-category judges the speed in every category beside the one over all."""
    gate = ("--min-speedup", 0.001, "--each-category")
    result = cli("bench", "-m", tiny_folder, *SHORT, "--runs", 3, "--data", data, *gate, "--json")

    assert result.code == 0
    assert [g["name"] for g in result.document["gates"]] == ["min-speedup", "min-speedup story", "min-speedup fable"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--by", "kind"], "--by kind: the prompt on line 1 has no such text or number"),
        (["--each-category"], "--each-category requires --min-speedup"),
        (["--each-category", "--min-speedup", "1", "--by", "none"], "--each-category requires --min-speedup"),
        (["--arm", "a=lookup:"], "--arm a=lookup:: static lookup has 1 to 64 draft tokens"),
        (["--arm", "a=lookup:0"], "static lookup has 1 to 64 draft tokens"),
        (["--arm", "a=lookup:5:3:1"], "static lookup has 1 to 64 draft tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_reported_is_told_before_measuring(
    cli: Cli, tiny_folder: Path, data: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that prompts don't have, a gate without a bar, and lookup without a length are wrong usage."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    result = cli("bench", "-m", tiny_folder, "--data", data, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]


def test_static_lookup_is_an_arm_of_its_own(cli: Cli, tiny_folder: Path, data: Path) -> None:
    """NAME=lookup:K drafts by prompt lookup alone on the same model, and dynamic is compared with it; its texts are plain's."""
    arms = ("--arm", "k5=lookup:5", "--arm", "k3n9=lookup:3:9")
    result = cli("bench", "-m", tiny_folder, *SHORT, "-n", 24, "--data", data, *arms, "--json")
    found = {arm["name"]: arm for arm in result.document["arms"]}

    assert (result.code, result.err) == (0, "")
    assert list(found) == ["plain", "dynamic", "k5", "k3n9"]
    assert {found[name]["group"] for name in ("k5", "k3n9")} == {"static"}
    assert {found[name]["identical"] for name in ("k5", "k3n9")} == {1.0}
    assert set(found["k5"]["facts"]["by_position"]) == {"lookup"}
    assert "draft drafted" not in found["k5"]["facts"]
    assert found["k3n9"]["facts"].get("lookup drafted", 0) < found["k5"]["facts"]["lookup drafted"]
    assert {item["baseline"] for item in result.document["comparisons"]} <= {"k5", "k3n9"}


def test_lookup_is_no_arm_of_a_classifier(cli: Cli) -> None:
    """Static lookup is for language models."""
    result = cli("bench", "classify", "--arm", "k5=lookup:5")

    assert result.code == 2
    assert "--arm k5: prompt lookup does not apply to" in result.err


def test_categories_take_turns() -> None:
    """However few prompts are measured, they are spread over the categories as evenly as can be."""
    assert in_turn(["a", "a", "a", "b", "c", "b"]) == [0, 3, 4, 1, 5, 2]
