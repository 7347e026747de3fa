"""Conversations: checks messages in OpenAI's form, and renders them to prompt ids by a tokenizer's chat template.

A message is a mapping with a `role` and a `content`, a text or a list of text parts; other keys, such as `tool_calls`, are passed
to the template as they are. Which roles there are, and in which order, is the template's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynx.errors import InvalidInput
from dynx.runtime.inputs import InputError

Message = Mapping[str, Any]
"""One message of a conversation, by `role` and `content`."""

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"

SYSTEM_ROLES = (SYSTEM, "developer")
"""Roles of instructions for the whole conversation."""


def has_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def require_template(tokenizer: Any, model: str, hint: str = "leave out `chat` and `system`") -> None:
    """Raise InvalidInput for a tokenizer without chat template; `model` is the model's name."""
    if not has_template(tokenizer):
        raise InvalidInput(f"{model} has no chat template", hint=hint)


def conversation(prompt: str | Sequence[Message], system: str | None = None) -> list[Message]:
    """Return the messages of a prompt: a text is the user's, and `system` precedes messages that have no system message."""
    messages: list[Message] = [{"role": USER, "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system is not None and not any(message.get("role") in SYSTEM_ROLES for message in messages):
        messages.insert(0, {"role": SYSTEM, "content": system})
    return messages


def read_messages(value: Any) -> list[Message]:
    """Return a conversation from parsed JSON: a list of messages, or an object with one under "messages".

    The text parts of a content are joined by line breaks. Raises InputError that names the message and its key.
    """
    if isinstance(value, Mapping):
        if "messages" not in value:
            raise InputError('no "messages" in the object')
        value = value["messages"]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InputError("not a list of messages")
    if not value:
        raise InputError("the list of messages is empty")
    return [_message(each, number) for number, each in enumerate(value, 1)]


def _message(value: Any, number: int) -> Message:
    """Check one message and join its text parts. Raises InputError."""
    if not isinstance(value, Mapping):
        raise InputError(f"message {number} is not an object with role and content")
    role = value.get("role")
    if not isinstance(role, str) or not role:
        wrong = "has a role that is not text" if role else "has no role"
        raise InputError(f"message {number} {wrong}")
    content = value.get("content")
    if content is None:
        if not value.get("tool_calls"):
            raise InputError(f"message {number} has no content")
        return dict(value)
    if isinstance(content, str):
        return dict(value)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InputError(f"message {number}: its content is neither text nor a list of parts")
    return {**value, "content": "\n".join(_part(part, number, place) for place, part in enumerate(content, 1))}


def _part(part: Any, number: int, place: int) -> str:
    """Return the text of one part of a content. Raises InputError."""
    text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
    if isinstance(text, str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else None
    what = f"is {kind!r:.40}" if isinstance(kind, str) and kind != "text" else "has no text"
    raise InputError(f"message {number}: part {place} of its content {what}; only text is read")


def continues_answer(messages: Sequence[Message]) -> bool:
    """Return whether the last message is an answer, which the model then continues."""
    return bool(messages) and messages[-1].get("role") == ASSISTANT and isinstance(messages[-1].get("content"), str)


def render(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True, model: str = "the model"
) -> list[int]:
    """Return the token ids of a conversation, ready to be answered at its end.

    With `add_generation_prompt` a conversation that ends with an assistant's text is left open there, so that the model continues
    that text; any other ends with the beginning of an answer. Without it the conversation is complete. `model` is the name in
    messages. Raises InvalidInput without a chat template, InputError where the template fails on this conversation.
    """
    require_template(tokenizer, model, "a conversation needs a model that has one")
    open_end = add_generation_prompt and continues_answer(messages)
    try:
        encoded = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt and not open_end,
            continue_final_message=open_end,
            return_dict=True,
        )
    except Exception as e:  # noqa: BLE001 - a template is a program of the model's author
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        hint = None
        if "system" in reason.lower() and any(message.get("role") in SYSTEM_ROLES for message in messages):
            hint = "put the system message's text into the first user message"
        raise InputError(f"{model}'s chat template rejects this prompt: {reason}", hint=hint) from None
    return list(encoded["input_ids"])


def encode(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    chat: bool = False,
    system: str | None = None,
    model: str = "the model",
) -> tuple[list[int], bool]:
    """Return the token ids of a prompt, and whether its answer goes on with the prompt's own text.

    Messages, and with `chat` or `system` also a text, are rendered as a conversation. Raises what `render` raises.
    """
    if isinstance(prompt, str) and not chat and system is None:
        return list(tokenizer(prompt)["input_ids"]), True
    if isinstance(prompt, str):
        require_template(tokenizer, model)
    messages = conversation(prompt, system)
    return render(tokenizer, messages, model=model), continues_answer(messages)
