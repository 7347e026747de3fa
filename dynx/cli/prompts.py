"""Reads the prompts of `dynx generate`, `calibrate` and `bench`: texts, JSON lines with a field of each, and conversations.

A prompt keeps the JSON object that it came from, so that answers can carry the caller's other fields. What is wrong with one line
takes that prompt's place and leaves the others alone.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dynx.cli.calibration_data import read_prompts
from dynx.cli.inputs import BadLine, numbered_lines
from dynx.errors import UsageError
from dynx.runtime.inputs import InputError
from dynx.runtime.json_lines import NoFieldError, NotAnObjectError, field_of, parse, parse_object
from dynx.runtime.utf8 import blank, read
from dynx.speculation.chat import USER, read_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dynx.cli.stdin import Arrivals
    from dynx.speculation.chat import Message

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
"""Endings of files that hold a JSON object per line."""

USUAL_FIELDS = ("messages", "prompt", "text", "question", "turns.0")
"""Fields that hold the prompt where none is named, the first that a file's first object has."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: a text, or the messages of a conversation."""

    text: str | None
    messages: tuple[Message, ...] | None = None
    fields: Mapping[str, Any] | None = None
    """The caller's JSON object; None where the prompt didn't come from one."""
    line: int | None = None
    """Number of its line, from 1; None for a prompt that isn't a line of JSON."""

    @property
    def content(self) -> str | tuple[Message, ...]:
        """The text or the messages, as `chat.encode` takes them."""
        return self.messages if self.messages is not None else self.text or ""

    def followed_by(self, text: str) -> Prompt:
        """Return the prompt with a text after it: on the next line, or as the user's next message in a conversation."""
        if not text:
            return self
        if self.messages is not None:
            return replace(self, messages=(*self.messages, {"role": USER, "content": text}))
        return replace(self, text=f"{self.text}\n{text}")

    @property
    def identity(self) -> str:
        """A text that is equal for equal prompts, to be hashed."""
        if self.messages is None:
            return self.text or ""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class BadPrompt:
    """A line that is no prompt, and why."""

    text: str
    """The line as far as it can be decoded."""
    error: UsageError
    fields: Mapping[str, Any] | None = None
    """Its JSON object, where it is one."""
    line: int | None = None
    """Number of its line, from 1; None for a prompt that isn't a line of JSON."""


def is_chat(prompts: Sequence[Prompt | BadPrompt], *, chat: bool, system: str | None) -> bool:
    """Return whether the prompts run as chats: by the options, or because one of them is a conversation."""
    conversations = (isinstance(prompt, Prompt) and prompt.messages is not None for prompt in prompts)
    return chat or system is not None or any(conversations)


def each_prompt(stream: BinaryIO | Arrivals, field: str | None) -> Iterator[Prompt | BadPrompt]:
    """Yield a prompt per non-empty line as it arrives: the line itself, or with `field` that of the JSON object on it."""
    for number, line in numbered_lines(stream):
        if field is not None:
            yield json_prompt(line, number, field)
        elif isinstance(line, BadLine):
            yield BadPrompt(line.text, line.error)
        else:
            yield Prompt(line)


def json_prompt(line: str | BadLine, number: int, field: str) -> Prompt | BadPrompt:
    """Return the prompt in a field of the JSON object on a line."""
    if isinstance(line, BadLine):
        return BadPrompt(line.text, line.error, line=number)
    try:
        fields = parse_object(line)
    except NotAnObjectError as e:
        return BadPrompt(line, UsageError(str(e)), line=number)
    try:
        text, messages = _content(fields, field)
    except UsageError as e:
        return BadPrompt(line, e, fields, number)
    return Prompt(text, messages, fields, number)


def _content(fields: dict[str, Any], field: str) -> tuple[str | None, tuple[Message, ...] | None]:
    """Return the text or the messages in a field. Raises UsageError that names the field."""
    try:
        value = field_of(fields, field)
    except NoFieldError:
        raise UsageError(f'no field "{field}"') from None
    if isinstance(value, str):
        if not value.strip():
            raise UsageError(f'field "{field}" is empty')
        return value, None
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        raise UsageError(f'field "{field}" is a list of texts; "{field}.0" is the first of them')
    if not isinstance(value, list | dict):
        raise UsageError(f'field "{field}" is neither text nor a list of messages')
    try:
        return None, tuple(read_messages(value))
    except InputError as e:
        raise UsageError(f'field "{field}": {e}') from None


def read_conversation(path: str, stdin: BinaryIO) -> Prompt:
    """Return the conversation in a file of JSON; `-` is stdin. Raises UsageError that names the file and what is wrong in it."""
    name = "stdin" if path == "-" else path
    data = _bytes(path, "--messages", stdin)
    if blank(data):
        raise UsageError(f"{name} is empty", hint='a list of messages: [{"role": "user", "content": "Hello"}]')
    try:
        value = parse(read(data, name))
    except json.JSONDecodeError as e:
        raise UsageError(f"{name} is not JSON: {e.msg} at line {e.lineno}, column {e.colno}") from None
    except RecursionError:
        raise UsageError(f"{name} is not JSON: nested too deeply") from None
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not text: half of a surrogate pair") from None
    except UsageError:
        raise
    except ValueError as e:
        raise UsageError(f"{name} is not JSON: {e}") from None
    try:
        return Prompt(None, tuple(read_messages(value)))
    except InputError as e:
        raise UsageError(f"{name}: {e}") from None


def read_data(path: str, field: str | None, warn: Callable[[str], None]) -> list[Prompt]:
    """Return the prompts of `--data`, `-` being stdin: one per line, or with `field` the field of the object on each line.

    A file of JSON lines is read by one of `USUAL_FIELDS` where no field is named. Lines of JSON that are no prompt are left out,
    and `warn` is called with how many and why. Raises UsageError where nothing can be read.
    """
    if field is None and not path.lower().endswith(JSON_LINES_SUFFIXES):
        return [Prompt(text) for text in read_prompts(path)]
    data = _bytes(path, "--data", sys.stdin.buffer)
    if blank(data):
        raise UsageError(f"--data {path} is empty", hint="a JSON object per line")
    lines = list(numbered_lines(io.BytesIO(data), "stdin" if path == "-" else path))
    field = field or _usual_field([line for _, line in lines], path)
    found = [json_prompt(line, number, field) for number, line in lines]
    good = [each for each in found if isinstance(each, Prompt)]
    bad = [each for each in found if isinstance(each, BadPrompt)]
    if bad:
        reason = f"line {bad[0].line}: {bad[0].error}"
        if not good:
            raise UsageError(f"--data {path} has no prompt that can be read; {reason}")
        warn(f"{len(bad):,} of {len(found):,} lines of --data can't be read and were left out ({reason})")
    return good


def _usual_field(lines: Sequence[str | BadLine], path: str) -> str:
    """Return the field that the first object among `lines` has of the usual ones. Raises UsageError where it has none."""
    for line in lines:
        if isinstance(line, BadLine):
            continue
        try:
            fields = parse_object(line)
        except NotAnObjectError:
            continue
        for name in USUAL_FIELDS:
            try:
                field_of(fields, name)
            except NoFieldError:
                continue
            return name
        raise UsageError(
            f"--data {path}: no field of its lines is known to hold a prompt",
            hint=f"--field with one of: {', '.join(fields)}",
        )
    return USUAL_FIELDS[0]  # no line is an object, which reading then says


def _bytes(path: str, option: str, stdin: BinaryIO) -> bytes:
    try:
        return stdin.read() if path == "-" else Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"{option} {path} can't be read: {e.strerror}") from None
