"""Learn a classifier's exits once, from inputs without labels: heads, score, rules, costs and certificate.

1. Leave out repeated inputs, and split the rest at random into three parts: heads, rules, certificate.
2. Run all of them through all layers, pooling features after every block; and through the full float32 model, where that is
   another one.
3. Fit heads on the first part. On the second fit the score, time the exits (`measure`), and keep those that save time.
4. Fit the heads that remain again, list the rules, and certify one of them on the third part, which nothing was fitted to.
5. Run plain and dynamic in turns on the third part, to check the costs by the clock.

Nothing here prints; `progress` is called with the share done and what is being done.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.agreement import agrees
from dynx.early_exit.backends import answers_of
from dynx.early_exit.entities.labels import EntityLabels
from dynx.early_exit.envelope import envelope, range_arrays, segments_of
from dynx.early_exit.exit_fitting import SEED, Progress, choose_backend, collect_evidence, learn_fastest
from dynx.early_exit.features import Inputs, reference_of
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.profile_data import Evidence, FittedExits, to_arrays, to_json
from dynx.early_exit.segments.segments import as_measured
from dynx.early_exit.token_features import TokenFeatures, within_memory
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.binomial import percent, smallest_sample, supports
from dynx.runtime.certify import deduplicate, split
from dynx.runtime.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.features import AnyFeatures
    from dynx.early_exit.groups.profile_data import FittedGroupExits
    from dynx.runtime.certify import Certificate

MAX_CALIBRATION_INPUTS = {"text": 6000, "image": 3000}
"""Most inputs used: enough for 0.5 % at 95 %, and a bound on time and, for images, memory."""

MIN_CALIBRATION_INPUTS = 60
"""Fewest inputs that exits are fitted to."""

MAX_TIMED_INPUTS = 600
"""Most inputs of the certificate part that also time plain against dynamic."""


@dataclass(frozen=True)
class Findings:
    """The result of a calibration; `profile` and `arrays` are what is stored."""

    inputs: int  # given, repeated ones left out
    unreadable: int
    parts: tuple[int, int, int]
    power: str
    fitted: FittedExits | FittedGroupExits | None
    certificate: Certificate | None
    agreement: dict[int, float]
    """By exit tried: share of the second part that its head answers like the full model."""
    measured: tuple[float, float, float] | None
    """Plain time over dynamic time on inputs of the third part: median, minimum and maximum over rounds."""
    summary: str
    profile: Profile
    arrays: dict[str, NDArray[Any]]


def power(n: int, eps: float, delta: float) -> str:
    """Say what n inputs can certify, before any of them is run."""
    third = len(split(n, SEED)[2])
    return f"{third:,} of {n:,} inputs certify: {supports(third, eps, delta)}"


def calibrate(
    assembly: LoadedClassifier,
    inputs: Inputs,
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Learn the assembly's exits; timing takes about `budget` seconds, everything else as long as the inputs take.

    InvalidInput: too few inputs, or a regression without a tolerance. UnsupportedModelError: the model can't have exits.
    """
    request = assembly.plan.request
    if not assembly.can_exit:
        raise UnsupportedModelError(assembly.why_full_depth)
    require_tolerance(assembly)
    rows, items, unreadable = _distinct(assembly, inputs)
    parts = split(len(rows), SEED)
    sample_power = power(len(rows), request.max_disagreement, request.delta)
    if len(rows) < MIN_CALIBRATION_INPUTS:
        lost = f" ({unreadable:,} can't be read)" if unreadable else ""
        raise InvalidInput(
            f"{len(rows)} different inputs{lost}; at least {MIN_CALIBRATION_INPUTS} are needed",
            hint=f"better: {recommended_inputs(request)}",
        )
    first = [rows[i] for i in parts[0]]
    choose_backend(assembly, first, clock, lambda what: progress(0.0, what))
    progress(0.0, "running the full model")
    found = learn_fastest(
        assembly,
        rows,
        reference_of(assembly, items),
        parts,
        budget=budget,
        clock=clock,
        progress=lambda x, what: progress(0.05 + 0.8 * x, what),
    )
    seen, learned = found.seen, found.exits
    full_depth = _full_depth_evidence(assembly, seen.rows(parts[2]), [rows[i] for i in parts[2]])
    if learned is None:
        return _full_depth_findings(assembly, inputs, rows, parts, unreadable, sample_power, full_depth)
    fitted, agreement = learned
    evidence = collect_evidence(fitted, seen.rows(parts[2]), assembly)
    each = assembly.labels.names if request.per_class else ()
    certificate = fitted.certify(evidence, assembly.batch, request.max_disagreement, request.delta, each)
    progress(0.87, "checking on the clock")
    measured = None
    if certificate.active:
        measured = confirm(assembly, fitted, certificate, [rows[i] for i in parts[2]], 0.3 * budget, clock)
    summary = summarize(fitted, certificate, measured, assembly)
    profile, arrays = _profile(
        assembly, inputs, fitted, evidence, certificate, agreement, measured, parts, summary, full_depth
    )
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    progress(1.0, "")
    return Findings(
        len(rows), unreadable, sizes, sample_power, fitted, certificate, agreement, measured, summary, profile, arrays
    )


def require_tolerance(assembly: LoadedClassifier) -> None:
    """Raise InvalidInput for a regression without a tolerance."""
    if assembly.labels.problem == "regression" and not assembly.plan.request.within:
        raise InvalidInput(
            "the model gives numbers, and numbers are hardly ever equal",
            hint="`within` T says how far an answer may be off",
        )


def recommended_inputs(request: Any) -> str:
    """Say how many inputs are enough for what is requested."""
    least = smallest_sample(request.max_disagreement, request.delta)
    return f"{10 * least:,} or more, for {percent(request.max_disagreement)} at {percent(request.confidence)}"


def _distinct(assembly: LoadedClassifier, inputs: Inputs) -> tuple[list[Example], list[Any], int]:
    """Return distinct examples and their items, at most `MAX_CALIBRATION_INPUTS` drawn at random, and how many can't be read."""
    firsts, most = deduplicate(inputs.names), MAX_CALIBRATION_INPUTS[assembly.preprocessor.kind]
    if len(firsts) > most:
        firsts = np.sort(np.random.default_rng(SEED).choice(firsts, most, replace=False))
    items = [inputs.items[i] for i in firsts]
    made = assembly.preprocessor.rows(items)
    rows, kept, known = [], [], set()
    for item, row in zip(items, made, strict=True):
        if isinstance(row, Example) and row.identity not in known:
            known.add(row.identity)
            rows.append(row)
            kept.append(item)
    if assembly.plan.kind == "tokens":
        order = np.random.default_rng(SEED).permutation(len(rows)).tolist()
        fitting = sorted(within_memory(assembly, rows, order))
        rows, kept = [rows[i] for i in fitting], [kept[i] for i in fitting]
    return rows, kept, sum(isinstance(row, str) for row in made)


def confirm(
    assembly: LoadedClassifier,
    fitted: FittedExits,
    certificate: Certificate,
    rows: Sequence[Example],
    budget: float,
    clock: Callable[[], float],
) -> tuple[float, float, float]:
    """Time plain over dynamic, in turns on the same rows; return median, minimum and maximum over rounds."""
    rows = rows[:MAX_TIMED_INPUTS]
    plain, dynamic = assembly.engine(), assembly.engine(fitted.exits(certificate.thresholds))
    plain.window(rows[: 2 * assembly.batch])
    dynamic.window(rows[: 2 * assembly.batch])
    return time_in_turns(lambda: plain.window(rows), lambda: dynamic.window(rows), budget, clock)


def time_in_turns(
    plain: Callable[[], object], dynamic: Callable[[], object], budget: float, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Time plain over dynamic in at least three rounds; return median, minimum and maximum over rounds."""
    began, ratios = clock(), list[float]()
    while len(ratios) < 3 or (clock() - began < budget and len(ratios) < 15):
        times = {}
        for run in (plain, dynamic) if len(ratios) % 2 else (dynamic, plain):
            start = clock()
            run()
            times[run] = clock() - start
        ratios.append(times[plain] / times[dynamic])
    return statistics.median(ratios), min(ratios), max(ratios)


def summarize(
    fitted: FittedExits,
    certificate: Certificate,
    measured: tuple[float, float, float] | None,
    assembly: LoadedClassifier,
) -> str:
    """Describe the decision in a sentence."""
    if not certificate.active:
        return certificate.words
    if measured and measured[0] < 1:
        return f"full depth: on the clock exits within {percent(certificate.eps)} make it {measured[0]:.2f}x as fast"
    used = [d for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    layers = mean_layers(fitted, certificate, assembly.exit_model.depth)
    clock = f", {measured[0]:.2f}x on the clock" if measured else ""
    return (
        f"exits after layer {' and '.join(map(str, used))}: {layers:.2f} of {assembly.exit_model.depth} layers on average, "
        f"{certificate.speedup:.2f}x of plain expected{clock}; {certificate.words}"
    )


def mean_layers(fitted: FittedExits, certificate: Certificate, depth: int) -> float:
    """Return layers per input on the rows of the certificate."""
    each = np.asarray([*fitted.depths, depth], dtype=np.float64)
    return float((each * np.asarray(certificate.exits)).sum() / certificate.n)


def _profile(
    assembly: LoadedClassifier,
    inputs: Inputs,
    fitted: FittedExits,
    evidence: Evidence,
    certificate: Certificate,
    agreement: dict[int, float],
    measured: tuple[float, float, float] | None,
    parts: Sequence[NDArray[np.int64]],
    summary: str,
    full_depth: dict[str, int],
) -> tuple[Profile, dict[str, NDArray[Any]]]:
    shape, seconds = to_json(fitted)
    labels, request = assembly.labels, assembly.plan.request
    by_class = [
        {"label": name, "inputs": rows, "disagreements": bad}
        for name, (rows, bad) in zip(labels.names, certificate.by_class, strict=False)
    ]
    body = envelope(assembly, inputs.names)
    fields = {
        "measured": seconds
        | {"clock": None if measured is None else list(measured), "batch": assembly.batch}
        | ({} if assembly.segments is None else {"segments": as_measured(assembly.segments)}),
        "fitted": shape
        | {
            "problem": labels.problem,
            "tolerance": request.within,
            "max_length": assembly.truncation,
            "max_disagreement": request.max_disagreement,
            "agreement": {str(depth): share for depth, share in agreement.items()},
            "backend": assembly.block_backend.backend,
        }
        | _about_tokens(assembly)
        | segments_of(assembly),
        "evidence": body["evidence"]
        | {
            "parts": [len(part) for part in parts],
            "certificate": certificate.to_json(),
            "by_class": by_class,
            "full_depth": full_depth,
        },
        "decision": {"summary": summary},
    }
    return Profile(**(body | fields)), to_arrays(fitted, evidence) | range_arrays(assembly)


def _about_tokens(assembly: LoadedClassifier) -> dict[str, str]:
    """Return which entities a profile is about, for models that label tokens."""
    labels = assembly.labels
    return {"aggregation_strategy": labels.strategy} if isinstance(labels, EntityLabels) else {}


def _full_depth_evidence(assembly: LoadedClassifier, seen: AnyFeatures, rows: Sequence[Example]) -> dict[str, int]:
    """Count the rows that the model answers differently from the reference at full depth."""
    if isinstance(seen, TokenFeatures):
        same_entities = seen.agree(seen.logits)
        if assembly.segments is not None:
            found = seen.labels.sets(rows, [answer.logits for answer in assembly.engine().window(rows)])
            same_entities = np.asarray([own == truth for own, truth in zip(found, seen.truth, strict=True)])
        return {"n": len(seen), "disagreements": int((~same_entities).sum())}
    logits = seen.logits
    if assembly.segments is not None:  # in one piece it may round in other ways than in segments
        logits = answers_of(assembly.engine(), rows)
    same = agrees(logits, seen.reference_logits, assembly.labels.problem, assembly.plan.request.within or 0.0)
    return {"n": len(seen), "disagreements": int((~same).sum())}


def _full_depth_findings(
    assembly: LoadedClassifier,
    inputs: Inputs,
    rows: Sequence[Example],
    parts: Sequence[NDArray[np.int64]],
    unreadable: int,
    sample_power: str,
    full_depth: dict[str, int],
) -> Findings:
    """Make the findings of a model whose exits save no time; their profile keeps it from being calibrated again."""
    eps = assembly.plan.request.max_disagreement
    summary = f"full depth: no exit is right often enough to pay for looking, within {percent(eps)}"
    body = envelope(assembly, inputs.names)
    body |= {
        "measured": {},
        "fitted": {
            "depths": [],
            "max_length": assembly.truncation,
            "max_disagreement": eps,
            "backend": assembly.block_backend.backend,
        }
        | _about_tokens(assembly)
        | segments_of(assembly),
        "evidence": body["evidence"] | {"full_depth": full_depth},
        "decision": {"summary": summary},
    }
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    return Findings(
        len(rows),
        unreadable,
        sizes,
        sample_power,
        None,
        None,
        {},
        None,
        summary,
        Profile(**body),
        range_arrays(assembly),
    )
