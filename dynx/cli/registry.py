"""Every option that can be set without typing it: its key in `dynx.toml`, its environment variables, what it takes.

Read from the commands' signatures, which help, manual pages and completions come from too; nothing is listed twice. Left
out are options that say what to do once (`--list`, `--finish`, …) rather than how. Knows nothing of files or values.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

PREFIX = "DYNX"

Kind = Literal["switch", "count", "int", "float", "text", "texts", "choice"]

TYPES: dict[Kind, str] = {
    "switch": "true or false",
    "count": "a whole number",
    "int": "a whole number",
    "float": "a number",
    "text": "a text",
    "texts": "a list of texts",
    "choice": "one of its words",
}

ONCE = {
    "classify": {"resume"},
    "draw": {"info", "finish", "force", "dry-run"},
    "generate": {"dry-run"},
    "calibrate": {"dry-run", "device-info", "list", "show", "export", "output", "import", "remove"},
}
"""What is asked for once, by command. Overwriting files is among them: it is nobody's habit."""

APART = {"model", "json"}
"""Every command has them, and no value suits all."""

TRUSTED = {"allow-pickle", "trust-remote-code"}
"""What a file that came with somebody's project may not set: a pickle can run any code, and so can a model's own."""

RIVALS = ({"json", "jsonl"},)
"""Options that exclude each other: one that is set nearer to the command line puts away the other."""

PATHS = {"FILE", "PATH", "GOLD", "OUT", "FOLDER", "DIR"}
"""Metavars of files; in a `dynx.toml` they are named from its folder."""

NAMES_OR_PATHS = {"MODEL", "DRAFT"}


@dataclass(frozen=True)
class Setting:
    """An option of a command, as files and the environment know it."""

    command: str
    key: str  # the long option without its dashes
    parameter: str  # the command's parameter
    kind: Kind
    metavar: str
    choices: tuple[str, ...]
    shared: bool  # whether every command has it, so that it can be set for all at once

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that set it; the first counts most."""
        name = self.key.upper().replace("-", "_")
        own = f"{PREFIX}_{self.command.upper()}_{name}"
        return (own, f"{PREFIX}_{name}") if self.shared else (own,)


@cache
def settings() -> dict[str, dict[str, Setting]]:
    """The settings by command and key, in the order of help."""
    from dynx.cli.app import app

    commands = {
        (info.name or getattr(info.callback, "__name__", "")): info.callback for info in app.registered_commands
    }
    found = {name: list(_options(callback)) for name, callback in commands.items()}
    common = set.intersection(*({key for key, *_ in options} for options in found.values())) - APART
    return {
        command: {
            key: Setting(command, key, parameter, kind, metavar, choices, key in common)
            for key, parameter, kind, metavar, choices in options
            if key not in ONCE.get(command, ())
        }
        for command, options in found.items()
    }


def shared() -> list[str]:
    """Keys that can be set for all commands at once."""
    return [key for key, setting in next(iter(settings().values())).items() if setting.shared]


def _options(callback: Any) -> Any:
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        type_, about = get_args(parameter.annotation)[:2]
        # Typer keeps the first of an annotation's names where a default would be.
        names = (getattr(about, "default", None), *(getattr(about, "param_decls", None) or ()))
        longs = [name for name in names if isinstance(name, str) and name.startswith("--")]
        if not longs:  # an argument
            continue
        kind, choices = _kind(type_, about)
        yield longs[0][2:], parameter.name, kind, about.metavar or "", choices


def _kind(type_: Any, about: Any) -> tuple[Kind, tuple[str, ...]]:
    if about.count:
        return "count", ()
    if get_origin(type_) in (Union, UnionType):
        type_ = next(part for part in get_args(type_) if part is not type(None))
    if get_origin(type_) is list:
        return "texts", ()
    if isinstance(type_, type) and issubclass(type_, Enum):
        return "choice", tuple(str(member.value) for member in type_)
    kinds: dict[Any, Kind] = {bool: "switch", int: "int", float: "float", str: "text"}
    return kinds[type_], ()
