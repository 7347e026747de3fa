"""Which profile a run goes by: the one asked for, the one stored for this model here, or the one that came with the model.

A bundled profile was measured elsewhere: its promise is about the same weights in the same precision, its costs are a guess.
No profile is used for weights that may differ from those it was measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, NoProfileError
from dynx.runtime.decision import Decision
from dynx.runtime.profile import FORMS, Profile, ProfileError, ProfileKey, read_arrays, unpack
from dynx.runtime.profile_store import ProfileStore, device_name, profiles_folder
from dynx.runtime.weights import why_others

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dynx.runtime.profile import Form

GENERATE = "generate"
"""The task whose prompts have several forms."""


@dataclass(frozen=True)
class SelectedProfile:
    """A profile with its arrays, or none."""

    profile: Profile | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    bundled: bool = False
    """Whether it came with the model."""
    wanted: bool = True
    aside: str = ""
    """What there is to know of it besides, to follow the date."""
    refused: str | None = None
    """Why one that was found isn't used."""

    @property
    def decision(self) -> Decision[str]:
        """In words."""
        if self.profile is not None:
            where = "came with the model" if self.bundled else f"measured {self.profile.created}{self.aside}"
            return Decision(self.profile.key.id, where)
        if self.refused is not None:
            return Decision("none", self.refused)
        return Decision("none", "none stored for this model, device and precision" if self.wanted else "not wanted")


def select_profile(
    key: ProfileKey,
    bundled: Path,
    *,
    wanted: str | None,
    plain: bool,
    required: bool,
    weights: Callable[[], str],
    warn: Callable[[str], None] = lambda _: None,
    measured_here: bool = False,
    wants_bundled: bool = True,
) -> SelectedProfile:
    """Select the profile for `key`; `wanted` is an id, "none", or None for any that fits; `bundled` the file beside the model.

    A profile measured on another form of prompts stands in where none is required. `weights` gives the hash of the model's
    weights, and is asked only where there is a profile. A bundled profile meets the requirement unless it must have been
    `measured_here`. Raises NoProfileError where one is `required` and missing; InvalidInput where what is asked for contradicts
    itself or was measured under other conditions. What can't be read or was measured on other weights is warned of and passed
    over.
    """
    if plain or wanted == "none":
        if required:
            unwanted = "`plain`" if plain else "`profile` none"
            raise InvalidInput(f"`require_profile` and {unwanted} contradict each other")
        return SelectedProfile(wanted=False)
    store = ProfileStore(profiles_folder(), warn)
    profile = store.get(wanted) if wanted is not None else store.find(key)
    if profile is None and not required:
        profile = _other_form(store, key)
    refused: str | None = None
    if profile is not None:
        if other := _conditions(profile, key):
            raise InvalidInput(
                f"profile {profile.key.id} of {profile.model_name} doesn't fit: it was measured {other}",
                hint="without `profile` dynx takes one that fits",
            )
        refused = why_others(profile.weights, weights)
        if refused is not None and wanted is not None:
            raise InvalidInput(f"profile {profile.key.id} can't be used: {refused}")
        try:
            if refused is None:
                aside = "" if profile.key.form == key.form else f" on {FORMS[profile.key.form]}"
                return SelectedProfile(profile, store.arrays(profile), aside=aside)
            warn(f"profile {profile.key.id} isn't used: {refused}")
        except ProfileError as e:
            warn(f"profile {profile.key.id} ignored: {e}")
    found = _beside(key, bundled, weights, warn) if wants_bundled else SelectedProfile()
    if found.profile is None or (required and measured_here):
        refused = found.refused or refused
        if required:
            why = f": {refused}" if refused else ""
            raise NoProfileError(f"no profile fits the model here{why}")
        return SelectedProfile(refused=refused)
    return found


def measured_elsewhere(
    key: ProfileKey, bundled: Path, weights: Callable[[], str], warn: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Profile, Mapping[str, NDArray[Any]]]]:
    """Yield the profiles of exactly these weights in this precision that another device measured, the bundled one first."""
    found = _beside(key, bundled, weights, warn)
    if found.profile is not None:
        yield found.profile, found.arrays
    store = ProfileStore(profiles_folder(), warn)
    for profile, differences in store.near(key):
        if differences != ("device",) or store.stale(profile) or why_others(profile.weights, weights):
            continue
        try:
            yield profile, store.arrays(profile)
        except ProfileError as e:
            warn(f"profile {profile.key.id} ignored: {e}")


def _other_form(store: ProfileStore, key: ProfileKey) -> Profile | None:
    """Return the profile that differs only in what the prompts were: its costs hold, and its acceptance is a beginning."""
    others = [form for form in FORMS if form != key.form]
    found = [store.find(replace(key, form=form)) for form in others] if key.task == GENERATE else []
    return next((profile for profile in found if profile is not None), None)


def _beside(key: ProfileKey, path: Path, weights: Callable[[], str], warn: Callable[[str], None]) -> SelectedProfile:
    """Return the profile stored beside the model, if it is for exactly these weights in this precision."""
    if not path.is_file():
        return SelectedProfile()
    try:
        profile, blob = unpack(path.read_bytes())
        arrays = read_arrays(blob) if blob is not None else {}
    except (ProfileError, OSError) as e:
        warn(f"{path} ignored: {e}")
        return SelectedProfile()
    other = _elsewhere(profile, key)
    if other:
        if {"task", "model"}.isdisjoint(profile.key.differences(key)):
            warn(f"the profile that came with the model isn't used: it was measured {other}")
        return SelectedProfile()
    if others := why_others(profile.weights, weights):
        warn(f"the profile that came with the model isn't used: {others}")
        return SelectedProfile(refused=others)
    return SelectedProfile(profile, arrays, bundled=True)


def _elsewhere(profile: Profile, key: ProfileKey) -> str:
    """How else than by the device two keys differ, in words; empty where they don't."""
    return profile.key.told_apart(replace(key, device=profile.key.device, form=_form(profile, key)))


def _form(profile: Profile, key: ProfileKey) -> Form:
    """Return the form that a profile is compared by: what a classifier's inputs are always matters."""
    return profile.key.form if key.task == GENERATE else key.form


def _conditions(profile: Profile, key: ProfileKey) -> str:
    """How the conditions of a profile differ from those of a run, in words; empty where they don't.

    A run without a draft model may use what was measured with one, and a run of chats what was measured on texts, or the other
    way round: the target's passes are the same.
    """
    run = replace(key, form=_form(profile, key), companion=key.companion or profile.key.companion)
    return profile.key.told_apart(run, device_name(profile))
