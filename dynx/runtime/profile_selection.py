"""Which profile a run goes by: the one asked for, the one stored for this model here, or the one that came with the model.

A bundled profile was measured elsewhere: its promise is about the same weights in the same precision, its costs are a guess.
One asked for by its id must have been measured under the conditions of the run, or it is refused with what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.errors import NoProfileError, UsageError
from dynx.runtime.decision import Decision
from dynx.runtime.profile import Profile, ProfileError, ProfileKey, read_arrays, unpack
from dynx.runtime.profile_store import ProfileStore, profiles_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fitting:
    """A profile with its arrays, or none."""

    profile: Profile | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    bundled: bool = False
    """Whether it came with the model."""
    wanted: bool = True

    @property
    def decision(self) -> Decision[str]:
        """In words."""
        if self.profile is not None:
            where = "came with the model" if self.bundled else f"measured {self.profile.created}"
            return Decision(self.profile.key.id, where)
        return Decision("none", "none stored for this model, device and precision" if self.wanted else "not wanted")


def fitting(
    key: ProfileKey,
    bundled: Path,
    *,
    wanted: str | None,
    plain: bool,
    required: bool,
    remedy: str,
    warn: Callable[[str], None] = lambda _: None,
    measured_here: bool = False,
) -> Fitting:
    """The profile for `key`; `wanted` is an id, "none", or None for whichever fits; `bundled` the file beside the model.

    A bundled one meets the requirement unless it must have been `measured_here`. Raises NoProfileError, with the command that is
    the `remedy`, where one is `required` and missing; UsageError where what is asked for contradicts itself or was measured under
    other conditions. What can't be read is warned of and passed over.
    """
    if plain or wanted == "none":
        if required:
            unwanted = "--plain" if plain else "--profile none"
            raise UsageError(f"--require-profile and {unwanted} contradict each other")
        return Fitting(wanted=False)
    store = ProfileStore(profiles_folder(), warn)
    profile = store.get(wanted) if wanted is not None else store.find(key)
    if profile is not None:
        if other := differences(profile, key):
            raise UsageError(
                f"profile {profile.key.id} doesn't fit this run: it was measured {' and '.join(other)}",
                hint=f"without --profile dynx takes one that fits, and {remedy} measures one",
            )
        try:
            return Fitting(profile, store.arrays(profile))
        except ProfileError as e:
            warn(f"profile {profile.key.id} ignored: {e}")
    found = _beside(key, bundled, warn)
    if required and (found.profile is None or measured_here):
        raise NoProfileError("no profile fits the model here", hint=f"{remedy} measures one")
    return found


def _beside(key: ProfileKey, path: Path, warn: Callable[[str], None]) -> Fitting:
    """The profile that came with the model, if it is for these very weights in this precision."""
    if not path.is_file():
        return Fitting()
    try:
        profile, blob = unpack(path.read_bytes())
        arrays = read_arrays(blob) if blob is not None else {}
    except (ProfileError, OSError) as e:
        warn(f"{path} ignored: {e}")
        return Fitting()
    other = _elsewhere(profile, key)
    if other == ["dtype"]:
        warn(
            f"the profile that came with the model isn't used: it was measured in {profile.key.dtype}, not {key.dtype}"
        )
    return Fitting() if other else Fitting(profile, arrays, bundled=True)


def _elsewhere(profile: Profile, key: ProfileKey) -> list[str]:
    """In what else than the device two keys differ."""
    return [d for d in profile.key.differences(key) if d != "device"]


def differences(profile: Profile, key: ProfileKey) -> list[str]:
    """How the conditions of a profile differ from those of a run, in words that go on after "it was measured".

    A run without a draft model may use what was measured with one: the target's passes are the same.
    """
    measured, found = profile.key, []
    if measured.task != key.task:
        found.append(f"for dynx {measured.task}, not {key.task}")
    if measured.model != key.model:
        found.append(f"with another model ({profile.model_name})")
    if key.companion is not None and measured.companion != key.companion:
        found.append("without a draft model" if measured.companion is None else "with another draft model")
    if measured.device != key.device:
        found += _device_differences(profile, key)
    if measured.dtype != key.dtype:
        found.append(f"in {measured.dtype}, not {key.dtype}")
    if measured.quantization != key.quantization:
        found.append(f"with quantization {measured.quantization}, not {key.quantization}")
    return found


def _device_differences(profile: Profile, key: ProfileKey) -> list[str]:
    """Machine, kind of device and threads, which the key's device spells FINGERPRINT-KIND-THREADSt."""
    theirs, ours = (each.rsplit("-", 2) for each in (profile.key.device, key.device))
    if len(theirs) != 3 or len(ours) != 3:
        return [f"on another device ({profile.key.device})"]
    found = []
    if theirs[0] != ours[0]:
        found.append(f"on another machine ({profile.device.get('name') or theirs[0]})")
    if theirs[1] != ours[1]:
        found.append(f"on {theirs[1]}, not {ours[1]}")
    if theirs[2] != ours[2]:
        found.append(f"with {theirs[2].removesuffix('t')} threads, not {ours[2].removesuffix('t')}")
    return found
