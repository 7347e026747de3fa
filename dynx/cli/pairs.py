"""Reads the value of --pair: the names under which the two texts of a pair stand."""

from __future__ import annotations

from dynx.errors import UsageError


def names_of_pair(pair: str) -> tuple[str, str]:
    """Return the names of the texts of a pair. Raises UsageError unless there are two."""
    names = [name.strip() for name in pair.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UsageError(f"--pair {pair}: two different names with a comma between", hint="--pair premise,hypothesis")
    return names[0], names[1]
