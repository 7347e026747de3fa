"""Accelerators are found through stand-ins for torch; what is broken becomes a note."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING

from dynx.runtime.accelerators import Accelerator, accelerators_of, find_accelerators

if TYPE_CHECKING:
    import pytest

GIB = 2**30


def fake_torch(**kinds: int) -> SimpleNamespace:
    def module(count: int) -> SimpleNamespace:
        about = SimpleNamespace(name="GPU", total_memory=GIB, major=8, minor=6)
        return SimpleNamespace(
            is_available=lambda: count > 0, device_count=lambda: count, get_device_properties=lambda index: about
        )

    mps = SimpleNamespace(is_available=lambda: kinds.get("mps", 0) > 0)
    return SimpleNamespace(
        cuda=module(kinds.get("cuda", 0)),
        xpu=module(kinds.get("xpu", 0)),
        mps=SimpleNamespace(recommended_max_memory=lambda: 2 * GIB),
        backends=SimpleNamespace(mps=mps),
    )


def test_accelerators_of_each_kind() -> None:
    """CUDA, XPU and MPS devices are listed with memory, and CUDA's with capability."""
    assert accelerators_of(fake_torch(cuda=2, xpu=1, mps=1)) == (
        Accelerator("cuda", 0, "GPU", GIB, (8, 6)),
        Accelerator("cuda", 1, "GPU", GIB, (8, 6)),
        Accelerator("xpu", 0, "GPU", GIB),
        Accelerator("mps", 0, "Apple GPU", 2 * GIB),
    )
    assert accelerators_of(fake_torch()) == ()


def test_old_driver_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of torch about a driver becomes a note of one line, and isn't shown twice."""

    def is_available() -> bool:
        warnings.warn("CUDA initialization: driver too old.\nMore", stacklevel=1)
        return False

    torch = fake_torch()
    torch.cuda.is_available = is_available
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert find_accelerators("2.13.0") == ((), ("CUDA initialization: driver too old.",))


def test_broken_torch_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that can't be loaded leaves the processor and a note."""
    monkeypatch.setitem(sys.modules, "torch", None)
    accelerators, notes = find_accelerators("2.13.0")
    assert accelerators == ()
    assert len(notes) == 1
    assert notes[0].startswith("accelerators can't be probed: ")


def test_cpu_build_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for processors only is never loaded to look for accelerators."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert find_accelerators("2.13.0+cpu") == ((), ())
    assert find_accelerators(None) == ((), ())
