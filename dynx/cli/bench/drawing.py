"""`dynx bench` for pipelines that draw: fewer steps for all pictures alike against as many as each picture needs."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.command import Prepared, conditions, read_prompts, settings, tolerance_of
from dynx.cli.classify.truncation import TOKENIZERS
from dynx.cli.draw.command import open_assembly
from dynx.cli.draw.requests import parse_size
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.arms.drawing import Gallery, Pair, Quality
    from dynx.bench.gates import Gate
    from dynx.bench.report import BenchResult
    from dynx.bench.runner import Arm, Group, Measurements
    from dynx.cli.bench.options import Options
    from dynx.cli.console import Terminal
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.plan import ImageGeneratorPlan

TASK, ARE, IS_ONE = "draw", "pipelines that draw", "draws"

SEED = 1
"""Of prompts from the vocabulary; calibration's are made with 0."""


@dataclass(frozen=True)
class Settings:
    """What pipelines that draw have of their own on the command line."""

    runs: int = 2
    prompts: int = 16
    static: str = "6,8,10,15,20,25"
    quality: float = 0.95
    guidance: float | None = None
    size: str | None = None
    backend: str = "auto"
    min_quality: float | None = None


def prepare(options: Options, terminal: Terminal) -> Prepared:
    """The arms, the prompts and seeds, and how a result is made of the pictures."""
    from dynx.bench import report
    from dynx.bench.arms import drawing
    from dynx.diffusion.clip_similarity import vision_tower_of
    from dynx.diffusion.generator import ImageGenerator

    own = settings(options, Settings)
    steps = drawing.parse_steps(own.static)
    texts = None if options.data is None else read_prompts(options.data)
    assembly = open_assembly(plan_of(options, own, terminal), terminal, draft=False)
    cases = drawing.pairs(prompts(assembly, texts, own.prompts), own.prompts)
    tower = vision_tower_of(assembly.engine.pipe)
    gallery = drawing.Gallery(alike=tower.similarity if tower else None)
    arms = drawing.own_arms(ImageGenerator(assembly), steps, gallery, time.perf_counter)
    arms += further_arms(options, assembly, gallery, terminal)
    facts = header(assembly, own, cases)

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        quality = drawing.judge(measured, gallery)
        standing = drawing.Standing.of(measured, quality, own.quality)
        floor = drawing.floor(gallery)
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
            rivals=standing.rivals(),
            columns=drawing.columns(quality),
        )
        return result.judged(gates(result, quality, options))

    return Prepared(TASK, arms, cases, facts, own.runs, conclude)


def further_arms(
    options: Options, assembly: LoadedImageGenerator, gallery: Gallery, terminal: Terminal
) -> list[Arm[Any]]:
    """What --arm asks for."""
    from dynx.bench.arms import drawing
    from dynx.diffusion.generator import ImageGenerator

    arms: list[Arm[Any]] = []
    for one in arm_options.parse_all(options.arms or []):
        if one.kind == "peer":
            raise UsageError(f"--arm {one.name}: transformers has no pipelines that draw; plain is diffusers' own run")
        arm_options.check_takes(one, Settings, "draws")
        theirs = one.applied(options)
        own = settings(theirs, Settings)
        steps = drawing.parse_steps(own.static) if "static" in one.differs else []
        if len(steps) > 1:
            raise UsageError(f"--arm {one.name}: an arm has one number of steps, not {own.static}")
        other = assembly
        if set(one.differs) - {"static"}:
            other = open_assembly(plan_of(theirs, own, terminal), terminal, draft=False)
        group: Group = "static" if steps else "dynamic"
        if other.plan.key.model != assembly.plan.key.model:
            group = "external"
        arm = drawing.further_arm(one.name, group, ImageGenerator(other), steps, gallery, time.perf_counter)
        arms.append(arm_options.side_by_side(arm, other, assembly))
    return arms


def plan_of(options: Options, own: Settings, terminal: Terminal) -> ImageGeneratorPlan:
    """Decide without loading anything. Raises DynxError."""
    from dynx.diffusion import make_plan
    from dynx.diffusion.plan import ImageGeneratorRequest

    if own.guidance is not None and not math.isfinite(own.guidance):
        raise UsageError(f"--guidance {own.guidance} is no number")
    request = ImageGeneratorRequest(
        options.model,
        backend=str(own.backend),
        quality=own.quality,
        guidance=own.guidance,
        size=parse_size(own.size),
        profile=options.profile,
        **options.for_request(),
    )
    return make_plan(request, warn=terminal.warn)


def prompts(assembly: LoadedImageGenerator, texts: Sequence[str] | None, count: int) -> list[str]:
    """What to draw: at most so many of the texts, drawn at random and left in order, else of the pipeline's own vocabulary.

    At random, because files are sorted more often than not. Raises UsageError for texts that a pipeline can't take.
    """
    if not assembly.engine.adapter.prompted:
        if texts is not None:
            raise UsageError(f"{assembly.plan.source.name} draws without a prompt", hint="leave out --data")
        return [""]
    if texts is None:
        return unseen(assembly, count)
    chosen = range(len(texts))
    some = chosen if len(texts) <= count else sorted(random.Random(0).sample(chosen, count))  # noqa: S311
    return [texts[i] for i in some]


def unseen(assembly: LoadedImageGenerator, count: int) -> list[str]:
    """Prompts of the vocabulary that calibration doesn't make, unless it is too small for that."""
    from dynx.diffusion import prompts
    from dynx.diffusion.prompts import own_prompts

    pipe = assembly.engine.pipe
    tokenizer = next((t for name in TOKENIZERS if (t := getattr(pipe, name, None)) is not None), None)
    if tokenizer is None:
        raise UsageError("the pipeline has no vocabulary to make prompts of", hint="--data FILE")
    learned = set(own_prompts(assembly.engine))
    made = prompts.prompts(tokenizer, 4 * count + len(learned), SEED)
    new = [text for text in dict.fromkeys(made) if text not in learned]
    return (new or made)[:count]


def header(assembly: LoadedImageGenerator, own: Settings, cases: Sequence[Pair]) -> dict[str, Any]:
    """Where and on what this was measured."""
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
        steps=None if steps is None else {"value": steps.value, "reason": steps.reason},
        backend=assembly.plan.spec[0],
        guarantee=known.guarantee.json() if known else None,
    )


def notes(assembly: LoadedImageGenerator, texts: Sequence[str] | None) -> list[str]:
    """What the comparison is worth."""
    from dynx.bench.arms.drawing import why_plain
    from dynx.runtime.hashing import text_hash

    out = []
    adapter, profile, reason = assembly.engine.adapter, assembly.plan.profile, why_plain(assembly)
    if reason is not None:
        out.append(f"dynamic does what plain does: {reason}")
    elif profile is not None and texts is not None and profile.evidence.get("data") == text_hash(texts):
        out.append("the steps were learned from these prompts: others would show what they are worth")
    if assembly.engine.kernels is not None:
        out.append(
            f"plain is the pipeline as it was loaded; the other arms run its network on {assembly.engine.kernels}"
        )
    if adapter.random:
        out.append(f"{adapter.scheduler} draws noise at every step, so that fewer steps draw another picture")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], options: Options) -> list[Gate]:
    """What the command line asks for: speed against plain, bit for bit, and so like plain's for nearly all pictures."""
    from dynx.bench.gates import min_quality, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        bar, tolerance = options.min_speedup, tolerance_of(options)
        judged.append(min_speedup(arm.ratio, bar, failure=failure, baseline=result.reference.name, tolerance=tolerance))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if options.min_quality is not None:
        found = quality.get(arm.name)
        reached, of = (found.reached(options.min_quality), len(found.likeness)) if found else (0, 0)
        judged.append(min_quality(reached, of, options.min_quality, failure=failure))
    return judged
