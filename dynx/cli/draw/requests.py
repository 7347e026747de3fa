"""Turns the command line of `dynx draw` into pictures with prompt, seed and path; reports errors before a model is loaded."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dynx.cli.draw.drafts import Asked, read_draft
from dynx.cli.draw.files import Outputs, vacant
from dynx.cli.draw.records import Record, parse_record, parse_size
from dynx.cli.inputs import BadLine, NoInputError, each_line, read_prompt, refuse_dash, typed
from dynx.cli.stdin import Arrivals
from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dynx.cli.console import Terminal
    from dynx.cli.draw.drafts import Draft
    from dynx.cli.options.draw import Options
    from dynx.runtime.loading import Source

RANDOM_SEED_LIMIT = 1 << 32
"""Number of seeds from which a random one is chosen; small enough to type again."""

MAX_COUNTED_BYTES = 64 << 20
"""Largest file of prompts whose lines are counted beforehand."""

FINISHED_SUFFIX = "-finished"


@dataclass(frozen=True)
class Item:
    """A picture to draw."""

    index: int
    prompt: str
    seed: int
    path: Path | None
    """File to write; None is stdout."""
    source: Path | None = None
    """Draft that it finishes."""
    error: DynxError | None = None
    """Why it can't be drawn."""
    size: tuple[int, int] | None = None
    """Its own size; None is the batch's."""


@dataclass(frozen=True)
class Batch:
    """Pictures with the same settings."""

    asked: Asked
    items: Iterable[Item]
    drafts: list[Draft] = field(default_factory=list)
    """Drafts to finish, in order."""
    count: int | None = None
    """How many pictures there are; None where stdin may have more at any time."""
    arrived: Callable[[], bool] = lambda: True
    """Whether the next picture, or the end, is there without waiting."""

    @property
    def pictures(self) -> int | None:
        """How many pictures there are, None where nobody knows."""
        return len(self.items) if isinstance(self.items, list) else self.count


def parse_steps(text: str) -> int | None:
    """Parse a number of steps; None is auto. Raises UsageError."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) < 1:
        raise UsageError(f"--steps {text}: must be a number from 1, or auto")
    return int(text)


def ordered(options: Options, terminal: Terminal) -> Batch:
    """Return the pictures of the command line; checks what can be checked before a model is loaded. Raises UsageError."""
    if options.lines and options.output == "-":
        raise UsageError("stdout takes one picture, and --lines may give several", hint="-o FOLDER/")
    several = 2 if options.lines else options.count * max(1, len(options.prompt or []))
    outputs = Outputs.parse(options.output, several, force=options.force)
    negative = None if options.negative is None else typed(options.negative, "--negative")
    asked = Asked(parse_size(options.size), options.guidance, negative)
    seed = secrets.randbelow(RANDOM_SEED_LIMIT - options.count) if options.seed is None else options.seed
    if not options.lines:
        return Batch(asked, list(itemise(read_prompts(options, terminal), options, outputs, seed)))
    lines = Arrivals(sys.stdin.buffer) if not options.no_stdin else None
    items = itemise(read_prompts(options, terminal, lines), options, outputs, seed)
    each = options.count * max(1, len(options.prompt or []))
    count = lines_of_file(sys.stdin.buffer)
    return Batch(
        asked, items, count=None if count is None else count * each, arrived=lines.ready if lines else lambda: True
    )


def lines_of_file(stream: BinaryIO) -> int | None:
    """Count the lines of a file that stdin is, from where it stands; None for a pipe, and for more than `MAX_COUNTED_BYTES`."""
    try:
        fd = stream.fileno()
        known = os.fstat(fd)
        if not stat.S_ISREG(known.st_mode) or known.st_size > MAX_COUNTED_BYTES:
            return None
        data = os.pread(fd, known.st_size, os.lseek(fd, 0, os.SEEK_CUR))
    except (OSError, ValueError, AttributeError):
        return None
    return sum(bool(line.strip()) for line in data.splitlines())


def anything(options: Options) -> Batch:
    """Return the settings without pictures, for --dry-run: reads no prompt. Raises UsageError."""
    negative = None if options.negative is None else typed(options.negative, "--negative")
    return Batch(Asked(parse_size(options.size), options.guidance, negative), [])


def itemise(prompts: Iterator[Record | BadLine], options: Options, outputs: Outputs, seed: int) -> Iterator[Item]:
    """Yield the pictures of each prompt. A bad one carries its error with --lines; otherwise raises UsageError."""
    index = 0
    for record in prompts:
        if isinstance(record, BadLine):
            yield Item(index, record.text, seed, None, error=record.error)
            index += 1
            continue
        first = seed if record.seed is None else record.seed
        for s in range(first, first + options.count):
            path = error = None
            try:
                path = outputs.path(index + 1, record.prompt or Path(options.model).name, s)
            except UsageError as e:
                if not options.lines:
                    raise
                error = e
            yield Item(index, record.prompt, s, path, error=error, size=record.size)
            index += 1


def read_prompts(options: Options, terminal: Terminal, lines: Arrivals | None = None) -> Iterator[Record | BadLine]:
    """Return the prompts, one per argument or of `lines`; an empty one for an unconditional pipeline. Raises UsageError."""
    arguments = [typed(text, "PROMPT") for text in options.prompt or []]
    if options.lines:
        if options.no_stdin:
            raise UsageError("--lines reads stdin, which --no-stdin forbids")
        refuse_dash(arguments)
        prompts = each_line(lines or sys.stdin.buffer)
        first = next(prompts)
        several = ([first], prompts)
        return (record for some in several for line in some for record in followed(line, arguments, options.count))
    if not arguments and not takes_prompt(find(options)):
        return iter([Record("")])
    return iter([Record(prompt) for prompt in given(arguments, options, terminal)])


def followed(line: str | BadLine, arguments: list[str], count: int) -> list[Record | BadLine]:
    """Return the pictures of a line: its prompt with each of the arguments appended, the prompt alone if there are none."""
    if isinstance(line, BadLine):
        return [line]
    try:
        record = parse_record(line, count)
    except UsageError as e:
        return [BadLine(line, e)]
    if not arguments:
        return [record]
    return [replace(record, prompt=f"{record.prompt}\n{argument}") for argument in arguments]


def given(arguments: list[str], options: Options, terminal: Terminal) -> list[str]:
    """Return the prompts from arguments and stdin: - is replaced by stdin, otherwise piped text comes before each."""
    if len(arguments) > 1 and not all(text.strip() for text in arguments):
        empty = next(i for i, text in enumerate(arguments, 1) if not text.strip())
        raise UsageError(f"PROMPT {empty} of {len(arguments)} is empty")
    if arguments.count("-") > 1:
        raise UsageError("- can stand for stdin once only")
    asked = "-" if "-" in arguments else arguments[0] if arguments else None
    prompt = read_prompt(
        [] if asked is None else [asked],
        sys.stdin.buffer,
        never=options.no_stdin,
        say=terminal.notice,
        example="dynx draw 'a red apple'",
    )
    if prompt is None or not prompt.strip():
        raise NoInputError("no prompt", hint="for example: dynx draw 'a red apple'")
    if asked == "-":
        return [prompt if text == "-" else text for text in arguments]
    piped = prompt.removesuffix(asked or "")
    return [prompt, *(piped + text for text in arguments[1:])]


def find(options: Options) -> Source:
    """Find the pipeline's folder. Raises ModelError."""
    from dynx.runtime import loading

    return loading.find(
        options.model,
        offline=options.offline,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        task="draw",
    )


def takes_prompt(source: Source) -> bool:
    """Whether a pipeline takes prompts, by the components that it lists; checked before waiting for stdin."""
    import json

    from dynx.runtime.loading import PIPELINE

    try:
        parts = json.loads((source.folder / PIPELINE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # loading reports what is wrong with it
    return not isinstance(parts, dict) or any(name.startswith(("tokenizer", "text_encoder")) for name in parts)


def finishing(options: Options) -> list[Batch]:
    """Return the drafts, grouped by equal settings. Raises UsageError."""
    paths = [Path(typed(p, "FILE")) for p in [*(options.finish or []), *(options.prompt or [])]]
    drafts = [read_draft(path) for path in paths]
    places = None
    if options.output is not None:
        places = Outputs.parse(options.output, len(drafts), force=options.force)
    batches: dict[Asked, Batch] = {}
    beside: set[Path] = set()
    for index, draft in enumerate(drafts):
        path: Path | None
        if places is None:
            path = vacant(draft.path.with_name(f"{draft.path.stem}{FINISHED_SUFFIX}.png"), force=options.force)
            if path in beside:
                raise UsageError(f"{path} would be written twice", hint="use {n} in --output to tell pictures apart")
            beside.add(path)
        else:
            path = places.path(index + 1, draft.prompt, draft.seed)
        batch = batches.setdefault(draft.asked, Batch(draft.asked, []))
        batch.drafts.append(draft)
        if isinstance(batch.items, list):
            batch.items.append(Item(index, draft.prompt, draft.seed, path, draft.path))
    return list(batches.values())
