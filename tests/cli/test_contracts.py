"""What every command keeps to, whatever it does: the product on stdout, words on stderr, one exit code, no surprises.

`calibrate` stands here by its dry run, save where it is interrupted.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from support import pipelines
from support.commands import PROMPT, Result, environment, finish, spawn

from dynx import schemas
from dynx.cli import main as program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Result]

COMMANDS = {
    "generate": (PROMPT, "-n", 6),
    "classify": ("a fox",),
    "draw": ("a cat", "--steps", 4, "--seed", 1, "--force"),
    "calibrate": ("--dry-run",),
    "bench": ("--runs", 1, "-n", 4, "--prompts", 1, "--static", "none"),
}
ALL = pytest.mark.parametrize("name", COMMANDS)
ESCAPE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that draws from prompts."""
    folder = tmp_path_factory.mktemp("pipelines") / "drawer"
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def models(tiny_folder: Path, easy: Path, pipeline: Path) -> dict[str, Path]:
    """The model that each command runs."""
    return {"generate": tiny_folder, "classify": easy, "draw": pipeline, "calibrate": tiny_folder, "bench": tiny_folder}


@pytest.fixture
def call(cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command by name on its model, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return lambda name, *more: cli(name, "-m", models[name], *COMMANDS[name], *more)


def steady(text: str) -> str:
    """Without what a clock says."""
    return re.sub(r"[\d.]+|[█▏▎▍▌▋▊▉#]+| +|[─-]+", " ", text)


@ALL
def test_each_stream_has_its_own(call: Cli, name: str) -> None:
    """In words the product alone is on stdout, and nothing said about it on stderr, where nobody watches."""
    result = call(name)

    assert result.code == 0
    assert result.out.strip()
    assert result.err == ""


@ALL
def test_json_is_one_document_and_silence(call: Cli, name: str) -> None:
    """--json gives one document that names its schema and keeps to it; stderr stays empty."""
    result = call(name, "--json")

    assert (result.code, result.err) == (0, "")
    assert result.document["schema"].startswith("dynx.")
    assert schemas.complaint(result.document) is None


@ALL
def test_mistakes_leave_stdout_alone(call: Cli, name: str) -> None:
    """A wrong option is exit code 2, told on stderr, and not a byte on stdout, in JSON too."""
    words, document = call(name, "--no-such-option"), call(name, "--no-such-option", "--json")

    assert (words.code, words.out) == (document.code, document.out) == (2, "")
    assert re.match(r"dynx: .*--no-such-option", words.err)
    assert "--no-such-option" in document.error["message"]


@ALL
def test_the_environment_changes_colours_and_nothing_else(
    call: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal there is no escape under any variable but FORCE_COLOR, and the same is said under all."""
    if name == "bench":
        call(name)  # a first run may differ in what it finds out about the machine
    plain = call(name)
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb"), ("GITHUB_ACTIONS", "true"), ("FORCE_COLOR", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            result = call(name)

        assert (result.code, result.err) == (0, "")
        assert variable == "FORCE_COLOR" or "\x1b" not in result.out
        if name != "bench":
            assert steady(ESCAPE.sub("", result.out)) == steady(plain.out)


@ALL
def test_nothing_can_be_kept(call: Cli, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a cache in which nothing can be made cost no answer."""
    blocked = tmp_path / "blocked"
    blocked.touch()
    for variable in ("HOME", "DYNX_CACHE_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(blocked / "nothing"))
    result = call(name)

    assert (result.code, result.err) == (0, "")
    assert result.out


@ALL
def test_paths_of_any_letters(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, quotes and emoji in the paths of model, cache and working folder are letters like any other."""
    folder = tmp_path / "it's a ü 🎈"
    shutil.copytree(models[name], folder / "my model 🦊")
    monkeypatch.setenv("DYNX_CACHE_DIR", str(folder / "cache 💾"))
    monkeypatch.chdir(folder)
    result = cli(name, "-m", "./my model 🦊", *COMMANDS[name], *(["-o", "a cat 🐈.png"] if name == "draw" else []))

    assert (result.code, result.err) == (0, "")
    if name == "draw":
        assert result.out == "a cat 🐈.png\n"
        assert (folder / "a cat 🐈.png").read_bytes().startswith(b"\x89PNG")


@ALL
@pytest.mark.signals
def test_ctrl_c_while_loading(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is an answer nothing is on stdout and no traceback on stderr; the end is by the signal."""
    died: list[int] = []

    def pressed(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "die_of", lambda number: died.append(number) or 128 + number)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", pressed)
    monkeypatch.setattr("diffusers.ModelMixin.from_pretrained", pressed)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", pressed)
    arguments = [a for a in COMMANDS[name] if a != "--dry-run"]
    result = cli(name, "-m", models[name], *arguments)

    assert died == [signal.SIGINT]
    assert result.code == 130
    assert result.out == ""
    assert "Traceback" not in result.err


def test_file_names_survive_a_narrow_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a file name that are no text in stdout's encoding come out as they went in; other letters become ?."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    program.open_missing_streams()
    name = "a ü 🎈.png".encode()
    stdout.write(name.decode("ascii", "surrogateescape") + " ü\ud800!")
    stdout.flush()

    assert stdout.buffer.getvalue() == name + b" ??!"


@ALL
@pytest.mark.signals
def test_ctrl_c_while_running(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the work: the end is by the signal, at once, and what is said is no traceback and hardly a word."""
    died: list[int] = []
    forward, count = torch.nn.Linear.forward, itertools.count()

    def pressed(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if next(count) == 60:
            signal.raise_signal(signal.SIGINT)
        return forward(layer, x)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "die_of", lambda number: died.append(number) or 128 + number)
    monkeypatch.setattr(torch.nn.Linear, "forward", pressed)
    arguments = [a for a in COMMANDS[name] if a != "--dry-run"]
    result = cli(name, "-m", models[name], *arguments, *(("--plain", "-n", 60) if name == "generate" else ()))

    assert next(count) > 60
    assert died == [signal.SIGINT]
    assert result.code == 130
    assert "Traceback" not in result.err + result.out
    assert len(result.err.splitlines()) <= 1
    assert result.out.endswith("\n") or not result.out


@ALL
def test_a_silent_pipe_is_not_waited_for(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stdin that was merely inherited, on which nobody writes and which nobody closes: a word about it, and on it goes."""
    reader, writer = os.pipe()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynx.cli.inputs.NOTICE_SECONDS", 0.01)
    monkeypatch.setattr("dynx.cli.inputs.GIVE_UP_SECONDS", 0.02)
    expected = cli(name, "-m", models[name], *COMMANDS[name])
    with os.fdopen(reader) as stdin, os.fdopen(writer, "w"):
        result = cli(name, "-m", models[name], *COMMANDS[name], stdin=stdin)

    assert result.code == 0
    assert name == "bench" or steady(result.out) == steady(expected.out)
    assert {re.sub(r" for \d.*", "", line) for line in result.err.splitlines()} <= {
        "waiting for stdin; --no-stdin skips it",
        "no input on stdin",
    }


@ALL
def test_a_pipe_that_closes_is_a_success(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dynx … | head -0`: nobody reads what comes out, and that is exit code 0 without a word."""
    for more in ((), ("--json",)):
        reader, writer = os.pipe()
        os.close(reader)
        stdout = os.fdopen(writer, "w", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            result = cli(name, "-m", models[name], *COMMANDS[name], *more)
        stdout.close()

        assert (result.code, result.err) == (0, "")


@ALL
def test_a_narrow_terminal_cuts_nothing_off(call: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 40 columns tables are folded, bench's leaves out what there is no room for, and no word ends in the middle."""
    wide = call(name)
    monkeypatch.setenv("COLUMNS", "40")
    narrow = call(name)

    assert (narrow.code, narrow.err) == (0, "")
    if name == "bench":
        table = narrow.out.splitlines()[:3]
        assert [line.split()[0] for line in table] == ["arm", "plain", "dynamic"]
        assert max(len(line) for line in table) <= 40
    else:
        assert "".join(steady(narrow.out).split()) == "".join(steady(wide.out).split())


BARE = {
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
    "TERM": "dumb",
    "GITHUB_ACTIONS": "true",
    "CI": "true",
    "OMP_NUM_THREADS": "1",
}
"""What a process finds on a runner without a terminal, in a locale that knows ASCII alone."""


@ALL
@pytest.mark.usefixtures("alone")
def test_a_bare_process_is_quiet(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    """As a process of its own, in a locale without umlauts: what the libraries say while they are imported stays inside."""
    arguments = [f"{a} ü" if a in (PROMPT, "a fox") else a for a in COMMANDS[name]]
    env = environment(**BARE, PYTHONWARNINGS=None, HF_HUB_DISABLE_PROGRESS_BARS=None)
    result = finish(spawn(name, "-m", models[name], *arguments, cwd=tmp_path, env=env))

    assert (result.code, result.err) == (0, "")
    assert result.out.isascii()
    assert "\x1b" not in result.out


CTRL_C_WHILE_IMPORTING = """
import os, signal, sys
class Pressed:
    def find_spec(self, name, *rest):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from dynx.cli.main import main
main()
"""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("generate", "dynx.cli.app"),
        ("generate", "torch.nn"),
        ("classify", "transformers"),
        ("draw", "diffusers"),
        ("calibrate", "torch"),
        ("bench", "numpy"),
    ],
)
def test_ctrl_c_while_importing(models: dict[str, Path], name: str, module: str, tmp_path: Path) -> None:
    """Nothing is begun, so nothing is said: wherever in the imports it comes, death by the signal."""
    arguments = [a for a in COMMANDS[name] if a != "--dry-run"]
    code = CTRL_C_WHILE_IMPORTING.format(name=module)
    result = finish(spawn(name, "-m", models[name], *arguments, cwd=tmp_path, code=code))

    assert result == Result(-signal.SIGINT, "", "")
