"""A stored result to compare with: read, checked, and judged against what was measured now.

What is compared are ratios, each of them taken inside one run: absolute speeds on shared machines don't repeat. Both runs had the
same inputs, so the intervals cover exactly those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynx.bench.fingerprint import differences
from dynx.bench.result import SCHEMA, SUITE, Gate, Verdict
from dynx.bench.statistics import RatioEstimate, Series, ratio_of_speeds
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.bench.measurements import JSON, Measurements

DEFAULT_TOLERANCE = 0.05
"""Share of its ratio that an arm may lose and still pass."""


@dataclass(frozen=True)
class Baseline:
    """One stored result: its conditions, and the series behind its ratios."""

    path: Path
    task: str
    model: str
    header: Mapping[str, JSON]
    reference: str
    series: Mapping[str, Series]

    def differences(self, header: Mapping[str, JSON]) -> tuple[str, ...]:
        """Say in what a measurement with this header isn't comparable."""
        return differences(header, self.header)

    def ratio(self, arm: str, confidence: float) -> RatioEstimate:
        """Return the stored ratio of an arm, for exactly these inputs. Raises UsageError for an arm that isn't there."""
        if arm not in self.series:
            raise UsageError(f"{self.path} has no figures of the arm {arm!r}")
        ours, theirs = self.series[arm], self.series[self.reference]
        shared = min(len(ours.seconds), len(theirs.seconds))
        cut = [Series(s.units[:shared], s.seconds[:shared]) for s in (ours, theirs)]
        return ratio_of_speeds(*cut, confidence=confidence, scope="cases")


def read(path: Path) -> list[Baseline]:
    """Return the results that a file holds, one or a suite of them.

    Raises UsageError for a file that can't be read, isn't JSON, has another schema or no figures.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise UsageError(f"{path} can't be read: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is not JSON: {e}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in (SCHEMA, SUITE):
        said = f"of schema {schema!r}" if schema else "no result of dynx bench"
        raise UsageError(f"{path} is {said}, not {SCHEMA!r}")
    try:
        found = document["results"] if schema == SUITE else [document]
        return [_parse(one, path) for one in found]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise UsageError(f"{path} is damaged: {type(e).__name__}: {e}") from None


def pick(found: list[Baseline], task: str, model: str) -> Baseline:
    """Return the stored result of this task, of several the one of this model. Raises UsageError for none."""
    same = [one for one in found if one.task == task]
    if not same:
        tasks = " and ".join(sorted({one.task for one in found})) or "nothing"
        where = str(found[0].path) if found else "it"
        raise UsageError(f"{where} measured {tasks}, and {model} is for {task}")
    return next((one for one in same if one.model == model), same[0])


def _parse(document: Any, path: Path) -> Baseline:
    header = document["header"]
    if document["schema"] != SCHEMA or not isinstance(header, Mapping):
        raise ValueError("a part of it has another schema")
    cases = int(document["cases"])
    series = {}
    for arm in document["arms"]:
        rows = [(float(s["units"]), float(s["seconds"])) for s in arm["samples"]]
        if rows:
            series[str(arm["name"])] = _series(rows, cases)
    references = [str(arm["name"]) for arm in document["arms"] if arm["reference"]]
    if len(references) != 1 or references[0] not in series:
        raise ValueError("it has no complete round of its reference")
    return Baseline(path, str(document["task"]), str(header["model"]), header, references[0], series)


def _series(rows: list[tuple[float, float]], cases: int) -> Series:
    if cases < 1 or len(rows) % cases or not all(u >= 0 and 0 < s < math.inf for u, s in rows):
        raise ValueError("its samples don't make whole rounds")
    starts = range(0, len(rows), cases)
    if not all(sum(u for u, _ in rows[at : at + cases]) > 0 for at in starts):
        raise ValueError("a round of it produced nothing")
    return Series(
        tuple(tuple(u for u, _ in rows[at : at + cases]) for at in starts),
        tuple(tuple(s for _, s in rows[at : at + cases]) for at in starts),
    )


def relative(now: RatioEstimate, then: RatioEstimate) -> RatioEstimate:
    """Return how many times as large the ratio is now, with an interval of the confidence that both have.

    The two runs are independent, so the distances of each end from its estimate add up in squares, on logarithms: Zou and
    Donner's method of variance estimates recovery (2008, Statistics in Medicine 27:1693).
    """
    center = math.log(now.ratio / then.ratio)
    low, high = 0.0, math.inf
    if now.bounded and then.bounded:
        below = math.hypot(math.log(now.ratio / now.low), math.log(then.high / then.ratio))
        above = math.hypot(math.log(now.high / now.ratio), math.log(then.ratio / then.low))
        low, high = math.exp(center - below), math.exp(min(center + above, 700.0))
    return RatioEstimate(math.exp(center), low, high, now.confidence, min(now.pairs, then.pairs), "cases")


def no_slower(
    measured: Measurements,
    arm: str,
    baseline: Baseline,
    *,
    tolerance: float,
    confidence: float,
    differing: tuple[str, ...],
) -> Gate:
    """Judge whether the arm's ratio is still at least 1 - `tolerance` times the stored one.

    Pass, fail and inconclusive as in `min_speedup`. Where the conditions differ (`differing`) the gate is advisory
    and decides nothing.
    """
    name, bar = "baseline" if arm == "dynamic" else f"baseline {arm}", 1 - tolerance
    advisory = bool(differing)
    if arm in measured.failures:
        reason = f"the arm failed: {measured.failures[arm].message}"
        return Gate(name, Verdict.FAIL, None, bar, reason, advisory)
    if not measured.rounds:
        return Gate(name, Verdict.INCONCLUSIVE, None, bar, "no ratio was measured", advisory)
    pair = measured.paired(arm, measured.reference)
    if not all(speed > 0 for series in pair for speed in series.speeds()):
        return Gate(name, Verdict.INCONCLUSIVE, None, bar, "a round produced nothing", advisory)
    now = ratio_of_speeds(*pair, confidence=confidence, scope="cases")
    then = baseline.ratio(arm, confidence)
    found = relative(now, then)
    said = f"{now.ratio:.2f}x now and {then.ratio:.2f}x in {baseline.path.name}, {_change(found)}"
    allowed = f"{100 * tolerance:g} % less"
    if found.low >= bar:
        verdict, reason = Verdict.PASS, f"{said}: {allowed} can be ruled out"
    elif found.high < bar:
        verdict, reason = Verdict.FAIL, f"{said}: slower by more than {100 * tolerance:g} %"
    else:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"{said}: {allowed} is possible and so is none; {_remedy(now, then, bar)}",
        )
    if differing:
        reason += f"; advisory only, as this isn't comparable: {'; '.join(differing)}"
    return Gate(name, verdict, found.ratio, bar, reason, advisory)


def _remedy(now: RatioEstimate, then: RatioEstimate, bar: float) -> str:
    """Say what would decide: more rounds now don't help where the stored result alone is too uncertain."""
    best = relative(replace(now, low=now.ratio, high=now.ratio), then)
    if best.low < bar <= best.high:
        return "the stored result is too uncertain to tell: one of 80 rounds would tell more"
    return "more rounds would tell"


def _change(found: RatioEstimate) -> str:
    if not found.bounded:
        return f"{100 * (found.ratio - 1):+.1f} % [unknown]"
    low, high = (100 * (end - 1) for end in (found.low, found.high))
    return f"{100 * (found.ratio - 1):+.1f} % [{low:+.1f}, {high:+.1f}]"
