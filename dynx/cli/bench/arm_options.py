"""Further arms of a bench, as they are typed: `--arm NAME=OPTIONS`, or a peer."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dynx.bench import PEERS
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.bench.runner import Arm
    from dynx.cli.bench.options import Options

Kind: TypeAlias = Literal["options", "peer"]

ALIKE = frozenset(
    {"draft", "backend", "quantize", "device", "dtype", "threads", "profile", "static", "batch_size", "max_length"}
    | {"max_disagreement", "confidence", "quality", "guidance", "size", "models"}
)
"""Options in which one arm may differ from the others; what is measured, and how, is the same for all."""

TASKS_OWN = ALIKE - {"models", "device", "dtype", "threads", "profile"}
"""Of these, the options that only some tasks have."""


WANTED = f"an arm is NAME=OPTIONS or NAME={PEERS[0]}"


@dataclass(frozen=True)
class Variation:
    """One `--arm`: what differs, by parameter; of a peer nothing does."""

    name: str
    kind: Kind
    differs: dict[str, Any]

    def applied(self, options: Options) -> Options:
        """The command line that this arm has."""
        differs = {name: value for name, value in self.differs.items() if name != "models"}
        model = self.differs.get("models")
        return replace(options, **differs, **({"model": model[0]} if model else {}))


def parse_all(texts: Sequence[str]) -> list[Variation]:
    """All of them. Raises UsageError."""
    found = [parse(text) for text in texts]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--arm {twice[0]} is given twice", hint="give each arm its own name")
    return found


def parse(text: str) -> Variation:
    """One `NAME=OPTIONS` or `NAME=transformers`. Raises UsageError."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not name or not equals or not rest:
        raise UsageError(f"--arm {text}: {WANTED}", hint="--arm 'bf16=--dtype bfloat16'")
    if name.startswith("-"):
        raise UsageError(f"--arm {text} needs a name", hint=f"--arm 'mine={text}'")
    if rest in PEERS:
        return Variation(name, "peer", {})
    if not rest.startswith("-"):
        raise UsageError(f"--arm {text}: {rest.split()[0]} is neither an option nor a peer", hint=WANTED)
    return Variation(name, "options", options_of(name, rest))


def options_of(name: str, line: str) -> dict[str, Any]:
    """Options by parameter, read by the parser of `dynx bench` itself. Raises UsageError."""
    from dynx.cli.bench.options import COMMAND

    try:
        context = COMMAND.parser.make_context("bench", shlex.split(line))
    except ValueError as e:
        raise UsageError(f"--arm {name}: {e}") from None
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        raise UsageError(f"--arm {name}: {e.format_message()}") from None
    given = {
        parameter: value
        for parameter, value in context.params.items()
        if getattr(context.get_parameter_source(parameter), "name", "") == "COMMANDLINE"
    }
    for parameter in given:
        if parameter not in ALIKE:
            shown = "a task" if parameter == "task" else "--" + parameter.replace("_", "-")
            allowed = ", ".join("--" + ("model" if p == "models" else p.replace("_", "-")) for p in sorted(ALIKE))
            raise UsageError(
                f"--arm {name}: {shown} cannot differ between arms", hint=f"an arm may differ by {allowed}"
            )
    if len(given.get("models") or ()) > 1:
        raise UsageError(f"--arm {name}: an arm has one model")
    return given


def check_takes(one: Variation, settings: type[Any], what: str) -> None:
    """Raise UsageError for an option that does not apply to `what`, the kind of model that the arm runs."""
    for name in one.differs:
        if name in TASKS_OWN and name not in {f.name for f in fields(settings)}:
            raise UsageError(f"--arm {one.name}: --{name.replace('_', '-')} does not apply to {what}")


def side_by_side(arm: Arm[Any], own: Any, main: Any) -> Arm[Any]:
    """An arm of another assembly than the `main` one, which may want another number of threads."""
    import torch

    from dynx.bench.limits import threaded

    threads = main.decisions["threads"].value
    torch.set_num_threads(threads)  # loading the other one has set its own
    return threaded(arm, own.decisions["threads"].value, threads)
