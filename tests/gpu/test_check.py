"""The script for accelerators works, as far as a processor can tell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "check.sh"


def test_the_script_runs_on_a_processor(tmp_path: Path) -> None:
    """Every check that needs no accelerator passes, and the results are written."""
    out = tmp_path / "checks.json"
    command = [str(SCRIPT), "--device", "cpu", "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(out.read_text())["checks"]
    assert len(checks) > 15
    assert all(check["passed"] for check in checks)


def test_a_missing_device_is_named() -> None:
    """Exit code 2 where there is no such device."""
    done = subprocess.run([str(SCRIPT), "--device", "xpu"], capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stdout.strip()) == (2, "no xpu device is there")
