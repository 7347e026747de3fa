"""Run a command as a job; run it again with a worker and then the command killed, and repeated; compare all bytes.

    python tests/scale/interrupted.py FOLDER SHARD_ROWS ENGINE COMMAND…

COMMAND is one of `dynx` with --input; --output, --shard-rows, --engine and --jsonl are added. The exit code is 1
where the two outputs differ, a finished shard was done again, or a process is left behind.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

WORKERS = {"local": ("spawn_main",), "ray": ("ray::Actor",)}
LEFT_BEHIND = ("spawn_main", "ray::", "raylet", "gcs_server")
PATIENCE_SECONDS = 60.0


def processes(marks: tuple[str, ...], before: set[int]) -> list[psutil.Process]:
    """Return the processes that were started since, and whose command line has one of these marks."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.pid not in before and any(m in line for m in marks) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def receipts(out: Path) -> dict[str, int]:
    """Return when each finished shard was written."""
    folder = out / "_dynx" / "receipts"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} if folder.is_dir() else {}


def digest(out: Path) -> tuple[int, str]:
    """Return the number of files in the parts and the pictures of a job, and a hash of their names and bytes."""
    total = hashlib.sha256()
    files = sorted(path for name in ("parts", "pictures") for path in (out / name).glob("*"))
    for path in files:
        total.update(path.name.encode() + path.read_bytes())
    return len(files), total.hexdigest()[:16]


def main(folder: Path, shard_rows: str, engine: str, command: list[str]) -> int:
    """Run, kill and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def job(name: str) -> list[str]:
        added = ("--output", str(folder / name), "--shard-rows", shard_rows, "--engine", engine, "--jsonl")
        return [sys.executable, "-m", "dynx", *command, *added]

    began = time.monotonic()
    subprocess.run(job("once"), check=True)
    total = len(receipts(folder / "once"))
    print(f"once: {total} shards in {time.monotonic() - began:.0f} s", flush=True)
    before = {process.pid for process in psutil.process_iter()}
    driver = subprocess.Popen(job("killed"))

    def wait(share: float) -> None:
        while len(receipts(folder / "killed")) < share * total and driver.poll() is None:
            time.sleep(0.05)

    wait(0.3)
    processes(WORKERS[engine], before)[0].kill()
    wait(0.6)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept, until = receipts(folder / "killed"), time.monotonic() + PATIENCE_SECONDS
    while (left := processes(LEFT_BEHIND, before)) and time.monotonic() < until:
        time.sleep(0.5)
    print(f"the command was killed after {len(kept)} shards; {len(left)} processes are left", flush=True)
    code = subprocess.run(job("killed"), check=False).returncode
    again = receipts(folder / "killed")
    undone = [name for name, written in kept.items() if again.get(name) != written]
    once, killed = digest(folder / "once"), digest(folder / "killed")
    verdict = "identical" if once == killed else f"DIFFERENT ({killed})"
    print(f"repeated: exit code {code}, {len(undone)} shards done again, {once[0]} files {verdict}")
    return int(bool(left or undone or code) or once != killed)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
