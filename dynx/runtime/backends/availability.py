"""Finds the backends that can be used here from package metadata and files, without importing any."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from dynx.runtime.decision import Decision

MIN_OPENVINO_VERSION = (2026, 4)
"""The first release of OpenVINO whose paged attention and preparation of 16-bit models are known to be as used here."""

GRAPH_DEVICES = ("cuda", "xpu")
"""Device types on which graphs can be captured; ROCm devices are called cuda too."""


def available() -> Decision[bool]:
    """Whether OpenVINO is installed in a usable version."""
    try:
        version = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return Decision(False, "OpenVINO isn't installed (pip install 'dynx[openvino]')")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MIN_OPENVINO_VERSION:
        return Decision(False, f"OpenVINO {version} is older than {MIN_OPENVINO_VERSION[0]}.{MIN_OPENVINO_VERSION[1]}")
    return Decision(True, f"OpenVINO {version}")


def can_use_ipex(device: str) -> Decision[bool]:
    """Whether Intel's extension can be used for a device here: the processor, under the torch that the extension is made for."""
    if device.partition(":")[0] != "cpu":
        return Decision(False, f"IPEX is used on processors only, not on {device}")
    try:
        version = metadata.version("intel-extension-for-pytorch")
    except metadata.PackageNotFoundError:
        return Decision(False, "IPEX isn't installed (pip install 'dynx[ipex]')")
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    why = ipex_torch_conflict(version, torch)
    return Decision(True, f"IPEX {version}") if why is None else Decision(False, f"IPEX {version} is installed: {why}")


def ipex_torch_conflict(ipex: str, torch: str | None) -> str | None:
    """Return why a version of IPEX doesn't match a version of torch; None where it does.

    Each release is for the torch of its own major and minor version, and breaks while it is imported under any other.
    """
    wanted, found = (".".join(re.findall(r"\d+", version or "")[:2]) for version in (ipex, torch))
    return None if wanted == found else f"it needs torch {wanted}, and {torch or 'none'} is installed"


def can_capture(device: str) -> Decision[bool]:
    """Whether CUDA graphs can be captured and replayed on a device: a GPU, whether PyTorch can use it or not."""
    if device.partition(":")[0] not in GRAPH_DEVICES:
        return Decision(
            False, f"CUDA graphs are captured on {' and '.join(GRAPH_DEVICES)} devices, and this runs on {device}"
        )
    return Decision(True, f"captured on {device}")


def can_compile(device: str) -> Decision[bool]:
    """Whether PyTorch can compile for a device here: the processor, with a C++ compiler and Python's headers."""
    if device.partition(":")[0] != "cpu":
        return Decision(False, f"blocks are compiled for the processor, and this runs on {device}")
    if not can_save_compiled():
        return Decision(False, f"PyTorch {metadata.version('torch')} is too old to keep what it compiles")
    found = compiler()
    if found is None:
        wanted = os.environ.get("CXX")
        return Decision(False, f"there is no C++ compiler here{f' called {wanted}' if wanted else ''}")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return Decision(False, "Python's headers, which compiling needs, are missing (Debian: python3-dev)")
    return Decision(True, f"compiled by {found.name}")


def compiler() -> Path | None:
    """Return the C++ compiler that PyTorch would call, or None."""
    wanted = os.environ.get("CXX")
    found = (shutil.which(name) for name in ([wanted] if wanted else ["g++", "clang++", "c++"]))
    return next((Path(path) for path in found if path), None)


@cache
def can_save_compiled() -> bool:
    """Whether this torch can write compiled code to a file; releases that can't don't trace blocks well either."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    try:
        source = Path(torch.origin).with_name("_inductor").joinpath("standalone_compile.py").read_text("utf-8")
    except OSError:
        return False
    return "class AOTCompiledArtifact" in source
