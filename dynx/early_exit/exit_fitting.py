"""Fits a classifier's exits on the arithmetic that is the fastest with them.

What is the fastest at full depth need not be so with exits: in fewer bits a model may be sure later, and a short segment gain
less. So exits are learned on each arithmetic that could still win, and the one with the least expected time stays. Only the first
two parts of the inputs are looked at for that, which leaves the third to one certificate, as if there had been no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.assembly import BlockBackend
from dynx.early_exit.backends import use_fastest_backend
from dynx.early_exit.costs import measure_costs
from dynx.early_exit.exit_depths import candidates
from dynx.early_exit.features import collect_any
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.profile_data import Evidence, FittedExits
from dynx.early_exit.segment_choice import use_fastest as use_segments
from dynx.early_exit.segments.costs import measure_segment_costs
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.certify import choose_rules
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.entities.labels import EntitySet
    from dynx.early_exit.features import AnyFeatures
    from dynx.early_exit.preprocessing import Example
    from dynx.early_exit.segments.segments import Segments
    from dynx.runtime.certify import Costs

Progress = Callable[[float, str], None]

SEED = 0
"""Seed of the split, the choice of inputs and the fit."""

MAX_EXIT_SPEEDUP = 2.0
"""Factor that exits are expected to gain at most: arithmetic that is slower by more at full depth isn't tried."""


@dataclass(frozen=True)
class Learned:
    """Exits learned on one arithmetic."""

    seen: AnyFeatures
    exits: tuple[FittedExits, dict[int, float]] | None
    """Fitted exits and the agreement of every exit tried; None where none saves time."""
    segments: Segments | None
    speedup: float
    """Of full depth, as expected from the second part."""


def learn_fastest(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    reference: Tensor | Sequence[EntitySet] | None,
    parts: Sequence[NDArray[np.int64]],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> Learned:
    """Learn exits on the assembly's arithmetic, and on others that exits could make faster; leave it on the fastest."""
    if assembly.segments is None:
        return _learned(assembly, rows, reference, parts, budget, clock, progress)
    at_full_depth = dict(assembly.alternatives) or {assembly.segments.precision: (assembly.segments, 1.0)}
    least = min(seconds for _, seconds in at_full_depth.values())
    tried: dict[str, tuple[Learned, float]] = {}
    order = sorted(at_full_depth, key=lambda name: at_full_depth[name][1])
    arms = [name for name in order if at_full_depth[name][1] <= MAX_EXIT_SPEEDUP * least]
    for number, name in enumerate(arms):
        segments, seconds = at_full_depth[name]
        if tried and seconds > MAX_EXIT_SPEEDUP * min(expected for _, expected in tried.values()):
            continue
        _compute_with(assembly, segments)

        def move(share: float, what: str, done: int = number, precision: str = name) -> None:
            progress((done + share) / len(arms), f"{what} ({precision})" if len(arms) > 1 else what)

        found = _learned(assembly, rows, reference, parts, budget / len(arms), clock, move)
        tried[name] = found, seconds / found.speedup
    best = min(tried, key=lambda name: tried[name][1])
    found = tried[best][0]
    if found.segments is not None:
        _compute_with(assembly, found.segments)
    if len(tried) > 1:
        told = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, (_, seconds) in tried.items())
        decision = assembly.plan.decisions.backend
        reason = decision.reason.rpartition("; it computes in ")[0] or decision.reason
        assembly.plan.decisions.backend = Decision(
            decision.value, f"{reason}; with exits {told} expected; it computes in {best}"
        )
    return found


def _compute_with(assembly: LoadedClassifier, segments: Segments) -> None:
    assembly.segments = segments
    assembly.block_backend = BlockBackend(OPENVINO, segments.precision, segments.cut.ranges)


def _learned(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    reference: Tensor | Sequence[EntitySet] | None,
    parts: Sequence[NDArray[np.int64]],
    budget: float,
    clock: Callable[[], float],
    progress: Progress,
) -> Learned:
    """Learn exits on what the assembly computes with now."""
    if assembly.segments is not None:
        assembly.segments = assembly.segments.at(candidates(assembly.exit_model.depth))
    seen = collect_any(
        assembly,
        rows,
        assembly.exit_depths,
        reference,
        lambda x: progress(0.4 * x, "running the full model"),
    )

    def cut_at(kept: Sequence[int]) -> AnyFeatures:
        nonlocal seen
        if assembly.segments is None:
            return seen.at(kept)
        assembly.segments = assembly.segments.at(kept)
        seen = collect_any(assembly, rows, kept, seen.reference)
        return seen

    exits = learn(
        assembly,
        seen,
        rows,
        (parts[0], parts[1]),
        len(parts[2]),
        budget=budget,
        clock=clock,
        progress=lambda x, what: progress(0.4 + 0.6 * x, what),
        cut_at=cut_at,
    )
    if exits is None:
        if assembly.segments is not None:
            assembly.segments = assembly.segments.at(())
        return Learned(seen, None, assembly.segments, 1.0)
    request = assembly.plan.request
    forecast = exits[0].certify(
        collect_evidence(exits[0], seen.rows(parts[1]), assembly),
        assembly.batch,
        request.max_disagreement,
        request.delta,
    )
    return Learned(seen, exits, assembly.segments, max(1.0, forecast.speedup) if forecast.active else 1.0)


def learn(
    assembly: LoadedClassifier,
    seen: AnyFeatures,
    rows: Sequence[Example],
    parts: tuple[NDArray[np.int64], NDArray[np.int64]],
    certifying: int,
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
    cut_at: Callable[[Sequence[int]], AnyFeatures] | None = None,
) -> tuple[FittedExits, dict[int, float]] | None:
    """Fit heads on the first part, and score, rules and costs on the second, for a certificate on `certifying` other rows.

    Returned with them is the agreement of every exit tried. None: no exit saves time at the risk that the certificate can show.
    `cut_at` gives the features of all rows at fewer exits; None keeps all exits of a model whose segments end at them.
    """
    request, problem = assembly.plan.request, assembly.labels.problem
    tolerance = request.within or 0.0
    one, two = seen.rows(parts[0]), seen.rows(parts[1])

    def fit(depths: Sequence[int]) -> tuple[ExitHeads, AgreementScore]:
        heads = ExitHeads.fit(one.at(depths).pooled, one.reference_logits, problem, seed=SEED)
        score = AgreementScore.fit(heads.run(two.at(depths).pooled), two.reference_logits, problem, tolerance=tolerance)
        return heads, score

    progress(0.0, f"fitting {len(seen.depths)} exits")
    heads, score = fit(seen.depths)
    scores, agree = two.evaluate(heads, score, tolerance)
    agreement = {depth: float(share) for depth, share in zip(seen.depths, agree[:, :-1].mean(axis=0), strict=True)}
    progress(0.5, "timing exits")
    kept = list(seen.depths)
    sample = [rows[i] for i in parts[1]]

    def timed(heads: ExitHeads, score: AgreementScore, seconds: float) -> dict[int, Costs]:
        return {
            size: _measured(assembly, sample, kept, heads, score, size, seconds, clock)
            for size in sorted({1, assembly.batch})
        }

    costs = timed(heads, score, budget / 2)
    prune = cut_at is not None or assembly.segments is None
    rules = choose_rules(
        scores, agree, costs[assembly.batch], request.max_disagreement, request.delta, certifying, prune=prune
    )
    if not np.isfinite(rules.thresholds).any():
        return None
    if len(rules.kept) < len(kept):
        progress(0.8, "fitting those that pay")
        kept = [seen.depths[k] for k in rules.kept]
        seen = seen.at(kept) if cut_at is None else cut_at(kept)
        one, two = seen.rows(parts[0]), seen.rows(parts[1])
        heads, score = fit(kept)
        scores, agree = two.at(kept).evaluate(heads, score, tolerance)
        costs = {size: c.at(rules.kept) for size, c in costs.items()}
        if assembly.segments is not None:  # fewer borders than were timed
            costs = timed(heads, score, budget / 4)
        rules = choose_rules(
            scores, agree, costs[assembly.batch], request.max_disagreement, request.delta, certifying, prune=False
        )
    return FittedExits(tuple(kept), heads, score, rules, costs), agreement


def _measured(
    assembly: LoadedClassifier,
    sample: Sequence[Example],
    depths: Sequence[int],
    heads: ExitHeads,
    score: AgreementScore,
    batch: int,
    budget: float,
    clock: Callable[[], float],
) -> Costs:
    """Measure the costs of exits at one batch size, on what the assembly runs on."""
    collate = assembly.preprocessor.collate
    if assembly.segments is not None:
        return measure_segment_costs(
            assembly.segments,
            collate,
            sample,
            heads=heads,
            score=score,
            length=lambda row: row.size,
            batch=batch,
            budget=budget,
            clock=clock,
        )
    return measure_costs(
        assembly.exit_model,
        collate,
        sample,
        depths,
        heads=heads,
        score=score,
        length=lambda row: row.size,
        batch=batch,
        budget=budget,
        clock=clock,
    )


def choose_backend(
    assembly: LoadedClassifier, rows: Sequence[Example], clock: Callable[[], float], on_stage: Callable[[str], None]
) -> None:
    """Have the assembly run on what is fastest: segments on OpenVINO, single blocks where those can't be, or PyTorch."""
    refused = use_segments(assembly, rows, clock, on_stage)
    if refused is None:
        return
    before = assembly.decisions.backend
    use_fastest_backend(assembly, rows, clock, on_stage)
    if assembly.decisions.backend is before and before.value == TORCH and assembly.plan.request.backend == "auto":
        assembly.plan.decisions.backend = Decision(TORCH, refused)


def collect_evidence(fitted: FittedExits, seen: AnyFeatures, assembly: LoadedClassifier) -> Evidence:
    """Return scores, agreements and classes of the rows that certify."""
    tolerance = assembly.plan.request.within or 0.0
    scores, agree = seen.at(fitted.depths).evaluate(fitted.heads, fitted.score, tolerance)
    return Evidence(scores, agree, assembly.labels.ids(seen.reference_logits.numpy()))
