"""What is wrong with one input, where there may be many."""

from __future__ import annotations

from dynx.errors import UsageError


class InputError(UsageError):
    """One input can't be used: a command that takes many says so in its place and answers the others."""
