"""The GPUs that torch can use, found without loading torch where there can't be any.

A broken driver or a broken torch becomes a note for the user rather than an error, since the processor still works.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

# Best first: the order in which "auto" takes them.
KINDS = ("cuda", "xpu", "mps")


@dataclass(frozen=True)
class Accelerator:
    """One device that torch can use; memory in bytes, capability as (major, minor) where CUDA gives one."""

    kind: str
    index: int
    name: str
    memory: int | None = None
    capability: tuple[int, int] | None = None


def find_accelerators(torch_version: str | None) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """List the accelerators here, and notes in words about what kept torch from using one."""
    # Loading torch takes seconds, and a "+cpu" build has nothing to find.
    if torch_version is None or torch_version.endswith("+cpu"):
        return (), ()
    # torch reports a driver that is too old by warning, once, that CUDA isn't available.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import torch

            accelerators = accelerators_of(torch)
        except (ImportError, OSError, RuntimeError, AssertionError, AttributeError) as error:
            return (), (f"accelerators can't be probed: {_first_line(error)}",)
    return accelerators, tuple(dict.fromkeys(_first_line(one.message) for one in caught if one.category is UserWarning))


def accelerators_of(torch: Any) -> tuple[Accelerator, ...]:
    """List every CUDA, XPU and MPS device that this torch module can use, best kind first.

    ROCm answers as CUDA. The module is an argument so that a test can pass a stand-in.
    """
    found = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is None or not module.is_available():
            continue
        for index in range(module.device_count()):
            about = module.get_device_properties(index)
            capability = (int(about.major), int(about.minor)) if kind == "cuda" else None
            found.append(Accelerator(kind, index, str(about.name), int(about.total_memory), capability))
    if torch.backends.mps.is_available():
        found.append(Accelerator("mps", 0, "Apple GPU", int(torch.mps.recommended_max_memory())))
    return tuple(found)


def _first_line(message: object) -> str:
    return (str(message).strip() or type(message).__name__).splitlines()[0]
