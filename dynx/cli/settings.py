"""Lists the options that can be set without typing them: key in `dynx.toml`, environment variables, kind of value.

Read from the declarations in `options`. Options that ask for one action (`--list`, `--finish`, …) can't be
set. Knows nothing of files or values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from dynx.cli.options.commands import COMMANDS

if TYPE_CHECKING:
    from dynx.cli.options import Command, Declaration

VARIABLE_PREFIX = "DYNX"

Kind = Literal["switch", "count", "int", "float", "text", "texts", "choice"]

TYPES: dict[Kind, str] = {
    "switch": "true or false",
    "count": "a whole number",
    "int": "a whole number",
    "float": "a number",
    "text": "a text",
    "texts": "a list of texts",
    "choice": "one of its values",
}

UNSHARED_KEYS = {"model", "json"}
"""Keys that every command has, without a value that suits all."""

TRUSTED_KEYS = {"allow-pickle", "trust-remote-code"}
"""Keys that another user's project file may not set: both run code from a model's folder."""

EXCLUSIVE_KEYS = ({"json", "jsonl"},)
"""Options that exclude each other: the one that is set closer to the command line wins."""

PATH_METAVARS = {"FILE", "PATH", "GOLD", "OUT", "FOLDER", "DIR"}
"""Metavars of files; in a `dynx.toml` they are relative to its folder."""

NAME_OR_PATH_METAVARS = {"MODEL", "DRAFT"}


@dataclass(frozen=True)
class Setting:
    """An option of a command that files and variables can set."""

    command: str
    key: str  # the long option without its dashes
    parameter: str  # the command's parameter
    kind: Kind
    metavar: str
    choices: tuple[str, ...]
    shared: bool  # whether every command has it, so that it can be set for all at once

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that set it, by precedence."""
        name = self.key.upper().replace("-", "_")
        own = f"{VARIABLE_PREFIX}_{self.command.upper()}_{name}"
        return (own, f"{VARIABLE_PREFIX}_{name}") if self.shared else (own,)


@cache
def by_command() -> dict[str, dict[str, Setting]]:
    """Return the settings by command and key, in the order of help."""
    common = set.intersection(*({key for key, *_ in _keyed(each)} for each in COMMANDS.values())) - UNSHARED_KEYS
    return {
        name: {
            key: Setting(name, key, parameter, *_kind(command.types()[parameter], declaration), key in common)
            for key, parameter, declaration in _keyed(command)
            if not declaration.once
        }
        for name, command in COMMANDS.items()
    }


def shared() -> list[str]:
    """Return the keys that can be set for all commands at once."""
    return [key for key, setting in next(iter(by_command().values())).items() if setting.shared]


def _keyed(command: Command) -> list[tuple[str, str, Declaration]]:
    """Return a command's options by key and parameter, without its positional arguments."""
    return [(d.key, f.name, d) for f, d in command.declared() if d.key is not None]


def _kind(type_: Any, declaration: Declaration) -> tuple[Kind, str, tuple[str, ...]]:
    """Return the kind of value that an option takes, its metavar and its choices."""
    metavar = str(declaration.about.get("metavar", ""))
    if declaration.about.get("count"):
        return "count", metavar, ()
    if get_origin(type_) in (Union, UnionType):
        type_ = next(part for part in get_args(type_) if part is not type(None))
    if get_origin(type_) is list:
        return "texts", metavar, ()
    if isinstance(type_, type) and issubclass(type_, Enum):
        return "choice", metavar, tuple(str(member.value) for member in type_)
    kinds: dict[Any, Kind] = {bool: "switch", int: "int", float: "float", str: "text"}
    return kinds[type_], metavar, ()
