"""Run a job of the included models once; run it again with a worker and then the command killed, repeat it, compare all bytes.

    python tests/scale/interrupted.py FOLDER answers|pictures ENGINE… [--rows N] [--workers N]

Answers are 2,000 by default, of 32 tokens in float32, sampled with a seed; pictures are 1,000. The undisturbed run is on
processes of this machine; then the job is disturbed on each ENGINE, `local` or `ray`: a worker is killed once 30 % of the shards
are done, the command at 60 %. The exit code is 1 where outputs differ, a finished shard was done again, a process is left
behind, or the repeated command fails.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.job_functions import lines  # noqa: E402

JOBS = {
    "answers": (
        2000,
        50,
        ("generate", "-m", "story", "-n", "32", "--dtype", "float32", "--temperature", "1", "--seed", "1"),
    ),
    "pictures": (1000, 25, ("draw", "-m", "emoji", "--steps", "4", "--seed", "1")),
}
"""Rows, rows of a shard, and the command."""

ACTORS = {"local": "spawn_main", "ray": "ray::Actor"}
PATIENCE_SECONDS = 120.0
"""Seconds that processes have to end: Ray's own agents wait 60 for what has been killed."""


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> str:
    """Return the command line of a process, or nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


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


def command(folder: Path, kind: str, engine: str, workers: int, name: str) -> list[str]:
    """Return the command of the job whose output is the folder `name`."""
    files = ("--input", str(folder / "prompts.txt"), "--output", str(folder / name), "--jsonl")
    how = ("--engine", engine, "--workers", str(workers), "--shard-rows", str(JOBS[kind][1]))
    return [sys.executable, "-m", "dynx", *JOBS[kind][2], *files, *how]


def disturbed(out: Path, asked: list[str], engine: str, total: int) -> bool:
    """Run the command, kill a worker, then the command, and repeat it; return whether that went as it should."""
    driver = psutil.Popen(asked)

    def wait(share: float) -> None:
        while len(receipts(out)) < share * total and driver.poll() is None:
            time.sleep(0.05)

    wait(0.3)
    next(p for p in driver.children(recursive=True) if ACTORS[engine] in command_line(p)).kill()
    wait(0.6)
    started = driver.children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept, until = receipts(out), time.monotonic() + PATIENCE_SECONDS
    while (left := [process for process in started if alive(process)]) and time.monotonic() < until:
        time.sleep(0.5)
    print(f"{engine}: killed after {len(kept)} of {total} shards; {len(left)} processes are left", flush=True)
    began = time.monotonic()
    code = subprocess.run(asked, check=False).returncode
    again = receipts(out)
    undone = [name for name, written in kept.items() if again.get(name) != written]
    seconds = time.monotonic() - began
    print(f"{engine}: repeated in {seconds:.0f} s, exit code {code}, {len(undone)} shards done again", flush=True)
    return not (left or undone or code)


def main(folder: Path, kind: str, engines: list[str], rows: int | None, workers: int) -> int:
    """Run, disturb and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in lines(rows or JOBS[kind][0])))
    began = time.monotonic()
    subprocess.run(command(folder, kind, "local", workers, "once"), check=True)
    total, once = len(receipts(folder / "once")), digest(folder / "once")
    print(f"once: {total} shards, {once[0]} files in {time.monotonic() - began:.0f} s", flush=True)
    good = True
    for engine in engines:
        good &= disturbed(folder / engine, command(folder, kind, engine, workers, engine), engine, total)
        same = digest(folder / engine) == once
        print(f"{engine}: {once[0]} files {'identical' if same else 'DIFFERENT'}", flush=True)
        good &= same
    return int(not good)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=JOBS)
    parser.add_argument("engines", nargs="+", choices=ACTORS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--workers", type=int, default=2)
    raise SystemExit(main(**vars(parser.parse_args())))
