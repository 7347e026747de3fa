"""Everything dynx raises on purpose, as one small tree.

    DynxError                     1   anything below, and failures that have no better name
    ├── UsageError                2   the command line or the input is wrong
    │   └── InvalidInput          2   a value or an input that a library was given is wrong; a ValueError too
    ├── ModelError                1   a model can't be found, read or trusted
    │   └── UnsupportedModelError 1   it loads, and dynx has no way to run it
    ├── GateFailed                3   `dynx bench` or `calibrate --check`: the measured figure misses the bar
    ├── Undecided               125   `dynx bench --bisect` can't tell: `git bisect run` skips such a commit
    ├── NoProfileError            4   `--require-profile` and there is none that fits
    └── DeviceError               5   the device or backend asked for isn't there, or ran out of memory

Libraries raise these; only `dynx.cli.main` prints them (one line, then the hint) and exits. A message names a parameter between
backquotes, and the command line shows its option there: `max_length` becomes --max-length.
"""

from __future__ import annotations

import re

PARAMETER = re.compile(r"`([a-z][a-z_]*)`")
"""How messages and hints name a parameter."""


class DynxError(Exception):
    """A failure to tell the user in one line; `hint` says what to do next."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(DynxError):
    """The command line or the input is wrong."""

    exit_code = 2


class InvalidInput(UsageError, ValueError):  # noqa: N818 - what Python users look for is ValueError
    """A value or an input that a library was given is wrong."""

    @property
    def parameter(self) -> str | None:
        """The parameter that the message is about: the first that it names between backquotes."""
        found = PARAMETER.search(str(self))
        return found[1] if found else None


class ModelError(DynxError):
    """A model can't be found, read or trusted."""


class UnsupportedModelError(ModelError):
    """The model loads, and dynx has no way to run it."""


class GateFailed(DynxError):  # noqa: N818 - a verdict, not a mistake
    """A measured figure misses the bar that the caller set."""

    exit_code = 3


class Undecided(DynxError):  # noqa: N818 - a verdict, not a mistake
    """Nothing was judged, or too little is known to judge by."""

    exit_code = 125


class NoProfileError(DynxError):
    """A profile was required and none fits this model, device and precision."""

    exit_code = 4


class DeviceError(DynxError):
    """The device or backend asked for isn't available, or ran out of memory."""

    exit_code = 5
