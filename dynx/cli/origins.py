"""Origins of the running command's values."""

from __future__ import annotations

ORIGINS: dict[str, str] = {}
"""Origin of each parameter that isn't at its default: a variable's name, a file and its key, or the command line."""


def origin(parameter: str) -> str:
    """Return the origin of an option's value; `decided` where nobody set it."""
    return ORIGINS.get(parameter, "decided")
