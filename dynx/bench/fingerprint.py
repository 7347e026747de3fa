"""What two measurements must share to be compared, and in what they differ.

The header of a result is the fingerprint, without the facts that only describe it. dynx's own version is not part of it: a stored
result is kept to compare one version of dynx with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynx.bench.measurements import JSON

DESCRIPTIVE = frozenset(
    {"model", "drafter", "profile", "draft", "exits", "steps", "guarantee", "truncated", "energy", "looks", "commands"}
)
"""Header facts that are names, reasons or results; weights and inputs are compared by their hashes."""

CPU_FOLDER = Path("/sys/devices/system/cpu")
"""Folder in which Linux describes the processor's cores."""


def governor(folder: Path = CPU_FOLDER) -> str | None:
    """Return the frequency governor of the processor's cores, all of them where they differ; None where it can't be read."""
    found = set()
    for file in folder.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(file.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
    return ", ".join(sorted(found)) or None


def facts(header: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the facts of a header to compare, each library's version as a fact of its own."""
    found: dict[str, JSON] = {}
    for name, value in header.items():
        if name == "versions" and isinstance(value, Mapping):
            found |= {library: version for library, version in value.items() if library != "dynx"}
        elif name == "harness" and isinstance(value, Mapping):
            # an older result may come of rounds in processes of their own
            found["fresh processes"] = value.get("fresh_processes", False)
        elif name not in DESCRIPTIVE:
            found[name] = value
    return found


def differences(now: Mapping[str, JSON], then: Mapping[str, JSON]) -> tuple[str, ...]:
    """Say in what two headers differ: "threads 2, not 1" with the present value first."""
    ours, theirs = facts(now), facts(then)
    names = list(dict.fromkeys((*ours, *theirs)))
    return tuple(
        f"{name.replace('_', ' ')} {_word(ours.get(name))}, not {_word(theirs.get(name))}"
        for name in names
        if ours.get(name) != theirs.get(name)
    )


def _word(value: JSON) -> str:
    return "unknown" if value is None else str(value)
