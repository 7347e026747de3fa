"""What a caller asks of a model, and what is decided before a weight is read; one way for all three tasks.

A task adds its own fields to `ModelRequest`, `Decisions` and `Plan`, and says in `TaskRules` how it differs. Nothing here loads a
model. A value lives in two places: as it was asked for, in the request, and as it was decided, with the reason, in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from dynx.errors import NoProfileError
from dynx.runtime import loading, own_code
from dynx.runtime.backends.registry import TITLES
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_device, choose_threads, probe
from dynx.runtime.identity import model_key, weights_key
from dynx.runtime.profile import ProfileKey, device_key
from dynx.runtime.profile_selection import select_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile

R = TypeVar("R", bound="ModelRequest")
D = TypeVar("D", bound="Decisions")


@dataclass(frozen=True)
class ModelRequest:
    """What a caller asks for; the defaults leave it to dynx. Field names are those of the options."""

    model: str = ""
    """A shipped name, a folder in Hugging Face layout, or a hub id."""
    device: str = field(default="auto", kw_only=True)
    dtype: str = field(default="auto", kw_only=True)
    threads: int | None = field(default=None, kw_only=True)
    backend: str = field(default="auto", kw_only=True)
    quantize: str = field(default="none", kw_only=True)
    profile: str | None = field(default=None, kw_only=True)
    """An id, "none", or None for whichever fits."""
    require_profile: bool = field(default=False, kw_only=True)
    allow_pickle: bool = field(default=False, kw_only=True)
    trust_remote_code: bool = field(default=False, kw_only=True)
    offline: bool = field(default=False, kw_only=True)
    plain: bool = field(default=False, kw_only=True)

    def find(self, name: str, task: str) -> Source:
        """Find a model's folder under the permissions of this request. Raises ModelError."""
        return loading.find(
            name,
            offline=self.offline,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
            task=task,
        )


@dataclass(kw_only=True)
class Decisions:
    """Every setting with its value and the reason, in the order of showing; None where there was nothing to decide."""

    model: Decision[str]
    trust_remote_code: Decision[str] | None = None
    device: Decision[str]
    dtype: Decision[str]
    threads: Decision[int]
    profile: Decision[str]
    backend: Decision[str]
    quantize: Decision[str] | None = None

    def items(self) -> Iterator[tuple[str, Decision[Any]]]:
        """Iterate over what was decided, by the setting's name."""
        for each in fields(self):
            decision = getattr(self, each.name)
            if decision is not None:
                yield each.name, decision

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return value and reason of each setting, for a JSON document."""
        return {name: {"value": d.value, "reason": d.reason} for name, d in self.items()}


class BackendSpec(NamedTuple):
    """What computes a model: a backend and a precision."""

    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{TITLES.get(self.backend, self.backend)} in {self.dtype}"


@dataclass
class Plan(Generic[R, D]):
    """Everything that is decided before a weight is read; cheap to make."""

    request: R
    source: Source
    machine: Device
    key: ProfileKey
    profile: Profile | None
    arrays: Mapping[str, NDArray[Any]]
    bundled: bool
    """Whether the profile came with the model, and so was measured elsewhere."""
    decisions: D
    excluded: tuple[str, ...] = ()
    """Subfolders whose weights are another model's."""

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.decisions.device.value

    @property
    def dtype(self) -> str:
        """The model's precision by name."""
        return self.decisions.dtype.value

    @property
    def backend(self) -> str:
        """What computes the model."""
        return self.decisions.backend.value

    @property
    def threads(self) -> int:
        """Processor threads."""
        return self.decisions.threads.value

    @property
    def profile_id(self) -> str | None:
        """The id of the profile that the run goes by."""
        return None if self.profile is None else self.profile.key.id

    @cached_property
    def weights(self) -> str:
        """The hash of every byte of the weights, as they were when it was first asked for."""
        return weights_key(self.source, self.excluded)

    def drop_profile(self, reason: str, warn: Callable[[str], None]) -> None:
        """Go on as if there were no profile. Raises NoProfileError where one is required."""
        if self.profile is None:
            return
        profile_id = self.profile.key.id
        if self.request.require_profile:
            raise NoProfileError(f"profile {profile_id} can't be used: {reason}")
        reason = f"profile {profile_id} isn't used: {reason}"
        warn(reason)
        self.decisions.profile = Decision("none", reason)
        self.profile, self.arrays, self.bundled = None, {}, False


@dataclass(frozen=True)
class TaskRules(Generic[R]):
    """How a task decides what every task decides."""

    task: str
    bundled: str
    """The file of a model's folder that may hold a profile."""
    execution: Callable[[R, Source, str, Device, Profile | None], tuple[Decision[str], Decision[str]]]
    """Choose backend and precision for a request on a device, with the profile that was found. Raises DynxError."""
    measured_with: Callable[[Profile], BackendSpec]
    """What a profile's figures are of."""
    excluded: tuple[str, ...] = ()
    needs_own_costs: bool = False
    """Whether only a profile measured on this device says which backend to use, and satisfies `require_profile`."""


@dataclass
class Resolved:
    """What `resolve` found; a task makes its plan of it."""

    source: Source
    machine: Device
    key: ProfileKey
    profile: Profile | None
    arrays: Mapping[str, NDArray[Any]]
    bundled: bool
    device: Decision[str]
    dtype: Decision[str]
    threads: Decision[int]
    backend: Decision[str]
    profile_decision: Decision[str]
    mismatch: str | None
    """Why the profile can't be used after all: its figures are of another backend or precision."""

    @property
    def common(self) -> dict[str, Any]:
        """The decisions that every task has, by name."""
        return {
            "model": Decision(self.source.name, f"{self.source.kind}: {self.source.folder}"),
            "trust_remote_code": own_code.decision(self.source.folder, trusted=self.source.trusted),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "backend": self.backend,
            "profile": self.profile_decision,
        }


def resolve(
    request: R,
    source: Source,
    rules: TaskRules[R],
    *,
    warn: Callable[[str], None],
    machine: Device | None = None,
    companion: str | None = None,
    stored: str | None = None,
    wants_bundled: bool = True,
) -> Resolved:
    """Decide device, precision, threads, backend and profile. Raises DynxError.

    `companion` is the hash of a draft model; `stored` says how weights are stored, where it isn't as requested. A profile that
    came with the model is left out unless `wants_bundled`.
    """
    machine = machine or probe()
    device, threads = choose_device(request.device, machine), choose_threads(request.threads, machine)
    backend, dtype = rules.execution(request, source, device.value, machine, None)
    key = ProfileKey(
        task=rules.task,
        model=model_key(source, rules.excluded),
        companion=companion,
        device=device_key(machine.fingerprint, device.value, threads.value),
        dtype=dtype.value,
        quantization=stored or request.quantize,
    )
    found = select_profile(
        key,
        source.folder / rules.bundled,
        wanted=request.profile,
        plain=request.plain,
        required=request.require_profile,
        weights=lambda: weights_key(source, rules.excluded),
        warn=warn,
        measured_here=rules.needs_own_costs,
        wants_bundled=wants_bundled,
    )
    mismatch = None
    if found.profile is not None and not (found.bundled and rules.needs_own_costs):
        backend, dtype = rules.execution(request, source, device.value, machine, found.profile)
        measured, used = rules.measured_with(found.profile), BackendSpec(backend.value, dtype.value)
        if measured != used:
            mismatch = f"it was measured with {measured}, not {used}"
    return Resolved(
        source,
        machine,
        key,
        found.profile,
        found.arrays,
        found.bundled,
        device,
        dtype,
        threads,
        backend,
        found.decision,
        mismatch,
    )
