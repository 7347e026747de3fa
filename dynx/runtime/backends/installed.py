"""Which runtimes beside eager PyTorch can be had here, by metadata and files: nothing is imported, so asking is free."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path

from dynx.runtime.decision import Decision

OLDEST = (2026, 4)
"""The first release of OpenVINO whose paged attention and preparation of 16-bit models are known to be as used here."""


def available() -> Decision[bool]:
    """Whether OpenVINO is installed in a usable version."""
    try:
        version = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return Decision(False, "OpenVINO isn't installed (pip install 'dynx[openvino]')")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return Decision(False, f"OpenVINO {version} is older than {OLDEST[0]}.{OLDEST[1]}")
    return Decision(True, f"OpenVINO {version}")


def can_compile(device: str) -> Decision[bool]:
    """Whether PyTorch can compile for a device here: the processor, with a C++ compiler and Python's headers."""
    if device.partition(":")[0] != "cpu":
        return Decision(False, f"blocks are compiled for the processor, and this runs on {device}")
    wanted = os.environ.get("CXX")
    found = [path for name in ([wanted] if wanted else ["g++", "clang++", "c++"]) if (path := shutil.which(name))]
    if not found:
        return Decision(False, f"there is no C++ compiler here{f' called {wanted}' if wanted else ''}")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return Decision(False, "Python's headers, which compiling needs, are missing (Debian: python3-dev)")
    return Decision(True, f"compiled by {Path(found[0]).name}")
