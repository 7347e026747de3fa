"""A job ends with every row answered once, in order, whatever is killed on the way; see `support.job_functions` for its rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from support.classifier_folders import write_pictures
from support.commands import ROOT
from support.job_functions import Letters, Sizes, Timed

from dynx import schemas
from dynx.errors import InvalidInput, UsageError
from dynx.jobs.driver import MAX_DEATHS, MAX_DEATHS_OF_A_ROW, Job, run
from dynx.jobs.local import LocalPool
from dynx.jobs.worker import KILLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.jobs.driver import Progress
    from dynx.jobs.pool import Pool

ROWS = 400
HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
"""Cores that processes can be bound to."""
TEXTS = ["a" * (i % 23) for i in range(ROWS)]


def job(folder: Path, texts: list[str] = TEXTS, *, output: str = "out", **changes: Any) -> Job:
    """A job over texts, in shards of 50 rows."""
    source = folder / "texts.txt"
    if not source.exists():
        source.write_text("\n".join(texts) + "\n")
    function = changes.pop("function", Letters())
    settings: dict[str, Any] = {"form": "jsonl", "shard_rows": 50, **changes}
    return Job(function, [str(source)], str(folder / output), settings.pop("options", {"model": "stub"}), **settings)


def output(folder: Path, name: str = "out") -> bytes:
    """All parts, one after the other in the order of their names."""
    return b"".join(path.read_bytes() for path in sorted((folder / name / "parts").iterdir()))


def rows(folder: Path, name: str = "out") -> list[dict[str, Any]]:
    """The rows of all parts."""
    return [json.loads(line) for line in output(folder, name).splitlines()]


def local(workers: int = 1) -> Callable[[], Pool]:
    """A pool's opener."""
    return lambda: LocalPool(workers)


def once(at: float, act: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something when this share of the rows is done, once."""
    did: list[bool] = []

    def show(progress: Progress) -> None:
        if not did and progress.done >= at * progress.rows:
            did.append(True)
            act()

    return show


def test_rows_are_answered_in_order(tmp_path: Path) -> None:
    """Each row has its answer and its number; a complete job isn't done again."""
    stats = run(job(tmp_path), local())
    assert [(row["row"], row["letters"]) for row in rows(tmp_path)] == [(i, len(t)) for i, t in enumerate(TEXTS)]
    assert (stats["rows"], stats["errors"], stats["totals"]["letters"]) == (ROWS, 0, sum(map(len, TEXTS)))
    assert schemas.complaint(stats) is None
    assert (tmp_path / "out" / "_SUCCESS").exists()
    before = output(tmp_path)
    said: list[str] = []
    assert run(job(tmp_path), lambda: pytest.fail("nothing is left to do"), say=said.append) == stats
    assert output(tmp_path) == before
    assert "complete" in said[0]


def test_parquet_has_the_same_columns_in_every_part(tmp_path: Path) -> None:
    """Also where a part holds nothing but errors; pyarrow reads the folder as one table."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="dynx[jobs] isn't installed")
    texts = ["raise"] * 50 + TEXTS[50:]
    run(job(tmp_path, texts, form="parquet"), local())
    table = parquet.read_table(tmp_path / "out" / "parts")
    assert table.column("letters").to_pylist() == [None] * 50 + [len(t) for t in texts[50:]]
    assert set(table.column("error").to_pylist()) == {"RuntimeError: as the row says", None}


def test_several_workers_write_the_same(tmp_path: Path) -> None:
    """One, two and four workers end with the same bytes."""
    for workers in (1, 2, 4):
        run(job(tmp_path, output=f"out{workers}"), local(workers))
    assert output(tmp_path, "out1") == output(tmp_path, "out2") == output(tmp_path, "out4")


def test_bad_rows_cost_only_themselves(tmp_path: Path) -> None:
    """A row that raises, one that exits and one that is killed become three errors, after a bounded number of deaths."""
    texts = list(TEXTS)
    texts[70], texts[130], texts[333] = "raise", "exit", "kill"
    deaths: list[str] = []
    stats = run(job(tmp_path, texts), local(2), warn=deaths.append)
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(e["row"], e["error"]) for e in errors] == [
        (70, "RuntimeError: as the row says"),
        (130, KILLED),
        (333, KILLED),
    ]
    assert stats["errors"] == 3
    good = [i for i in range(ROWS) if i not in (70, 130, 333)]
    assert [(r["row"], r["letters"]) for r in rows(tmp_path) if r["error"] is None] == [
        (i, len(texts[i])) for i in good
    ]
    levels = 2  # of 50 rows cut by 16, then by 16 again
    assert len(deaths) <= 2 * (levels * MAX_DEATHS + MAX_DEATHS_OF_A_ROW)


def test_bad_pictures_cost_only_themselves(tmp_path: Path) -> None:
    """A folder of images with one that kills its process, one that raises and one that can't be read has exactly three errors."""
    paths = write_pictures(tmp_path / "pictures", 12)
    paths[3].rename(tmp_path / "pictures" / "exit.png")
    paths[5].rename(tmp_path / "pictures" / "raise.png")
    (tmp_path / "pictures" / "unreadable.png").write_bytes(b"no picture")
    asked = Job(Sizes(), [str(tmp_path / "pictures")], str(tmp_path / "out"), {}, form="jsonl", shard_rows=4)
    stats = run(asked, local(2))
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [Path(e["file"]).name for e in errors] == ["exit.png", "raise.png", "unreadable.png"]
    assert (stats["rows"], stats["errors"]) == (13, 3)
    assert sum(row["letters"] is not None for row in rows(tmp_path)) == 10


def test_rows_that_take_too_long_are_given_up(tmp_path: Path) -> None:
    """A row that hangs becomes an error with the reason, also among the first ones, and rows beside it are answered."""
    texts = list(TEXTS[:120])
    texts[2], texts[77] = "hang", "hang"
    warnings: list[str] = []
    asked = job(tmp_path, texts, timeout_row=0.5, shard_rows=None)
    stats = run(asked, local(2), warn=warnings.append)
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(e["row"], e["error"]) for e in errors] == [(n, "took longer than 0.5 seconds") for n in (2, 77)]
    assert (stats["rows"], stats["errors"]) == (120, 2)
    assert sum(r["letters"] is not None for r in rows(tmp_path)) == 118
    assert all("took too long" in words for words in warnings)


def test_slow_rows_are_answered_where_each_has_its_time(tmp_path: Path) -> None:
    """A range that takes longer than expected is cut, and no row that is fast enough by itself becomes an error."""
    texts = ["a"] * 30
    stats = run(job(tmp_path, texts, function=Letters(seconds=0.15), timeout_row=1.0, shard_rows=30), local(1))
    assert stats["errors"] == 0


def test_costs_are_measured_once_for_each_kind_of_machine(tmp_path: Path) -> None:
    """By one worker, before any answers; the others and a later run are told."""
    seen = tmp_path / "seen"
    seen.mkdir()
    asked = job(tmp_path, function=Timed(str(seen), seconds=0.002))
    run(asked, local(3))
    found = sorted(seen.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    by_what = [path.name.split("-")[0] for path in found]
    assert by_what.count("measured") == 1
    assert by_what[0] == "measured"
    assert by_what.count("used") == by_what.count("answered") > 1
    assert all(path.name.endswith("-50") for path in found if path.name.startswith("used"))
    (tmp_path / "out" / "_SUCCESS").unlink()
    next((tmp_path / "out" / "parts").iterdir()).unlink()
    run(asked, local(1))
    assert sum(path.name.startswith("measured") for path in seen.iterdir()) == 1


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The shard that it had is answered by another; the output is that of an undisturbed run."""
    run(job(tmp_path), local(), show=lambda _: None)
    me = psutil.Process()

    def kill() -> None:
        next(c for c in me.children() if "spawn_main" in " ".join(c.cmdline())).kill()

    slow = job(tmp_path, function=Letters(seconds=0.002), output="killed")
    warnings: list[str] = []
    run(slow, local(2), show=once(0.3, kill), warn=warnings.append)
    assert len(warnings) == 1
    assert output(tmp_path, "killed") == output(tmp_path)


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from support.job_functions import Letters
from dynx.jobs.driver import Job, run
from dynx.jobs.local import LocalPool

if __name__ == "__main__":
    function = Letters(seconds=0.003, bad_from={bad_from})
    job = Job(function, [{source!r}], {output!r}, {{"model": "stub"}}, form="jsonl", shard_rows=50, audit=True)
    run(job, lambda: LocalPool(2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends, its workers end too, and the same command does only what is left, to the same audit and alarm."""
    bad_from = 220
    stats = run(job(tmp_path, function=Letters(bad_from=bad_from), audit=True), local())
    places: dict[str, Any] = {"bad_from": bad_from}
    places |= {"root": str(ROOT), "tests": str(ROOT / "tests"), "source": str(tmp_path / "texts.txt")}
    code = SCRIPT.format(**places, output=str(tmp_path / "killed"))
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py")]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    receipts = tmp_path / "killed" / "_dynx" / "receipts"
    wait_for(lambda: receipts.is_dir() and len(list(receipts.glob("*.json"))) >= 2)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    driver.wait(20)
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    done = {path: path.stat().st_mtime_ns for path in receipts.glob("*.json")}
    assert len(done) < ROWS // 50
    manifest = (tmp_path / "killed" / "_dynx" / "job.json").read_bytes()
    assert subprocess.run(command, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert (tmp_path / "killed" / "_dynx" / "job.json").read_bytes() == manifest
    assert json.loads((tmp_path / "killed" / "stats.json").read_text())["audit"] == stats["audit"]
    assert stats["audit"]["alarm"] is not None
    assert output(tmp_path, "killed") == output(tmp_path)


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_another_job_is_refused(tmp_path: Path) -> None:
    """Other options, another model or changed inputs are refused, with the difference named; so is a foreign folder."""
    run(job(tmp_path), local())
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "_dynx" / "receipts").joinpath("00000-000000000050-000050.json").unlink()
    with pytest.raises(InvalidInput, match="`batch_size` was not given and is 8 now"):
        run(job(tmp_path, options={"model": "stub", "batch_size": 8}), local())
    with pytest.raises(InvalidInput, match="`jsonl` was given and is not given now"):
        run(job(tmp_path, form="csv"), local())
    with pytest.raises(InvalidInput, match="`model` was stub and is other now"):
        run(job(tmp_path, function=Letters("other")), local())
    os.utime(tmp_path / "texts.txt", ns=(0, 0))
    with pytest.raises(InvalidInput, match=r"texts\.txt has changed"):
        run(job(tmp_path), local())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(InvalidInput, match="holds no job"):
        run(job(tmp_path, output="mine"), local())


def test_a_part_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    """A receipt alone doesn't count."""
    run(job(tmp_path), local())
    before = output(tmp_path)
    (tmp_path / "out" / "_SUCCESS").unlink()
    next((tmp_path / "out" / "parts").iterdir()).unlink()
    run(job(tmp_path), local())
    assert output(tmp_path) == before


def test_what_killed_processes_leave_is_cleared(tmp_path: Path) -> None:
    """A part without receipt, of a shard that was cut later, doesn't double its rows; neither does half a file."""
    texts = list(TEXTS)
    texts[60] = "exit"
    parts = tmp_path / "out" / "parts"

    def leave() -> None:
        parts.mkdir(exist_ok=True)
        (parts / "part-00000-000000000050-000050.jsonl").write_text('{"row": 50}\n')
        (parts / ".part-00000-000000000100-000050.jsonl.123").write_text('{"row"')

    run(job(tmp_path, texts), local(), show=once(0.0, leave))
    assert [row["row"] for row in rows(tmp_path)] == list(range(ROWS))


def test_two_drivers_exclude_each_other(tmp_path: Path) -> None:
    """A second one of the same folder is told so."""
    said: list[Exception] = []

    def second() -> None:
        with pytest.raises(UsageError) as error:
            run(job(tmp_path), local())
        said.append(error.value)

    run(job(tmp_path), local(), show=once(0.0, second))
    assert "another process" in str(said[0])


@pytest.mark.parametrize("bad_from", [150, 0, ROWS])
def test_the_alarm_is_judged_in_the_order_of_rows(tmp_path: Path, bad_from: int) -> None:
    """One, two and four workers, one of them killed, end with the same answers, the same counts and the same alarm."""
    outcomes = []
    for name, workers in (("one", 1), ("two", 2), ("four", 4)):
        function = Letters(bad_from=bad_from, seconds=0.001)
        me = psutil.Process()

        def kill(me: psutil.Process = me) -> None:
            next(c for c in me.children() if "spawn_main" in " ".join(c.cmdline())).kill()

        asked = job(tmp_path, function=function, output=name, audit=True, shard_rows=20)
        stats = run(asked, local(workers), show=once(0.2, kill) if workers > 1 else lambda _: None)
        outcomes.append((output(tmp_path, name), stats["audit"]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert schemas.complaint(stats) is None
    alarm = outcomes[0][1]["alarm"]
    full = [row["row"] for row in rows(tmp_path, "one") if row["full"]]
    if bad_from == ROWS:
        assert alarm is None
        assert full == []
    else:
        assert full == list(range(alarm["first_in_job"], ROWS))
        assert bad_from - 20 < alarm["first_in_job"] <= bad_from + 100


def test_shards_are_sized_by_time(tmp_path: Path) -> None:
    """Without a number of rows, slow rows come in small shards."""
    run(job(tmp_path, TEXTS[:40], function=Letters(seconds=0.25), shard_rows=None), local(4))
    sizes = [json.loads(p.read_text())["rows"] for p in (tmp_path / "out" / "_dynx" / "receipts").iterdir()]
    assert max(sizes) <= 16


@pytest.mark.skipif(HERE < 2, reason="needs two cores that a process can be bound to")
def test_workers_have_cores_of_their_own(tmp_path: Path) -> None:
    """Two workers share no core, and one alone has all of them."""
    me, seen = psutil.Process(), list[list[list[int]]]()

    def look() -> None:
        found = [c.cpu_affinity() for c in me.children() if "spawn_main" in " ".join(c.cmdline())]
        seen.append([sorted(cores or []) for cores in found])

    for workers in (1, 2):
        asked = job(tmp_path, function=Letters(seconds=0.001), output=f"out{workers}")
        run(asked, local(workers), show=once(0.3, look))
    [alone], [one, two] = seen
    assert alone == sorted(os.sched_getaffinity(0))
    assert set(one).isdisjoint(two)


CORES = """
import os, sys
from dynx.jobs.ray import take_cores
lock = take_cores(1)
print(*os.sched_getaffinity(0), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(HERE < 2, reason="needs two cores that a process can be bound to")
def test_actors_take_turns_on_cores(tmp_path: Path) -> None:
    """Processes of Ray's on one machine take different cores, and what one leaves another takes."""
    changes = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def start() -> tuple[subprocess.Popen[str], str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", CORES], env={**os.environ, **changes}, **pipes)
        return process, process.stdout.readline().strip()

    (first, one), (second, two) = start(), start()
    first.communicate("")
    third, again = start()
    assert one != two
    assert again == one
    for process in (second, third):
        process.communicate("")
