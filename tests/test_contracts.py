"""What every command keeps to, whatever it does: the product on stdout, words on stderr, one exit code, no surprises.

`calibrate` stands here by its dry run, save where it is interrupted.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pipelines
import pytest
from commands import PROMPT

from dynx import schemas
from dynx.cli import main as program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from commands import Result

    Cli = Callable[..., Result]

pytest_plugins = ("cli_fixtures", "exit_fixtures")

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
    """A wrong option is exit code 2 with words on stderr, and not a byte on stdout, in JSON too."""
    for more in ((), ("--json",)):
        result = call(name, "--no-such-option", *more)

        assert (result.code, result.out) == (2, "")
        assert re.match(r"dynx: .*--no-such-option", result.err)


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
def test_ctrl_c_while_loading(
    cli: Cli, models: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is an answer nothing is on stdout and no traceback on stderr; the end is by the signal."""
    died: list[int] = []

    def pressed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
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
