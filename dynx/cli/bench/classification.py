"""`dynx bench` for classifiers: compares early exit with length-bucketed batches, in speed and in changed labels."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.task import Prepared, conditions, settings
from dynx.cli.bench.values import tolerance_or
from dynx.cli.calibration_data import read_inputs
from dynx.cli.classify.command import open_assembly
from dynx.cli.forms import form_fields
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.arms.classification import Quality
    from dynx.bench.measurements import Group, Measurements
    from dynx.bench.result import BenchResult, Gate
    from dynx.bench.runner import Arm
    from dynx.cli.console import Terminal
    from dynx.cli.options.bench import Request
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.features import Inputs
    from dynx.early_exit.plan import ClassifierPlan, ClassifierRequest

TASK, MODELS, MODEL_IS = "classify", "classifiers", "is a classifier"


@dataclass(frozen=True)
class Settings:
    """Options that only classifiers have, with their defaults here."""

    runs: int = 5
    prompts: int = 1024
    tsv: bool = False
    column: str | None = None
    field: str | None = None
    pair: str | None = None
    rank: bool = False
    group: str | None = None
    candidates: str | None = None
    hypothesis: str = "This example is {}."
    multi_label: bool = False
    aggregation_strategy: str | None = None
    per_class: bool = False
    top_k: int | None = None
    labels: str | None = None
    backend: str = "auto"
    quantize: str = "none"
    batch_size: int = 32
    max_length: int | None = None
    max_disagreement: float = 0.02
    confidence: float = 0.95
    within: float | None = None


def prepare(request: Request, terminal: Terminal) -> Prepared:
    """Build the arms and the cases of inputs, and the function that builds a result from the measurements."""
    from dynx.bench.arms import classification
    from dynx.bench.report import summarize

    own = settings(request, Settings)
    assembly, inputs = open_inputs(request, own, terminal)
    arms_of, batch = arms_module(assembly), max(1, assembly.batch // pairs_of_input(assembly, inputs))
    if assembly.labels.problem == "regression" and own.within is None and not is_grouped(assembly):
        raise UsageError(
            "a regression model needs a tolerance, since its outputs are rarely equal",
            hint="--within T: outputs that differ by at most T count as equal",
        )
    gold = read_truth(own.labels, assembly, inputs, quoted=own.tsv)
    items, gold, cut = choose(inputs, gold, assembly, own.prompts, terminal)
    cases = classification.cut(items, batch)
    default = classification.as_by_default(assembly)
    arms = arms_of.own_arms(assembly, default)
    arms += further_arms(request, assembly, default, cutting=cut > 0, terminal=terminal)
    full = arms_of.full_answers(assembly, items)
    facts = header(assembly, items, cut)

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        quality = classification.judge_answers(measured, full=full, gold=gold, tolerance=own.within or 0.0)
        result = summarize(
            measured,
            task=TASK,
            unit=unit_of(assembly),
            header=facts,
            rng=random.Random(0),  # noqa: S311
            confidence=confidence,
            facts={name: q.json() for name, q in quality.items()},
            identical={name: q.same.share for name, q in quality.items()},
            notes=notes(assembly, inputs, quality, made_up=request.data is None),
            case="part",
        )
        return result.judged(gates(result, quality, request))

    return Prepared(TASK, arms, cases, facts, own.runs, conclude)


def unit_of(assembly: LoadedClassifier) -> str:
    """Return what is counted per second."""
    if assembly.plan.kind == "tokens":
        return "texts"
    return "queries" if assembly.plan.request.form == "ranking" else "labels"


def is_grouped(assembly: LoadedClassifier) -> bool:
    """Whether an input is several pairs."""
    from dynx.early_exit.items import GROUPED

    return assembly.plan.request.form in GROUPED


def arms_module(assembly: LoadedClassifier) -> Any:
    """Return the module that builds the arms for the assembly's form of inputs."""
    from dynx.bench.arms import classification, groups

    return groups if is_grouped(assembly) else classification


def pairs_of_input(assembly: LoadedClassifier, inputs: Inputs) -> int:
    """Return the pairs of an input, on average of some."""
    if not is_grouped(assembly):
        return 1
    from dynx.early_exit.groups.rows import pairs_of

    some = inputs.items[:100]
    return max(1, round(sum(len(pairs_of(item, assembly.plan.request)) for item in some) / max(1, len(some))))


def open_inputs(request: Request, own: Settings, terminal: Terminal) -> tuple[LoadedClassifier, Inputs]:
    """Load the model and read its inputs from --data; a shipped model has inputs of its own. Raises UsageError without any."""
    from dynx.bench import builtin_inputs
    from dynx.early_exit.features import Inputs

    plan = make_plan(request, terminal)
    if request.data is not None:
        inputs = read_inputs(
            request.data,
            plan.kind,
            tsv=own.tsv,
            column=own.column,
            field=own.field,
            forms=own,
            warn=terminal.warn,
        )
    elif plan.kind == "text" and plan.request.form == "text" and plan.source.kind == "shipped":
        made = builtin_inputs.texts(own.prompts)
        inputs = Inputs(made, made)
    else:
        what = "a folder of images" if plan.kind == "image" else "a file of texts, one per line"
        raise UsageError("classifiers need --data: inputs like yours", hint=f"--data {what}")
    return open_assembly(plan, terminal), inputs


def make_plan(request: Request, terminal: Terminal) -> ClassifierPlan:
    """Resolve a plan without loading anything. Raises DynxError."""
    from dynx import early_exit

    return early_exit.make_plan(request_of(request), warn=terminal.warn)


def request_of(request: Request) -> ClassifierRequest:
    """Return the request for the classifier, with this task's defaults."""
    from dynx.early_exit.plan import ClassifierRequest

    own = settings(request, Settings)
    return ClassifierRequest(
        model=request.model,
        backend=str(own.backend),
        quantize=str(own.quantize),
        batch_size=own.batch_size,
        max_length=own.max_length,
        max_disagreement=own.max_disagreement,
        confidence=own.confidence,
        within=own.within,
        **form_fields(own),
        profile=request.profile,
        **request.for_request(),
    )


def further_arms(
    request: Request, assembly: LoadedClassifier, default: LoadedClassifier, *, cutting: bool, terminal: Terminal
) -> list[Arm[Any]]:
    """Build the arms of --arm; `default` is the model as the peers run it."""
    arms_of = arms_module(assembly)
    arms: list[Arm[Any]] = []
    for one in arm_options.parse_all(request.arms or []):
        if one.kind == "peer":
            peers = arms_of.peer_arms(default, cutting=cutting)
            arms += [replace(arm, name=one.name + arm.name.removeprefix("hf")) for arm in peers]
            continue
        arm_options.check_takes(one, Settings, "classifiers")
        other = open_assembly(make_plan(one.applied(request), terminal), terminal)
        group: Group = "dynamic" if other.plan.key.model == assembly.plan.key.model else "external"
        arm = replace(arms_of.own_arms(other)[-1], name=one.name, group=group)
        arms.append(arm_options.side_by_side(arm, other.decisions.threads.value, assembly.decisions.threads.value))
    return arms


def read_truth(
    path: str | None, assembly: LoadedClassifier, inputs: Inputs, *, quoted: bool = False
) -> list[str | None] | None:
    """Return the true label of each input, or None without --labels.

    The file has a label for each input, or for each row of the data.

    Raises UsageError where there are more or fewer. `quoted`: it is a table as `--tsv` reads them.
    """
    if path is None:
        return None
    from dynx.cli.classify.accuracy import read_gold

    if is_grouped(assembly):
        raise UsageError("--labels is for models that label each text or pair")
    if assembly.labels.problem != "single" or assembly.plan.kind == "tokens":
        raise UsageError(
            "--labels needs a model with one label per input; this one is multi-label, a regression model or labels tokens"
        )
    rows, count = list(read_gold(Path(path), assembly.labels.names, quoted=quoted).rows), len(inputs.items)
    while len(rows) > max(count, inputs.rows or 0) and rows[-1] is None:
        rows.pop()
    if inputs.places is not None and len(rows) == inputs.rows:
        rows = [rows[place] for place in inputs.places]
    while len(rows) > count and rows[-1] is None:
        rows.pop()
    if len(rows) != count:
        raise UsageError(
            f"{path} has {len(rows):,} labels for {count:,} inputs",
            hint="--labels needs one label per input, in the same order, or one per row of --data",
        )
    return [None if id_ is None else assembly.labels.names[id_] for id_ in rows]


def choose(
    inputs: Inputs, gold: list[str | None] | None, assembly: LoadedClassifier, most: int, terminal: Terminal
) -> tuple[list[Any], list[str | None] | None, int]:
    """Return at most `most` inputs in order, their true labels, and how many of them are cut.

    They are drawn at random, because files are sorted more often than not. Raises UsageError where none of them can be read.
    """
    chosen = list(range(len(inputs.items)))
    if len(chosen) > most:
        chosen = sorted(random.Random(0).sample(chosen, most))  # noqa: S311 - the same ones each time
    good, cut = arms_module(assembly).readable(assembly, [inputs.items[i] for i in chosen])
    if len(good) < len(chosen):
        terminal.warn(f"{len(chosen) - len(good):,} of {len(chosen):,} inputs can't be read and were skipped")
    if not good:
        raise UsageError("none of the inputs can be read")
    kept = [chosen[i] for i in good]
    return [inputs.items[i] for i in kept], None if gold is None else [gold[i] for i in kept], cut


def header(assembly: LoadedClassifier, items: Sequence[Any], cut: int) -> dict[str, Any]:
    """Return the header of a result: the device, the versions and the inputs."""
    from dynx.runtime.hashing import text_hash

    exits, known = assembly.decisions.exits, assembly.exit_profile or assembly.group_profile
    texts: dict[str, Any] = {"max_length": getattr(assembly.preprocessor, "limit", None), "truncated": cut}
    return conditions(
        assembly.plan,
        batch_size=assembly.batch,
        inputs=len(items),
        data_hash=text_hash(map(str, items)),
        exits={"value": exits.value, "reason": exits.reason} if exits else None,
        guarantee=known.guarantee.json() if known else None,
        **({} if assembly.plan.kind == "image" else texts),
    )


def notes(
    assembly: LoadedClassifier, inputs: Inputs, quality: Mapping[str, Quality], *, made_up: bool = False
) -> list[str]:
    """Return sentences about the labels and about the limits of the comparison."""
    from dynx.bench.arms.classification import sentences
    from dynx.runtime.hashing import text_hash

    what = {"ranking": "results", "zero-shot": "results"}.get(assembly.plan.request.form, "labels")
    if assembly.plan.kind == "tokens":
        what = "texts' entities"
    out = list(sentences(quality, assembly.exit_model.depth, what))
    if made_up:
        out.append("the inputs are generated sentences; use --data FILE to measure on your own")
    exits, profile = assembly.decisions.exits, assembly.plan.profile
    if not assembly.exits_early and exits is not None:
        out.append(f"dynamic has no exits, so it equals bucketed: {exits.reason}")
    elif profile is not None and profile.evidence.get("data") == text_hash(inputs.names):
        out.append("the exits were calibrated on these inputs; measure on others")
    return out


def gates(result: BenchResult, quality: Mapping[str, Quality], request: Request) -> list[Gate]:
    """Decide the gates that the command line sets; speed is compared with the faster of bucketed and plain."""
    from dynx.bench.gates import max_disagreement, min_speedup, require_identical

    arm = result.arm("dynamic")
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if request.min_speedup is not None:
        ratio, baseline = arm.ratio, result.reference.name
        for found in result.comparisons:
            static = result.arm(found.baseline).ratio
            if found.arm == arm.name and static is not None and static.ratio >= 1:
                ratio, baseline = found.ratio, found.baseline
        tolerance = tolerance_or(request.tolerance, 0.0)
        judged.append(min_speedup(ratio, request.min_speedup, failure=failure, baseline=baseline, tolerance=tolerance))
    if request.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    if request.max_disagreement is not None:
        found_ = quality.get(arm.name)
        differing, of = (found_.agreement.of - found_.agreement.hits, found_.agreement.of) if found_ else (0, 0)
        judged.append(max_disagreement(differing, of, request.max_disagreement, failure=failure))
        if request.per_class and found_:
            judged += [
                max_disagreement(c.of - c.hits, c.of, request.max_disagreement, failure=failure, name=f"label {label}")
                for label, c in found_.by_label.items()
            ]
    return judged
