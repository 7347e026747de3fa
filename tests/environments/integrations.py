"""An environment for each integration, made in a folder, and the tests that only run there.

    python tests/environments/integrations.py FOLDER [NAME…]

NAMES: llm, lm-eval, serve, langchain, llama-index, ray, sentence-transformers; all of them by default. Each gets an environment
of its own under FOLDER, because they ask for different releases of the same packages; packages of the interpreter that runs this
(torch, transformers) are seen by all. One that can't be installed is reported and passed over; the exit code is 1 if any tests
fail. CI has what `llm` needs; lm-eval and LlamaIndex bring several hundred megabytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "llm": ((f"{ROOT}[llm]",), "test_llm"),
    "lm-eval": ((f"{ROOT}[lm-eval]",), "test_lm_eval"),
    "serve": ((f"{ROOT}[serve]", "openai"), "test_serve"),
    "langchain": ((str(ROOT), "langchain-huggingface"), "test_langchain"),
    "ray": ((f"{ROOT}[ray]", "pandas"), "test_ray"),
    "llama-index": ((str(ROOT), "llama-index-llms-huggingface"), "test_llama_index"),
    "sentence-transformers": ((str(ROOT), "sentence-transformers"), "test_sentence_transformers"),
}
"""What to install, and the test file in tests/integrations without its suffix."""


def main(folder: Path, names: list[str]) -> int:
    """Make the environments and run their tests."""
    codes = []
    for name in names or ENVIRONMENTS:
        packages, tests = ENVIRONMENTS[name]
        python = folder / name / "bin" / "python"
        if not python.exists():
            venv.create(folder / name, with_pip=True, system_site_packages=True)
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            *packages,
            "pytest",
            "pytest-timeout",
            "hypothesis",
            "jsonschema",
        ]
        if subprocess.call(install):
            print(f"{name}: can't be installed here; its tests are left out")  # noqa: T201
            continue
        environment = {**os.environ, "DYNX_CACHE_DIR": str(folder / "cache")}
        command = [python, "-m", "pytest", "-q", f"tests/integrations/{tests}.py"]
        codes.append(subprocess.call(command, cwd=ROOT, env=environment))
    return int(any(codes))


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= ENVIRONMENTS.keys():
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
