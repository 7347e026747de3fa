"""Learn once how early rows of groups may leave, from queries with documents or texts, without labels.

It goes as `early_exit.calibrate` does for single inputs, with a group as the unit: groups are split into three parts, for heads,
for errors and rules, and for the certificate. Heads estimate the full model's value of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.calibrate import (
    MIN_CALIBRATION_INPUTS,
    Findings,
    power,
    recommended_inputs,
    time_in_turns,
)
from dynx.early_exit.envelope import envelope, range_arrays, segments_of
from dynx.early_exit.exit_depths import candidates
from dynx.early_exit.exit_fitting import SEED, choose_backend
from dynx.early_exit.features import collect
from dynx.early_exit.group_backend import use_certifiable
from dynx.early_exit.group_setup import engine_of, stages_of, threads_of
from dynx.early_exit.groups.certify import GroupEvidence, choose_rules, group_bounds
from dynx.early_exit.groups.costs import measure_stage_costs
from dynx.early_exit.groups.engine import full_depth_answers
from dynx.early_exit.groups.profile_data import FittedGroupExits, evidence_arrays, to_arrays, to_json
from dynx.early_exit.groups.rows import Group, groups_of, pairs_of
from dynx.early_exit.groups.rule import padded, valid_places
from dynx.early_exit.groups.values import rule_of, values_of
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.segments.segments import as_measured
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.binomial import percent
from dynx.runtime.certify import deduplicate, split
from dynx.runtime.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.exit_fitting import Progress
    from dynx.early_exit.features import CollectedFeatures, Inputs
    from dynx.early_exit.groups.rule import GroupRule
    from dynx.early_exit.preprocessing import Example
    from dynx.runtime.certify import Certificate, Costs

FULL_MODEL = "running the full model"

MAX_CALIBRATION_ROWS = 30_000
"""Most rows of all groups together: a bound on time and memory."""

MAX_TIMED_ROWS = 400
"""Most rows that also time plain against dynamic, unless one group has more."""

MAX_FIT_ROWS = 6000
"""Most rows that heads are fitted to."""


@dataclass(frozen=True)
class _Groups:
    """Groups to learn from: their items and rows."""

    items: list[Any]
    groups: list[Group]
    unreadable: int

    @property
    def rows(self) -> list[Example]:
        return [row for group in self.groups for row in group.rows]

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.asarray([len(group.rows) for group in self.groups], dtype=np.int64)


@dataclass(frozen=True)
class _Part:
    """Some of the groups, by number, and where their rows are."""

    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]


def calibrate(
    assembly: LoadedClassifier,
    inputs: Inputs,
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Learn when rows may leave; timing takes about `budget` seconds, everything else as long as the inputs take.

    InvalidInput: too few inputs, or no result to promise. UnsupportedModelError: the model can't have exits.
    """
    request = assembly.plan.request
    if not assembly.can_exit:
        raise UnsupportedModelError(assembly.why_full_depth)
    rule = rule_of(request)
    if rule is None:
        raise InvalidInput("ranking exits early where only the first documents count", hint="`top_k` K says how many")
    known = _distinct(assembly, inputs)
    parts = [_part(known, numbers) for numbers in split(len(known.groups), SEED)]
    said = power(len(known.groups), request.max_disagreement, request.delta)
    if len(known.groups) < MIN_CALIBRATION_INPUTS:
        lost = f" ({known.unreadable:,} can't be read)" if known.unreadable else ""
        raise InvalidInput(
            f"{len(known.groups)} different inputs{lost}; at least {MIN_CALIBRATION_INPUTS} are needed",
            hint=f"better: {recommended_inputs(request)}",
        )
    rows, loaded_on = known.rows, assembly.block_backend
    choose_backend(assembly, [rows[i] for i in parts[0].rows], clock, lambda what: progress(0.0, what))
    progress(0.0, FULL_MODEL)
    reference = None
    if not is_reference(assembly):
        pairs = [pair for item in known.items for pair in pairs_of(item, request)]
        reference = torch.from_numpy(Reference(assembly).logits(pairs))
    values = values_of(assembly.exit_model.model.config, request)

    def collected() -> CollectedFeatures:
        if assembly.segments is not None:
            assembly.segments = assembly.segments.at(candidates(assembly.exit_model.depth))
        return collect(assembly, rows, assembly.exit_depths, reference, lambda x: progress(0.05 + 0.35 * x, FULL_MODEL))

    def differing(seen: CollectedFeatures) -> tuple[int, int]:
        """Count the results of the first two parts that differ at full depth, and all of them."""
        found = [_evidence(seen, np.empty((0, len(part.rows))), values, part) for part in parts[:2]]
        return sum(int(each.differs_at_full_depth(rule).sum()) for each in found), sum(map(len, found))

    seen = use_certifiable(assembly, collected, differing, loaded_on)
    learned = _learn(assembly, seen, rows, parts, rule, budget, clock, lambda x, what: progress(0.4 + 0.45 * x, what))
    if learned is None:
        if assembly.segments is not None:
            assembly.segments = assembly.segments.at(())
        evidence = _evidence(seen, np.empty((0, len(parts[2].rows))), values, parts[2])
        return _full_depth(assembly, inputs, known, parts, said, rule, evidence)
    fitted, seen, agreement = learned
    chosen = seen.rows(parts[2].rows)
    evidence = _evidence(seen, _estimates(fitted.heads, chosen, fitted.depths), values, parts[2])
    certificate = fitted.certify(rule, evidence, assembly.batch, request.max_disagreement, request.delta)
    progress(0.87, "checking on the clock")
    measured = None
    if certificate.active:
        some = [known.groups[i].rows for i in parts[2].numbers]
        measured = _confirm(assembly, fitted, certificate, some, 0.3 * budget, clock)
    summary = _summary(fitted, certificate, measured, assembly)
    profile, arrays = _profile(
        assembly, inputs, fitted, evidence, certificate, agreement, measured, parts, summary, rule
    )
    sizes = (len(parts[0].numbers), len(parts[1].numbers), len(parts[2].numbers))
    progress(1.0, "")
    return Findings(
        len(known.groups),
        known.unreadable,
        sizes,
        said,
        fitted,
        certificate,
        agreement,
        measured,
        summary,
        profile,
        arrays,
    )


def _distinct(assembly: LoadedClassifier, inputs: Inputs) -> _Groups:
    """Return distinct inputs as groups, as many as fit into `MAX_CALIBRATION_ROWS`, drawn at random."""
    request = assembly.plan.request
    order = np.random.default_rng(SEED).permutation(deduplicate(inputs.names))
    counts = np.cumsum([len(pairs_of(inputs.items[i], request)) for i in order])
    firsts = np.sort(order[: max(1, int((counts <= MAX_CALIBRATION_ROWS).sum()))])
    items = [inputs.items[i] for i in firsts]
    kept, groups, known = list[Any](), list[Group](), set[Any]()
    made = groups_of(items, request, assembly.preprocessor)
    for item, group in zip(items, made, strict=True):
        mark = tuple(row.identity for row in group.rows)
        if group.error is None and mark not in known:
            known.add(mark)
            kept.append(item)
            groups.append(group)
    return _Groups(kept, groups, sum(group.error is not None for group in made))


def _part(known: _Groups, numbers: NDArray[np.int64]) -> _Part:
    bounds = group_bounds(known.sizes.tolist())
    rows = [np.arange(*bounds[number]) for number in numbers]
    return _Part(numbers, np.concatenate(rows) if rows else np.empty(0, np.int64), known.sizes[numbers])


def _estimates(heads: ExitHeads, seen: CollectedFeatures, depths: Sequence[int]) -> NDArray[np.float64]:
    """Return what each exit says of each row (K, R)."""
    return np.stack([out[:, 0].double().numpy() for out in heads.run(seen.at(depths).pooled)])


def _evidence(seen: CollectedFeatures, estimates: NDArray[np.float64], values: Any, part: _Part) -> GroupEvidence:
    own = seen.rows(part.rows)
    return GroupEvidence(estimates, values(own.logits.numpy()), values(own.reference_logits.numpy()), part.sizes)


def _learn(
    assembly: LoadedClassifier,
    seen: CollectedFeatures,
    rows: Sequence[Example],
    parts: Sequence[_Part],
    rule: GroupRule,
    budget: float,
    clock: Callable[[], float],
    progress: Progress,
) -> tuple[FittedGroupExits, CollectedFeatures, dict[int, float]] | None:
    """Fit heads on the first part, and errors and rules on the second; None: no exit saves time at the risk allowed.

    Returned with them are the features at the exits that are kept, and the share of results that each exit tried would get right.
    """
    request = assembly.plan.request
    values = values_of(assembly.exit_model.model.config, request)
    fitting = np.sort(np.random.default_rng(SEED).permutation(parts[0].rows)[:MAX_FIT_ROWS])
    sample = [rows[i] for i in parts[1].rows]
    certifying = len(parts[2].numbers)
    threads = threads_of(assembly)

    def fit(depths: Sequence[int]) -> tuple[ExitHeads, GroupEvidence]:
        one = seen.rows(fitting)
        target = torch.from_numpy(values(one.reference_logits.numpy())[:, None]).float()
        heads = ExitHeads.fit(one.at(depths).pooled, target, "regression", seed=SEED)
        return heads, _evidence(seen, _estimates(heads, seen.rows(parts[1].rows), depths), values, parts[1])

    def timed(heads: ExitHeads, depths: Sequence[int], seconds: float) -> dict[int, Costs]:
        def measured(size: int) -> Costs:
            engine = assembly.engine(batch=size)
            stages = stages_of(assembly, depths, size)
            return measure_stage_costs(
                stages, engine.window, sample, heads, batch=size, budget=seconds, clock=clock, threads=threads
            )

        return {assembly.batch: measured(assembly.batch)}

    progress(0.0, f"fitting {len(seen.depths)} exits")
    depths = tuple(seen.depths)
    heads, evidence = fit(depths)
    agreement = {d: _right(rule, evidence, k) for k, d in enumerate(depths)}
    progress(0.5, "timing exits")
    costs = timed(heads, depths, budget / 2)
    eps, delta = request.max_disagreement, request.delta
    rules = choose_rules(rule, evidence.errors(), evidence, costs[assembly.batch], eps, delta, certifying)
    if not np.isfinite(rules.thresholds).any():
        return None
    if len(rules.kept) < len(depths):
        progress(0.8, "fitting those that pay")
        depths = tuple(depths[k] for k in rules.kept)
        if assembly.segments is not None:
            assembly.segments = assembly.segments.at(depths)
            seen = collect(assembly, rows, depths, seen.reference_logits)
        else:
            seen = seen.at(depths)
        heads, evidence = fit(depths)
        costs = timed(heads, depths, budget / 4)
        rules = choose_rules(
            rule, evidence.errors(), evidence, costs[assembly.batch], eps, delta, certifying, prune=False
        )
    return FittedGroupExits(depths, heads, evidence.errors(), rules, costs), seen, agreement


def _right(rule: GroupRule, seen: GroupEvidence, k: int) -> float:
    """Return the share of groups whose result exit k alone would get right."""
    places = valid_places(seen.sizes)
    chosen = rule.chosen(padded(seen.estimates[k], seen.sizes, np.nan), places)
    return float(rule.agrees(chosen, padded(seen.full, seen.sizes), places).mean())


def _confirm(
    assembly: LoadedClassifier,
    fitted: FittedGroupExits,
    certificate: Certificate,
    groups: Sequence[Sequence[Example]],
    budget: float,
    clock: Callable[[], float],
) -> tuple[float, float, float]:
    """Time plain over dynamic, in turns on the same groups; return median, minimum and maximum over rounds."""
    request = assembly.plan.request
    rule, values = rule_of(request), values_of(assembly.exit_model.model.config, request)
    most = max(1, int((np.cumsum([len(group) for group in groups]) <= MAX_TIMED_ROWS).sum()))
    groups = groups[:most]
    plain, dynamic = assembly.engine(), engine_of(assembly, fitted.exits(certificate.thresholds))

    def at_full_depth() -> None:
        window = lambda rows: [answer.logits for answer in plain.window(rows)]  # noqa: E731
        full_depth_answers(window, groups, rule, values, assembly.exit_model.depth)

    def early() -> None:
        dynamic.window(groups)

    at_full_depth()
    early()
    return time_in_turns(at_full_depth, early, budget, clock)


def _summary(
    fitted: FittedGroupExits,
    certificate: Certificate,
    measured: tuple[float, float, float] | None,
    assembly: LoadedClassifier,
) -> str:
    """Describe the decision in a sentence."""
    if not certificate.active:
        return certificate.words
    if measured and measured[0] < 1:
        return f"full depth: on the clock exits within {percent(certificate.eps)} make it {measured[0]:.2f}x as fast"
    depth = assembly.exit_model.depth
    each = np.asarray([*fitted.depths, depth], dtype=np.float64)
    layers = float((each * np.asarray(certificate.exits)).sum() / max(1, sum(certificate.exits)))
    used = [d for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    clock = f", {measured[0]:.2f}x on the clock" if measured else ""
    return (
        f"exits after layer {' and '.join(map(str, used))}: {layers:.2f} of {depth} layers a pair on average, "
        f"{certificate.speedup:.2f}x of plain expected{clock}; {certificate.words}"
    )


def _about(assembly: LoadedClassifier) -> dict[str, Any]:
    """Return what the promise is about, for a profile."""
    request = assembly.plan.request
    about: dict[str, Any] = {"max_length": assembly.truncation, "max_disagreement": request.max_disagreement}
    if request.form == "ranking":
        return about | {"top_k": request.top_k}
    labels = {"candidates": list(request.candidates), "hypothesis": request.hypothesis}
    return about | labels | {"multi_label": request.multi_label}


def _full_depth_evidence(seen: GroupEvidence, rule: GroupRule) -> dict[str, int]:
    return {"n": len(seen), "disagreements": int(seen.differs_at_full_depth(rule).sum())}


def _profile(
    assembly: LoadedClassifier,
    inputs: Inputs,
    fitted: FittedGroupExits,
    evidence: GroupEvidence,
    certificate: Certificate,
    agreement: dict[int, float],
    measured: tuple[float, float, float] | None,
    parts: Sequence[_Part],
    summary: str,
    rule: GroupRule,
) -> tuple[Profile, dict[str, NDArray[Any]]]:
    shape, seconds = to_json(fitted)
    body = envelope(assembly, inputs.names)
    fields = {
        "measured": seconds
        | {"clock": None if measured is None else list(measured), "batch": assembly.batch}
        | ({} if assembly.segments is None else {"segments": as_measured(assembly.segments)}),
        "fitted": shape
        | _about(assembly)
        | {
            "agreement": {str(depth): share for depth, share in agreement.items()},
            "backend": assembly.block_backend.backend,
        }
        | segments_of(assembly),
        "evidence": body["evidence"]
        | {
            "parts": [len(part.numbers) for part in parts],
            "certificate": certificate.to_json(),
            "full_depth": _full_depth_evidence(evidence, rule),
        },
        "decision": {"summary": summary},
    }
    return Profile(**(body | fields)), to_arrays(fitted, evidence) | range_arrays(assembly)


def _full_depth(
    assembly: LoadedClassifier,
    inputs: Inputs,
    known: _Groups,
    parts: Sequence[_Part],
    said: str,
    rule: GroupRule,
    evidence: GroupEvidence,
) -> Findings:
    """Make the findings of a model whose exits save no time; their profile keeps it from being calibrated again."""
    eps = assembly.plan.request.max_disagreement
    summary = f"full depth: no exit tells enough of the results to pay for looking, within {percent(eps)}"
    body = envelope(assembly, inputs.names)
    body |= {
        "measured": {},
        "fitted": {"depths": [], "backend": assembly.block_backend.backend} | _about(assembly) | segments_of(assembly),
        "evidence": body["evidence"] | {"full_depth": _full_depth_evidence(evidence, rule)},
        "decision": {"summary": summary},
    }
    sizes = (len(parts[0].numbers), len(parts[1].numbers), len(parts[2].numbers))
    arrays = evidence_arrays(evidence) | range_arrays(assembly)
    return Findings(
        len(known.groups), known.unreadable, sizes, said, None, None, {}, None, summary, Profile(**body), arrays
    )
