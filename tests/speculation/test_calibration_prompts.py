"""The prompts that calibration brings along: of the form that will run, complete, small, and mixed."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from support.models import tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.calibration_prompts import FILE, chats, own_prompts, texts
from dynx.speculation.engine import Engine


class Spelled:
    """A tokenizer of letters whose template rejects conversations of several turns."""

    chat_template = "yes"
    begin = 60

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The letters' numbers after a token that begins every text."""
        return {"input_ids": [self.begin, *(ord(letter) % 60 for letter in text)]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, list[int]]:
        """As `transformers`' tokenizers do, roles left out."""
        if sum(message["role"] == "user" for message in messages) > 1:
            raise ValueError("one turn")
        return self("".join(message["content"] for message in messages))


def assembly(*, chat: bool, context: int) -> Any:
    """What the prompts need of an assembly."""
    target = EagerBackend(tiny("llama", max_position_embeddings=context))
    plan = SimpleNamespace(request=SimpleNamespace(chat=chat), source=SimpleNamespace(name="tiny"))
    return SimpleNamespace(engine=Engine(target), tokenizer=Spelled(), plan=plan)


def test_chats_ask_and_texts_go_on() -> None:
    """Each passage is filled in, neighbours are of different kinds, and the file is small."""
    asked, begun = [messages[-1]["content"] for messages in chats()], texts()

    assert len(set(asked)) == len(asked) >= 12
    assert len(set(begun)) == len(begun) >= 12
    assert not set(asked) & set(begun)
    assert all(messages[-1]["role"] == "user" for messages in chats())
    assert any(len(messages) > 1 for messages in chats())
    assert not any(name in text for text in asked + begun for name in ("{bridge", "{bees", "{library", "{average"))
    assert max(map(len, asked)) > 800
    assert FILE.stat().st_size <= 16 * 1024


def test_a_chats_prompts_are_chats() -> None:
    """Those that the template takes, with the system message before them."""
    spelled = Spelled()
    found = list(own_prompts(assembly(chat=True, context=4096), "Be brief."))

    single = [messages for messages in chats() if len(messages) == 1]
    assert found == [spelled("Be brief." + messages[0]["content"])["input_ids"] for messages in single]


def test_texts_are_begun_for_the_model_or_by_it() -> None:
    """Every other one is sampled after the token that begins all texts, and each is another."""
    spelled = Spelled()
    found = list(islice(own_prompts(assembly(chat=False, context=4096)), 8))

    assert found[::2] == [spelled(text)["input_ids"] for text in texts()[:4]]
    assert all(ids[0] == Spelled.begin for ids in found)
    assert len({tuple(ids) for ids in found}) == 8


@pytest.mark.parametrize("chat", [True, False])
def test_what_the_context_does_not_hold_is_left_out(chat: bool) -> None:
    """Long passages aren't asked about by a model that can't read them."""
    found = list(own_prompts(assembly(chat=chat, context=200)))

    assert found
    assert max(map(len, found)) <= 200 - 16
