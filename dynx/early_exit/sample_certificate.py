"""A certificate from the inputs of a run: a random sample of them decides how early the rest may exit.

The sample is answered by the full model, so only the rest can differ. Nothing is assumed about where inputs come from, as only
the draw is random. Exits come from the profile; without one they are learned from inputs drawn before the sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.audit import certify_sample, draw_sample
from dynx.early_exit.calibrate import MIN_CALIBRATION_INPUTS, require_tolerance
from dynx.early_exit.engine import Answer
from dynx.early_exit.entities.labels import EntityLabels
from dynx.early_exit.exit_fitting import collect_evidence, learn
from dynx.early_exit.features import collect_any, reference_of
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.profile_data import MIN_EXPECTED_SPEEDUP
from dynx.early_exit.token_features import TokenFeatures
from dynx.early_exit.types import Guarantee
from dynx.errors import InvalidInput
from dynx.runtime.binomial import percent, smallest_sample
from dynx.runtime.certify import simulate, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.classifier import Classifier
    from dynx.early_exit.features import AnyFeatures
    from dynx.early_exit.profile_data import Evidence, FittedExits

SEED = 0
"""Seed of the draw: the same inputs give the same sample."""

TARGET_SAMPLE_MULTIPLE, MIN_SAMPLE_MULTIPLE = 5, 2
"""Target and minimum size of a sample, as multiples of the smallest sample that can certify anything."""

SAMPLE_SHARE = 0.02
"""Share of the inputs that is drawn if that is more than the target: a larger sample allows looser exits."""

LEARNING_INPUTS = 1500
"""Inputs drawn to learn exits from, where there is no profile."""

MIN_INPUTS_PER_DRAWN = 4
"""Fewest inputs for each that is drawn: with fewer, full depth is cheaper than a sample."""

NOISE_ROWS = 32
"""Rows of a sample that run alone too, to learn how far rounding moves a score."""

TIMING_BUDGET_SECONDS = 10.0
"""Seconds for timing exits that are learned from the inputs."""


def certify(classifier: Classifier, items: Sequence[Any]) -> str:
    """Certify and set the classifier's exits for exactly these `items`, all inputs of the run; return the result in words.

    It works with any profile, and without one. InvalidInput: a regression without a tolerance.
    """
    assembly = classifier.assembly
    if not assembly.can_exit:
        return f"full depth: {assembly.why_full_depth}"
    require_tolerance(assembly)
    if assembly.plan.kind == "tokens" and assembly.truncation is not None:
        classifier.set_exits(None, classifier.full_guarantee, {})
        return "full depth: a sample of entities is certified without `max_length`"
    eps, delta = assembly.plan.request.max_disagreement, assembly.plan.request.delta
    known = assembly.exit_profile
    learning = 0 if known else LEARNING_INPUTS
    total, drawn = len(items), sample_size(len(items) - learning, eps, delta)
    if not drawn or total < MIN_INPUTS_PER_DRAWN * (drawn + learning):
        classifier.set_exits(None, classifier.full_guarantee, {})
        need = MIN_INPUTS_PER_DRAWN * (MIN_SAMPLE_MULTIPLE * smallest_sample(eps, delta) + learning)
        return f"full depth: {total:,} inputs are too few; from {need:,} on, a sample of them can show {percent(eps)}"
    order = _draw(total, learning + drawn)
    answered: dict[int, Answer] = {}
    fitted = known.fitted if known else _learn(assembly, items, order[:learning], drawn, answered)
    if fitted is None:
        classifier.set_exits(None, classifier.full_guarantee, answered)
        return f"full depth: no exit that can be learned from {learning:,} of them pays for looking"
    sample = order[learning:]
    seen, present = _run(assembly, items, sample, fitted.depths, answered)
    evidence = collect_evidence(fitted, seen, assembly)
    found = certify_sample(_differences(fitted, evidence, present, drawn), total - learning, drawn, eps, delta)
    pays = found.rule is not None and _pays(fitted, evidence, found.rule, assembly.batch)
    if found.rule is None or not pays:
        classifier.set_exits(None, classifier.full_guarantee, answered)
        return found.words if pays else f"full depth: exits within {percent(eps)} would cost more than they save here"
    guarantee = Guarantee(eps, delta, drawn, found.disagreements, "job")
    classifier.set_exits(fitted.exits(fitted.rules.thresholds[found.rule]), guarantee, answered)
    return found.words


@dataclass(frozen=True)
class SampleDifferences:
    """What m inputs of a sample show of the G rules of the profile's K exits, strict to loose."""

    thresholds: NDArray[np.float64]
    """(G, K)"""
    differs: NDArray[np.bool_]
    """(G, m): whether the answer that a rule gives differs from the full model's, in a batch of any size.

    Of an input that can't be read, never.
    """
    pays: NDArray[np.bool_]
    """(G,): whether the rule saves enough time here."""
    reference_logits: NDArray[np.float32]
    """(m, C) of the full model; zeros for an input that can't be read."""


def sample_differences(
    assembly: LoadedClassifier, items: Sequence[Any], reference_logits: NDArray[np.float32] | None = None
) -> SampleDifferences:
    """Run a sample through the profile's exits, and compare with the full model: with its logits (m, C) where they are known.

    InvalidInput: there are no exits, or a regression has no tolerance.
    """
    require_tolerance(assembly)
    if assembly.exit_profile is None:
        raise InvalidInput(f"there are no exits: {assembly.why_full_depth}")
    fitted = assembly.exit_profile.fitted
    seen, present = _run(assembly, items, range(len(items)), fitted.depths, {}, reference_logits)
    evidence = collect_evidence(fitted, seen, assembly)
    noise = score_noise(assembly, items, present, seen, evidence)
    differs = list(_differences(fitted, evidence, present, len(items), noise))
    pays = [_pays(fitted, evidence, rule, assembly.batch) for rule in range(len(differs))]
    truth = np.zeros((len(items), seen.reference_logits.shape[1]), dtype=np.float32)
    truth[present] = seen.reference_logits.numpy()
    return SampleDifferences(fitted.rules.thresholds, np.asarray(differs), np.asarray(pays), truth)


def sample_size(total: int, eps: float, delta: float) -> int:
    """Return how many of `total` inputs to draw; 0 where they are too few to certify anything."""
    least = smallest_sample(eps, delta)
    drawn = min(max(TARGET_SAMPLE_MULTIPLE * least, int(SAMPLE_SHARE * total)), total // MIN_INPUTS_PER_DRAWN)
    return drawn if drawn >= MIN_SAMPLE_MULTIPLE * least else 0


def _draw(total: int, many: int) -> list[int]:
    """Draw `many` of the inputs in random order."""
    chosen = draw_sample(total, many, SEED)
    order: list[int] = np.random.default_rng(SEED).permutation(np.asarray(chosen)).tolist()
    return order


def _run(
    assembly: LoadedClassifier,
    items: Sequence[Any],
    numbers: Sequence[int],
    depths: Sequence[int],
    answered: dict[int, Answer],
    known: NDArray[np.float32] | None = None,
) -> tuple[AnyFeatures, list[int]]:
    """Run these inputs at every exit and by the full model, whose answers go into `answered`; `known` are its logits.

    Returned with the features are the positions in `numbers` of inputs that could be read.
    """
    made = assembly.preprocessor.rows([items[n] for n in numbers])
    present = [i for i, row in enumerate(made) if isinstance(row, Example)]
    rows = [row for row in made if isinstance(row, Example)]
    own, labels = [items[numbers[i]] for i in present], assembly.labels
    entities: list[Answer] = []
    if known is not None:
        reference: Any = torch.from_numpy(known[present])
    elif isinstance(labels, EntityLabels) and not is_reference(assembly):
        full_rows, entities = Reference(assembly).read(own)
        reference = labels.sets(full_rows, [answer.logits for answer in entities])
    else:
        reference = reference_of(assembly, own)
    seen = collect_any(assembly, rows, depths, reference)
    full: Sequence[NDArray[np.float32]] = [answer.logits for answer in entities]
    if not entities:
        full = seen.full_logits() if isinstance(seen, TokenFeatures) else list(seen.reference_logits.numpy())
    for i, logits in zip(present, full, strict=True):
        answered[numbers[i]] = Answer(logits, None, assembly.exit_model.depth, None)
    return seen, present


def _learn(
    assembly: LoadedClassifier, items: Sequence[Any], numbers: Sequence[int], drawn: int, answered: dict[int, Answer]
) -> FittedExits | None:
    """Learn exits from inputs that won't be in the sample."""
    seen, present = _run(assembly, items, numbers, assembly.exit_depths, answered)
    rows = [row for row in assembly.preprocessor.rows([items[numbers[i]] for i in present]) if isinstance(row, Example)]
    distinct = np.asarray(list({row.identity: i for i, row in enumerate(rows)}.values()), dtype=np.int64)
    if len(distinct) < MIN_CALIBRATION_INPUTS:
        return None
    one, two = split(len(distinct), SEED, (0.6, 0.4))
    learned = learn(
        assembly,
        seen,
        rows,
        (distinct[one], distinct[two]),
        drawn,
        budget=TIMING_BUDGET_SECONDS,
        clock=time.perf_counter,
    )
    return learned[0] if learned else None


def _differences(
    fitted: FittedExits, evidence: Evidence, present: Sequence[int], drawn: int, noise: float = 0.0
) -> Iterator[list[bool]]:
    """Yield for each rule, strict to loose, whether each drawn answer would differ; one that can't be read never does.

    With `noise` an answer differs if it would at any exit that it reaches with scores that are off by so much.
    """
    for thresholds in fitted.rules.thresholds:
        differs = np.zeros(drawn, dtype=np.bool_)
        reached = may_leave_at(thresholds, evidence.scores, noise)
        differs[np.asarray(present, dtype=np.int64)] = (reached & ~evidence.agree).any(-1)
        yield differs.tolist()


def may_leave_at(thresholds: NDArray[np.float64], scores: NDArray[np.float64], noise: float) -> NDArray[np.bool_]:
    """Return the exits (n, K+1) that rows of scores (n, K) may leave at if each score is off by at most `noise`; K+1 is none."""
    leaves, stays = scores + noise >= thresholds, scores - noise < thresholds
    before = np.cumprod(np.pad(stays, ((0, 0), (1, 0)), constant_values=True), axis=1, dtype=np.int64).astype(np.bool_)
    return before & np.pad(leaves, ((0, 0), (0, 1)), constant_values=True)


def score_noise(
    assembly: LoadedClassifier,
    items: Sequence[Any],
    present: Sequence[int],
    seen: AnyFeatures,
    evidence: Evidence,
) -> float:
    """Return how much the other rows of a batch change a score: the most of some rows that also run alone."""
    if assembly.exit_profile is None or not present:
        return 0.0
    fitted, most = assembly.exit_profile.fitted, 0.0
    truth = seen.reference_logits.numpy()
    for row in np.linspace(0, len(present) - 1, min(NOISE_ROWS, len(present))).astype(int).tolist():
        alone, _ = _run(assembly, items, [present[row]], fitted.depths, {}, truth[[row]])
        scores = collect_evidence(fitted, alone, assembly).scores[0]
        most = max(most, float(np.abs(scores - evidence.scores[row]).max()))
    return most


def _pays(fitted: FittedExits, evidence: Evidence, rule: int, batch: int) -> bool:
    """Tell whether the rule saves enough time on the sample."""
    found = simulate(fitted.rules.thresholds[rule], evidence.scores, evidence.agree, fitted.costs_at(batch))
    return found.speedup >= MIN_EXPECTED_SPEEDUP
