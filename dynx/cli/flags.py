"""Replaces parameters in a library's messages by the options of the command line."""

from __future__ import annotations

from functools import cache

from dynx.errors import PARAMETER


@cache
def _flags() -> dict[str, str]:
    """Return the long option of each parameter, over all commands."""
    from dynx.cli.options.commands import COMMANDS

    return {f.name: f"--{d.key}" for each in COMMANDS.values() for f, d in each.declared() if d.key is not None}


def in_flags(text: str) -> str:
    """Replace parameter names between backquotes by their options: `max_length` becomes --max-length."""
    if "`" not in text:
        return text
    return PARAMETER.sub(lambda found: _flags().get(found[1], found[0]), text)
