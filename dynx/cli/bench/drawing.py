"""`dynx bench` for pipelines: compares the same number of steps for all pictures with as many as each picture needs."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.task import Prepared, conditions, settings
from dynx.cli.bench.values import parse_steps, tolerance_or
from dynx.cli.calibration_data import read_prompts
from dynx.cli.classify.truncation import TOKENIZERS
from dynx.cli.draw.command import open_assembly
from dynx.cli.draw.records import parse_size
from dynx.diffusion.runs import LONG_RUN
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.arms.drawing import Pair, PictureComparison, Quality
    from dynx.bench.measurements import Group, Measurements
    from dynx.bench.result import BenchResult, Gate
    from dynx.bench.runner import Arm
    from dynx.cli.console import Terminal
    from dynx.cli.options.bench import Request
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.plan import ImageGeneratorPlan, ImageGeneratorRequest

TASK, MODELS, MODEL_IS = "draw", "text-to-image pipelines", "is a text-to-image pipeline"

PROMPT_SEED = 1
"""Seed of the prompts made from the vocabulary; calibration uses 0."""


@dataclass(frozen=True)
class Settings:
    """Options that only pipelines have, with their defaults here."""

    runs: int = 2
    prompts: int = 16
    static: str = "6,8,10,15,20,25"
    quality: float = 0.95
    guidance: float | None = None
    size: str | None = None
    lora: Sequence[str] = ()
    image: str | None = None
    strength: float | None = None
    mask: str | None = None
    control_image: str | None = None
    control_scale: float | None = None
    backend: str = "auto"
    min_quality: float | None = None


def prepare(request: Request, terminal: Terminal) -> Prepared:
    """Build the arms, choose prompts and seeds, and return the function that builds a result from the pictures."""
    from dynx.bench import report
    from dynx.bench.arms import drawing
    from dynx.diffusion.clip_similarity import vision_tower_of
    from dynx.diffusion.generator import ImageGenerator

    own = settings(request, Settings)
    steps = parse_steps(own.static)
    texts = None if request.data is None else read_prompts(request.data)
    assembly = open_assembly(make_plan(request, terminal), terminal, draft=False, pictures=LONG_RUN)
    cases = drawing.pairs(prompts(assembly, texts, own.prompts), own.prompts)
    tower = vision_tower_of(assembly.engine.pipe)
    comparison = drawing.PictureComparison(alike=tower.similarity if tower else None)
    arms = drawing.own_arms(ImageGenerator(assembly), steps, comparison, time.perf_counter)
    arms += further_arms(request, assembly, comparison, terminal)
    facts = header(assembly, own, cases)

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        quality = drawing.judge(measured, comparison)
        standing = drawing.StaticComparison.of(measured, quality, own.quality)
        floor = drawing.floor(comparison)
        result = report.summarize(
            measured,
            task=TASK,
            unit="images",
            header=facts,
            rng=random.Random(0),  # noqa: S311
            confidence=confidence,
            facts={name: q.json() for name, q in quality.items()},
            notes=[*standing.sentences(), *notes(assembly, texts), *([floor] if floor else [])],
            case="picture",
            baselines=standing.baselines(),
            columns=drawing.columns(quality),
        )
        return result.judged(gates(result, quality, request))

    return Prepared(TASK, arms, cases, facts, own.runs, conclude)


def further_arms(
    request: Request, assembly: LoadedImageGenerator, comparison: PictureComparison, terminal: Terminal
) -> list[Arm[Any]]:
    """Build the arms of --arm."""
    from dynx.bench.arms import drawing
    from dynx.diffusion.generator import ImageGenerator

    arms: list[Arm[Any]] = []
    for one in arm_options.parse_all(request.arms or []):
        if one.kind == "peer":
            raise UsageError(
                f"--arm {one.name}: transformers has no text-to-image pipelines; plain is diffusers' own run"
            )
        arm_options.check_takes(one, Settings, "text-to-image pipelines")
        theirs = one.applied(request)
        own = settings(theirs, Settings)
        steps = parse_steps(own.static) if "static" in one.differs else []
        if len(steps) > 1:
            raise UsageError(f"--arm {one.name}: an arm has one number of steps, not {own.static}")
        other = assembly
        if set(one.differs) - {"static"}:
            other = open_assembly(make_plan(theirs, terminal), terminal, draft=False, pictures=LONG_RUN)
        group: Group = "static" if steps else "dynamic"
        if other.plan.key.model != assembly.plan.key.model:
            group = "external"
        arm = drawing.further_arm(one.name, group, ImageGenerator(other), steps, comparison, time.perf_counter)
        arms.append(arm_options.side_by_side(arm, other.decisions.threads.value, assembly.decisions.threads.value))
    return arms


def make_plan(request: Request, terminal: Terminal) -> ImageGeneratorPlan:
    """Resolve a plan without loading anything. Raises DynxError."""
    from dynx import diffusion

    return diffusion.make_plan(request_of(request), warn=terminal.warn)


def request_of(request: Request) -> ImageGeneratorRequest:
    """Return the request for the pipeline, with this task's defaults. Raises UsageError for settings that are out of range."""
    from dynx.diffusion.plan import ImageGeneratorRequest

    own = settings(request, Settings)
    if own.guidance is not None and not math.isfinite(own.guidance):
        raise UsageError(f"--guidance must be a finite number, not {own.guidance}")
    return ImageGeneratorRequest(
        model=request.model,
        backend=str(own.backend),
        quality=own.quality,
        guidance=own.guidance,
        size=parse_size(own.size),
        lora=tuple(own.lora),
        image=own.image,
        strength=own.strength,
        mask=own.mask,
        control_image=own.control_image,
        control_scale=own.control_scale,
        profile=request.profile,
        **request.for_request(),
    )


def prompts(assembly: LoadedImageGenerator, texts: Sequence[str] | None, count: int) -> list[str]:
    """Return at most `count` prompts in order: some of the texts, else made of the pipeline's own vocabulary.

    They are drawn at random, because files are sorted more often than not. Raises UsageError for texts that the pipeline
    can't take.
    """
    if not assembly.engine.adapter.prompted:
        if texts is not None:
            raise UsageError(f"{assembly.plan.source.name} takes no prompt", hint="leave out --data")
        return [""]
    if texts is None:
        return unseen(assembly, count)
    chosen = range(len(texts))
    some = chosen if len(texts) <= count else sorted(random.Random(0).sample(chosen, count))  # noqa: S311
    return [texts[i] for i in some]


def unseen(assembly: LoadedImageGenerator, count: int) -> list[str]:
    """Make prompts from the vocabulary that calibration doesn't make, unless the vocabulary is too small for that."""
    from dynx.diffusion import prompts
    from dynx.diffusion.prompts import own_prompts

    pipe = assembly.engine.pipe
    tokenizer = next((t for name in TOKENIZERS if (t := getattr(pipe, name, None)) is not None), None)
    if tokenizer is None:
        raise UsageError("no prompts can be generated, since the pipeline has no vocabulary", hint="--data FILE")
    learned = set(own_prompts(assembly.engine))
    made = prompts.prompts(tokenizer, 4 * count + len(learned), PROMPT_SEED)
    new = [text for text in dict.fromkeys(made) if text not in learned]
    return (new or made)[:count]


def header(assembly: LoadedImageGenerator, own: Settings, cases: Sequence[Pair]) -> dict[str, Any]:
    """Return the header of a result: the device, the versions and the pictures."""
    from dynx.runtime.hashing import text_hash

    adapter, known, steps = assembly.engine.adapter, assembly.step_profile, assembly.decisions.steps
    return conditions(
        assembly.plan,
        library="diffusers",
        pipeline=adapter.name,
        scheduler=adapter.scheduler,
        plain_steps=adapter.default_steps,
        pictures=len(cases),
        data_hash=text_hash(f"{pair.seed} {pair.prompt}" for pair in cases),
        quality=own.quality,
        guidance=adapter.default_guidance if assembly.plan.request.guidance is None else assembly.plan.request.guidance,
        size=own.size or "the pipeline's own",
        **_inputs(assembly),
        steps=None if steps is None else {"value": steps.value, "reason": steps.reason},
        backend=assembly.plan.spec[0],
        guarantee=known.guarantee.json() if known else None,
    )


def _inputs(assembly: LoadedImageGenerator) -> dict[str, Any]:
    """Return the adapters, and what pictures start from and are controlled by; nothing for those that there aren't."""
    from dynx.diffusion.apply_profile import control_scale_of, strength_of

    engine, found = assembly.engine, dict[str, Any]()
    if adapters := assembly.plan.request.lora:
        found["adapters"] = list(adapters)
    if engine.start is not None:
        found |= {"image": engine.start.name, "strength": strength_of(engine), "masked": engine.start.mask is not None}
    if engine.control is not None:
        found |= {"control_image": engine.control.name, "control_scale": control_scale_of(engine)}
    return found


def notes(assembly: LoadedImageGenerator, texts: Sequence[str] | None) -> list[str]:
    """Return sentences about the limits of the comparison."""
    from dynx.bench.arms.drawing import why_plain
    from dynx.runtime.hashing import text_hash

    out = []
    adapter, profile, reason = assembly.engine.adapter, assembly.plan.profile, why_plain(assembly)
    if reason is not None:
        out.append(f"dynamic equals plain: {reason}")
    elif profile is not None and texts is not None and profile.evidence.get("data") == text_hash(texts):
        out.append("the steps were calibrated on these prompts; measure on others")
    if assembly.engine.kernels is not None:
        out.append(
            f"plain is the pipeline as it was loaded; the other arms run its network on {assembly.engine.kernels}"
        )
    if adapter.random:
        out.append(f"{adapter.scheduler} adds noise at every step, so fewer steps give another picture")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], request: Request) -> list[Gate]:
    """Decide the gates that the command line sets: speed against plain, equal pixels, and SSIM to plain's pictures."""
    from dynx.bench.gates import min_quality, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if request.min_speedup is not None:
        bar, tolerance = request.min_speedup, tolerance_or(request.tolerance, 0.0)
        judged.append(min_speedup(arm.ratio, bar, failure=failure, baseline=result.reference.name, tolerance=tolerance))
    if request.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if request.min_quality is not None:
        found = quality.get(arm.name)
        reached, of = (found.reached(request.min_quality), len(found.likeness)) if found else (0, 0)
        judged.append(min_quality(reached, of, request.min_quality, failure=failure))
    return judged
