"""Compare rows per second of `classify` as a job, on processes of this machine and on Ray nodes that it holds.

    python tests/scale/nodes.py one-worker|two-nodes|four-nodes SECONDS

    one-worker   one worker on Ray against one process, both with all cores
    two-nodes    two nodes of one core against one node of one core
    four-nodes   four nodes of one core against two of them; on a machine with two cores

SECONDS is about how long both arms take together, besides starting; 600 makes one-worker jobs of five minutes. Rows per second
count from the first worker's start to the last row (`whole`), and between the first tenth of the rows and the last (`steady`);
for that part also the processor time of 1,000 rows is told, of the workers and of all other processes of the job. It tells more
than the rate on a machine with other load, if workers have one thread: `taskset -c 0 python …`. Otherwise the comparison needs a
machine without other load. The exit code is 1 where the arms' labels differ or the ratio is below the goal.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.job_functions import lines  # noqa: E402

from dynx.jobs.driver import Job, run  # noqa: E402
from dynx.jobs.functions import Classify  # noqa: E402
from dynx.jobs.local import LocalPool  # noqa: E402
from dynx.jobs.ray import RayPool, load  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynx.jobs.driver import Progress
    from dynx.jobs.pool import Pool

CORES = len(os.sched_getaffinity(0))
COMPARED: dict[str, tuple[str | tuple[int, int], tuple[int, int], float]] = {
    "one-worker": ("local", (1, CORES), 0.95),
    "two-nodes": ((1, 1), (2, 1), 1.8),
    "four-nodes": ((2, 1), (4, 1), 0.9),
}
"""The base, what is compared with it (nodes and the cores of each), and the least ratio."""

SHARDS = 48
NOTED = (0.1, 0.9, 1.0)
"""Shares of the rows after which time is taken."""

PROBED_ROWS = 4096
"""Rows of a first short job on the base, which sizes the others."""


@contextmanager
def ray_pool(nodes: int, cores: int) -> Iterator[Callable[[], Pool]]:
    """Hold a cluster of so many nodes on this machine, and yield what opens a pool of a worker on each."""
    ray = load()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=cores)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield lambda: RayPool(nodes, cores)
    ray.shutdown()
    cluster.shutdown()


def measured(arm: str | tuple[int, int], rows: int, shard_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Run one arm; return its figures, and the labels."""
    seen: list[tuple[int, float, dict[int, float]]] = []  # at a tenth of the rows, at nine tenths, and at the end
    ready: list[float] = []

    def show(progress: Progress) -> None:
        if progress.began is not None:
            ready.append(progress.began)
        while len(seen) < len(NOTED) and progress.done >= NOTED[len(seen)] * rows:
            seen.append((progress.done, time.monotonic(), processor_seconds()))

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "texts.txt")
        source.write_text("".join(f"{line}\n" for line in lines(rows)))
        out = f"{folder}/out"
        job = Job(Classify("mood"), [str(source)], out, {"model": "mood"}, form="jsonl", shard_rows=shard_rows)
        began = time.monotonic()
        if arm == "local":
            run(job, lambda: LocalPool(1), show=show)
        else:
            assert not isinstance(arm, str)
            with ray_pool(*arm) as pool:
                began = time.monotonic()
                run(job, pool, show=show)
        parts = sorted(Path(out, "parts").iterdir())
        labels = [json.loads(line)["label"] for part in parts for line in part.read_text().splitlines()]
    first, last, end = seen
    done = max(1, last[0] - first[0])
    spent = sorted((seconds - first[2].get(process, 0.0) for process, seconds in last[2].items()), reverse=True)
    workers = 1 if isinstance(arm, str) else arm[0]
    figures = {
        "start": ready[0] - began,
        "whole": rows / (end[1] - ready[0]),
        "steady": done / max(1e-9, last[1] - first[1]),
        "workers": sum(spent[:workers]) / done * 1000,
        "others": sum(spent[workers:]) / done * 1000,
    }
    return figures, labels


def processor_seconds() -> dict[int, float]:
    """Return the processor time of this process and of all that it has started, by their numbers."""
    found, me = {}, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found


def main(name: str, seconds: float) -> int:
    """Run both arms, the base first."""
    base, other, goal = COMPARED[name]
    probe, _ = measured(base, PROBED_ROWS, PROBED_ROWS // 8)
    rows = max(SHARDS, int(probe["whole"] * seconds / (1 + 1 / max(1.0, goal))))
    found = []
    for arm in (base, other):
        figures, labels = measured(arm, rows, -(-rows // SHARDS))
        found.append((figures, labels))
        label = arm if arm == "local" else f"ray, nodes x cores {arm[0]}x{arm[1]}"
        words = f"{figures['workers']:.2f} s + {figures['others']:.2f} s of processor time for 1,000 rows"
        words = f"started in {figures['start']:.1f} s, {words}"
        print(f"{label}: {figures['whole']:,.1f} rows/s, {figures['steady']:,.1f} steady, {words}", flush=True)
    ratios = {key: found[1][0][key] / found[0][0][key] for key in ("whole", "steady")}
    same = found[0][1] == found[1][1]
    shown = f"{ratios['whole']:.3f}x whole, {ratios['steady']:.3f}x steady, goal {goal}x"
    print(f"{name}: {rows:,} rows, {shown}, labels {'identical' if same else 'DIFFERENT'}")
    return int(not same or ratios["whole"] < goal)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in COMPARED:
        raise SystemExit(__doc__)
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    raise SystemExit(main(sys.argv[1], float(sys.argv[2])))
