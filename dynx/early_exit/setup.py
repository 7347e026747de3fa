"""From what a user asks for to a classifier that runs: device, precision, model, exits and what is promised of them.

Every choice is kept as a `Decision` under the name of its knob, for `--explain` and the JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from dynx.early_exit import backends
from dynx.errors import DeviceError, NoProfileError, UnsupportedModelError, UsageError
from dynx.runtime import loading, own_code
from dynx.runtime.backends.registry import OPENVINO, TORCH, attempt
from dynx.runtime.decision import Decision
from dynx.runtime.device import Device, choose_device, choose_dtype, choose_threads, probe
from dynx.runtime.hashing import model_hash
from dynx.runtime.profile import Profile, ProfileKey, device_key
from dynx.runtime.profile_selection import Fitting, fitting
from dynx.runtime.weights import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dynx.early_exit.attach.full_depth import Whole
    from dynx.early_exit.attach.model import Attachment
    from dynx.early_exit.engine import Engine, Exits
    from dynx.early_exit.labels import Labels
    from dynx.early_exit.preprocessing import Reader, Row
    from dynx.early_exit.profile_data import Knowledge
    from dynx.early_exit.types import Guarantee
    from dynx.runtime.loading import Source

TASK = "classify"
BATCH = 32
EPS, DELTA = 0.02, 0.05
"""What is promised unless asked otherwise: at most 2 % of labels differ, with 95 % confidence."""

BUNDLED = "exits.json"
"""A model folder may carry a profile in this file, as `dynx calibrate --export` writes it."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for; the defaults ask for the best that dynx can decide."""

    model: str = "mood"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    quantize: str = "none"
    threads: int | None = None
    batch_size: int = BATCH
    max_length: int | None = None
    max_disagreement: float = EPS
    confidence: float = 1 - DELTA
    tolerance: float | None = None
    """How far a regression's numbers may be off."""
    profile: str | None = None  # an id, or "none"
    require_profile: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    offline: bool = False
    plain: bool = False

    @property
    def delta(self) -> float:
        """1 - confidence, without the noise of the subtraction."""
        return round(1 - self.confidence, 12)


@dataclass
class Plan:
    """Everything decided before a weight is read; cheap to make."""

    wish: Wish
    source: Source
    kind: Literal["text", "image"]
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
        """Precision by name."""
        return str(self.decisions["dtype"].value)


@dataclass
class Assembly:
    """A plan carried out."""

    plan: Plan
    attachment: Attachment | Whole
    reader: Reader
    labels: Labels
    knowledge: Knowledge | None
    """What the profile says of this model's exits, where it has any that may be used."""
    blocks: backends.Blocks = field(default_factory=backends.Blocks)
    """What its blocks are computed by."""
    certified: Guarantee | None = None
    """What the profile shows of its answers at full depth, where it isn't the reference itself."""

    @property
    def decisions(self) -> dict[str, Decision[Any]]:
        """Knob → value and reason."""
        return self.plan.decisions

    @property
    def batch(self) -> int:
        """Rows computed together."""
        return 1 if not getattr(self.reader, "pads_batches", True) else self.plan.wish.batch_size

    @property
    def cut(self) -> int | None:
        """The tokens that texts are cut to, where that is fewer than the model takes."""
        limit = getattr(self.reader, "limit", None)
        return None if limit == getattr(self.reader, "own_limit", None) else limit

    def engine(self, exits: Exits | None = None, *, batch: int | None = None) -> Engine[Row]:
        """A fresh engine over the model, with these exits or none."""
        return engine_over(self.attachment, self.reader, batch or self.batch, exits)


def engine_over(attachment: Attachment | Whole, reader: Reader, batch: int, exits: Exits | None = None) -> Engine[Row]:
    """An engine for a reader's rows."""
    from dynx.early_exit.engine import Engine

    return Engine(
        attachment,  # type: ignore[arg-type]  # a Whole has no exits and is never asked for them
        reader.collate,
        length=lambda row: row.size,
        identity=lambda row: row.identity,
        exits=exits,
        batch=batch,
    )


def make_plan(wish: Wish, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None) -> Plan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    if not 0 < wish.max_disagreement < 1:
        raise UsageError(f"--max-disagreement {wish.max_disagreement:g} must lie between 0 and 1")
    if not 0 < wish.confidence < 1:
        raise UsageError(f"--confidence {wish.confidence:g} must lie between 0 and 1")
    machine = machine or probe()
    source = loading.find(
        wish.model,
        offline=wish.offline,
        allow_pickle=wish.allow_pickle,
        trust_remote_code=wish.trust_remote_code,
        task=TASK,
    )
    kind = loading.check_classifier(source, allow_pickle=wish.allow_pickle)
    decisions: dict[str, Decision[Any]] = {"model": Decision(source.name, f"{source.kind}: {source.folder}")}
    decisions |= own_code.decision(source.folder, trusted=source.trusted)
    decisions["device"] = choose_device(wish.device, machine)
    decisions["dtype"] = _dtype(wish, decisions["device"].value, machine)
    decisions["threads"] = choose_threads(wish.threads, machine)
    key = ProfileKey(
        task=TASK,
        model=model_hash(source.folder, code=source.trusted),
        companion=None,
        device=device_key(machine.fingerprint, decisions["device"].value, decisions["threads"].value),
        dtype=str(decisions["dtype"].value),
        quantization=backends.check_quantization(wish),
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
    decisions["backend"] = backends.choose(wish, decisions["device"].value, found.profile)
    if (
        found.profile is not None
        and (measured := backends.measured_backend(found.profile)) != decisions["backend"].value
    ):
        why = f"profile {found.profile.key.id} was measured with {measured}, not {decisions['backend'].value}"
        if wish.require_profile:
            raise NoProfileError(why, hint=f"{calibrate_command(wish)} measures one")
        warn(f"{why}, and isn't used")
        found = Fitting()
    if wish.quantize != "none":
        decisions["quantize"] = Decision(wish.quantize, "asked for")
    decisions["profile"] = found.decision
    return Plan(wish, source, kind, machine, key, found.profile, found.arrays, found.bundled, decisions)


def _dtype(wish: Wish, device: str, machine: Device) -> Decision[str]:
    if wish.dtype == "auto" and device == "cpu":
        return Decision("float32", "the promise is about float32 answers")
    return choose_dtype(None if wish.dtype == "auto" else wish.dtype, device, machine)


def calibrate_command(wish: Wish) -> str:
    """The command that makes the profile that this wish lacks."""
    from shlex import quote

    parts = ["dynx calibrate", "-m", quote(wish.model), "--data FILE"]
    for name, value, usual in (
        ("--device", wish.device, "auto"),
        ("--dtype", wish.dtype, "auto"),
        ("--backend", wish.backend, "auto"),
        ("--quantize", wish.quantize, "none"),
        ("--max-length", wish.max_length, None),
        ("--within", wish.tolerance, None),
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
    calibrating: bool = False,
) -> Assembly:
    """Load what the plan names and attach exits. Raises DynxError.

    `stages` hears what is being done, for a progress line. For calibration kernels that need numbers of it are left for later.
    """
    unknown = plan.decisions["backend"].value == OPENVINO and plan.wish.quantize != "none"
    if unknown and not backends.ranges_of(plan) and not calibrating:
        raise NoProfileError(
            "OpenVINO multiplies in int8 only where calibration has seen how large numbers get",
            hint=f"{calibrate_command(plan.wish)} measures it",
        )
    if calibrating:
        _ = plan.weights  # before they are read
    stages("importing torch and transformers")
    with loading.importing():
        import torch

        torch.set_num_threads(plan.decisions["threads"].value)
        from dynx.early_exit.labels import Labels
        from dynx.early_exit.profile_data import knowledge_of

    stages(f"loading {plan.source.name}")
    assembly = _running(plan, Labels, stages, warn)
    if plan.profile is not None:
        _certify_whole(assembly, warn)
    if plan.profile is None:
        plan.decisions.setdefault("exits", Decision("none", _without_profile(plan.wish)))
    elif "exits" not in plan.decisions:
        assembly.knowledge = knowledge_of(assembly, warn)
        if assembly.knowledge is None and plan.wish.require_profile:
            raise NoProfileError(
                f"profile {plan.profile.key.id} can't be used: {plan.decisions['exits'].reason}",
                hint=f"{calibrate_command(plan.wish)} measures it anew",
            )
    return assembly


def _running(
    plan: Plan, labels_of: Callable[[Any], Labels], stages: Callable[[str], None], warn: Callable[[str], None]
) -> Assembly:
    """The model on the plan's kernels, or where those can't run it and weren't asked for, on PyTorch's."""
    backend, ranges = str(plan.decisions["backend"].value), backends.ranges_of(plan)
    stages(f"loading {plan.source.name}")
    if backend == OPENVINO and plan.wish.quantize != "none" and not ranges:
        backend = TORCH  # as calibration begins
    blocks = backends.wanted(plan, backend, ranges)
    model, reader = load_model(plan, dtype=backends.loaded_in(plan, backend), max_length=plan.wish.max_length)
    labels = labels_of(model.config)
    if plan.wish.tolerance is not None and labels.problem != "regression":
        raise UsageError(f"--within is for models that give numbers, and {plan.source.name} gives labels")
    stages(f"trying {plan.source.name}")
    attachment = attach_exits(model, reader, plan.decisions)
    try:
        with attempt(backend, plan.source.name):
            attachment = backends.put_in(attachment, reader, blocks, plan.decisions["threads"].value)
    except UnsupportedModelError as e:
        if plan.wish.backend != "auto" or backend == TORCH:
            raise
        why = f"OpenVINO can't run it: {e}"
        drop_profile(plan, why, warn)
        plan.decisions["backend"] = Decision(TORCH, why)
        return _running(plan, labels_of, stages, warn)
    return Assembly(plan, attachment, reader, labels, None, blocks)


def drop_profile(plan: Plan, why: str, warn: Callable[[str], None]) -> None:
    """Go on as if there were no profile. NoProfileError where one is required."""
    if plan.profile is None:
        return
    if plan.wish.require_profile:
        raise NoProfileError(f"profile {plan.profile.key.id} can't be used: {why}")
    warn(f"profile {plan.profile.key.id} isn't used: {why}")
    plan.profile, plan.arrays, plan.bundled = None, {}, False
    plan.decisions["profile"] = Decision("none", why)


def _certify_whole(assembly: Assembly, warn: Callable[[str], None]) -> None:
    """Whether the profile shows the model's own answers, before any exit, to be within the promise.

    Where it doesn't, a quantized model gives way to the one that the promise is about.
    """
    from dynx.early_exit.profile_data import certify_whole
    from dynx.early_exit.reference import is_reference

    plan = assembly.plan
    if is_reference(assembly):
        return
    assembly.certified, words = certify_whole(plan)
    if assembly.certified is not None or plan.wish.quantize == "none":
        return
    drop_profile(plan, words, warn)
    plan.decisions["quantize"] = Decision("none", words)
    plan.decisions["backend"] = Decision(TORCH, "the model as it is")
    plan.decisions["exits"] = Decision("none", words)
    model, reader = load_model(plan, dtype=plan.dtype, max_length=plan.wish.max_length)
    assembly.attachment, assembly.reader = attach_exits(model, reader, plan.decisions), reader
    assembly.blocks = backends.Blocks(precision=plan.dtype)


def _without_profile(wish: Wish) -> str:
    if wish.plain:
        return "plain execution was asked for"
    if wish.profile == "none":
        return "no profile was asked for"
    return f"no profile; {calibrate_command(wish)} learns exits from inputs of yours"


def load_model(plan: Plan, *, dtype: str, max_length: int | None) -> tuple[Any, Reader]:
    """The plan's model in some precision, and the reader of its inputs. Raises DynxError."""
    from dynx.early_exit.preprocessing import Images, Texts

    wish = plan.wish
    if plan.kind == "image" and max_length is not None:
        raise UsageError("--max-length is about texts, and this model takes images")
    ready = loading.load_image_processor(plan.source) if plan.kind == "image" else loading.load_tokenizer(plan.source)
    model = loading.load_classifier(
        plan.source, plan.kind, device=plan.device, dtype=dtype, allow_pickle=wish.allow_pickle
    )
    reader: Reader = Images(ready, model) if plan.kind == "image" else Texts(ready, model, max_length)
    return model, reader


def attach_exits(model: Any, reader: Reader, decisions: dict[str, Decision[Any]]) -> Attachment | Whole:
    """The model with exits, or whole where it can't have any; the reason goes into `decisions`."""
    from dynx.early_exit.attach.attach import attach
    from dynx.early_exit.attach.full_depth import Whole

    example = reader.probe()
    if not getattr(reader, "pads_batches", True):
        why = "neither model nor tokenizer has a padding token"
        decisions["batch"] = Decision(1, why)
        decisions["exits"] = Decision("none", why)
        return Whole(model, reader.kind, example)
    try:
        return attach(model, example)
    except DeviceError:
        raise
    except UnsupportedModelError as e:
        decisions["exits"] = Decision("none", str(e))
        return Whole(model, reader.kind, example)
