"""Caches the compiler's tests of instruction sets beside the compiled code.

Before it compiles for a CPU, and before it loads compiled code, PyTorch tests whether the C++ compiler can use each of the CPU's
instruction sets, by compiling and loading a trial for each: about a second of every process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

import torch

from dynx.runtime.backends.availability import compiler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRIALS_FILE = "instructions.json"
"""File in a folder of compiled code that lists the trials that succeeded, with the versions of torch and the compiler."""

_good: set[str] = set()
"""Trials known to succeed in this process."""


@contextlib.contextmanager
def reuse_trials(folder: Path | None) -> Iterator[None]:
    """Skip trials that succeeded before, in this process or according to `folder`, and write new ones there."""
    from torch._inductor.cpu_vec_isa import VecISA

    check = getattr(VecISA, "check_build", None)
    if folder is None or check is None:
        yield
        return
    known = _read(folder / TRIALS_FILE)
    _good.update(known)

    def check_build(self: VecISA, code: str) -> bool:
        name = hashlib.sha256(f"{self.build_arch_flags()}\n{code}".encode()).hexdigest()[:24]
        if name not in _good and check(self, code):
            _good.add(name)
        return name in _good

    VecISA.check_build = check_build  # type: ignore[method-assign]
    try:
        yield
    finally:
        VecISA.check_build = check  # type: ignore[method-assign]
        if _good - known:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / TRIALS_FILE).write_text(
                    json.dumps({"with": _setting(), "good": sorted(_good)}), encoding="utf-8"
                )


def _read(file: Path) -> set[str]:
    """Read the trials that succeeded with this compiler and torch; an empty set from a file of others or a damaged one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name) for name in found["good"]} if found["with"] == _setting() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _setting() -> list[str | None]:
    found = compiler()
    return [torch.__version__, None if found is None else str(found.resolve())]
