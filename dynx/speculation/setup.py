"""From what a user asks for to an engine that runs: device, precision, models, drafters and what a profile knows of them.

Every choice is kept as a `Decision` under the name of its knob, for `--explain` and the JSON.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from dynx.errors import ModelError, NoProfileError, UsageError
from dynx.runtime import loading, own_code
from dynx.runtime.backends.padding import MAX_PADDED_TOKENS
from dynx.runtime.backends.registry import TORCH, Quantization, choose
from dynx.runtime.decision import Decision
from dynx.runtime.device import Device, choose_device, choose_dtype, choose_threads, probe
from dynx.runtime.hashing import model_hash
from dynx.runtime.profile import Profile, ProfileKey, device_key
from dynx.runtime.profile_selection import Fitting, fitting
from dynx.runtime.utf8 import read
from dynx.runtime.weights import weights_hash
from dynx.speculation.backends import Kernels, verifier
from dynx.speculation.model_settings import end_tokens, in_words, own_sampling, read_settings, sampling_asked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.loading import Source
    from dynx.speculation.engine import Engine, Knowledge
    from dynx.speculation.types import ModelSettings, Sampling

SMALL = 96 << 20
"""Bytes of float32 weights below which a processor's caches hold the model: halving them gains nothing and costs exactness."""

TASK = "generate"
BUNDLED = "drafts.json"
"""A profile beside the weights that came with the model: what its drafters are worth, at costs that are another machine's."""

KINDS = ("auto", "none", "self", "lookup")


@dataclass(frozen=True)
class Wish:
    """What the user asked for; the defaults ask for the best that dynx can decide."""

    model: str = "story"
    draft: str = "auto"
    lookup: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    backend: str = "auto"
    quantize: str = "none"
    profile: str | None = None  # an id, or "none"
    require_profile: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    offline: bool = False
    plain: bool = False
    exact: bool = False


@dataclass
class Plan:
    """Everything decided before a weight is read; cheap to make."""

    wish: Wish
    source: Source
    drafter: Source | None
    kinds: frozenset[str]  # of drafters wanted: "draft", "self", "lookup"
    auto: bool  # whether dynx may drop or add drafters
    machine: Device
    key: ProfileKey
    profile: Profile | None  # measured here
    decisions: dict[str, Decision[Any]] = field(default_factory=dict)
    bundled: Profile | None = None  # came with the model, where nothing was measured here

    @property
    def profile_id(self) -> str | None:
        """The profile that the run goes by."""
        found = self.profile or self.bundled
        return found.key.id if found else None

    @property
    def fitted(self) -> dict[str, Any]:
        """What a profile learned of the drafters; empty without one."""
        found = self.profile or self.bundled
        return found.fitted if found else {}

    @cached_property
    def weights(self) -> str:
        """Hash of every byte of the weights, as they were when it was first asked for."""
        return weights_hash(self.source.folder, [loading.DRAFTER_FOLDER])

    @property
    def device(self) -> str:
        """Where to run."""
        return str(self.decisions["device"].value)

    @property
    def dtype(self) -> str:
        """Precision by name."""
        return str(self.decisions["dtype"].value)

    @property
    def drafter_dtype(self) -> str:
        """The draft model's precision by name: it only guesses, so whatever is fastest.

        Where the weights stay in cache anyway that's float32: on two cores a guess of 0.4 M parameters beside a bfloat16 target
        took 0.4 ms with it, 1.5 ms in bfloat16.
        """
        if self.drafter is None:
            return self.dtype
        config = self.drafter.config()
        small = _in_cache(self.drafter, config.get("dtype") or config.get("torch_dtype"), self.device)
        return self.dtype if small is None else small.value


@dataclass
class Assembly:
    """A plan carried out."""

    plan: Plan
    engine: Engine
    tokenizer: Any
    own: ModelSettings

    @property
    def decisions(self) -> dict[str, Decision[Any]]:
        """Knob → value and reason."""
        return self.plan.decisions

    @cached_property
    def verifier(self) -> Backend:
        """What answers are verified by: the weights that lie in the model's folder."""
        return verifier(self.plan, self.engine.target)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end an answer: the generation config's, else the tokenizer's."""
        return frozenset(self.own.eos)

    def sampling(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """How to choose tokens: as the caller says, under the model's own settings; without a penalty, the model's own."""
        return own_sampling(self.own, temperature, top_k, top_p, repetition_penalty, seed)


def make_plan(wish: Wish, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None) -> Plan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    machine = machine or probe()
    source = _find(wish.model, wish)
    config = source.config()
    kinds, drafter, auto = _parse_draft(wish, source)
    for each in (source, drafter):
        if each is not None:
            loading.check_causal_lm(each, allow_pickle=wish.allow_pickle)
    decisions: dict[str, Decision[Any]] = {"model": Decision(source.name, f"{source.kind}: {source.folder}")}
    decisions |= own_code.decision(source.folder, trusted=source.trusted)
    decisions["device"] = choose_device(wish.device, machine)
    decisions["dtype"] = _dtype(wish, source, config, decisions["device"].value, machine)
    decisions["threads"] = choose_threads(wish.threads, machine)
    key = ProfileKey(
        task=TASK,
        model=model_hash(source.folder, exclude=[loading.DRAFTER_FOLDER], code=source.trusted),
        companion=model_hash(drafter.folder, code=drafter.trusted) if drafter else None,
        device=device_key(machine.fingerprint, decisions["device"].value, decisions["threads"].value),
        dtype=str(decisions["dtype"].value),
        quantization=_quantization(wish),
    )
    found = _fitting(wish, source, key, warn)
    profile = None if found.bundled else found.profile
    decisions["profile"] = found.decision
    decisions["backend"] = choose(
        wish.backend, wish.quantize, decisions["device"].value, None if profile is None else measured_backend(profile)
    )
    if profile is not None and measured_backend(profile) != decisions["backend"].value:
        if wish.require_profile:
            raise NoProfileError(
                f"profile {profile.key.id} was measured with {measured_backend(profile)}, not {decisions['backend'].value}"
            )
        why = f"profile {profile.key.id} isn't used: its costs are those of {measured_backend(profile)}"
        warn(why)
        profile, decisions["profile"] = None, Decision("none", why)
    if wish.quantize != "none":
        decisions["quantize"] = Decision(wish.quantize, _said_of(profile, wish.quantize))
    bundled = found.profile if found.bundled else None
    return Plan(wish, source, drafter, kinds, auto, machine, key, profile, decisions, bundled)


def _find(model: str, wish: Wish) -> Source:
    return loading.find(
        model, offline=wish.offline, allow_pickle=wish.allow_pickle, trust_remote_code=wish.trust_remote_code
    )


def measured_backend(profile: Profile) -> str:
    """The kernels that a profile's costs are of."""
    return str(profile.fitted.get("backend", TORCH))


def _quantization(wish: Wish) -> str:
    if wish.quantize not in get_args(Quantization):
        raise UsageError(f"--quantize {wish.quantize}: one of {', '.join(get_args(Quantization))}")
    return wish.quantize


def _said_of(profile: Profile | None, quantize: str) -> str:
    """What is known of a quantized model's answers."""
    found = None if profile is None else profile.evidence.get("quantization")
    if not isinstance(found, dict):
        return f"weights in {quantize[3:]} bits; guessing is lossless relative to that model, which is another one"
    return (
        f"lossless relative to the {quantize} model; of {found['tokens']} tokens of its texts {found['agreement']:.1%} are "
        f"{found['reference']}'s first choice too, perplexity {found['perplexity_ratio']:.3f}x"
    )


def _parse_draft(wish: Wish, source: Source) -> tuple[frozenset[str], Source | None, bool]:
    words = [w.strip() for w in wish.draft.split(",") if w.strip()]
    if not words:
        raise UsageError("--draft is empty", hint=f"one of {', '.join(KINDS)}, or a model")
    if wish.plain or words == ["none"]:
        return frozenset(), None, False
    if "none" in words or ("auto" in words and len(words) > 1):
        raise UsageError(f"--draft {wish.draft}: none and auto stand alone")
    if words == ["auto"]:
        drafter = source.bundled_drafter
        return frozenset({"self", "lookup"} | ({"draft"} if drafter else set())), drafter, True
    models = [w for w in words if w not in KINDS]
    if len(models) > 1:
        raise UsageError(f"--draft {wish.draft}: one draft model at a time")
    kinds = {w for w in words if w in KINDS}
    if wish.lookup is not None:
        kinds.add("lookup")
    found = _find(models[0], wish) if models else None
    return frozenset(kinds | ({"draft"} if found else set())), found, False


def _dtype(wish: Wish, source: Source, config: dict[str, Any], device: str, machine: Device) -> Decision[str]:
    stored = config.get("dtype") or config.get("torch_dtype")
    if wish.dtype == "auto" and (small := _in_cache(source, stored, device)):
        return small
    return choose_dtype(None if wish.dtype == "auto" else wish.dtype, device, machine, stored)


def _in_cache(source: Source, stored: str | None, device: str) -> Decision[str] | None:
    """float32 for weights so few that a processor's caches hold them."""
    size = sum(f.stat().st_size for f in source.folder.glob("*.safetensors"))
    full = size * (2 if stored in ("bfloat16", "float16") else 1)
    if device != "cpu" or not 0 < full <= SMALL:
        return None
    return Decision("float32", f"{full >> 20} MiB of weights stay in cache, so exactness is free")


def _fitting(wish: Wish, source: Source, key: ProfileKey, warn: Callable[[str], None]) -> Fitting:
    """The profile of a run. One that came with the model is passed over where the user says what to draft with."""
    found = fitting(
        key,
        source.folder / BUNDLED,
        wanted=wish.profile,
        plain=wish.plain,
        required=wish.require_profile,
        remedy=calibrate_command(wish),
        weights=lambda: weights_hash(source.folder, [loading.DRAFTER_FOLDER]),
        warn=warn,
        measured_here=True,
    )
    return Fitting() if found.bundled and wish.draft != "auto" else found


def calibrate_command(wish: Wish) -> str:
    """The command that makes the profile that this wish lacks."""
    from shlex import quote

    parts = ["dynx calibrate", "-m", quote(wish.model)]
    for name, value, usual in (
        ("--draft", wish.draft, "auto"),
        ("--device", wish.device, "auto"),
        ("--dtype", wish.dtype, "auto"),
        ("--backend", wish.backend, "auto"),
        ("--quantize", wish.quantize, "none"),
    ):
        if value != usual:
            parts += [name, quote(value)]
    if wish.threads:
        parts += ["--threads", str(wish.threads)]
    parts += loading.given(wish)
    return " ".join(parts)


def assemble(
    plan: Plan,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] | None = None,
    put_off: bool = False,
) -> Assembly:
    """Load what the plan names and put the engine together. Raises DynxError.

    `stages` hears what is being done, for a progress line. With a `clock`, in seconds, backends that nobody asked for are timed
    against each other and the fastest is kept. With `put_off` a draft model that nobody asked for, and no profile recommends, is
    loaded when the work has become long enough to pay for it.
    """
    wish, decisions = plan.wish, plan.decisions
    if clock is not None:
        _ = plan.weights  # before they are read
    library_text = _library(wish)
    stages("importing torch and transformers")
    with loading.importing():
        import torch

        torch.set_num_threads(plan.decisions["threads"].value)
        from dynx.speculation.drafters.late import LateDrafter
        from dynx.speculation.engine import Drafters, Engine
        from dynx.speculation.processors import check_processors

    knowledge = _knowledge(plan, warn)
    stages("reading the tokenizer")
    tokenizer = loading.load_tokenizer(plan.source)
    own = _own_settings(plan, tokenizer)
    stages(f"loading {plan.source.name}")
    fitted = plan.fitted
    kernels = Kernels(plan, stages, warn, clock)
    began = time.perf_counter()
    target = kernels.target()
    loading_seconds = time.perf_counter() - began  # the draft model is smaller
    widened = widened_of(plan.profile) if plan.profile else {}
    check_processors(own, target.vocab)
    target.set_padded_lengths(widened)
    stages(f"trying {plan.source.name}")
    drafters = Drafters(lookup=False)
    if (state := target.state) is not None:
        decisions["state"] = state
    if plan.kinds and not target.can_rollback.value:
        decisions["draft"] = Decision("none", target.can_rollback.reason)
    elif plan.kinds:
        worth = fitted.get("origins")  # a drafter that calibration found useless isn't even loaded
        small = late = None
        if plan.drafter and put_off and plan.auto and worth is None:
            load = lambda: _load_drafter(plan, tokenizer, kernels, lambda _: None)  # noqa: E731
            late = LateDrafter(load, loading_seconds, began, time.perf_counter)
        elif plan.drafter and (worth is None or "draft" in worth):
            small = _load_drafter(plan, tokenizer, kernels, stages)
        layers = _exit_layers(plan, fitted, target.layers)
        if layers and not target.can_exit.value:
            if not plan.auto:
                raise ModelError(f"--draft self: {target.can_exit.reason}")
            layers = None
        library = tokenizer(library_text, add_special_tokens=False)["input_ids"] if library_text else []
        looking = "lookup" in plan.kinds and (not plan.auto or fitted.get("lookup", True))
        drafters = Drafters(small, layers, looking, library, late)
        decisions["draft"] = _describe_drafters(plan, drafters)
    else:
        decisions["draft"] = Decision("none", "plain decoding was asked for")
    engine = Engine(target, drafters, tokenizer=tokenizer, knowledge=knowledge)
    engine.alike = decisions["draft"].value == "none"  # one token at a time is plain decoding
    if wish.exact:
        _make_exact(plan, engine, stages, widened)
    elif plan.profile is not None:
        from dynx.speculation.exactness import alike

        engine.alike |= alike(plan.profile.measured.get("noise"), widened)
    return Assembly(plan, engine, tokenizer, own)


def _own_settings(plan: Plan, tokenizer: Any) -> ModelSettings:
    """The model's own decoding settings. Raises ModelError where they can't be read, UnsupportedModelError where not kept to."""
    config = loading.generation_config(plan.source)
    own = read_settings(config, end_tokens(config, tokenizer))
    if words := in_words(own):
        plan.decisions["decoding"] = Decision(words, "the model's own settings, which plain decoding has as well")
    if asked := sampling_asked(config):
        plan.decisions["sampling"] = Decision(
            "as the caller says", f"greedy by default; the model's own settings aren't used: {asked}"
        )
    return own


def _make_exact(plan: Plan, engine: Engine, stages: Callable[[str], None], widened: dict[int, int]) -> None:
    """Have the engine's greedy text be plain decoding's to the token."""
    from dynx.speculation.exactness import make_alike, prepare

    if plan.decisions["draft"].value == "none":
        make_alike(engine.target, widened)
        plan.decisions["exact"] = Decision("by every pass", "it is plain decoding")
        return

    stages("measuring how passes round")
    known = plan.profile.measured.get("noise") if plan.profile else None
    engine.exact, plan.decisions["exact"] = prepare(engine.target, engine.drafters.exit_layers, known, widened)


def _library(wish: Wish) -> str:
    """The text of --lookup, read before anything slow."""
    if wish.lookup is None:
        return ""
    try:
        return read(wish.lookup.read_bytes(), str(wish.lookup))
    except OSError as e:
        raise UsageError(f"--lookup {wish.lookup} can't be read: {e.strerror}") from None


def _knowledge(plan: Plan, warn: Callable[[str], None]) -> Knowledge:
    """What the plan's profile says; one that can't be used leaves the plan as if there were none.

    Without one that was measured here nothing is staked at first, unless drafters were asked for.
    """
    if plan.bundled is not None:
        knowledge = knowledge_of(plan.bundled, warn=warn, foreign=True)
        if not knowledge.costs.foreign:
            plan.bundled, plan.decisions["profile"] = (
                None,
                Decision("none", "the one that came with the model can't be used"),
            )
    else:
        knowledge = knowledge_of(plan.profile, warn=warn)
    if plan.auto:
        knowledge.stake = 0.0
    if plan.profile is not None and not knowledge.from_profile:
        if plan.wish.require_profile:
            raise NoProfileError(
                f"profile {plan.profile.key.id} can't be used", hint=f"{calibrate_command(plan.wish)} measures it anew"
            )
        plan.profile = None
        plan.decisions["profile"] = Decision("none", "the stored one can't be used")
    return knowledge


def _load_drafter(plan: Plan, tokenizer: Any, kernels: Kernels, stages: Callable[[str], None]) -> Any:
    source = plan.drafter
    if source is None:
        raise RuntimeError("there is no draft model to load")
    stages(f"loading {source.name}")
    why = loading.same_vocabulary(tokenizer, loading.load_tokenizer(source))
    if why:
        raise ModelError(
            f"{source.name} can't draft for {plan.source.name}: another vocabulary ({why})",
            hint="a draft model needs the target's tokenizer; --draft self and --draft lookup need none",
        )
    backend = kernels.drafter(source)
    if not backend.can_rollback.value:
        raise ModelError(f"{source.name} can't draft: {backend.can_rollback.reason}")
    return backend


def _exit_layers(plan: Plan, fitted: dict[str, Any], layers: int) -> int | None:
    """The exit that a profile picked; without one, a third of the depth, and only if asked for by name."""
    if "self" not in plan.kinds:
        return None
    known = fitted.get("exit_layers")
    if isinstance(known, int) and 0 < known < layers:
        return known
    if "origins" in fitted:
        return None  # calibration looked, and no exit was worth it
    return None if plan.auto else max(1, layers // 3)


def _describe_drafters(plan: Plan, drafters: Any) -> Decision[str]:
    names = []
    known = plan.profile or plan.bundled
    dropped = known is not None and (
        (plan.drafter is not None and drafters.model is None) or ("self" in plan.kinds and not drafters.exit_layers)
    )
    if drafters.model is not None and plan.drafter is not None:
        names.append(f"model {plan.drafter.name}")
    if drafters.exit_layers:
        names.append(f"self after layer {drafters.exit_layers}")
    if drafters.lookup:
        names.append("lookup")
    why = "asked for"
    if plan.auto:
        why = (
            "weighed each round by measured costs"
            if plan.profile
            else "tried where that can't cost more than 1 %: nothing is measured here yet"
        )
    if dropped and known is not None:
        why = f"{'calibration' if plan.profile else 'came with the model'}: {known.decision['summary']}"
    elif drafters.late is not None and plan.drafter is not None:
        why += f"; {plan.drafter.name} isn't loaded before the work is long enough to pay for that"
    return Decision(", ".join(names) or "none", why)


def widened_of(profile: Profile) -> dict[int, int]:
    """Widths of passes that are run wider than asked, as calibration measured; none where that isn't written."""
    try:
        found = {int(asked): int(run) for asked, run in profile.fitted.get("widened", {}).items()}
    except (AttributeError, TypeError, ValueError):
        return {}
    return {asked: run for asked, run in found.items() if 0 < asked < run <= MAX_PADDED_TOKENS}


def knowledge_of(
    profile: Profile | None, *, warn: Callable[[str], None] = lambda _: None, foreign: bool = False
) -> Knowledge:
    """What a profile says, as the engine takes it; a profile whose contents don't parse counts as none.

    Of a `foreign` one, measured on another machine, acceptance holds, costs are ratios that this machine may soon correct, and
    nothing is promised.
    """
    from dynx.runtime.costs import FOREIGN_WEIGHT, CostCurve
    from dynx.speculation.acceptance_model import Reliability
    from dynx.speculation.engine import Knowledge
    from dynx.speculation.policy import Costs

    if profile is None:
        return Knowledge()
    try:
        costs = Costs()
        measured, fitted = profile.measured, profile.fitted
        costs.target = CostCurve.from_json(measured["target"], costs.drift)
        if measured.get("complete"):
            costs.complete = CostCurve.from_json(measured["complete"], costs.drift)
        for origin, curve in measured.get("draft", {}).items():
            costs.draft[origin] = CostCurve.from_json(curve, costs.drift)
        for origin, seconds in measured.get("overhead", {}).items():
            costs.overhead[origin] = float(seconds)
        reliability = {(o, True): Reliability.from_json(r) for o, r in fitted.get("reliability", {}).items()}
        if foreign:
            for curve in (costs.target, costs.complete, *costs.draft.values()):
                curve.table = {n: (seconds, FOREIGN_WEIGHT) for n, (seconds, _) in curve.table.items()}
            costs.foreign = True
            return Knowledge(costs, reliability)
        rate = fitted.get("tokens_per_second")
        return Knowledge(costs, reliability, float(rate) if rate else None, from_profile=True)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        return Knowledge()
