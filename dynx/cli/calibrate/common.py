"""Shared parts of the three kinds of calibration: budget, refused options, storing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.cli.flags import in_flags
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.runtime.profile import Profile


SCHEMA = "dynx.calibrate/1"


BUDGET_SECONDS = 60.0
"""Default budget in seconds of classifiers."""


def refuse(options: Options, names: Sequence[str], what: str) -> None:
    """Raise UsageError for a given option that is for another task; `what` completes "MODEL ..."."""
    for name in names:
        if getattr(options, name):
            shown = in_flags(f"`{name}`")
            raise UsageError(f"{shown} does not apply: {options.model} {what}")


def store(profile: Profile, terminal: Terminal, arrays: Mapping[str, Any] | None = None) -> None:
    """Store the profile; where that fails, warn and go on."""
    from dynx.runtime.profile_store import ProfileStore, StoreError, profiles_folder

    try:
        path = ProfileStore(profiles_folder(), terminal.warn).save(profile, arrays)
        terminal.notice(f"profile {profile.key.id} stored in {path}")
    except StoreError as e:
        terminal.warn(f"the profile can't be stored ({e}); set DYNX_CACHE_DIR to a writable folder")
