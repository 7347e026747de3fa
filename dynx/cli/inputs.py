"""Reads prompts from arguments, stdin, or both, without waiting forever for a silent pipe.

- no argument, stdin a terminal: nothing to do (the caller shows help);
- no argument, stdin anything else: read it to the end;
- an argument and a pipe or file on stdin: what is piped comes first, then the argument;
- `-` among the arguments stands for stdin and waits as long as it takes.

An inherited pipe that stays silent is given up after `GIVE_UP_SECONDS`, with a notice, when an argument makes it optional.
"""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dynx.cli.stdin import MAX_LINE_BYTES, Beginning
from dynx.errors import UsageError
from dynx.runtime.utf8 import blank, decode, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynx.cli.stdin import Arrivals

SHOWN_BYTES = 200
"""Bytes kept of a line that is too long, to show it."""


class NoInputError(UsageError):
    """No input: no argument, and nothing on stdin."""


NOTICE_SECONDS = 2.0
GIVE_UP_SECONDS = 10.0
"""Seconds of silence on an optional stdin before a notice, and before going on without it."""


def typed(text: str, what: str) -> str:
    """Return an argument that is valid UTF-8. Raises UsageError with the offset of the first byte that isn't."""
    return decode(text.encode("utf-8", "surrogateescape"), what)


def piped(fd: int) -> bool:
    """Whether stdin is a pipe or a file, as opposed to a terminal, a socket or /dev/null."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_prompt(
    arguments: Sequence[str],
    stdin: BinaryIO,
    *,
    never: bool = False,
    say: Callable[[str], None] = lambda _: None,
    notice: float | None = None,
    give_up: float | None = None,
    example: str = "dynx generate 'Once upon a time'",
) -> str | None:
    """Return the prompt, or None without input on a terminal. Raises UsageError on empty or bad input."""
    if "-" in arguments:
        if never:
            raise UsageError("- reads stdin, which --no-stdin forbids")
        if arguments.count("-") > 1:
            raise UsageError("- can be given only once")
        text = _text(stdin.read(), example)
        return " ".join(text if a == "-" else a for a in arguments)
    prompt = " ".join(arguments)
    if never or stdin.closed:
        return prompt or None
    if not prompt:
        return None if stdin.isatty() else _text(stdin.read(), example, also="PROMPT" if arguments else "")
    if not piped(stdin.fileno()):
        return prompt
    data = _read_optional(
        stdin, say, NOTICE_SECONDS if notice is None else notice, GIVE_UP_SECONDS if give_up is None else give_up
    )
    if blank(data):
        return prompt
    text = read(data, "stdin").removesuffix("\n")
    return f"{text}\n{prompt}"


@dataclass(frozen=True)
class BadLine:
    """A line that is not a valid prompt."""

    text: str
    """Its text as far as it can be decoded."""
    error: UsageError


def each_line(stdin: BinaryIO | Arrivals) -> Iterator[str | BadLine]:
    """Yield the non-empty lines of stdin as they arrive, including bad ones. Raises UsageError where there are none."""
    return (line for _, line in numbered_lines(stdin))


def numbered_lines(
    stream: BinaryIO | Arrivals, what: str = "stdin", hint: str = "--lines takes one prompt per line"
) -> Iterator[tuple[int, str | BadLine]]:
    """Yield the non-empty lines as they arrive, each with its number, counted from 1 over all lines.

    `what` is the stream's name. Raises UsageError, with `hint`, where there are none.
    """
    offset, number, seen = 0, 0, False
    while line := stream.readline():
        number += 1
        text: str | BadLine
        if isinstance(line, Beginning):
            error = UsageError(f"the line at offset {offset} is longer than {MAX_LINE_BYTES >> 20} MiB")
            yield number, BadLine(line[:SHOWN_BYTES].decode("utf-8", "replace") + "…", error)
            offset, seen = offset + line.size, True
            continue
        try:
            text = read(line, what, offset=offset).rstrip("\r\n")
        except UsageError as e:
            text = BadLine(line.decode("utf-8", "replace").rstrip("\r\n"), e)
        offset += len(line)
        if isinstance(text, BadLine) or text.strip():
            seen = True
            yield number, text
    if not seen:
        raise UsageError(f"{what} is empty", hint=hint)


def read_lines(arguments: Sequence[str], stdin: BinaryIO | Arrivals) -> Iterator[str]:
    """Yield a prompt per non-empty line of stdin as they arrive, with the arguments appended."""
    refuse_dash(arguments)
    after = " ".join(arguments)
    for line in each_line(stdin):
        if isinstance(line, BadLine):
            raise line.error
        yield f"{line}\n{after}" if after else line


def refuse_dash(arguments: Sequence[str]) -> None:
    """Raise UsageError for - with --lines."""
    if "-" in arguments:
        raise UsageError("--lines already reads stdin; leave out -")


def _text(data: bytes, example: str, *, also: str = "") -> str:
    if blank(data):
        what = f"{also} is empty, and so is stdin" if also else "stdin is empty"
        raise UsageError(what, hint=f"give a prompt: {example}")
    return read(data, "stdin").removesuffix("\n")


def _read_optional(stdin: BinaryIO, say: Callable[[str], None], notice: float, give_up: float) -> bytes:
    """Read all of stdin, or nothing if it stays silent; after the first byte, wait for the rest."""
    fd = stdin.fileno()
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return stdin.read()
    if not select.select([fd], [], [], notice)[0]:
        say("waiting for stdin; --no-stdin skips it")
        if not select.select([fd], [], [], give_up - notice)[0]:
            say(f"no input on stdin for {give_up:.0f} s; continuing without it (- waits without limit)")
            return b""
    return stdin.read()
