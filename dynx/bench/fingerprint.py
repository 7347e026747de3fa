"""What two measurements must share to be compared, and in what they differ.

The header of a result is the fingerprint, but for what only describes it. dynx's own version is not part of it: what dynx does
now against what it did then is the very thing that a stored result is kept for.
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
"""Header facts that are names, reasons or results; the weights and the inputs are compared by their hashes."""

GOVERNORS = Path("/sys/devices/system/cpu")


def governor(folder: Path = GOVERNORS) -> str | None:
    """The frequency governor of the processor's cores, all of them where they differ; None where it can't be read."""
    found = set()
    for file in folder.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(file.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
    return ", ".join(sorted(found)) or None


def facts(header: Mapping[str, JSON]) -> dict[str, JSON]:
    """What is compared: the header's facts, each library's version for itself, and of the harness what it did to the arms."""
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
    """In what two headers differ, in words: "threads 2, not 1" with now's value first."""
    ours, theirs = facts(now), facts(then)
    names = list(dict.fromkeys((*ours, *theirs)))
    return tuple(
        f"{name.replace('_', ' ')} {_word(ours.get(name))}, not {_word(theirs.get(name))}"
        for name in names
        if ours.get(name) != theirs.get(name)
    )


def _word(value: JSON) -> str:
    return "unknown" if value is None else str(value)
