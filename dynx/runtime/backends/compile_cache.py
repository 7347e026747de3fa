"""What PyTorch's compiler finds out about itself, kept beside the code that it makes.

Before it compiles for a processor, and before it loads what it compiled, PyTorch asks whether the C++ compiler can use each of
the processor's instruction sets, by compiling and loading a trial for each: about a second of every process.
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

TRIALS = "instructions.json"
"""Of a folder with compiled code: the trials that succeeded, and with what."""

_good: set[str] = set()
"""Trials that have succeeded, as far as this process knows."""


@contextlib.contextmanager
def trials_kept(folder: Path | None) -> Iterator[None]:
    """No trial takes place that has succeeded before, in this process or according to a folder, which learns of new ones."""
    from torch._inductor.cpu_vec_isa import VecISA

    check = getattr(VecISA, "check_build", None)
    if folder is None or check is None:
        yield
        return
    known = _read(folder / TRIALS)
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
                (folder / TRIALS).write_text(json.dumps({"with": _setting(), "good": sorted(_good)}), encoding="utf-8")


def _read(file: Path) -> set[str]:
    """What a file knows of this compiler and PyTorch; nothing, where it is of others or torn."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name) for name in found["good"]} if found["with"] == _setting() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _setting() -> list[str | None]:
    found = compiler()
    return [torch.__version__, None if found is None else str(found.resolve())]
