"""What a job of many rows costs the command itself: memory, Ray's object store, and the time until a repeated one begins.

    python tests/scale/rows.py FOLDER ENGINE ROWS SHARD_ROWS

The rows are lines of text, and a function that counts letters answers them.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.job_functions import Letters  # noqa: E402

from dynx.jobs.driver import Job, run  # noqa: E402
from dynx.jobs.local import LocalPool  # noqa: E402

if TYPE_CHECKING:
    from dynx.jobs.driver import Progress
    from dynx.jobs.pool import Pool

STORE = "object_store_memory"


def main(folder: Path, engine: str, rows: int, shard_rows: int) -> None:
    """Run the job, and again after its last part was deleted."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.txt"
    with texts.open("w") as file:
        file.writelines(f"row number {i} says something\n" for i in range(rows))
    job = Job(Letters(), [str(texts)], str(out), {"model": "stub"}, form="jsonl", shard_rows=shard_rows)
    memory, store, asked = [0], [0.0], list[float]()

    def show(_: Progress) -> None:
        asked.append(time.monotonic())
        memory[0] = max(memory[0], psutil.Process().memory_info().rss)
        if engine == "ray":
            import ray

            store[0] = max(store[0], ray.cluster_resources()[STORE] - ray.available_resources().get(STORE, 0.0))

    def pool() -> Pool:
        if engine != "ray":
            return LocalPool(1)
        from dynx.jobs.ray import RayPool

        return RayPool(1, 1)

    began = time.monotonic()
    run(job, pool, show=show)
    print(
        f"{rows:,} rows in {time.monotonic() - began:.0f} s, {memory[0] >> 20} MiB, object store {store[0] / 2**20:.0f} MiB"
    )
    (out / "_SUCCESS").unlink()
    max((out / "parts").iterdir()).unlink()
    asked.clear()
    began = time.monotonic()
    run(job, pool, show=show)
    print(f"repeated: {asked[0] - began:.1f} s until it begins")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
