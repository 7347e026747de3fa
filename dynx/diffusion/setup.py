"""From what a user asks for to a pipeline that draws: device, precision, model, and what a profile knows of its steps.

Every choice is kept as a `Decision` under the name of its knob, for `--explain` and the JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.errors import ModelError, NoProfileError, UnsupportedModelError, UsageError
from dynx.runtime import loading, own_code
from dynx.runtime.adapters import said, unapplied
from dynx.runtime.backends.registry import TITLES, TORCH
from dynx.runtime.decision import Decision
from dynx.runtime.device import Device, choose_device, choose_threads, probe
from dynx.runtime.hashing import model_hash
from dynx.runtime.profile import Profile, ProfileKey, device_key
from dynx.runtime.profile_selection import fitting
from dynx.runtime.weights import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.profile_data import Knowledge
    from dynx.diffusion.types import Request
    from dynx.runtime.loading import Source

TASK = "draw"
QUALITY = 0.95
"""SSIM to the full run of the same seed that is promised unless asked otherwise."""

SHARE = 0.95
"""Of pictures that reach it."""

DELTA = 0.05
"""1 - confidence."""

BUNDLED = "steps.json"
"""A pipeline's folder may carry a profile in this file, as `dynx calibrate --export` writes it."""

DEFAULTS = "dynx.json"
"""A pipeline's folder may say in this file what it is best drawn with: {"guidance": 2.5}. diffusers has no place for it."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for; the defaults ask for the best that dynx can decide."""

    model: str = "emoji"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    backend: str = "auto"
    quality: float = QUALITY
    steps: int | None = None
    """A fixed number of them, whatever a profile says."""
    guidance: float | None = None
    negative: str | None = None
    """What the pictures should not be like."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    profile: str | None = None  # an id, or "none"
    require_profile: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    offline: bool = False
    plain: bool = False


@dataclass
class Plan:
    """Everything decided before a weight is read; cheap to make."""

    wish: Wish
    source: Source
    machine: Device
    key: ProfileKey
    profile: Profile | None
    arrays: Mapping[str, NDArray[Any]]
    bundled: bool
    """Whether the profile came with the model, and so was measured elsewhere."""
    decisions: dict[str, Decision[Any]] = field(default_factory=dict)

    @cached_property
    def weights(self) -> str:
        """Hash of every byte of the weights, as they were when it was first asked for."""
        return weights_hash(self.source.folder)

    @property
    def device(self) -> str:
        """Where to run."""
        return str(self.decisions["device"].value)

    @property
    def dtype(self) -> str:
        """Precision of the network by name."""
        return str(self.decisions["dtype"].value)

    @property
    def way(self) -> backends.Way:
        """Whose kernels compute the network, and in what precision."""
        backend = self.decisions.get("backend")
        return (TORCH if backend is None else str(backend.value), self.dtype)

    @property
    def loaded(self) -> str:
        """Precision that the pipeline is loaded in: on a processor in full, and only its network may be computed in less."""
        return "float32" if self.device == "cpu" else self.dtype


@dataclass
class Assembly:
    """A plan carried out."""

    plan: Plan
    engine: Engine
    knowledge: Knowledge | None
    """What the profile says of this pipeline's steps, where it may be used."""
    racing: bool = False
    """Whether a calibration is to choose the kernels."""

    @property
    def decisions(self) -> dict[str, Decision[Any]]:
        """Knob → value and reason."""
        return self.plan.decisions


def make_plan(wish: Wish, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None) -> Plan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    if not 0 < wish.quality <= 1:
        raise UsageError(f"--quality {wish.quality:g} must lie between 0 and 1")
    machine = machine or probe()
    source = loading.find(
        wish.model,
        offline=wish.offline,
        allow_pickle=wish.allow_pickle,
        trust_remote_code=wish.trust_remote_code,
        task=TASK,
    )
    loading.check_pipeline(source, allow_pickle=wish.allow_pickle)
    decisions: dict[str, Decision[Any]] = {"model": Decision(source.name, f"{source.kind}: {source.folder}")}
    if loose := unapplied(source.folder):
        decisions["adapters"] = Decision("none", said(loose))
        warn(f"{source.name}: {said(loose)}")
    decisions |= own_code.decision(source.folder, trusted=source.trusted)
    if wish.guidance is None and (preferred := preferred_guidance(source)) is not None:
        wish = replace(wish, guidance=preferred)
        decisions["guidance"] = Decision(preferred, f"{DEFAULTS} beside the model asks for it")
    decisions["device"] = choose_device(wish.device, machine)
    device = str(decisions["device"].value)
    decisions["backend"], decisions["dtype"] = backends.decide(wish.backend, wish.dtype, device, machine, None)
    decisions["threads"] = choose_threads(wish.threads, machine)
    key = ProfileKey(
        task=TASK,
        model=model_hash(source.folder, code=source.trusted),
        companion=None,
        device=device_key(machine.fingerprint, device, decisions["threads"].value),
        dtype=str(decisions["dtype"].value),
    )
    found = fitting(
        key,
        source.folder / BUNDLED,
        wanted=wish.profile,
        plain=wish.plain,
        required=wish.require_profile,
        remedy=calibrate_command(wish),
        weights=lambda: weights_hash(source.folder),
        warn=warn,
    )
    measured = None if found.profile is None else measured_way(found.profile)
    if measured is not None:
        decisions["backend"], decisions["dtype"] = backends.decide(wish.backend, wish.dtype, device, machine, measured)
    decisions["profile"] = found.decision
    plan = Plan(wish, source, machine, key, found.profile, found.arrays, found.bundled, decisions)
    if measured is not None and measured != plan.way:
        pass_over(plan, f"it was measured with {_named(measured)}, not {_named(plan.way)}", warn)
    return plan


def measured_way(profile: Profile) -> backends.Way:
    """Whose kernels, and in what precision, a profile was measured with."""
    return str(profile.fitted.get("backend", TORCH)), str(profile.fitted.get("precision", profile.key.dtype))


def _named(way: backends.Way) -> str:
    return f"{TITLES.get(way[0], way[0])} in {way[1]}"


def pass_over(plan: Plan, why: str, warn: Callable[[str], None]) -> None:
    """Leave out a profile that speaks of other pictures or costs. Raises NoProfileError where one is required."""
    if plan.profile is None:
        return
    command = calibrate_command(plan.wish)
    if plan.wish.require_profile:
        raise NoProfileError(f"profile {plan.profile.key.id} can't be used: {why}", hint=f"{command} measures one")
    warn(f"profile {plan.profile.key.id} isn't used: {why}")
    plan.decisions["profile"] = Decision("none", f"profile {plan.profile.key.id} isn't used: {why}")
    plan.profile, plan.arrays, plan.bundled = None, {}, False


def preferred_guidance(source: Source) -> float | None:
    """What the folder asks to be drawn with, None where it doesn't say. Raises ModelError for what is no guidance."""
    path = source.folder / DEFAULTS
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("guidance")
        guidance = None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} can't be read: {e}") from None
    if guidance is not None and not 0 <= guidance < 1000:
        raise ModelError(f"{path} asks for a guidance of {guidance:g}")
    return guidance


def calibrate_command(wish: Wish) -> str:
    """The command that makes the profile that this wish lacks."""
    from shlex import quote

    parts = ["dynx calibrate", "-m", quote(wish.model)]
    size = None if wish.size is None else f"{wish.size[0]}x{wish.size[1]}"
    for name, value, usual in (
        ("--device", wish.device, "auto"),
        ("--dtype", wish.dtype, "auto"),
        ("--backend", wish.backend, "auto"),
        ("--guidance", wish.guidance, None),
        ("--negative", wish.negative, None),
        ("--size", size, None),
        ("--threads", wish.threads, None),
    ):
        if value != usual:
            parts += [name, quote(str(value))]
    parts += loading.given(wish)
    return " ".join(parts)


def assemble(
    plan: Plan,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    racing: bool = False,
) -> Assembly:
    """Load what the plan names. Raises DynxError. `stages` hears what is being done, for a progress line.

    `racing` leaves the choice of kernels to a calibration.
    """
    wish = plan.wish
    _ = plan.weights  # before they are read: pictures say what drew them, and a draft is finished by the same
    stages("importing torch and diffusers")
    with loading.importing():
        import torch

        torch.set_num_threads(plan.decisions["threads"].value)
        from dynx.diffusion.engine import Engine
        from dynx.diffusion.profile_data import knowledge_of

    stages(f"loading {plan.source.name}")
    pipe = loading.load_pipeline(plan.source, device=plan.device, dtype=plan.loaded, allow_pickle=wish.allow_pickle)
    engine = Engine(pipe)
    if wish.size is not None:
        check_size(wish.size, engine)
    engine.check(sample_of(wish, engine))
    assembly = Assembly(plan, engine, None, racing)
    if not engine.family.adaptive.value:
        plan.decisions["steps"] = Decision("plain", engine.family.adaptive.reason)
    elif wish.plain:
        plan.decisions["steps"] = Decision("plain", "plain execution was asked for")
    elif wish.steps is not None:
        plan.decisions["steps"] = Decision(wish.steps, "asked for")
    elif plan.profile is None:
        plan.decisions["steps"] = Decision("plain", f"no profile; {calibrate_command(wish)}")
    else:
        assembly.knowledge = knowledge_of(assembly, warn)
        if assembly.knowledge is None and wish.require_profile:
            raise NoProfileError(
                f"profile {plan.profile.key.id} can't be used: {plan.decisions['steps'].reason}",
                hint=f"{calibrate_command(wish)} measures it anew",
            )
    if not racing:
        _give_kernels(assembly, stages, warn)
    return assembly


def _give_kernels(assembly: Assembly, stages: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """The plan's kernels for the assembly's network. What a profile found may not run it any more; then PyTorch does.

    Raises UnsupportedModelError for what was asked for and can't run it.
    """
    plan, engine, known = assembly.plan, assembly.engine, assembly.knowledge
    try:
        made = backends.of(plan, engine, plan.way)
        if made is None:
            return
        stages(f"preparing {made}")
        sample = sample_of(plan.wish, engine)
        schedule = known.longest if known else None
        backends.prepare(
            made, engine, sample, schedule, cut=known is not None and known.fitted.ladder.guided is not None
        )
        engine.kernels = made
    except UnsupportedModelError as e:
        if plan.wish.backend != "auto" or (plan.wish.dtype not in ("auto", "float32")):
            raise
        plan.decisions["backend"], plan.decisions["dtype"] = Decision(TORCH, str(e)), Decision("float32", str(e))
        pass_over(plan, str(e), warn)
        if known is not None:
            assembly.knowledge = None
            plan.decisions["steps"] = Decision("plain", str(e))


def sample_of(wish: Wish, engine: Engine) -> Request:
    """A request of the shapes that this wish's pictures have."""
    from dynx.diffusion.types import Request

    return Request(("",) if engine.family.prompted else (), (0,), wish.negative, wish.guidance, wish.size)


def check_size(size: tuple[int, int], engine: Engine) -> None:
    """Raises UsageError for a width or height that the network can't take."""
    multiple = engine.family.multiple
    if any(side % multiple or side < multiple for side in size):
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise UsageError(
            f"{size[0]}x{size[1]}: width and height must be multiples of {multiple}", hint=f"--size {near[0]}x{near[1]}"
        )
