"""Joules that the machine used, where it has a counter that may be read.

The counters are of whole packages and whole cards: what else ran meanwhile, and what they use doing nothing, is in the figure.
Interleaved runs share both alike, so differences between arms mean more than the figures themselves.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3


class Meter(Protocol):
    """A counter."""

    @property
    def source(self) -> str:
        """What counts."""
        ...

    def joules(self) -> float:
        """Used since some moment before."""
        ...


class Rapl:
    """The processor packages' own counters (Running Average Power Limit), which Linux shows as files of microjoules.

    They update about once a millisecond and start again at `max_energy_range_uj`, after minutes of full load.
    """

    def __init__(self, domains: Sequence[Path]) -> None:
        self._domains = [(d / "energy_uj", int((d / "max_energy_range_uj").read_text())) for d in domains]
        self._last = [int(file.read_text()) for file, _ in self._domains]
        self._total = 0
        self.source = f"RAPL, {len(domains)} processor package{'s' * (len(domains) > 1)}"

    def joules(self) -> float:
        """Since this was made."""
        for i, (file, most) in enumerate(self._domains):
            now = int(file.read_text())
            self._total += now - self._last[i] if now >= self._last[i] else now + most - self._last[i]
            self._last[i] = now
        return self._total * MICRO


class Nvml:
    """An NVIDIA card's counter, in millijoules since its driver was loaded (Volta and later)."""

    def __init__(self, library: Any, index: int) -> None:
        library.nvmlInit()
        self._library, self._card = library, library.nvmlDeviceGetHandleByIndex(index)
        self.source = f"NVML, card {index}"
        self.joules()

    def joules(self) -> float:
        """Since the driver was loaded."""
        return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._card)) * MILLI


def find(device: str, powercap: Path = POWERCAP) -> Decision[Meter | None]:
    """The counter of a torch device, or None with the reason."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        try:
            return Decision(Nvml(importlib.import_module("pynvml"), int(index or 0)), "the card counts")
        except ImportError:
            return Decision(None, "the package nvidia-ml-py isn't installed")
        except Exception as e:  # noqa: BLE001 - NVML raises classes of its own
            return Decision(None, f"the card doesn't tell: {e}")
    if kind != "cpu":
        return Decision(None, f"{kind} has no counter that dynx knows")
    domains = [d for d in sorted(powercap.glob("intel-rapl:*")) if d.name.count(":") == 1]
    if not domains:
        return Decision(None, f"no intel-rapl in {powercap}: the processor or the virtual machine has no counter")
    try:
        return Decision(Rapl(domains), "the processor counts")
    except PermissionError as e:
        return Decision(None, f"{e.filename} may not be read (since Linux 5.10 only root may)")
    except (OSError, ValueError) as e:
        return Decision(None, f"the counters can't be read: {e}")
