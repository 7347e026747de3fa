"""Code that PyTorch compiled, kept in files.

To load such a file PyTorch wants to know the processor's instruction sets that the compiler can use, and finds out by compiling
and running a trial for each: 0.8 s of every process. How the trials ended is kept beside the code.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import torch

from dynx.runtime.backends.installed import compiler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRIALS = "instructions.json"
"""Of a folder with compiled code: where, and with what, all trials succeeded."""


def keep(code: Any, path: Path) -> None:
    """Write what `standalone_compile` made. Raises OSError."""
    code.save(path=str(path))
    if _all_work():
        with contextlib.suppress(OSError):
            path.with_name(TRIALS).write_text(json.dumps(_setting()), encoding="utf-8")


def load(path: Path) -> Callable[..., Any]:
    """The code in a file. Raises whatever PyTorch does where it is missing, torn, or another version's."""
    from torch._inductor import config
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    with config.patch({"cpp.vec_isa_ok": True}) if _known(path.with_name(TRIALS)) else contextlib.nullcontext():
        code: Callable[..., Any] = AOTCompiledArtifact.load(path=str(path))
    return code


def _all_work() -> bool:
    """Whether the compiler can use every instruction set that PyTorch would on this processor."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list, x86_isa_checker

    usable = {name for instructions in valid_vec_isa_list() for name in str(instructions).split()}
    return bool(usable) and usable.issuperset(x86_isa_checker())


def _known(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")) == _setting())
    except (OSError, ValueError):
        return False


def _setting() -> list[str | None]:
    """What the trials depend on."""
    found = compiler()
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), None if found is None else str(found.resolve())]
