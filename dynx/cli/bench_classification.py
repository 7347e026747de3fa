"""`dynx bench` for classifiers: length-bucketed batches against early exits, and how many labels those change."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import conditions, contest, settings
from dynx.cli.classify import open_assembly, wish_of
from dynx.cli.learning_data import read_inputs
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.bench.classification import Quality
    from dynx.bench.gate import Gate
    from dynx.bench.report import BenchResult
    from dynx.cli.bench import Options
    from dynx.cli.console import Terminal
    from dynx.early_exit.collect import Inputs
    from dynx.early_exit.setup import Assembly


@dataclass(frozen=True)
class Settings:
    """What classifiers have of their own on the command line."""

    runs: int = 5
    prompts: int = 1024
    tsv: bool = False
    column: str | None = None
    field: str | None = None
    labels: str | None = None
    batch_size: int = 32
    max_length: int | None = None
    max_disagreement: float = 0.02
    confidence: float = 0.95
    tolerance: float | None = None


def measure(options: Options, terminal: Terminal) -> BenchResult:
    """Run the arms on inputs, compare their labels, condense and judge."""
    from dynx.bench import classification, report
    from dynx.early_exit.setup import make_plan

    own = settings(options, Settings)
    wished = replace(
        options, batch_size=own.batch_size, max_disagreement=own.max_disagreement, confidence=own.confidence
    )
    plan = make_plan(wish_of(wished), warn=terminal.warn)
    if options.data is None:
        what = "a folder of images" if plan.kind == "image" else "a file of texts, one per line"
        raise UsageError("--data is needed: a classifier is measured on inputs like yours", hint=f"--data {what}")
    inputs = read_inputs(options.data, plan.kind, tsv=own.tsv, column=own.column, field=own.field)
    assembly = open_assembly(plan, terminal)
    if assembly.labels.problem == "regression" and own.tolerance is None:
        raise UsageError(
            "the model gives numbers, and numbers are hardly ever equal",
            hint="--tolerance T says how far an answer may be off",
        )
    gold = read_truth(own.labels, assembly, len(inputs.items))
    items, gold, cut = choose(inputs, gold, assembly, own.prompts, terminal)
    cases = classification.cut(items, assembly.batch)
    arms = classification.own_arms(assembly)
    if options.against:
        arms += classification.peer_arms(assembly, cutting=cut > 0)
    full = classification.full_answers(assembly, items)
    measured = contest(arms, cases, options, terminal, rounds=own.runs)
    quality = classification.judge_answers(measured, full=full, gold=gold, tolerance=own.tolerance or 0.0)
    result = report.summarize(
        measured,
        task="classify",
        unit="labels",
        header=header(assembly, len(items), cut),
        rng=random.Random(0),  # noqa: S311
        facts={name: q.json() for name, q in quality.items()},
        identical={name: q.same.share for name, q in quality.items()},
        notes=notes(assembly, inputs, quality),
        case="part",
    )
    return result.judged(gates(result, quality, options))


def read_truth(path: str | None, assembly: Assembly, count: int) -> list[str | None] | None:
    """The true label of each input, None without --labels. Raises UsageError where there are more or fewer of them."""
    if path is None:
        return None
    from dynx.cli.gold import read_gold

    if assembly.labels.problem != "single":
        raise UsageError("--labels compares single labels, and this model gives several or numbers")
    rows = list(read_gold(Path(path), assembly.labels.names).rows)
    while len(rows) > count and rows[-1] is None:
        rows.pop()
    if len(rows) != count:
        raise UsageError(
            f"{path} has {len(rows):,} labels, and there are {count:,} inputs",
            hint="--labels wants one for each input, in the same order; empty inputs are left out",
        )
    return [None if id_ is None else assembly.labels.names[id_] for id_ in rows]


def choose(
    inputs: Inputs, gold: list[str | None] | None, assembly: Assembly, most: int, terminal: Terminal
) -> tuple[list[Any], list[str | None] | None, int]:
    """At most so many inputs, drawn at random and left in order, with their true labels; and how many of them are cut.

    At random, because files are sorted more often than not. Raises UsageError where none of them can be read.
    """
    from dynx.bench.classification import readable

    chosen = list(range(len(inputs.items)))
    if len(chosen) > most:
        chosen = sorted(random.Random(0).sample(chosen, most))  # noqa: S311 - the same ones each time
    good, cut = readable(assembly, [inputs.items[i] for i in chosen])
    if len(good) < len(chosen):
        terminal.warn(f"{len(chosen) - len(good):,} of {len(chosen):,} inputs can't be read and were left out")
    if not good:
        raise UsageError("none of the inputs can be read")
    kept = [chosen[i] for i in good]
    return [inputs.items[i] for i in kept], None if gold is None else [gold[i] for i in kept], cut


def header(assembly: Assembly, count: int, cut: int) -> dict[str, Any]:
    """Where and on what this was measured."""
    exits, known = assembly.decisions.get("exits"), assembly.knowledge
    texts: dict[str, Any] = {"max_length": getattr(assembly.reader, "limit", None), "truncated": cut}
    return conditions(
        assembly.plan,
        batch_size=assembly.batch,
        inputs=count,
        exits={"value": exits.value, "reason": exits.reason} if exits else None,
        guarantee=known.guarantee.json() if known else None,
        **(texts if assembly.plan.kind == "text" else {}),
    )


def notes(assembly: Assembly, inputs: Inputs, quality: Mapping[str, Quality]) -> list[str]:
    """What is to be said of the labels, and of what the comparison is worth."""
    from dynx.bench.classification import sentences
    from dynx.runtime.hashing import text_hash

    out = list(sentences(quality, assembly.attachment.depth))
    exits, profile = assembly.decisions.get("exits"), assembly.plan.profile
    if assembly.knowledge is None and exits is not None:
        out.append(f"dynamic has no exits and does what bucketed does: {exits.reason}")
    elif profile is not None and profile.evidence.get("data") == text_hash(inputs.names):
        out.append("these are the inputs that the exits were learned from: others would show what they are worth")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], options: Options) -> list[Gate]:
    """What the command line asks for. Speed is judged against the faster of bucketed and plain, not a straw man."""
    from dynx.bench.gate import max_disagreement, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        ratio, baseline = arm.ratio, result.reference.name
        for found in result.comparisons:
            static = result.arm(found.baseline).ratio
            if found.arm == arm.name and static is not None and static.ratio >= 1:
                ratio, baseline = found.ratio, found.baseline
        judged.append(min_speedup(ratio, options.min_speedup, failure=failure, baseline=baseline))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if options.max_disagreement is not None:
        found_ = quality.get(arm.name)
        differing, of = (found_.agreement.of - found_.agreement.hits, found_.agreement.of) if found_ else (0, 0)
        judged.append(max_disagreement(differing, of, options.max_disagreement, failure=failure))
    return judged
