"""Jobs on a Ray cluster of several nodes on this machine end as `LocalPool`'s do, whatever is killed on the way.

The cluster is real: each node has a raylet and processes of its own. Ray isn't among the packages that tests need;
`tests/environments/integrations.py` brings it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from support.commands import ROOT
from support.job_functions import Letters

from dynx.jobs.driver import Job, run
from dynx.jobs.local import LocalPool
from dynx.jobs.worker import KILLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dynx.jobs.driver import Progress

ray = pytest.importorskip("ray", reason="Ray isn't installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray leaves files open

TEXTS = ["a" * (i % 29) for i in range(1000)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core, this process connected to them."""
    from ray.cluster_utils import Cluster

    from dynx.jobs.ray import load

    load()
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}:{path}")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


BAD_FROM = 600
"""The row from which audited rows differ."""


def job(folder: Path, name: str, *, seconds: float = 0.0, texts: list[str] = TEXTS, **settings: Any) -> Job:
    """A job over texts, in shards of 40 rows."""
    source = folder / "texts.txt"
    source.write_text("\n".join(texts) + "\n") if not source.exists() else None
    options = {"model": "stub"}
    function, out = Letters(seconds=seconds, bad_from=BAD_FROM), str(folder / name)
    return Job(function, [str(source)], out, options, form="jsonl", shard_rows=40, audit=True, **settings)


def output(folder: Path, name: str) -> bytes:
    """All parts in order."""
    return b"".join(path.read_bytes() for path in sorted((folder / name / "parts").iterdir()))


def once(at: float, act: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something when this share of the rows is done, once."""
    did: list[bool] = []

    def show(progress: Progress) -> None:
        if not did and progress.done >= at * progress.rows:
            did.append(True)
            act()

    return show


def actors() -> list[psutil.Process]:
    """The processes of the cluster that hold a worker."""
    return [p for p in psutil.Process().children(recursive=True) if "ray::Actor" in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_killed_workers_nodes_and_rows(cluster: Any, tmp_path: Path) -> None:
    """A worker killed at 30 %, a node removed at 50 %, rows that exit and hang: output and audit are the local ones."""
    from dynx.jobs.ray import RayPool

    texts = list(TEXTS)
    texts[555], texts[777] = "exit", "hang"
    local = run(job(tmp_path, "local", texts=texts, timeout_row=1.0), lambda: LocalPool(1))

    def act(progress: Progress) -> None:
        kill(progress)
        remove(progress)

    def kill_one() -> None:
        priorities.extend(actor.nice() for actor in actors())
        actors()[0].kill()

    priorities: list[int] = []
    kill = once(0.3, kill_one)
    remove = once(0.5, lambda: cluster.remove_node(cluster.second))
    pool = RayPool()
    assert pool.size == 2
    stats = run(job(tmp_path, "ray", texts=texts, seconds=0.004, timeout_row=1.0), lambda: pool, show=act)
    rows = [json.loads(line) for line in output(tmp_path, "ray").splitlines()]
    assert output(tmp_path, "ray") == output(tmp_path, "local")
    assert [row["row"] for row in rows if row["error"] == KILLED] == [555]
    assert rows[777]["error"] == "took longer than 1 seconds"
    assert (stats["rows"], stats["errors"]) == (local["rows"], local["errors"]) == (1000, 2)
    assert stats["audit"] == local["audit"]
    assert priorities == [os.nice(0)] * 2
    assert BAD_FROM - 40 < stats["audit"]["alarm"]["first_in_job"] < 1000


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from support.job_functions import Letters
from dynx.jobs.driver import Job, run
from dynx.jobs.ray import RayPool

function = Letters(seconds=0.003, bad_from={bad_from})
job = Job(function, [{source!r}], {output!r}, {{"model": "stub"}}, form="jsonl", shard_rows=40, audit=True)
run(job, RayPool)
"""


def test_a_killed_driver(cluster: Any, tmp_path: Path) -> None:
    """Its workers end, and the same command does only what is left, to the same audit."""
    local = run(job(tmp_path, "local"), lambda: LocalPool(1))
    places: dict[str, Any] = {"bad_from": BAD_FROM}
    places |= {"root": str(ROOT), "tests": str(ROOT / "tests"), "source": str(tmp_path / "texts.txt")}
    (tmp_path / "script.py").write_text(SCRIPT.format(**places, output=str(tmp_path / "ray")))
    command = [sys.executable, str(tmp_path / "script.py")]
    driver = subprocess.Popen(command)
    receipts = tmp_path / "ray" / "_dynx" / "receipts"
    until = time.monotonic() + 40
    while not receipts.is_dir() or len(list(receipts.glob("*.json"))) < 5:
        assert time.monotonic() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while actors() and time.monotonic() < until:
        time.sleep(0.1)
    assert actors() == []
    done = {path: path.stat().st_mtime_ns for path in receipts.glob("*.json")}
    assert 5 <= len(done) < 25
    assert subprocess.run(command, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert json.loads((tmp_path / "ray" / "stats.json").read_text())["audit"] == local["audit"]
    assert output(tmp_path, "ray") == output(tmp_path, "local")


def test_functions_map_batches(cluster: Any) -> None:
    """Ray Data's `map_batches` takes the class of a function."""
    pytest.importorskip("pandas", reason="Ray Data needs pandas")
    data = ray.data.from_items([{"text": text} for text in TEXTS])
    out = data.map_batches(Letters, batch_size=100, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=0.5)
    assert sorted(row["letters"] for row in out.take_all()) == sorted(map(len, TEXTS))
