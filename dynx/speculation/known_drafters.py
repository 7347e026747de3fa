"""The draft model that calibration found worth having for a model, so that `draft` auto takes it again by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.errors import DynxError
from dynx.runtime.hashing import model_hash
from dynx.runtime.profile_store import ProfileStore, profiles_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile, ProfileKey


def place_of(source: Source) -> str:
    """Return the name by which a model is found again, from any folder."""
    if source.kind in ("hub", "shipped"):
        return source.name
    return str((source.file or source.folder).resolve())


def known_drafter(key: ProfileKey, find: Callable[[str], Source]) -> Source | None:
    """Return the draft model of the fastest profile under `key` with any draft model, if that is faster than without one.

    One that isn't where it was, or isn't what it was, is passed over.
    """
    store = ProfileStore(profiles_folder(), lambda _: None)
    try:
        profiles = [p for p in store.list() if replace(p.key, companion=None) == replace(key, companion=None)]
    except DynxError:
        return None
    alone = max((_rate(p) for p in profiles if p.key.companion is None), default=0.0)
    for profile in sorted(profiles, key=_rate, reverse=True):
        place = profile.evidence.get("drafter")
        if profile.key.companion is None or _rate(profile) <= alone or "draft" not in _origins(profile):
            continue
        if not isinstance(place, str):
            continue
        try:
            source = find(place)
            if model_hash(source.folder, code=source.trusted) == profile.key.companion:
                return source
        except DynxError:
            continue
    return None


def _rate(profile: Profile) -> float:
    found = profile.fitted.get("tokens_per_second")
    return float(found) if isinstance(found, (int, float)) else 0.0


def _origins(profile: Profile) -> list[Any]:
    found = profile.fitted.get("origins")
    return found if isinstance(found, list) else []
