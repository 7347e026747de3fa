"""Notes in dynx's cache that a model on OpenVINO computed what it should, so that later starts need not look again.

A note lies in a folder named by the model's contents and by OpenVINO's release. It names the kind of processor that computed, as
another one takes other kernels; a cache may be shared by several machines.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CHECKED_FILE = "checked"


def release() -> str:
    """Return the release of OpenVINO that is installed, three numbers."""
    return ".".join(re.findall(r"\d+", metadata.version("openvino"))[:3])


def is_marked(mark: Path) -> bool:
    """Whether the file says that this kind of processor computed what it should."""
    try:
        return mark.read_text(encoding="utf-8") == _processor()
    except (OSError, UnicodeDecodeError):
        return False


def put_mark(mark: Path) -> None:
    """Note that this kind of processor computed what it should, where the cache can be written."""
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(_processor(), encoding="utf-8")


@cache
def _processor() -> str:
    """Describe the processor by what decides on kernels: its model, and the instructions that it has."""
    from dynx.runtime.hardware import Host, read_cpu

    found = read_cpu(Host.here())
    return f"{found.model or 'unknown'} {' '.join(found.isa or ())}"
