"""An error under --json: one JSON line that ends stderr, of the schema dynx.error/1; stdout keeps to results."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import PROMPT, finish, spawn

from dynx import errors, schemas
from dynx.cli import main as program
from dynx.errors import DynxError, NoProfileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": (PROMPT,),
    "classify": ("fine",),
    "draw": ("a fox",),
    "calibrate": (),
    "bench": (),
}

ALL = pytest.mark.parametrize("name", COMMANDS)


def told(result: Result, kind: type[DynxError], words: str) -> dict[str, Any]:
    """The error, once nothing else came out and it says what it should."""
    (line,) = result.err.splitlines()
    document = json.loads(line)

    assert (result.code, result.out) == (kind.exit_code, "")
    assert (document["kind"], document["exit_code"]) == (kind.__name__, kind.exit_code)
    assert words in document["message"]
    assert schemas.complaint(document) is None
    return document


@ALL
@pytest.mark.parametrize("mode", ["--json", "--jsonl"])
def test_a_model_that_is_not_there(cli: Cli, name: str, mode: str) -> None:
    """Every command says the same in JSON as in words."""
    if mode == "--jsonl" and name in ("calibrate", "bench"):
        told(cli(name, mode), errors.UsageError, "--jsonl")  # an option that it hasn't got
        return
    words = cli(name, *COMMANDS[name], "-m", "./nowhere")
    document = told(cli(name, *COMMANDS[name], "-m", "./nowhere", mode), errors.ModelError, "no folder ./nowhere")

    assert words.err.splitlines()[0] == f"dynx: {document['message']}"
    assert words.err.splitlines()[1:] == ([f"  {document['hint']}"] if document["hint"] else [])


@ALL
def test_a_value_that_is_none(cli: Cli, name: str) -> None:
    """What is wrong with the command line is told as JSON too, wherever --json stands."""
    document = told(cli(name, "--threads", "many", "--json"), errors.UsageError, "--threads")

    assert document["hint"] == f"dynx {name} --help lists the options"


def test_no_such_command(cli: Cli) -> None:
    """Nor need there be a command."""
    told(cli("generrate", "--json"), errors.UsageError, "generrate")


@ALL
def test_on_a_terminal_people_read(cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the words stay words."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = cli(name, *COMMANDS[name], "-m", "./nowhere", "--json")

    assert (result.code, result.out) == (1, "")
    assert "dynx: there is no folder ./nowhere" in result.err
    assert "{" not in result.err


def test_settings_ask_for_json(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a variable or a file as by the option; what comes after -- are words and ask for nothing."""
    words = ("generate", PROMPT, "-m", "./nowhere")
    file = tmp_path / "dynx.toml"
    file.write_text("[generate]\njsonl = true\n", encoding="utf-8")

    assert cli(*words, "--", "--json").err.startswith("dynx: ")
    with monkeypatch.context() as patch:
        patch.setenv("DYNX_GENERATE_JSON", "1")
        told(cli(*words), errors.ModelError, "./nowhere")
    monkeypatch.setenv("DYNX_CONFIG", str(file))
    told(cli(*words), errors.ModelError, "./nowhere")
    file.write_text("[generate]\nmodle = 1\n", encoding="utf-8")
    assert cli(*words).err.startswith("dynx: ")
    told(cli(*words, "--json"), errors.UsageError, "modle is not a setting")


def test_a_gate_that_fails(cli: Cli, tiny_folder: Path) -> None:
    """The result is on stdout, alone; what was said meanwhile comes before the error, which is the last line."""
    words = ("bench", "-m", tiny_folder, "--static", "none", "--runs", 3, "--inputs", 1, "-n", 4, "--json")
    result = cli(*words, "--min-speedup", 1000, "--tolerance", "0%")

    assert result.code == result.error["exit_code"] == 3
    assert result.error["kind"] == "GateFailed"
    assert result.error["message"] == f"min-speedup: {result.document['gates'][0]['reason']}"
    assert result.document["verdict"] == "fail"


class TornError(NoProfileError):
    """An error of some module's own."""


@pytest.mark.parametrize(
    ("error", "kind", "code", "message", "hint"),
    [
        (TornError("none fits"), "NoProfileError", 4, "none fits", None),
        (DynxError("it's so", hint="do that"), "DynxError", 1, "it's so", "do that"),
        (ZeroDivisionError("by hand\nmore"), "DynxError", 1, "ZeroDivisionError: by hand", "DYNX_DEBUG=1 shows where"),
        (MemoryError(), "DeviceError", 5, "out of memory", "try a shorter prompt, --dtype bfloat16 or a smaller model"),
    ],
    ids=["of a module", "plain", "unforeseen", "memory"],
)
def test_every_kind(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, code: int, message: str, hint: str | None
) -> None:
    """A kind is a class of dynx.errors, the nearest there is."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("dynx.cli.generate.command.run", fails)
    result = cli("generate", PROMPT, "--json")

    assert (result.code, result.error["exit_code"]) == (code, code)
    assert (result.error["kind"], result.error["message"], result.error["hint"]) == (kind, message, hint)


def test_the_schema_knows_the_kinds() -> None:
    """All classes of dynx.errors, and none besides; an InvalidInput is reported as the UsageError that it is."""
    said = schemas.load("dynx.error/1")["properties"]["kind"]["description"]
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and name != "InvalidInput"]

    assert {word.strip(",:.") for word in said.split() if word.strip(",:.") in classes} == set(classes)


def test_a_narrow_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr can't take a letter it is escaped as JSON does it, not as Python does."""
    stderr = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", stderr)
    program.complain(["--json"], "no file ü.txt", None, "UsageError", 2)
    stderr.flush()

    assert json.loads(stderr.buffer.getvalue())["message"] == "no file ü.txt"


@pytest.mark.usefixtures("alone")
def test_as_a_process() -> None:
    """With stderr in a pipe, as a script has it."""
    told(finish(spawn("classify", "-m", "./nowhere", "fine", "--json")), errors.ModelError, "./nowhere")
