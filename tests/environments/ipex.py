"""An environment with IPEX and the torch that it needs, made in a folder, and the tests that only run there.

    python tests/environments/ipex.py FOLDER [PYTEST-OPTION…]

`dynx[ipex]` pins torch to the release that IPEX's last one is for, so this can't share an environment with anything newer.
PyPI's torch of that release comes with CUDA: some 3 GB to fetch and 7 GB on disk. A FOLDER that was made before is brought up
to date. What runs after the extension's own tests shows that the rest of dynx works on the oldest torch it allows, in a process
of its own: once imported, the extension stands in for some of PyTorch's kernels and raises other errors than they do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

OWN = ("backend_ipex",)
REST = (
    "backend",
    "backend_choice",
    "engine",
    "sampling",
    "classifier_engine",
    "diffusion_engine",
    "loading",
    "device",
    "cli_generate",
)
"""Files of tests, by the words after `test_`: of the extension, and of what it shares its torch with."""


def main(folder: Path, options: list[str]) -> int:
    """Make the environment and run the tests in it; pytest's exit code, the first that isn't 0."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    _run(python, "-m", "pip", "install", "--upgrade", f"{ROOT}[ipex,test]")
    _run(python, "-c", "from dynx.runtime.backends.ipex import extension; print('IPEX', extension().__version__)")
    environment = {**os.environ, "DYNX_CACHE_DIR": str(folder / "cache")}
    codes = []
    for names in (OWN, REST):
        files = [f"tests/test_{name}.py" for name in names]
        codes.append(subprocess.call([python, "-m", "pytest", "-q", *files, *options], cwd=ROOT, env=environment))
    return next((code for code in codes if code), 0)


def _run(*command: str | Path) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
