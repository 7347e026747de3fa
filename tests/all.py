"""Everything CI asks for, in one run: lint, format, types, generated files, tests (imports among them)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["dynx.cli.reference", "--check"],
    ["pytest", "-q", "-n", "auto", "--dist", "worksteal", "-m", "not signals"],
    ["pytest", "-q", "-m", "signals"],
)


def main() -> int:
    """Run the steps in order; the first that fails ends the run with its exit code."""
    for step in STEPS:
        sys.stdout.write(f"+ {' '.join(step)}\n")
        sys.stdout.flush()
        code = subprocess.run([sys.executable, "-m", *step], cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
