"""Renders chat templates by jinja2 alone, for the common case: messages that are texts, answered at their end.

transformers renders with the same package, and importing it takes longer than everything else that a conversation's first token
waits for. Whatever its rendering has beyond this (tools, documents, continued answers, marked spans) is left to it; the kept
tokenizer uses this one only for templates that both rendered alike.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": " What is this? "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>&\n{{x}} 'é'"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.\n"},
        {"role": "user", "content": "Three?"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>b</think>c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ],
)
"""Conversations that both must render alike, or both refuse."""

FORBIDDEN = ("strftime_now", "generation %}", "generation -%}")
"""Names in a template that leave it to transformers: the date, and marked spans."""


def is_plain(messages: Any) -> bool:
    """Whether every message is a role and a content, both of them texts."""
    return bool(messages) and all(
        set(message) == {"role", "content"} and all(isinstance(text, str) for text in message.values())
        for message in messages
    )


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, Any], *, add_generation_prompt: bool
) -> str:
    """Return the text of `messages`; `special` are the tokenizer's special tokens by name. Raises what the template raises."""
    text: str = _compiled(template).render(
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **special,
    )
    return text


def renders_alike(tokenizer: Any, special: Mapping[str, Any]) -> bool:
    """Whether a transformers tokenizer's template is rendered here as there, on all of `PROBES`."""
    template = tokenizer.chat_template
    if not template or any(name in template for name in FORBIDDEN):
        return False

    def theirs(messages: list[dict[str, str]], begin: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin))

    def ours(messages: list[dict[str, str]], begin: bool) -> str:
        return render(template, messages, special, add_generation_prompt=begin)

    def tried(rendering: Any, *given: Any) -> str | None:
        try:
            return str(rendering(*given))
        except Exception:  # noqa: BLE001 - a template is a program of the model's author
            return None

    pairs = [(tried(theirs, each, begin), tried(ours, each, begin)) for each in PROBES for begin in (True, False)]
    return all(one == other for one, other in pairs) and any(one is not None for one, _ in pairs)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, **settings: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **settings})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)
