"""What the three kinds of calibration share: budget, refusals, storing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.runtime.profile import Profile


SCHEMA = "dynx.calibrate/1"


BUDGET = 60.0
"""Seconds, unless asked otherwise; pipelines that draw have their own."""


def refuse(options: Options, names: Sequence[str], what: str) -> None:
    """Raise UsageError where an option was given that is for another task: `what` is the model's."""
    for name in names:
        if getattr(options, name):
            shown = "--" + name.replace("_", "-")
            raise UsageError(f"{shown} does not apply: {options.model} {what}")


def store(profile: Profile, terminal: Terminal, arrays: Mapping[str, Any] | None = None) -> None:
    """Keep what was learned; where that can't be, say so and go on."""
    from dynx.runtime.profile_store import ProfileStore, StoreError, profiles_folder

    try:
        path = ProfileStore(profiles_folder(), terminal.warn).save(profile, arrays)
        terminal.notice(f"profile {profile.key.id} stored in {path}")
    except StoreError as e:
        terminal.warn(f"the profile can't be stored ({e}); set DYNX_CACHE_DIR to a writable folder")
