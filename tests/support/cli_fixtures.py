"""Fixtures of the command-line tests; a test module asks for them with `pytest_plugins`.

`cli` runs `dynx` in this process and returns exit code, stdout and stderr apart. Processes are started with
`commands.spawn`, for what only a process can show: signals, closed streams, module lists. Both see an empty cache and no
network. Whatever JSON either of them prints is held to its schema, every key of it (see `keys`).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.commands import Result, checked, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its drafter; tests copy it before they change it."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def changed(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the tiny model under another name, without the drafter, to be damaged at will."""

    def copy(name: str = "other", *, drafter: bool = False) -> Path:
        ignore = None if drafter else shutil.ignore_patterns("drafter")
        return Path(shutil.copytree(tiny_folder, tmp_path / name, ignore=ignore))

    return copy


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, no network, and nothing of the caller's environment that changes output."""
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DYNX_CONFIG", "none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a second thread costs more than these models do
    for name in ("DYNX_DEBUG", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(
    alone: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    """Runs `dynx ARGUMENTS…` here; `stdin` is bytes for a file on stdin, a stream for itself, None for /dev/null."""
    from dynx.cli.main import run

    opened = []

    def call(*arguments: object, stdin: bytes | TextIO | None = None) -> Result:
        path = Path(os.devnull)
        if isinstance(stdin, bytes):
            path = tmp_path / f"stdin-{len(opened)}"
            path.write_bytes(stdin)
        opened.append(path.open(encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1] if stdin is None or isinstance(stdin, bytes) else stdin)
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return checked(Result(code, out, err))

    yield call
    for file in opened:
        file.close()
