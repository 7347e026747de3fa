"""Rows per second of `classify` as a job, from the first worker's start to the last shard, for several arms in turn.

    python tests/scale/nodes.py TEXTS SHARD_ROWS ARM…

An ARM is local:N (N processes of this machine) or ray:NxC (N nodes of C cores each, on this machine, with a worker each). The
outputs of all arms must have the same labels.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.jobs.driver import Job, run
from dynx.jobs.functions import Classify
from dynx.jobs.local import LocalPool

if TYPE_CHECKING:
    from dynx.jobs.driver import Progress

ROOT = Path(__file__).resolve().parents[2]


def rate(arm: str, texts: str, shard_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Run one arm; return its figures, and the labels."""
    engine, _, size = arm.partition(":")
    seen: list[tuple[float, int, float | None]] = []
    cluster: Any = None

    def show(progress: Progress) -> None:
        if not seen or progress.done > seen[-1][1] or seen[-1][2] is None:
            seen.append((time.monotonic(), progress.done, progress.began))

    with tempfile.TemporaryDirectory() as folder:
        job = Job(Classify("mood"), [texts], folder, {"model": "mood"}, form="jsonl", shard_rows=shard_rows)
        began = time.monotonic()
        if engine == "ray":
            import ray
            from ray.cluster_utils import Cluster

            from dynx.jobs.ray import RayPool

            nodes, cores = map(int, size.split("x"))
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=cores)
            ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
            stats = run(job, lambda: RayPool(nodes, cores), show=show)
            ray.shutdown()
            cluster.shutdown()
        else:
            stats = run(job, lambda: LocalPool(int(size)), show=show)
        parts = sorted(Path(folder, "parts").iterdir())
        labels = [json.loads(line)["label"] for part in parts for line in part.read_text().splitlines()]
    end, done, ready = seen[-1]
    seconds = end - (ready or began)
    figures = {"arm": arm, "rows": stats["rows"], "start": (ready or began) - began, "seconds": seconds}
    return {**figures, "rows/s": done / seconds}, labels


def main(texts: str, shard_rows: int, arms: list[str]) -> int:
    """Run the arms in turn."""
    outputs = []
    for arm in arms:
        figures, labels = rate(arm, texts, shard_rows)
        outputs.append(labels)
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)
    return int(any(labels != outputs[0] for labels in outputs))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
