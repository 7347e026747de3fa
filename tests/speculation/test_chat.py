"""Conversations: what counts as one, and what a tokenizer's template makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from dynx.errors import InvalidInput
from dynx.runtime.inputs import InputError
from dynx.speculation.chat import conversation, read_messages, render

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
USER = {"role": "user", "content": "Hello"}


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    """The tiny model's tokenizer with a chat template."""
    found = AutoTokenizer.from_pretrained(tiny_folder)
    found.chat_template = TEMPLATE
    return found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "not a list of messages"),
        ("user", "not a list of messages"),
        ([], "the list of messages is empty"),
        ({"prompt": "x"}, 'no "messages" in the object'),
        ([USER, "x"], "message 2 is not an object with role and content"),
        ([{"content": "x"}], "message 1 has no role"),
        ([{"role": 4, "content": "x"}], "message 1 has a role that is not text"),
        ([USER, {"role": "assistant"}], "message 2 has no content"),
        ([{"role": "user", "content": 5}], "message 1: its content is neither text nor a list of parts"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}],
            "message 1: part 2 of its content is 'image_url'; only text is read",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 1: part 1 of its content has no text; only text is read",
        ),
    ],
)
def test_what_is_no_conversation_is_named(value: Any, said: str) -> None:
    """By the number of the message and its key."""
    with pytest.raises(InputError) as told:
        read_messages(value)
    assert str(told.value) == said


def test_parts_of_text_are_joined_and_other_keys_kept() -> None:
    """A template reads text; what else it may use comes through."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, "b"]}
    assert read_messages({"model": "m", "messages": [parts, call]}) == [{**parts, "content": "a\nb"}, call]


def test_a_system_message_goes_first_unless_there_is_one() -> None:
    """A conversation's own system message is the more particular one."""
    system = {"role": "system", "content": "Be brief"}
    assert conversation("Hello", "Be brief") == [system, USER]
    assert conversation([USER], "Be brief") == [system, USER]
    assert conversation([{"role": "developer", "content": "x"}, USER], "Be brief")[0]["content"] == "x"
    assert conversation("Hello") == [USER]


def test_a_conversation_is_rendered_by_the_template(tokenizer: Any) -> None:
    """To the ids of the text that the template writes; an answer that is begun stays open."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer = {"role": "assistant", "content": "Hi, I am"}
    assert render(tokenizer, [USER]) == ids("[user] Hello\n[assistant] ")
    assert render(tokenizer, [USER], add_generation_prompt=False) == ids("[user] Hello\n")
    assert render(tokenizer, [USER, answer]) == ids("[user] Hello\n[assistant] Hi, I am")
    assert render(tokenizer, [USER, answer], add_generation_prompt=False) == ids("[user] Hello\n[assistant] Hi, I am\n")
    again = render(tokenizer, [USER, answer, USER])
    assert again == ids("[user] Hello\n[assistant] Hi, I am\n[user] Hello\n[assistant] ")


def test_what_the_template_refuses_is_told(tokenizer: Any) -> None:
    """In its own words; a system message has a hint, since some templates know none."""
    with pytest.raises(InputError, match=r"^toy's chat template rejects this prompt: no tools here$") as told:
        render(tokenizer, [USER, {"role": "tool", "content": "4"}], model="toy")
    assert told.value.hint is None
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="System role not supported") as told:
        render(tokenizer, conversation("Hello", "Be brief"))
    assert "first user message" in str(told.value.hint)


def test_without_a_template_there_is_no_conversation(tokenizer: Any) -> None:
    """It can't be told from the prompt, so this is no fault of one prompt among many."""
    tokenizer.chat_template = None
    with pytest.raises(InvalidInput, match=r"^toy has no chat template$") as told:
        render(tokenizer, [USER], model="toy")
    assert not isinstance(told.value, InputError)
