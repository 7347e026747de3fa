"""Further arms of a bench, as they are typed: `--arm NAME=OPTIONS`, a peer, or a program of somebody else's."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dynx.bench import PEERS
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.runner import Arm, Outcome
    from dynx.cli.bench.command import Options

Kind: TypeAlias = Literal["options", "peer", "command"]

ALIKE = frozenset(
    {"draft", "backend", "quantize", "device", "dtype", "threads", "profile", "static", "batch_size", "max_length"}
    | {"max_disagreement", "confidence", "quality", "guidance", "size", "models"}
)
"""Options in which one arm may differ from the others; what is measured, and how, is the same for all."""

TASKS_OWN = ALIKE - {"models", "device", "dtype", "threads", "profile"}
"""Of these, the options that only some tasks have."""

TIMEOUT = 600.0
"""Seconds for one run of a program, unless asked otherwise."""

PLAIN, DYNAMIC = "process plain", "process dynamic"


@dataclass(frozen=True)
class Variation:
    """One `--arm`: what differs (by parameter), or a peer's name, or a program and its arguments."""

    name: str
    kind: Kind
    differs: dict[str, Any]
    words: tuple[str, ...] = ()

    def applied(self, options: Options) -> Options:
        """The command line that this arm has."""
        differs = {name: value for name, value in self.differs.items() if name != "models"}
        model = self.differs.get("models")
        return replace(options, **differs, **({"model": model[0]} if model else {}))


@dataclass(frozen=True)
class Process:
    """How whole processes do a task: dynx's own command, a case as text, and what a program's stdout is worth."""

    command: tuple[str, ...]
    text_of: Callable[[Any], str]
    outcome_of: Callable[[Any, str], Outcome]


def parse_all(texts: Sequence[str]) -> list[Variation]:
    """All of them. Raises UsageError."""
    found = [parse(text) for text in texts]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--arm {twice[0]} is given twice", hint="give each arm its own name")
    return found


def parse(text: str) -> Variation:
    """One `NAME=OPTIONS`, `NAME=transformers` or `NAME=!COMMAND`. Raises UsageError."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not name or not equals or not rest:
        example = "--arm 'bf16=--dtype bfloat16'"
        raise UsageError(f"--arm {text}: an arm is NAME=OPTIONS, NAME={PEERS[0]} or NAME=!COMMAND", hint=example)
    if name.startswith("-"):
        raise UsageError(f"--arm {text}: a name comes first", hint=f"--arm 'mine={text}'")
    if rest.startswith("!"):
        from dynx.bench.external import parse as words_of

        return Variation(name, "command", {}, words_of(name, rest[1:]))
    if rest in PEERS:
        return Variation(name, "peer", {}, (rest,))
    return Variation(name, "options", options_of(name, rest))


def options_of(name: str, line: str) -> dict[str, Any]:
    """Options by parameter, read by the parser of `dynx bench` itself. Raises UsageError."""
    import typer

    from dynx.cli.app import app

    commands: Any = typer.main.get_command(app)
    command = commands.commands["bench"]
    try:
        context = command.make_context("bench", shlex.split(line))
    except ValueError as e:
        raise UsageError(f"--arm {name}: {e}") from None
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        hint = f"--arm '{name}=!{line}' runs a program" if not line.startswith("-") else None
        raise UsageError(f"--arm {name}: {e.format_message()}", hint=hint) from None
    given = {
        parameter: value
        for parameter, value in context.params.items()
        if getattr(context.get_parameter_source(parameter), "name", "") == "COMMANDLINE"
    }
    for parameter in given:
        if parameter not in ALIKE:
            shown = "a task" if parameter == "task" else "--" + parameter.replace("_", "-")
            allowed = ", ".join("--" + ("model" if p == "models" else p.replace("_", "-")) for p in sorted(ALIKE))
            raise UsageError(f"--arm {name}: {shown} is the same for all arms", hint=f"an arm may differ by {allowed}")
    if len(given.get("models") or ()) > 1:
        raise UsageError(f"--arm {name}: an arm has one model")
    return given


def check_takes(one: Variation, settings: type[Any], whose: str) -> None:
    """Raises UsageError for an option that the task has no use for; `whose` the arm would be."""
    for name in one.differs:
        if name in TASKS_OWN and name not in {f.name for f in fields(settings)}:
            raise UsageError(f"--arm {one.name}: --{name.replace('_', '-')} means nothing where the arm {whose}")


def side_by_side(arm: Arm[Any], own: Any, main: Any) -> Arm[Any]:
    """An arm of another assembly than the `main` one, which may want another number of threads."""
    import torch

    from dynx.bench.limits import threaded

    threads = main.decisions["threads"].value
    torch.set_num_threads(threads)  # loading the other one has set its own
    return threaded(arm, own.decisions["threads"].value, threads)


def common_words(options: Options) -> list[str]:
    """What every command takes, as this one was given it."""
    words = ["--device", options.device, "--dtype", str(options.dtype), "-qq"]
    for name, value in (("--threads", options.threads), ("--profile", options.profile)):
        words += [name, str(value)] if value is not None else []
    words += ["--allow-pickle"] * options.allow_pickle + ["--trust-remote-code"] * options.trust_remote_code
    return words + ["--offline"] * options.offline


def process_arms(process: Process, variations: Sequence[Variation], timeout: float | None) -> list[Arm[Any]]:
    """The programs among the arms, with dynx's own two as whole processes to be compared with; none without programs."""
    from dynx.bench.external import Command
    from dynx.bench.runner import Arm

    programs = [(one.name, one.words) for one in variations if one.kind == "command"]
    if not programs:
        return []
    own = (sys.executable, "-m", "dynx", *process.command)
    lines = [(PLAIN, (*own, "--plain")), (DYNAMIC, own), *programs]

    def arm(name: str, words: tuple[str, ...]) -> Arm[Any]:
        command = Command(words, timeout or TIMEOUT)
        return Arm(name, lambda case: process.outcome_of(case, command(process.text_of(case))), "external")

    return [arm(name, words) for name, words in lines]
