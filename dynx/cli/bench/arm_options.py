"""Reads options inside an argument: `--arm NAME=OPTIONS`, `--arm NAME=PEER` and `--with OPTIONS`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dynx.bench import PEERS
from dynx.cli.bench.values import MAX_DRAFT_LENGTH
from dynx.cli.options.bench import LINE, ModelOptions, Request
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dynx.bench.runner import Arm, Case
from dynx.cli.options.bench import Options

Kind: TypeAlias = Literal["options", "peer", "lookup"]

LOOKUP = "lookup:"
"""Beginning of an arm of static prompt lookup."""

WITH_OPTIONS = frozenset(f.name for f in fields(ModelOptions)) | {"field"}
"""Options that `--with` takes, by field."""

ARM_OPTIONS = frozenset(
    {
        "adapters",
        "draft",
        "backend",
        "quantize",
        "device",
        "dtype",
        "threads",
        "profile",
        "static",
        "batch_size",
        "max_length",
    }
    | {"max_disagreement", "confidence", "quality", "guidance", "size", "lora", "models"}
)
"""Options in which one arm may differ from the others; what is measured, and how, is the same for all."""

TASK_OPTIONS = ARM_OPTIONS - {"models", "device", "dtype", "threads", "profile"}
"""Options of an arm that only some tasks have."""

WANTED = f"an arm is NAME=OPTIONS, NAME={LOOKUP}K, NAME={LOOKUP}K:N or NAME={PEERS[0]}"


@dataclass(frozen=True)
class Variation:
    """One `--arm`: the options in which it differs, by field; a peer and static lookup differ in none."""

    name: str
    kind: Kind
    differs: dict[str, Any]
    lookup: tuple[int, int] = (0, 0)
    """Draft tokens, and the shortest match, of static prompt lookup."""

    def applied(self, request: Request) -> Request:
        """Return the request of this arm."""
        differs = {name: value for name, value in self.differs.items() if name != "models"}
        models = self.differs.get("models")
        return replace(request, **differs, **({"model": models[0]} if models else {}))


def request_of(options: Options, model: str) -> Request:
    """Return the request for one model, with the options in `--with`. Raises UsageError."""
    given: dict[str, Any] = {}
    for line in options.with_ or []:
        given |= with_options(line)
    return Request(**vars(options) | given | {"model": model})


def with_options(line: str) -> dict[str, Any]:
    """Return the options of one `--with` by field. Raises UsageError."""
    hint = f"--with takes {shown_all(WITH_OPTIONS)}"
    given = read_options("--with", line, hint)
    for name in given:
        if name not in WITH_OPTIONS:
            raise UsageError(f"--with {line}: {shown(name)} goes beside --with, not into it", hint=hint)
    return given


def parse_all(texts: Sequence[str]) -> list[Variation]:
    """Read all `--arm` arguments. Raises UsageError."""
    found = [parse(text) for text in texts]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--arm {twice[0]} is given twice", hint="give each arm its own name")
    return found


def parse(text: str) -> Variation:
    """Read one `NAME=OPTIONS` or `NAME=transformers`. Raises UsageError."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not name or not equals or not rest:
        raise UsageError(f"--arm {text}: {WANTED}", hint="--arm 'bf16=--dtype bfloat16'")
    if name.startswith("-"):
        raise UsageError(f"--arm {text} needs a name", hint=f"--arm 'mine={text}'")
    if rest in PEERS:
        return Variation(name, "peer", {})
    if rest.startswith(LOOKUP):
        return Variation(name, "lookup", {}, parse_lookup(f"--arm {text}", rest.removeprefix(LOOKUP)))
    if not rest.startswith("-"):
        raise UsageError(f"--arm {text}: {rest.split()[0]} is neither an option nor a peer", hint=WANTED)
    given = read_options(f"--arm {name}", rest)
    for parameter in given:
        if parameter not in ARM_OPTIONS:
            hint = f"an arm may differ by {shown_all(ARM_OPTIONS)}"
            raise UsageError(f"--arm {name}: {shown(parameter)} cannot differ between arms", hint=hint)
    if len(given.get("models") or ()) > 1:
        raise UsageError(f"--arm {name}: an arm has one model")
    return Variation(name, "options", given)


def parse_lookup(where: str, text: str) -> tuple[int, int]:
    """Return draft tokens and shortest match from "5" or "5:3". Raises UsageError about `where`."""
    numbers = text.split(":")
    if 1 <= len(numbers) <= 2 and all(n.isascii() and n.isdigit() and 1 <= int(n) <= MAX_DRAFT_LENGTH for n in numbers):
        return int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 1
    raise UsageError(
        f"{where}: static lookup has 1 to {MAX_DRAFT_LENGTH} draft tokens and a match of 1 to {MAX_DRAFT_LENGTH}",
        hint=f"{LOOKUP}5, or {LOOKUP}5:3",
    )


def read_options(where: str, line: str, hint: str | None = None) -> dict[str, Any]:
    """Return the options on a line by field, read by the same parser as a command line. Raises UsageError about `where`."""
    try:
        context = LINE.parser.make_context("bench", shlex.split(line))
    except ValueError as e:
        raise UsageError(f"{where}: {e}", hint=hint) from None
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        raise UsageError(f"{where}: {e.format_message()}", hint=hint) from None
    return {
        parameter: value
        for parameter, value in context.params.items()
        if (source := context.get_parameter_source(parameter)) is not None and source.name == "COMMANDLINE"
    }


def shown(field: str) -> str:
    """Return an option as it is typed."""
    names = {"task": "a task", "models": "--model", "adapters": "--adapter", "arms": "--arm", "with_": "--with"}
    return names.get(field, "--" + field.replace("_", "-"))


def shown_all(names: Collection[str]) -> str:
    """Return options as they are typed, with commas."""
    return ", ".join(shown(name) for name in sorted(names))


def check_takes(one: Variation, settings: type[Any], what: str) -> None:
    """Raise UsageError for an option that does not apply to `what`, the kind of model that the arm runs."""
    if one.kind == "lookup":
        raise UsageError(f"--arm {one.name}: prompt lookup does not apply to {what}")
    for name in one.differs:
        if name in TASK_OPTIONS and name not in {f.name for f in fields(settings)}:
            raise UsageError(f"--arm {one.name}: {shown(name)} does not apply to {what}")


def side_by_side(arm: Arm[Case], threads: int, usual: int) -> Arm[Case]:
    """Return an arm of another model, run with that model's number of threads; `usual` is the number of the other arms."""
    import torch

    from dynx.bench.wrappers import threaded

    torch.set_num_threads(usual)  # loading the other one has set its own
    return threaded(arm, threads, usual)
