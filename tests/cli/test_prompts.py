"""Prompts of generate, calibrate and bench: texts, JSON lines and conversations, with what is wrong named by line and field."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from dynx.cli.prompts import BadPrompt, Prompt, each_prompt, read_conversation, read_data
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

USER = {"role": "user", "content": "Hello"}


def read(*lines: object, field: str | None = "prompt") -> list[Prompt | BadPrompt]:
    """Read lines of JSON as from stdin."""
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return list(each_prompt(io.BytesIO(data.encode()), field))


def test_a_field_may_hold_line_breaks_and_the_object_is_kept() -> None:
    """A text, a conversation, or a part of a nested value."""
    row = {"id": 7, "prompt": "one\ntwo", "turns": ["first", "second"], "body": {"messages": [USER]}}
    assert read(row) == [Prompt("one\ntwo", None, row, 1)]
    assert read(row, field="turns.1") == [Prompt("second", None, row, 1)]
    assert read(row, field="body.messages") == read(row, field="body") == [Prompt(None, (USER,), row, 1)]
    dotted = {"a.b": "whole", "a": {"b": "part"}}
    assert read(dotted, field="a.b") == [Prompt("whole", None, dotted, 1)]
    assert read("one", "two", field=None) == [Prompt("one"), Prompt("two")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        ("[1]", "not a JSON object"),
        ('{"prompt": "a", "prompt": "b"}', 'not JSON: the key "prompt" occurs twice'),
        ({"text": "x"}, 'no field "prompt"'),
        ({"prompt": " "}, 'field "prompt" is empty'),
        ({"prompt": 4}, 'field "prompt" is neither text nor a list of messages'),
        ({"prompt": ["a", "b"]}, 'field "prompt" is a list of texts; "prompt.0" is the first of them'),
        ({"prompt": [USER, {"role": "user"}]}, 'field "prompt": message 2 has no content'),
        ({"prompt": []}, 'field "prompt": the list of messages is empty'),
    ],
)
def test_a_bad_line_stands_in_its_place(line: Any, said: str) -> None:
    """With its number over all lines, blank ones too, and its object where it is one."""
    before, bad, after = read({"prompt": "a"}, "", line, {"prompt": "b"})[0:3]
    assert isinstance(bad, BadPrompt)
    assert (str(bad.error), bad.line) == (said, 3)
    assert bad.fields == (line if isinstance(line, dict) else None)
    assert isinstance(before, Prompt)
    assert isinstance(after, Prompt)
    assert (before.text, after.text, after.line) == ("a", "b", 4)


def test_what_follows_a_prompt() -> None:
    """A text goes on; a conversation gets another message of the user."""
    assert Prompt("one").followed_by("two").content == "one\ntwo"
    assert Prompt(None, (USER,)).followed_by("two").content == (USER, {"role": "user", "content": "two"})
    assert Prompt("one").followed_by("") == Prompt("one")


def test_data_may_be_json_lines(tmp_path: Path) -> None:
    """A file named so is read by a usual field; a line that is no prompt is left out and told."""
    path = tmp_path / "questions.jsonl"
    rows = [{"category": "a", "turns": ["one", "x"]}, {"category": "b"}, {"category": "c", "turns": ["two"]}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    told: list[str] = []
    found = read_data(str(path), None, told.append)

    assert [(p.text, (p.fields or {})["category"], p.line) for p in found] == [("one", "a", 1), ("two", "c", 3)]
    assert told == ['1 of 3 lines of --data can\'t be read and were left out (line 2: no field "turns.0")']
    with pytest.raises(UsageError, match=r'has no prompt that can be read; line 1: no field "prompt"$'):
        read_data(str(path), "prompt", told.append)
    path.write_text('{"id": 1, "ask": "x"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="no field of its lines is known to hold a prompt") as unknown:
        read_data(str(path), None, told.append)
    assert unknown.value.hint == "--field with one of: id, ask"
    path.write_text("one\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1: not JSON"):
        read_data(str(path), None, told.append)


def test_other_data_is_a_prompt_per_line(tmp_path: Path) -> None:
    """Unless a field is named."""
    path = tmp_path / "prompts.txt"
    path.write_text('{"a": "x"}\n', encoding="utf-8")
    assert read_data(str(path), None, pytest.fail) == [Prompt('{"a": "x"}')]
    assert read_data(str(path), "a", pytest.fail) == [Prompt("x", None, {"a": "x"}, 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", " is empty"),
        ("[{", " is not JSON: Expecting property name enclosed in double quotes at line 1, column 3"),
        ("3", ": not a list of messages"),
        ('{"model": "x"}', ': no "messages" in the object'),
        ('[{"content": "x"}]', ": message 1 has no role"),
    ],
)
def test_a_file_that_is_no_conversation(tmp_path: Path, text: str, said: str) -> None:
    """The file is named, with the message."""
    path = tmp_path / "chat.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as told:
        read_conversation(str(path), io.BytesIO())
    assert str(told.value) == f"{path}{said}"


def test_a_conversation_comes_from_a_file_or_stdin(tmp_path: Path) -> None:
    """As a list, or as the body of a request."""
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"model": "m", "messages": [USER]}), encoding="utf-8")
    assert read_conversation(str(path), io.BytesIO()) == Prompt(None, (USER,))
    assert read_conversation("-", io.BytesIO(json.dumps([USER]).encode())) == Prompt(None, (USER,))
    with pytest.raises(UsageError, match=r"^--messages .*none\.json can't be read: No such file"):
        read_conversation(str(tmp_path / "none.json"), io.BytesIO())
