"""`dynx bench` for pipelines that draw: fewer steps for all pictures alike against as many as each picture needs."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import conditions, contest, read_prompts, settings
from dynx.cli.draw import open_assembly
from dynx.cli.draw_orders import parse_size
from dynx.cli.overlong import TOKENIZERS
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.drawing import Quality
    from dynx.bench.gate import Gate
    from dynx.bench.report import BenchResult
    from dynx.cli.bench import Options
    from dynx.cli.console import Terminal
    from dynx.diffusion.setup import Assembly, Plan

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
    min_quality: float | None = None


def measure(options: Options, terminal: Terminal) -> BenchResult:
    """Run the arms on prompts and seeds, compare their pictures, condense and judge."""
    from dynx.bench import drawing, report
    from dynx.diffusion.drawing import Artist

    own = settings(options, Settings)
    steps = drawing.parse_steps(own.static)
    texts = None if options.data is None else read_prompts(options.data)
    assembly = open_assembly(make_plan(options, own, terminal), terminal, draft=False)
    cases = drawing.pairs(prompts(assembly, texts, own.prompts), own.prompts)
    gallery = drawing.Gallery()
    arms = drawing.own_arms(Artist(assembly), steps, gallery, time.perf_counter)
    measured = contest(arms, cases, options, terminal, rounds=own.runs)
    quality = drawing.judge(measured, gallery)
    standing = drawing.Standing.of(measured, quality, own.quality)
    floor = drawing.floor(gallery)
    result = report.summarize(
        measured,
        task="draw",
        unit="images",
        header=header(assembly, own, len(cases)),
        rng=random.Random(0),  # noqa: S311
        facts={name: q.json() for name, q in quality.items()},
        notes=[*standing.sentences(), *notes(assembly, texts), *([floor] if floor else [])],
        case="picture",
        rivals=standing.rivals(),
        columns=drawing.columns(quality),
    )
    return result.judged(gates(result, quality, options))


def make_plan(options: Options, own: Settings, terminal: Terminal) -> Plan:
    """Decide without loading anything. Raises DynxError."""
    from dynx.diffusion import setup

    if options.against is not None:
        raise UsageError(f"--against {options.against}: it has no pipelines that draw; plain is diffusers' own run")
    if own.guidance is not None and not math.isfinite(own.guidance):
        raise UsageError(f"--guidance {own.guidance} is no number")
    wish = setup.Wish(
        model=options.model,
        device=options.device,
        dtype=str(options.dtype),
        threads=options.threads,
        quality=own.quality,
        guidance=own.guidance,
        size=parse_size(own.size),
        profile=options.profile,
        allow_pickle=options.allow_pickle,
        offline=options.offline,
    )
    return setup.make_plan(wish, warn=terminal.warn)


def prompts(assembly: Assembly, texts: Sequence[str] | None, count: int) -> list[str]:
    """What to draw: at most so many of the texts, drawn at random and left in order, else of the pipeline's own vocabulary.

    At random, because files are sorted more often than not. Raises UsageError for texts that a pipeline can't take.
    """
    if not assembly.engine.family.prompted:
        if texts is not None:
            raise UsageError(f"{assembly.plan.source.name} draws without a prompt", hint="leave out --data")
        return [""]
    if texts is None:
        return unseen(assembly, count)
    chosen = range(len(texts))
    some = chosen if len(texts) <= count else sorted(random.Random(0).sample(chosen, count))  # noqa: S311
    return [texts[i] for i in some]


def unseen(assembly: Assembly, count: int) -> list[str]:
    """Prompts of the vocabulary that calibration doesn't make, unless it is too small for that."""
    from dynx.cli.calibrate_drawing import own_prompts
    from dynx.diffusion import vocabulary

    pipe = assembly.engine.pipe
    tokenizer = next((t for name in TOKENIZERS if (t := getattr(pipe, name, None)) is not None), None)
    if tokenizer is None:
        raise UsageError("the pipeline has no vocabulary to make prompts of", hint="--data FILE")
    learned = set(own_prompts(assembly))
    made = vocabulary.prompts(tokenizer, 4 * count + len(learned), SEED)
    new = [text for text in dict.fromkeys(made) if text not in learned]
    return (new or made)[:count]


def header(assembly: Assembly, own: Settings, count: int) -> dict[str, Any]:
    """Where and on what this was measured."""
    family, known, steps = assembly.engine.family, assembly.knowledge, assembly.decisions["steps"]
    return conditions(
        assembly.plan,
        library="diffusers",
        pipeline=family.name,
        scheduler=family.scheduler,
        plain_steps=family.default_steps,
        pictures=count,
        quality=own.quality,
        guidance=family.default_guidance if own.guidance is None else own.guidance,
        size=own.size or "the pipeline's own",
        steps={"value": steps.value, "reason": steps.reason},
        guarantee=known.guarantee.json() if known else None,
    )


def notes(assembly: Assembly, texts: Sequence[str] | None) -> list[str]:
    """What the comparison is worth."""
    from dynx.bench.drawing import why_plain
    from dynx.runtime.hashing import text_hash

    out = []
    family, profile, reason = assembly.engine.family, assembly.plan.profile, why_plain(assembly)
    if reason is not None:
        out.append(f"dynamic does what plain does: {reason}")
    elif profile is not None and texts is not None and profile.evidence.get("data") == text_hash(texts):
        out.append("the steps were learned from these prompts: others would show what they are worth")
    if family.random:
        out.append(f"{family.scheduler} draws noise at every step, so that fewer steps draw another picture")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], options: Options) -> list[Gate]:
    """What the command line asks for: speed against plain, bit for bit, and so like plain's for nearly all pictures."""
    from dynx.bench.gate import min_quality, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        judged.append(min_speedup(arm.ratio, options.min_speedup, failure=failure, baseline=result.reference.name))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if options.min_quality is not None:
        found = quality.get(arm.name)
        reached, of = (found.reached(options.min_quality), len(found.likeness)) if found else (0, 0)
        judged.append(min_quality(reached, of, options.min_quality, failure=failure))
    return judged
