"""Reads the command tree as plain data, for man pages and completions.

Reads Typer's objects by attribute, never by class: which package the classes live in, and where a parameter keeps its
choices and bounds, changed with Typer 0.26 and 0.29, and the files generated from this must not.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import typer.main

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_REWRAP = "\b\n"  # a paragraph that starts so keeps its line breaks, in `--help` and here
BRIEF_LENGTH = 80  # characters


@dataclass(frozen=True)
class Option:
    """An option; a flag has no `metavar`."""

    names: tuple[str, ...]  # short before long
    metavar: str | None
    help: str
    choices: tuple[str, ...] = ()
    default: str | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    repeatable: bool = False
    required: bool = False
    envvar: str | None = None

    @property
    def long(self) -> str:
        """The first long name, or the only name."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


@dataclass(frozen=True)
class Argument:
    """A positional argument, by the name that help shows."""

    metavar: str
    help: str
    choices: tuple[str, ...] = ()
    required: bool = False
    many: bool = False


@dataclass(frozen=True)
class Command:
    """A command with what `--help` says about it; `path` starts with the program's name."""

    path: tuple[str, ...]
    summary: str
    description: tuple[str, ...]  # paragraphs after the summary; one that starts with NO_REWRAP keeps its lines
    examples: tuple[str, ...]
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        """Command line that runs it, such as `dynx generate`."""
        return " ".join(self.path)

    def walk(self) -> Iterator[Command]:
        """Yield this command, then all those under it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read_tree(app: typer.Typer, name: str = "dynx") -> Command:
    """Return an application's commands, options and help; what is hidden there is left out."""
    return _command(typer.main.get_command(app), (name,), None)


def _command(command: Any, path: tuple[str, ...], parent: Any) -> Command:
    context = command.make_context(path[-1], [], parent=parent, resilient_parsing=True)
    parameters = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    children = getattr(command, "commands", {})
    paragraphs, examples = _split_help(command.help or "")
    epilog = re.sub(r"\s*Manual: man \S+$", "", inspect.cleandoc(command.epilog or ""))
    return Command(
        path=path,
        summary=_join_lines(paragraphs[0]) if paragraphs else "",
        description=tuple(paragraphs[1:]) + ((_join_lines(epilog),) if epilog else ()),
        examples=examples,
        options=tuple(_option(p) for p in parameters if p.param_type_name == "option"),
        arguments=tuple(_argument(p) for p in parameters if p.param_type_name == "argument"),
        commands=tuple(_command(child, (*path, name), context) for name, child in children.items() if not child.hidden),
    )


def _split_help(text: str) -> tuple[list[str], tuple[str, ...]]:
    """Take a help text apart into its paragraphs and the lines of its `Examples:` paragraph."""
    paragraphs: list[str] = []
    examples: tuple[str, ...] = ()
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        head, _, rest = paragraph.removeprefix(NO_REWRAP).partition("\n")
        if head.strip() == "Examples:":
            examples = tuple(inspect.cleandoc("\n" + rest).splitlines())
        elif paragraph.startswith(NO_REWRAP):
            paragraphs.append(paragraph)
        elif paragraph.strip():
            paragraphs.append(_join_lines(paragraph))
    return paragraphs, examples


def _option(parameter: Any) -> Option:
    flag = parameter.is_flag or parameter.count
    choices = _choices(parameter)
    return Option(
        names=tuple(sorted((*parameter.opts, *parameter.secondary_opts), key=lambda name: name.startswith("--"))),
        metavar=None if flag else parameter.metavar or "|".join(choices) or _metavar(parameter),
        help=_join_lines(parameter.help or ""),
        choices=choices,
        default=None if flag else _default(parameter),
        bounds=(None, None) if flag else _bounds(parameter),
        repeatable=bool(parameter.multiple or parameter.count),
        required=bool(parameter.required),
        envvar=_envvar(parameter),
    )


def _argument(parameter: Any) -> Argument:
    return Argument(
        metavar=parameter.metavar or parameter.name.upper(),
        help=_join_lines(parameter.help or ""),
        choices=_choices(parameter),
        required=bool(parameter.required),
        many=parameter.nargs == -1,
    )


def _kind(parameter: Any) -> Any:
    """Return where a parameter keeps the details of its type: `type_descriptor` since Typer 0.29, `type` before."""
    return getattr(parameter, "type_descriptor", None) or parameter.type


def _choices(parameter: Any) -> tuple[str, ...]:
    choices = getattr(_kind(parameter), "choices", None) or ()
    return tuple(str(choice.value if isinstance(choice, Enum) else choice) for choice in choices)


def _bounds(parameter: Any) -> tuple[float | None, float | None]:
    owner = parameter if hasattr(parameter, "min") else _kind(parameter)
    return getattr(owner, "min", None), getattr(owner, "max", None)


def _metavar(parameter: Any) -> str:
    kind = _kind(parameter)
    is_path = getattr(kind, "is_path", False) or getattr(kind, "name", "") in ("path", "file", "directory", "filename")
    return "PATH" if is_path else str(parameter.name).upper()


def _default(parameter: Any) -> str | None:
    shown, default = parameter.show_default, parameter.default
    if isinstance(shown, str):
        return shown
    if not shown or default is None or default == "" or callable(default):
        return None
    values = default if isinstance(default, (list, tuple)) else (default,)
    return ", ".join(_value(value) for value in values) or None


def _value(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Write a number the short way: 60 rather than 60.0."""
    return str(int(value)) if value == int(value) else str(value)


def brief(text: str) -> str:
    """Cut a help text down to what fits a line in a list of completions: `"Rounds; each runs ..."` gives `"Rounds"`."""
    first = re.split(r"(?<=[\w)])(?:;|\.(?= [A-Z])) ", text)[0].removesuffix(".")
    return first if len(first) <= BRIEF_LENGTH else first.partition(": ")[0]


def _envvar(parameter: Any) -> str | None:
    names = parameter.envvar
    return ", ".join(names) if isinstance(names, (list, tuple)) else names


def _join_lines(text: str) -> str:
    return text if text.startswith(NO_REWRAP) else " ".join(text.split())
