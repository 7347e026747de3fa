"""`dynx` as a process: signals, pipes that close, streams that aren't there, and a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.commands import PROMPT, Result, environment, finish, spawn

from dynx.cli import main as program
from dynx.cli.console import Terminal, wants_color

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")

CTRL_C_WHILE_WRITING = """
import os, signal
from dynx.runtime.backends.eager import EagerBackend
run, count = EagerBackend.run, iter(range(10**6))
def pressed(*arguments):
    if next(count) == {at}:
        os.kill(os.getpid(), signal.SIGINT)
    return run(*arguments)
EagerBackend.run = pressed
from dynx.cli.main import main
main()
"""
CTRL_C_WHILE_STARTING = """
import os, signal, sys
class Pressed:
    def find_spec(self, name, *rest):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from dynx.cli.main import main
main()
"""


def test_ctrl_c_keeps_the_text_and_says_what_it_cost(cli: Callable[..., Result], tiny_folder: Path) -> None:
    """In the middle of an answer: what was written and a newline on stdout, statistics on stderr, death by SIGINT."""
    whole = cli("generate", "-m", tiny_folder, PROMPT, "-n", 60, "--plain").out
    code = CTRL_C_WHILE_WRITING.format(at=30)
    result = finish(spawn("generate", "-m", tiny_folder, PROMPT, "-n", 60, "--plain", "--stats", code=code))

    assert result.code == -signal.SIGINT
    assert result.out.endswith("\n")
    assert len(result.out) > 20
    assert whole.startswith(result.out[:-1])
    assert re.match(r"tokens .*; finish reason: interrupted\n", result.err)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("options", [["--json"], ["--json", "--lines"], ["--jsonl"]], ids=" ".join)
def test_ctrl_c_keeps_json_whole(
    cli: Callable[..., Result], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """JSON stays JSON: the document is finished with what there is, and says that it was interrupted."""
    died: list[int] = []

    def ctrl_c(run: object, count: list[int]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "die_of", lambda number: died.append(number) or 130)
    monkeypatch.setattr("dynx.speculation.engine.Run._tally", ctrl_c)
    arguments = [] if "--lines" in options else [PROMPT]
    result = cli("generate", "-m", tiny_folder, *arguments, "--draft", "lookup", *options, stdin=f"{PROMPT}\n".encode())
    last = result.documents[-1]

    assert died == [signal.SIGINT]
    assert result.err == ""
    assert [r["finish_reason"] for r in last.get("results", [last])] == ["interrupted"]


@pytest.mark.parametrize("name", ["typer", "torch"])
def test_ctrl_c_while_starting_is_silent(tiny_folder: Path, name: str) -> None:
    """During imports there is nothing to keep: no traceback, just the end."""
    code = CTRL_C_WHILE_STARTING.format(name=name)
    result = finish(spawn("generate", "-m", tiny_folder, PROMPT, code=code))

    assert result == Result(-signal.SIGINT, "", "")


def test_a_reader_that_leaves_ends_it_quietly(tiny_folder: Path) -> None:
    """`dynx … | head` is a success: exit code 0 and not a word, though more was to be written."""
    process = spawn("generate", "-m", tiny_folder, "--lines", "-n", 8, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"Once upon\n")
    process.stdin.flush()
    start = process.stdout.read(5)
    process.stdout.close()
    process.stdin.write(b"The fox\nThe king\n")
    process.stdin.close()
    assert process.stderr
    err = process.stderr.read()
    process.stderr.close()

    assert len(start) == 5
    assert (process.wait(timeout=60), err) == (0, b"")


@pytest.mark.parametrize("batch", ["1", "8", "auto"])
def test_lines_are_answered_as_they_arrive(tiny_folder: Path, batch: str) -> None:
    """A prompt that comes alone is answered alone: the next one is never waited for."""
    process = spawn("generate", "-m", tiny_folder, "--lines", "--batch", batch, "-n", 6, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    for prompt in (b"Once upon\n", b"\n\nThe fox\n", b"The king\n"):
        process.stdin.write(prompt)
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")
    result = finish(process)

    assert (result.code, result.out, result.err) == (0, "", "")


def test_ctrl_c_in_a_batch_keeps_what_is_written(cli: Callable[..., Result], tiny_folder: Path) -> None:
    """The answers before the one in progress are whole, that one is cut short, and the process dies of it."""
    stdin = f"{PROMPT}\nThe fox\nThe king and the queen\n".encode()
    whole = cli("generate", "-m", tiny_folder, "--lines", "-n", 30, "--batch", "2", stdin=stdin).out
    code = CTRL_C_WHILE_WRITING.replace("eager import EagerBackend", "batch import BatchSession as EagerBackend")
    code = code.replace("EagerBackend.run", "EagerBackend._pass").replace("(*arguments)", "(*arguments, **named)", 2)
    arguments = ("generate", "-m", tiny_folder, "--lines", "-n", 30, "--batch", "2", "--draft", "none")
    result = finish(spawn(*arguments, stdin=subprocess.PIPE, code=code.format(at=48)), stdin)

    assert result.code == -signal.SIGINT
    assert whole.startswith(result.out[:-1])
    assert 2 <= result.out.count("\n") <= 3
    assert "Traceback" not in result.err


def test_missing_streams_are_done_without(tiny_folder: Path) -> None:
    """With stdin and stdout closed by the caller, as some services do, the command runs to its end."""
    script = 'exec "$0" -m dynx generate -m "$1" "Once upon" -n 4 --stats <&- >&-'
    process = subprocess.Popen(
        ["sh", "-c", script, sys.executable, str(tiny_folder)], stderr=subprocess.PIPE, env=environment()
    )
    result = process.communicate(timeout=120)[1].decode()

    assert process.returncode == 0
    assert result.startswith("tokens ")
    assert "Error" not in result


def test_a_full_disk_is_told(cli: Callable[..., Result], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that can't be written is a failure."""
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    stdout = open("/dev/full", "w")  # noqa: PTH123, SIM115
    monkeypatch.setattr(sys, "stdout", stdout)
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 4)
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        stdout.close()

    assert (result.code, result.err) == (1, "dynx: can't write to stdout: No space left on device\n")


def test_letters_that_stdout_lacks_become_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow encoding costs single characters, not the rest of the answer."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stdout)
    program.open_missing_streams()
    Terminal().write("Grüße, 狐!")

    assert stdout.buffer.getvalue() == "Grüße, ?!".encode("latin-1")
    assert not Terminal().unicode


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        """As told."""
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    ("variables", "choice", "on_terminal", "elsewhere"),
    [
        ({}, "auto", True, False),
        ({"TERM": "dumb"}, "auto", False, False),
        ({"NO_COLOR": "1"}, "auto", False, False),
        ({"NO_COLOR": ""}, "auto", True, False),
        ({"FORCE_COLOR": "1"}, "auto", True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False, False),
        ({"NO_COLOR": "1"}, "always", True, True),
        ({"FORCE_COLOR": "1"}, "never", False, False),
    ],
    ids=str,
)
def test_the_order_of_colour_settings(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    choice: str,
    on_terminal: bool,
    elsewhere: bool,
    terminal: bool,
) -> None:
    """--color, then a non-empty NO_COLOR, then FORCE_COLOR, then TERM and whether it is a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert wants_color(Stream(terminal=terminal), choice) == (on_terminal if terminal else elsewhere)


def on_terminal(*arguments: object, **variables: str) -> str:
    """What a person sees who runs `dynx ARGUMENTS…` in a terminal 40 columns wide."""
    ours, theirs = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "40", **variables}
    process = spawn(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**settings))
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)

    assert process.wait(timeout=60) == 0
    return seen.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_status_a_hint_and_a_receipt(cli: Callable[..., Result], tiny_folder: Path) -> None:
    """On a terminal: status lines that go away, the hint to calibrate, the answer shaded by origin, what it cost."""
    plain = cli("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--plain").out
    seen = on_terminal("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--explain", "--draft", "lookup")
    shown = re.sub(r"\x1b\[[\d;]*m", "", seen)
    *statuses, after = shown.split("\r\x1b[K")
    hint, answer, legend, receipt, *decisions = after.splitlines()

    assert "loading tiny…" in statuses
    assert all(status.endswith("…") and "\n" not in status for status in statuses)
    assert re.match(r"no profile for this model, .*dynx calibrate -m ", hint)
    assert answer + "\n" == plain
    assert legend == "draft source: target model, lookup"
    assert re.match(r"40 tokens at \d+/s · .* · identical to plain decoding", receipt)
    assert any(line.startswith("threads ") for line in decisions)
    assert "\x1b[38;5;142m" in seen


def test_a_table_into_a_closed_pipe_is_left_to_main() -> None:
    """What rich prints into a pipe that nobody reads raises BrokenPipeError, which main ends with 0, and not rich's exit 1."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), io.FileIO(writer, "w") as raw:
        Terminal().rich(io.TextIOWrapper(io.BufferedWriter(raw), write_through=True)).print("a table")
