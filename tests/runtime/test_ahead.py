"""Imports in a thread: done in order, finished at `join`, and failing where the module is imported in earnest."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from dynx.runtime.loading.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module that can be imported until the test ends."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def module(name: str, code: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        importlib.invalidate_caches()

    yield module
    for name in names:
        sys.modules.pop(name, None)


def test_modules_are_imported_in_order_while_the_caller_goes_on(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller isn't held up, `join` returns after the last of them, and a second `join` at once."""
    seen: list[str] = []
    gate = threading.Event()
    monkeypatch.setattr(threading, "seen_by_modules", seen, raising=False)
    monkeypatch.setattr(threading, "gate_of_modules", gate, raising=False)
    write(
        "ahead_first", "import threading\nthreading.gate_of_modules.wait(30)\nthreading.seen_by_modules.append('first')"
    )
    write("ahead_second", "import threading\nthreading.seen_by_modules.append('second')")

    ahead = Ahead("ahead_first", "ahead_second")
    seen.append("caller")
    gate.set()
    ahead.join()
    seen.append("joined")
    ahead.join()

    assert seen == ["caller", "first", "second", "joined"]
    assert {"ahead_first", "ahead_second"} <= sys.modules.keys()


def test_importing_it_meanwhile_waits_for_the_thread(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's code runs once, and its names are there."""
    monkeypatch.setattr(threading, "runs_of_module", [], raising=False)
    write("ahead_slow", "import threading, time\ntime.sleep(0.3)\nthreading.runs_of_module.append(1)\nvalue = 7")

    ahead = Ahead("ahead_slow")

    assert importlib.import_module("ahead_slow").value == 7
    ahead.join()
    assert threading.runs_of_module == [1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "kind"),
    [("raise RuntimeError('no such device')", RuntimeError), ("import ahead_nowhere", ModuleNotFoundError)],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_fails_in_the_thread_fails_where_it_is_imported(write: Write, code: str, kind: type[Exception]) -> None:
    """`join` ends quietly, what comes after is imported all the same, and the caller's own import raises."""
    write("ahead_broken", code)
    write("ahead_whole", "value = 1")

    Ahead("ahead_broken", "ahead_whole").join()

    assert "ahead_whole" in sys.modules
    with pytest.raises(kind):
        importlib.import_module("ahead_broken")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_module_that_ends_the_program_is_no_exception_of_the_thread(write: Write) -> None:
    """Even SystemExit is left to the import in earnest."""
    write("ahead_exit", "raise SystemExit(3)")
    write("ahead_after", "value = 1")

    Ahead("ahead_exit", "ahead_after").join()

    assert "ahead_after" in sys.modules
    with pytest.raises(SystemExit):
        importlib.import_module("ahead_exit")
