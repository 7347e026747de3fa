"""One peer of `real.py` in a process of its own.

    python real_server.py PEER SETUP [ARM…]

SETUP is a `Setup` as JSON. It writes {"arms", "load"}; then reads {"arm", "ids"} lines and writes an answer for each, or
{"error"}; for {"memory": true} it writes the process's peak memory.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from real_arms import PEERS, Setup, timed


def send(document: dict[str, Any]) -> None:
    """Write one line to the driver."""
    sys.stdout.write(f"{json.dumps(document)}\n")
    sys.stdout.flush()


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def said(error: Exception) -> str:
    """Return an error on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main() -> None:
    """Load, then serve until stdin ends."""
    peer, given, *names = sys.argv[1:]
    began = time.perf_counter()
    setup = Setup(**json.loads(given))
    try:
        arms = {name: timed(run, setup.end) for name, run in PEERS[peer](setup, names).items()}
    except Exception as e:  # noqa: BLE001 - a peer that can't load this model is a finding too
        send({"arms": [], "error": f"{type(e).__name__}: {said(e)}"})
        return
    send({"arms": list(arms), "load": time.perf_counter() - began})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("memory"):
            send({"memory": peak_memory()})
            continue
        try:
            answer = arms[asked["arm"]](asked["ids"])
        except Exception as e:  # noqa: BLE001 - as above
            send({"error": said(e)})
            continue
        send(vars(answer))


if __name__ == "__main__":
    main()
