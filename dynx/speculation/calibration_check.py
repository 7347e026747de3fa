"""Runs the drafters that a replay recommends, plain and dynamic decoding in turns, and says what that means for them.

A few answers differ from each other more than drafting changes most of them, so a measured ratio comes with its margin: a drafter
is put aside only where the ratio is below plain's by more than that.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.policy import Plain
from dynx.speculation.prediction import choose_set, predict, replay
from dynx.speculation.types import DraftSource, Request, Sampling

if TYPE_CHECKING:
    from dynx.speculation.prediction import FitResult
    from dynx.speculation.traces import Text

MIN_CHECK_RUNS = 3
"""Fewest runs of the check; texts are repeated where there are fewer."""

MAX_PREDICTION_ERROR_FACTOR = 1.5
"""Factor between the check and its prediction beyond which the measured costs must be wrong."""

MIN_LOOKUP_SPEEDUP = 0.97
"""Share of plain's speed below which prompt lookup is given up where no gain is expected: kept ready it costs next to nothing."""

STUDENT_QUANTILES = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.80, 1.78, 1.77)
"""Student's t at 95 %, one-sided, by degrees of freedom from 1; the last for all that follow."""

NORMAL_QUANTILE = 1.645
"""The same of a normal distribution."""

REPLAY_ERROR, ANSWER_ERROR = 0.07, 0.15
"""Typical errors of a replay and of one answer's timed ratio, as shares: they weigh a check that contradicts a replay."""

Progress = Callable[[float, str], None]

Times = Sequence[tuple[float, float]]
"""Seconds of plain and of dynamic decoding by answer, without the prompts."""


@dataclass(frozen=True)
class Check:
    """A measured speed-up: plain decoding's time over dynamic's, summed over `runs` answers without their prompts."""

    speedup: float
    runs: int
    margin: float = 0.0
    """How far other answers' speed-up may lie above it, at 95 %."""
    times: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, times: Times) -> Check:
        """Return the ratio of the sums, with a margin from how far single answers are from it."""
        ratio, runs = speedup_of(times), len(times)
        if runs < 2:
            return cls(ratio, runs, math.inf, tuple(times))
        error = math.sqrt(sum((plain - ratio * dynamic) ** 2 for plain, dynamic in times) / (runs - 1) / runs)
        return cls(
            ratio, runs, _student(runs) * error / statistics.fmean(dynamic for _, dynamic in times), tuple(times)
        )

    def below(self, limit: float) -> bool:
        """Whether the speed-up is below `limit` beyond its margin."""
        return self.speedup + self.margin < limit


@dataclass(frozen=True)
class CheckedDrafters:
    """A set of drafters with its expected and its measured speed-up."""

    origins: tuple[DraftSource, ...]  # worth having
    expected: float
    check: Check | None
    replayed_speedup: float | None  # the replay's speed-up on the texts of the check

    @property
    def contradicts_replay(self) -> bool:
        """Whether check and replay differ too much for both to be right."""
        if self.check is None or self.replayed_speedup is None:
            return False
        return (
            not 1 / MAX_PREDICTION_ERROR_FACTOR
            <= self.check.speedup / self.replayed_speedup
            <= MAX_PREDICTION_ERROR_FACTOR
        )

    @property
    def refuted(self) -> bool:
        """Whether it was slower than plain, beyond the check's margin."""
        return self.check is not None and self.check.below(1.0 if self.origins else MIN_LOOKUP_SPEEDUP)


def check_best_set(
    engine: Engine,
    fit_result: FitResult,
    predictions: dict[str, float],
    texts: Sequence[Text],
    sampling: Sampling,
    budget: float,
    *,
    lookup: bool,
    progress: Progress,
) -> tuple[CheckedDrafters, Drafters]:
    """Check the best set of `predictions` by running it; returns the outcome and the drafters. Keeping lookup ready is free.

    What is expected in the end is the replay's speed-up on other texts than those fitted, with what the check shows rounds to
    cost beyond their passes, times the factor by which the check differs from its own replay.
    """
    origins, expected = choose_set(predictions)
    small = engine.drafters.model if "draft" in origins else None
    chosen = Drafters(small, fit_result.exit_layers if "self" in origins else None, lookup, engine.drafters.library)
    if not chosen_origins(chosen):
        return CheckedDrafters(origins, expected, None, None), chosen
    costs, rate = fit_result.costs, expected / fit_result.costs.target(1)
    acceptance_models = {(o, True): r for o, r in fit_result.acceptance_models.items()}
    found = confirm(
        Engine(
            engine.target,
            chosen,
            acceptance_profile=AcceptanceProfile(costs, acceptance_models, rate, from_profile=True),
            clock=engine.clock,
        ),
        texts,
        sampling,
        budget,
        lambda x: progress(0.85 + 0.15 * x, "checking"),
    )
    drafting = {o: t for o, t in fit_result.traces.items() if o in chosen_origins(chosen)}
    if found is None or not drafting:
        return CheckedDrafters(origins, expected, found, None), chosen
    count = min(found.runs, len(texts))
    replayed = replay(
        texts[:count], {o: t[:count] for o, t in drafting.items()}, costs, fit_result.acceptance_models, rate
    )
    if origins:
        expected = predict(texts, {o: fit_result.traces[o] for o in origins}, costs)
        expected = max(1.0, expected * correction(found.times[:count], replayed))
    return CheckedDrafters(origins, expected, found, speedup_of(replayed)), chosen


def correction(measured: Times, replayed: Times) -> float:
    """Return the factor by which measured speed-ups exceed replayed ones of the same answers, closer to 1 the less sure it is."""
    if len(measured) < 2:
        return 1.0
    logs = [math.log(speedup_of([m]) / speedup_of([r])) for m, r in zip(measured, replayed, strict=True)]
    # Few logarithms show too little of their own spread, by about as much as their quantiles are further out; and a slow minute
    # of the machine moves several answers alike.
    each = max(statistics.variance(logs), ANSWER_ERROR**2) * (_student(len(logs)) / NORMAL_QUANTILE) ** 2
    variance = each / len(logs)
    share = REPLAY_ERROR**2 / (REPLAY_ERROR**2 + variance)
    return math.exp(share * math.log(speedup_of(measured) / speedup_of(replayed)))


def _student(count: int) -> float:
    """Return Student's quantile for the mean of `count` values."""
    return STUDENT_QUANTILES[min(count - 1, len(STUDENT_QUANTILES)) - 1]


def speedup_of(times: Times) -> float:
    """Return plain decoding's time over dynamic's, over all answers."""
    return sum(plain for plain, _ in times) / sum(dynamic for _, dynamic in times)


def chosen_origins(drafters: Drafters) -> tuple[DraftSource, ...]:
    """Return the sources that an engine with these drafters can draft with."""
    has = {"draft": drafters.model is not None, "self": bool(drafters.exit_layers), "lookup": drafters.lookup}
    return tuple(cast("DraftSource", origin) for origin, there in has.items() if there)


def confirm(
    engine: Engine, texts: Sequence[Text], sampling: Sampling, budget: float, progress: Callable[[float], None]
) -> Check | None:
    """Run plain and dynamic decoding in turns on the first texts' prompts, each dynamic run starting from the fit.

    The texts are those that were fitted, so this tests the replay, not how well the texts stand for others.
    What rounds cost beyond their passes stays in the engine's acceptance profile; its fits are not touched.
    """
    began, times = engine.clock(), list[tuple[float, float]]()
    tables = copy.deepcopy(engine.acceptance_profile)
    total = max(len(texts), MIN_CHECK_RUNS) if texts else 0
    for i in range(total):
        text = texts[i % len(texts)]
        request = Request(text.tokens[: text.prompt], len(text.tokens) - text.prompt, sampling)
        spent = {True: 0.0, False: 0.0}
        for policy in (Plain(), None) if i % 2 else (None, Plain()):
            fresh = copy.deepcopy(tables)
            run = Engine(engine.target, engine.drafters, acceptance_profile=fresh, clock=engine.clock).start(
                request, policy
            )
            for _ in run:
                pass
            receipt = run.receipt()
            spent[policy is None] = receipt.seconds - receipt.prefill_seconds
            if policy is None:
                for origin, seconds in fresh.costs.overhead.items():
                    known = engine.acceptance_profile.costs.overhead
                    known[origin] = min(seconds, known.get(origin, seconds))
        times.append((spent[False], spent[True]))
        progress((i + 1) / total)
        if i + 1 >= MIN_CHECK_RUNS and engine.clock() - began > budget:
            break
    return Check.of(times) if times else None


def names(exit_layers: int | None) -> dict[DraftSource, str]:
    """Return what drafters are called in sentences."""
    return {"draft": "the draft model", "self": f"an exit after layer {exit_layers}", "lookup": "lookup"}


def refutation(checked: CheckedDrafters, fit_result: FitResult) -> str:
    """Say what the check found of drafters that are put aside."""
    named, check = names(fit_result.exit_layers), checked.check
    what = " and ".join(named[o] for o in checked.origins) or "looking for repetitions"
    took = "slower" if check is None else f"{check.speedup:.2f}x of plain over {check.runs} answers"
    if check is not None and check.margin:
        took = f"{took} (at most {check.speedup + check.margin:.2f}x)"
    expected = f" where the replay said {checked.replayed_speedup:.2f}x" if checked.replayed_speedup else ""
    return f"{what} took {took}{expected}"
