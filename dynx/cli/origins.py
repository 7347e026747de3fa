"""Where each value of the running command came from."""

from __future__ import annotations

ORIGINS: dict[str, str] = {}
"""Parameter to origin, for those that aren't at their default: a variable's name, a file and its key, or the command line."""


def origin(parameter: str) -> str:
    """Return where the value of an option is from; `decided` where nobody set it."""
    return ORIGINS.get(parameter, "decided")
