"""`dynx bench` for classifiers: length-bucketed batches against early exits, and how many labels those change."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.command import Prepared, conditions, settings, tolerance_of
from dynx.cli.calibration_data import read_inputs
from dynx.cli.classify.command import open_assembly
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.arms.classification import Quality
    from dynx.bench.gates import Gate
    from dynx.bench.report import BenchResult
    from dynx.bench.runner import Arm, Group, Measurements
    from dynx.cli.bench.options import Options
    from dynx.cli.console import Terminal
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.features import Inputs
    from dynx.early_exit.plan import ClassifierRequest

TASK, ARE, IS_ONE = "classify", "classifiers", "is a classifier"


@dataclass(frozen=True)
class Settings:
    """What classifiers have of their own on the command line."""

    runs: int = 5
    prompts: int = 1024
    tsv: bool = False
    column: str | None = None
    field: str | None = None
    labels: str | None = None
    backend: str = "auto"
    quantize: str = "none"
    batch_size: int = 32
    max_length: int | None = None
    max_disagreement: float = 0.02
    confidence: float = 0.95
    within: float | None = None


def prepare(options: Options, terminal: Terminal) -> Prepared:
    """The arms and the inputs in cases, and how a result is made of what they did."""
    from dynx.bench.arms import classification
    from dynx.bench.report import summarize

    own = settings(options, Settings)
    assembly, inputs = open_inputs(options, own, terminal)
    if assembly.labels.problem == "regression" and own.within is None:
        raise UsageError(
            "the model gives numbers, and numbers are hardly ever equal",
            hint="--within T says how far an answer may be off",
        )
    gold = read_truth(own.labels, assembly, inputs, quoted=own.tsv)
    items, gold, cut = choose(inputs, gold, assembly, own.prompts, terminal)
    cases = classification.cut(items, assembly.batch)
    default = classification.as_by_default(assembly)
    arms = classification.own_arms(assembly, default)
    arms += further_arms(options, assembly, default, cutting=cut > 0, terminal=terminal)
    full = classification.full_answers(assembly, items)
    facts = header(assembly, items, cut)

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        quality = classification.judge_answers(measured, full=full, gold=gold, tolerance=own.within or 0.0)
        result = summarize(
            measured,
            task=TASK,
            unit="labels",
            header=facts,
            rng=random.Random(0),  # noqa: S311
            confidence=confidence,
            facts={name: q.json() for name, q in quality.items()},
            identical={name: q.same.share for name, q in quality.items()},
            notes=notes(assembly, inputs, quality, made_up=options.data is None),
            case="part",
        )
        return result.judged(gates(result, quality, options))

    return Prepared(TASK, arms, cases, facts, own.runs, conclude)


def open_inputs(options: Options, own: Settings, terminal: Terminal) -> tuple[LoadedClassifier, Inputs]:
    """The model, and what --data has for it; a shipped model has inputs of its own. Raises UsageError without any."""
    from dynx.bench.sentences import sentences
    from dynx.early_exit import make_plan
    from dynx.early_exit.features import Inputs

    plan = make_plan(request_of(options, own), warn=terminal.warn)
    if options.data is not None:
        inputs = read_inputs(
            options.data, plan.kind, tsv=own.tsv, column=own.column, field=own.field, warn=terminal.warn
        )
    elif plan.kind == "text" and plan.source.kind == "shipped":
        made = sentences(own.prompts)
        inputs = Inputs(made, made)
    else:
        what = "a folder of images" if plan.kind == "image" else "a file of texts, one per line"
        raise UsageError("--data is needed: a classifier is measured on inputs like yours", hint=f"--data {what}")
    return open_assembly(plan, terminal), inputs


def request_of(options: Options, own: Settings) -> ClassifierRequest:
    """Return what a classifier is asked for by a command line."""
    from dynx.early_exit.plan import ClassifierRequest

    return ClassifierRequest(
        options.model,
        backend=str(options.backend or "auto"),
        quantize=str(options.quantize or "none"),
        batch_size=own.batch_size,
        max_length=own.max_length,
        max_disagreement=own.max_disagreement,
        confidence=own.confidence,
        within=own.within,
        profile=options.profile,
        **options.for_request(),
    )


def further_arms(
    options: Options, assembly: LoadedClassifier, default: LoadedClassifier, *, cutting: bool, terminal: Terminal
) -> list[Arm[Any]]:
    """What --arm asks for; `default` is the model as the peers run it."""
    from dynx.bench.arms.classification import own_arms, peer_arms
    from dynx.early_exit import make_plan

    arms: list[Arm[Any]] = []
    for one in arm_options.parse_all(options.arms or []):
        if one.kind == "peer":
            peers = peer_arms(default, cutting=cutting)
            arms += [replace(arm, name=one.name + arm.name.removeprefix("hf")) for arm in peers]
            continue
        arm_options.check_takes(one, Settings, "is a classifier's")
        theirs = one.applied(options)
        plan = make_plan(request_of(theirs, settings(theirs, Settings)), warn=terminal.warn)
        other = open_assembly(plan, terminal)
        group: Group = "dynamic" if plan.key.model == assembly.plan.key.model else "external"
        arm = replace(own_arms(other)[-1], name=one.name, group=group)
        arms.append(arm_options.side_by_side(arm, other, assembly))
    return arms


def read_truth(
    path: str | None, assembly: LoadedClassifier, inputs: Inputs, *, quoted: bool = False
) -> list[str | None] | None:
    """The true label of each input, None without --labels; the file has one for each of them, or for each row of the data.

    Raises UsageError where there are more or fewer. `quoted`: it's a table as `--tsv` reads them.
    """
    if path is None:
        return None
    from dynx.cli.classify.accuracy import read_gold

    if assembly.labels.problem != "single":
        raise UsageError("--labels compares single labels, and this model gives several or numbers")
    rows, count = list(read_gold(Path(path), assembly.labels.names, quoted=quoted).rows), len(inputs.items)
    while len(rows) > max(count, inputs.rows or 0) and rows[-1] is None:
        rows.pop()
    if inputs.places is not None and len(rows) == inputs.rows:
        rows = [rows[place] for place in inputs.places]
    while len(rows) > count and rows[-1] is None:
        rows.pop()
    if len(rows) != count:
        raise UsageError(
            f"{path} has {len(rows):,} labels, and there are {count:,} inputs",
            hint="--labels wants one for each input, in the same order, or one for each row of --data",
        )
    return [None if id_ is None else assembly.labels.names[id_] for id_ in rows]


def choose(
    inputs: Inputs, gold: list[str | None] | None, assembly: LoadedClassifier, most: int, terminal: Terminal
) -> tuple[list[Any], list[str | None] | None, int]:
    """At most so many inputs, drawn at random and left in order, with their true labels; and how many of them are cut.

    At random, because files are sorted more often than not. Raises UsageError where none of them can be read.
    """
    from dynx.bench.arms.classification import readable

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


def header(assembly: LoadedClassifier, items: Sequence[Any], cut: int) -> dict[str, Any]:
    """Where and on what this was measured."""
    from dynx.runtime.hashing import text_hash

    exits, known = assembly.decisions.exits, assembly.exit_profile
    texts: dict[str, Any] = {"max_length": getattr(assembly.preprocessor, "limit", None), "truncated": cut}
    return conditions(
        assembly.plan,
        batch_size=assembly.batch,
        inputs=len(items),
        data_hash=text_hash(map(str, items)),
        exits={"value": exits.value, "reason": exits.reason} if exits else None,
        guarantee=known.guarantee.json() if known else None,
        **(texts if assembly.plan.kind == "text" else {}),
    )


def notes(
    assembly: LoadedClassifier, inputs: Inputs, quality: Mapping[str, Quality], *, made_up: bool = False
) -> list[str]:
    """What is to be said of the labels, and of what the comparison is worth."""
    from dynx.bench.arms.classification import sentences
    from dynx.runtime.hashing import text_hash

    out = list(sentences(quality, assembly.exit_model.depth))
    if made_up:
        out.append("the inputs are sentences made up for the bench: --data FILE measures on yours")
    exits, profile = assembly.decisions.exits, assembly.plan.profile
    if assembly.exit_profile is None and exits is not None:
        out.append(f"dynamic has no exits and does what bucketed does: {exits.reason}")
    elif profile is not None and profile.evidence.get("data") == text_hash(inputs.names):
        out.append("these are the inputs that the exits were learned from: others would show what they are worth")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], options: Options) -> list[Gate]:
    """What the command line asks for. Speed is judged against the faster of bucketed and plain, not a straw man."""
    from dynx.bench.gates import max_disagreement, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        ratio, baseline = arm.ratio, result.reference.name
        for found in result.comparisons:
            static = result.arm(found.baseline).ratio
            if found.arm == arm.name and static is not None and static.ratio >= 1:
                ratio, baseline = found.ratio, found.baseline
        tolerance = tolerance_of(options)
        judged.append(min_speedup(ratio, options.min_speedup, failure=failure, baseline=baseline, tolerance=tolerance))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if options.max_disagreement is not None:
        found_ = quality.get(arm.name)
        differing, of = (found_.agreement.of - found_.agreement.hits, found_.agreement.of) if found_ else (0, 0)
        judged.append(max_disagreement(differing, of, options.max_disagreement, failure=failure))
    return judged
