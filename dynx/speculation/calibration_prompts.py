"""Prompts for a user who brings none: chats of the kinds that people ask, or beginnings of texts, half of them the model's own.

Chats and texts lie in a file of their own, beginning with the passages that several of them quote. A model that knows one kind of
text only is at home in what it samples; one that knows many writes on as it would for its users.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynx.runtime.inputs import InputError
from dynx.speculation.chat import encode
from dynx.speculation.policy import Plain
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.chat import Message
    from dynx.speculation.engine import Engine

FILE = Path(__file__).with_name("calibration_prompts.json")
"""Passages by name; chats with their messages, and texts, each with its kind."""

OPENING_TOKENS = 24
"""Tokens of an opening that the model samples."""

MIN_OPENINGS = 8
"""Openings to sample where the model's context holds fewer of the texts."""

MIN_ANSWER_ROOM = 16
"""Smallest number of tokens that a prompt must leave of the model's context."""

T = TypeVar("T")


def own_prompts(assembly: LoadedGenerator, system: str | None = None) -> Iterator[list[int]]:
    """Yield the token ids of prompts, chats under the message `system` where the plan's form is a chat's.

    Left out are conversations that the chat template rejects and prompts too long for the model's context.
    """
    engine, tokenizer = assembly.engine, assembly.tokenizer
    most = None if (limit := engine.target.context) is None else limit - MIN_ANSWER_ROOM
    if assembly.plan.request.chat:
        asked = (render_chat(assembly, messages, system) for messages in chats())
        yield from (ids for ids in asked if ids and (most is None or len(ids) <= most))
        return
    written = [encode(tokenizer, text)[0] for text in texts()]
    written = [ids for ids in written if ids and (most is None or len(ids) <= most)]
    before = encode(tokenizer, "")[0]
    for number in range(2 * max(len(written), MIN_OPENINGS)):
        ids = written[number // 2] if number % 2 == 0 and number // 2 < len(written) else None
        yield make_up_opening(engine, number, before) if ids is None else ids


def render_chat(assembly: LoadedGenerator, messages: Sequence[Message], system: str | None) -> list[int]:
    """Return the token ids of a conversation; none where the template rejects it."""
    try:
        return encode(assembly.tokenizer, messages, chat=True, system=system, model=assembly.plan.source.name)[0]
    except InputError:
        return []


def make_up_opening(engine: Engine, number: int, before: Sequence[int] = ()) -> list[int]:
    """Sample a prompt from the target at temperature 1, after the ids that begin every text or a token chosen by `number`."""
    start = list(before) or [(number * 7919 + 11) % engine.target.vocab]  # a prime step spreads them
    run = engine.start(Request(start, OPENING_TOKENS, Sampling(temperature=1.0, seed=number)), Plain())
    for _ in run:
        pass
    return [*start, *run.tokens]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items spread evenly over a sequence, which may be sorted by kind; all of them where there are fewer.

    So are the first of them, in case that there is no time for all.
    """
    if count >= len(items):
        return list(items)
    halves = sorted(range(count), key=lambda i: f"{i:b}"[::-1].ljust(count.bit_length(), "0"))
    return [items[i * len(items) // count] for i in halves]


def chats() -> list[tuple[Message, ...]]:
    """Return conversations to be answered, neighbours of different kinds."""
    data = _read()
    return [
        tuple({**message, "content": _filled(message["content"], data)} for message in each["messages"])
        for each in data["chats"]
    ]


def texts() -> list[str]:
    """Return beginnings of texts, neighbours of different kinds."""
    data = _read()
    return [_filled(each["text"], data) for each in data["texts"]]


def _read() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def _filled(text: str, data: dict[str, Any]) -> str:
    for name, passage in data["passages"].items():
        text = text.replace(f"{{{name}}}", passage)
    return text
