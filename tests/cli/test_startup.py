"""Where the time of a start goes: stages that add up, counted from the start of the process."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import pytest
from support.commands import PROMPT, Result

from dynx.cli.startup import Startup, process_age

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")


def test_stages_add_up_to_the_time_since_the_process_began() -> None:
    """Each lasts until the next mark, one that comes back is counted once, and only the first product is told of."""
    now = iter([10.0, 10.0, 10.5, 11.0, 11.25, 11.5])
    startup = Startup(0.25, clock=lambda: next(now))
    for stage in ("loading", "trying", "loading"):
        startup.mark(stage)

    assert startup.end("first token") == (
        "first token after 1.75 s: python and dynx 0.25, deciding 0.50, loading 0.75, trying 0.25"
    )
    assert startup.end("first token") is None


def test_an_unknown_age_leaves_out_what_came_before_dynx() -> None:
    """Where the system doesn't tell when the process began, the count begins with dynx."""
    now = iter([3.0, 4.0])

    assert Startup(None, clock=lambda: next(now)).end("first label") == "first label after 1.00 s: deciding 1.00"


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux tells when a process began")
def test_the_age_is_read_whatever_the_process_is_called(tmp_path: Path) -> None:
    """The start stands after a name that may hold anything; a file that isn't so tells nothing."""
    ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - 5) * os.sysconf("SC_CLK_TCK"))
    stat = tmp_path / "stat"
    stat.write_text(f"7 (a) b (c)) S {' '.join(['1'] * 18)} {ticks} 0 0\n", encoding="utf-8")

    assert process_age(stat) == pytest.approx(5, abs=2)
    assert process_age() is not None
    stat.write_text("7 (python) S 1\n", encoding="utf-8")
    assert process_age(stat) is None
    assert process_age(tmp_path / "none") is None


@pytest.mark.parametrize("mode", [[], ["--json"]], ids=["text", "json"])
def test_very_verbose_says_what_the_first_token_took(
    mode: list[str], cli: Callable[..., Result], tiny_folder: Path
) -> None:
    """-vv adds one line on stderr, whose parts are its whole; -v and stdout have none of it."""
    line = r"^first token after ([\d.]+) s: python and dynx [\d.]+, deciding [\d.]+, .*loading tiny [\d.]+, .*first pass [\d.]+$"
    arguments = ["generate", "-m", tiny_folder, PROMPT, "-n", 4, "--plain", *mode]
    seen, less = cli(*arguments, "-vv"), cli(*arguments, "-v")
    found = re.findall(line, seen.err, re.MULTILINE)
    parts = re.findall(r" ([\d.]+)(?:,|$)", next(row for row in seen.err.splitlines() if row.startswith("first token")))

    assert len(found) == 1
    assert sum(map(float, parts)) == pytest.approx(float(found[0]), abs=0.06)
    assert (seen.code, seen.out if not mode else "") == (0, less.out if not mode else "")
    assert "first token" not in less.err
