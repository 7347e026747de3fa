"""Finds values of options that weren't typed: environment variables, a project's `dynx.toml`, the user's, in this order.

    device = "cpu"             # for every command

    [generate]
    model = "./my-model"       # from this file's folder
    temperature = 0.8

The project's file is the nearest one from the working folder upwards, the user's lies in the platform's configuration folder.
`DYNX_CONFIG` names one file to read instead of both, or `none`. A table of a command counts more than the file's head, as
`DYNX_GENERATE_DEVICE` counts more than `DYNX_DEVICE`. Nothing is read before an option asks, so that plain help costs nothing.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from dynx.cli import origins
from dynx.cli.flags import in_flags
from dynx.cli.settings import (
    EXCLUSIVE_KEYS,
    NAME_OR_PATH_METAVARS,
    PATH_METAVARS,
    TRUSTED_KEYS,
    TYPES,
    VARIABLE_PREFIX,
    by_command,
    shared,
)
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dynx.cli.settings import Setting

FILE_NAME = "dynx.toml"
FILE_VARIABLE = "DYNX_CONFIG"
OTHER_VARIABLES = {FILE_VARIABLE, "DYNX_BENCH_SLOW", "DYNX_CACHE_DIR", "DYNX_DEBUG", "DYNX_LAZY_IMPORTS"}
"""Environment variables that set no option."""

ROOT_USER = 0
SWITCH_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Value:
    """A value and its origin: a variable's name, or a file and the key in it."""

    value: Any
    origin: str


@dataclass
class Settings:
    """Click's `default_map` of one command: values by parameter, looked up when the first one is needed."""

    command: str
    typed: frozenset[str] = frozenset()
    """Keys of the options on the command line."""

    error: UsageError | None = None
    """Error in a file or a variable; kept until the command runs, so that `--help` always works."""

    warnings: list[str] = field(default_factory=list)
    _found: dict[str, Value] | None = None

    @property
    def found(self) -> dict[str, Value]:
        """Values and origins by parameter."""
        if self._found is None:
            self._found = {}
            try:
                self._found = dict(merge(self.command, self.typed, layers(self.command, self.warnings)))
            except UsageError as e:
                self.error = e
        return self._found

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a parameter, for Click."""
        if name in ("help", "version"):
            return default
        value = self.found.get(name)
        return default if value is None else value.value


class DefaultMap:
    """Click's `default_map` of the program: settings by command, made when a command is known."""

    def get(self, command: str, default: Any = None) -> Any:
        """Return the settings of a command; none for the program's own options."""
        return default if command in ("help", "version") else Settings(command)


class ConfiguredCommand(TyperCommand):
    """A command that takes options which weren't typed from its settings, and lists them with -vv."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for parameter in self.params:
            if parameter.param_type_name == "argument":  # help would put Python's name of the type behind the metavar
                vars(parameter)["display_type_rich"] = _nothing

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a typed option removes the options that it excludes from the settings."""
        if isinstance(ctx.default_map, Settings):
            options = args[: args.index("--")] if "--" in args else args
            ctx.default_map.typed = frozenset(a[2:].partition("=")[0] for a in options if a.startswith("--"))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises UsageError for an invalid file, only here because help must always work."""
        settings = ctx.default_map
        if not isinstance(settings, Settings):
            return super().invoke(ctx)
        found = settings.found
        if settings.error is not None:
            raise settings.error
        if ctx.params.get("quiet", 0) < 2:
            for warning in settings.warnings:
                sys.stderr.write(f"dynx: {warning}\n")
        origins.ORIGINS.clear()
        origins.ORIGINS.update(origins_of(ctx, found))
        if ctx.params.get("verbose", 0) > 1:
            for setting in by_command()[self.name or ""].values():
                if setting.parameter in origins.ORIGINS:
                    value = ctx.params.get(setting.parameter)
                    sys.stderr.write(f"--{setting.key}: {value} ({origins.ORIGINS[setting.parameter]})\n")
        try:
            return super().invoke(ctx)
        except UsageError as e:
            blamed = [v for p, v in found.items() if re.search(rf"--{p.replace('_', '-')}(?![\w-])", in_flags(str(e)))]
            if blamed:
                e.hint = "; ".join([*([e.hint] if e.hint else []), *(f"set by {v.origin}" for v in blamed)])
            raise


def _nothing(*_: Any, **__: Any) -> None:
    """Return nothing: help doesn't show an argument's type."""


def origins_of(ctx: Any, found: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    """Return the origin of each parameter that isn't at its default."""
    for parameter in ctx.params:
        source = getattr(ctx.get_parameter_source(parameter), "name", "DEFAULT")
        if source == "DEFAULT_MAP" and parameter in found:
            yield parameter, found[parameter].origin
        elif source == "COMMANDLINE":
            yield parameter, "command line"


def origin_of(ctx: Any, parameter: str | None) -> str | None:
    """Return the origin of a parameter's value, if it wasn't typed."""
    found = getattr(ctx, "default_map", None)
    if not isinstance(found, Settings) or parameter not in found.found:
        return None
    source = getattr(ctx.get_parameter_source(parameter), "name", None)
    return found.found[parameter].origin if source == "DEFAULT_MAP" else None


def merge(command: str, typed: frozenset[str], found: Iterator[dict[str, Value]]) -> Iterator[tuple[str, Value]]:
    """Yield each parameter's value from the first layer with one, unless an earlier layer sets an option that excludes it."""
    taken: dict[str, Value] = {}
    for layer in found:
        nearer = typed | taken.keys()
        rivals = {key for group in EXCLUSIVE_KEYS if group & nearer for key in group}
        taken.update({k: v for k, v in layer.items() if k not in taken and k not in rivals})
    for key, value in taken.items():
        yield by_command()[command][key].parameter, value


def layers(command: str, warnings: list[str]) -> Iterator[dict[str, Value]]:
    """Return the sources of values for a command, by precedence. Raises UsageError."""
    yield from environment(command, os.environ, warnings)
    chosen = os.environ.get(FILE_VARIABLE)
    if chosen == "none":
        return
    if chosen:
        if not Path(chosen).is_file():
            raise UsageError(f"{FILE_VARIABLE}={chosen}: no such file")
        yield from layers_of(Path(chosen), command, trusted=True)
        return
    user, project = user_file(), project_file(warnings)
    if project is not None:
        yield from layers_of(project, command, trusted=_same(user, project))
    if user.is_file() and not (project is not None and _same(user, project)):
        yield from layers_of(user, command, trusted=True)


def environment(command: str, env: Mapping[str, str], warnings: list[str]) -> Iterator[dict[str, Value]]:
    """Yield the command's own variables, then those for all commands; warn of misspelled names. Raises UsageError."""
    if not any(name.startswith(f"{VARIABLE_PREFIX}_") and name not in OTHER_VARIABLES for name in env):
        return
    known = by_command()
    for which in (0, 1):
        values = {}
        for key, setting in known[command].items():
            names = setting.variables[which : which + 1]
            text = env.get(names[0], "") if names else ""
            if text:
                values[key] = Value(_from_text(setting, text, names[0]), names[0])
        yield values
    start = f"{VARIABLE_PREFIX}_{command.upper()}_"
    right = {name for setting in known[command].values() for name in setting.variables}
    for name in sorted(n for n in env if n.startswith(start) and n not in right | OTHER_VARIABLES):
        near = get_close_matches(name, right, n=1)
        warnings.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))


def _from_text(setting: Setting, text: str, name: str) -> Any:
    if setting.kind == "switch":
        if text.lower() not in SWITCH_WORDS:
            raise UsageError(f"{name}={text}: must be 1 or 0")
        return SWITCH_WORDS[text.lower()]
    return text.splitlines() if setting.kind == "texts" else text


def project_file(warnings: list[str]) -> Path | None:
    """Return the nearest `dynx.toml` from the working folder upwards; another user's file isn't trusted."""
    try:
        here = Path.cwd()
    except OSError:  # the folder is gone
        return None
    for folder in (here, *here.parents):
        path = folder / FILE_NAME
        try:
            if not path.is_file():
                continue
            owner = path.stat().st_uid
        except OSError:
            continue
        if hasattr(os, "geteuid") and owner not in (os.geteuid(), ROOT_USER):
            warnings.append(f"{path} belongs to another user and isn't read; {FILE_VARIABLE}={path} reads it")
            return None
        return path
    return None


def user_file() -> Path:
    """Return the user's file, which need not exist."""
    import platformdirs

    return platformdirs.user_config_path("dynx", appauthor=False) / FILE_NAME


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def layers_of(path: Path, command: str, *, trusted: bool) -> Iterator[dict[str, Value]]:
    """Return a file's table for the command, then its top level. Raises UsageError for any error in the file."""
    data = read(path)
    known = by_command()
    heads = {key: known[command][key] for key in shared()}
    for name, table in data.items():
        if name not in known:
            _check(path, None, name, table, heads, trusted=trusted)
        elif not isinstance(table, dict):
            raise UsageError(f"{path}: {name} is a command; its settings belong in the table [{name}]")
        else:
            for key, value in table.items():
                _check(path, name, key, value, known[name], trusted=trusted)
    for table, settings in ((data.get(command, {}), known[command]), (data, heads)):
        where = f"{path} [{command}]" if settings is not heads else str(path)
        yield {
            key: Value(_located(settings[key], value, path.parent), f"{where} {key}")
            for key, value in table.items()
            if key in settings
        }


def read(path: Path) -> dict[str, Any]:
    """Read a file. Raises UsageError."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as e:
        raise UsageError(
            f"{path} is not TOML: {e}", hint="""a setting looks like: model = "./my-model" """.strip()
        ) from None
    except OSError as e:
        raise UsageError(f"{path} can't be read: {e.strerror or e}") from None


def _check(
    path: Path, command: str | None, key: str, value: Any, known: Mapping[str, Setting], *, trusted: bool
) -> None:
    where = f"{path}: [{command}] {key}" if command else f"{path}: {key}"
    setting = known.get(key)
    if setting is None:
        raise UsageError(f"{where} is not a setting", hint=_near(command, key, known))
    if key in TRUSTED_KEYS and value and not trusted:
        raise UsageError(f"{where} can't be set by a project's file", hint=f"use --{key}, or set it in {user_file()}")
    if not _fits(setting, value):
        what = f"one of {', '.join(setting.choices)}" if setting.choices else TYPES[setting.kind]
        raise UsageError(f"{where} must be {what}, not {_toml(value)}")


def _near(command: str | None, key: str, known: Mapping[str, Setting]) -> str | None:
    """Return a hint: the closest known name, or the tables where the key belongs."""
    if near := get_close_matches(key.replace("_", "-").lower(), known, n=1, cutoff=0.5):
        return f"did you mean {near[0]}?"
    commands = by_command()
    if command is None and (near := get_close_matches(key, commands, n=1, cutoff=0.75)):
        return f"did you mean [{near[0]}]?"
    owners = [name for name, others in commands.items() if key in others]
    return f"it belongs in a table: {', '.join(f'[{name}]' for name in owners)}" if owners else None


def _fits(setting: Setting, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match setting.kind:
        case "switch":
            return isinstance(value, bool)
        case "count" | "int":
            return number and not isinstance(value, float)
        case "float":
            return number
        case "choice":
            return value in setting.choices
        case "text":
            return isinstance(value, str) or (number and not isinstance(value, float))
        case "texts":
            return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _toml(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _located(setting: Setting, value: Any, folder: Path) -> Any:
    """Return a file's value as the command takes it: texts, and paths relative to the file's folder."""
    if setting.kind == "texts":
        return [_path(setting, text, folder) for text in ([value] if isinstance(value, str) else value)]
    return _path(setting, str(value), folder) if setting.kind == "text" else value


def _path(setting: Setting, text: str, folder: Path) -> str:
    if setting.metavar in NAME_OR_PATH_METAVARS:
        parts = [_inside(folder, part) if part.strip().startswith(".") else part for part in text.split(",")]
        return ",".join(parts)
    if setting.metavar in PATH_METAVARS and text not in ("", "-") and not text.startswith("~"):
        return _inside(folder, text)
    return text


def _inside(folder: Path, text: str) -> str:
    return os.path.join(folder, text.strip())  # noqa: PTH118 - a slash at the end means a folder, and pathlib drops it
