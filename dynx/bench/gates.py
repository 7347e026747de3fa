"""Turns figures into verdicts: pass, fail, or not enough evidence for either.

An interval that straddles the bar is inconclusive and ends with exit code 0: noise must not fail a build. Under `git bisect run`
the exit code is 125, "skip this commit".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

from dynx.bench.result import Gate, Verdict, overall
from dynx.bench.wording import percent
from dynx.errors import GateFailed, UsageError
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dynx.bench.measurements import Group
    from dynx.bench.statistics import RatioEstimate

BISECT_SKIP_CODE = 125
"""Exit code of a commit that `git bisect run` skips."""


class _Estimated(Protocol):
    @property
    def group(self) -> Group: ...
    @property
    def ratio(self) -> RatioEstimate | None: ...


Estimated = TypeVar("Estimated", bound=_Estimated)


def min_speedup(
    estimate: RatioEstimate | None,
    bar: float,
    *,
    failure: str | None = None,
    name: str = "min-speedup",
    baseline: str = "",
    tolerance: float = 0.0,
) -> Gate:
    """Judge whether the arm is at least `bar` times as fast as what it was compared with, or less by `tolerance` at most.

    Judged on exactly the inputs that were measured: the next run of the gate has the same, and more rounds can decide it. Pass
    when the whole interval is at or above the bar (low ≥ bar), fail when all of it is below (high < bar), else inconclusive.
    An arm that crashed fails with its `failure`; no estimate and no failure (interrupted before the first complete round,
    nothing produced) is inconclusive. The reason names the `baseline`, where that isn't the reference.
    Raises UsageError for a bar that isn't a positive, finite number.
    """
    if not 0 < bar < math.inf:
        raise UsageError(f"the speed-up to require must be a positive number, not {bar}")
    bar *= 1 - tolerance
    if failure is not None:
        return Gate(name, Verdict.FAIL, None, bar, f"the arm failed: {failure}")
    if estimate is None:
        return Gate(name, Verdict.INCONCLUSIVE, None, bar, "no ratio was measured")
    estimate = estimate.on_these()
    measured = f"{estimate} of {baseline}" if baseline else str(estimate)
    if estimate.low >= bar:
        verdict, reason = Verdict.PASS, f"{measured} is at or above {bar:.2f}x as a whole"
    elif estimate.high < bar:
        verdict, reason = Verdict.FAIL, f"{measured} is below {bar:.2f}x as a whole"
    elif not estimate.bounded:
        verdict, reason = Verdict.INCONCLUSIVE, f"{measured}: one round has no interval"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, f"{measured} straddles {bar:.2f}x; more rounds would narrow it"
    return Gate(name, verdict, estimate.ratio, bar, reason)


def require_identical(rate: float | None, *, failure: str | None = None, name: str = "require-identical") -> Gate:
    """Judge whether every output equalled the reference's: one mismatch disproves it, so this fails or passes.

    `rate` is a share of 1; None (nothing was measured) is inconclusive, an arm that crashed fails with its `failure`.
    """
    if failure is not None:
        return Gate(name, Verdict.FAIL, None, 1.0, f"the arm failed: {failure}")
    if rate is None:
        return Gate(name, Verdict.INCONCLUSIVE, None, 1.0, "nothing was measured")
    if rate >= 1:
        return Gate(name, Verdict.PASS, rate, 1.0, "every output equals the reference's")
    return Gate(name, Verdict.FAIL, rate, 1.0, f"only {percent(rate)} of outputs equal the reference's")


def max_disagreement(
    differing: int,
    of: int,
    bar: float,
    *,
    failure: str | None = None,
    name: str = "max-disagreement",
    confidence: float = 0.95,
) -> Gate:
    """Judge whether at most a share `bar` of the answers differs from the full model's.

    Pass when the share measured is within the bar. Fail when it is beyond, and so is all of the exact interval (Clopper and
    Pearson) for inputs like these; beyond it with an interval that reaches below is inconclusive, as is `of` 0, nothing
    measured. An arm that crashed fails with its `failure`. Raises UsageError for a bar that is no share.
    """
    if not 0 <= bar <= 1:
        raise UsageError(f"the disagreement to allow must be a share from 0 to 1, not {bar}")
    if failure is not None:
        return Gate(name, Verdict.FAIL, None, bar, f"the arm failed: {failure}")
    if not of:
        return Gate(name, Verdict.INCONCLUSIVE, None, bar, "nothing was measured")
    share = differing / of
    low, high = two_sided(of, differing, 1 - confidence)
    interval = f"[{100 * low:.2f}, {100 * high:.2f}]"
    said = f"{differing:,} of {of:,} answers differ from the full model's, {100 * share:.2f} % {interval}"
    if share <= bar:
        return Gate(name, Verdict.PASS, share, bar, f"{said}, within {100 * bar:g} %")
    if low > bar:
        return Gate(name, Verdict.FAIL, share, bar, f"{said}, above {100 * bar:g} % as a whole")
    return Gate(
        name, Verdict.INCONCLUSIVE, share, bar, f"{said}, straddles {100 * bar:g} %; more inputs would narrow it"
    )


def min_quality(
    reached: int,
    of: int,
    bar: float,
    *,
    share: float = 0.95,
    failure: str | None = None,
    name: str = "min-quality",
    confidence: float = 0.95,
) -> Gate:
    """Judge whether at least a `share` of the pictures is like the reference's by an SSIM of `bar`; `reached` of `of` are.

    Pass when the share measured is enough. Fail when it isn't, and neither is any of the exact interval (Clopper and Pearson)
    for inputs like these; else inconclusive, as is `of` 0, nothing measured. An arm that crashed fails with its `failure`.
    Raises UsageError for a bar that is no SSIM to reach.
    """
    if not 0 < bar <= 1:
        raise UsageError(f"the quality to require must be an SSIM above 0 and up to 1, not {bar}")
    if failure is not None:
        return Gate(name, Verdict.FAIL, None, share, f"the arm failed: {failure}")
    if not of:
        return Gate(name, Verdict.INCONCLUSIVE, None, share, "nothing was measured")
    found = reached / of
    low, high = two_sided(of, reached, 1 - confidence)
    interval = f"[{100 * low:.2f}, {100 * high:.2f}]"
    said = f"{reached:,} of {of:,} pictures reach SSIM {bar:g}, {100 * found:.2f} % {interval}"
    if found >= share:
        return Gate(name, Verdict.PASS, found, share, f"{said}, at least {100 * share:g} %")
    if high < share:
        return Gate(name, Verdict.FAIL, found, share, f"{said}, below {100 * share:g} % as a whole")
    return Gate(
        name, Verdict.INCONCLUSIVE, found, share, f"{said}, straddles {100 * share:g} %; more inputs would narrow it"
    )


def best_static(arms: Iterable[Estimated]) -> Estimated | None:
    """Return the static arm with the highest estimated ratio, or None when no static arm was measured.

    Choosing the best on the data that then judges it flatters the static side (the winner's curse); the comparison
    errs against dynamic execution, never for it.
    """
    measured = [(arm.ratio.ratio, arm) for arm in arms if arm.group == "static" and arm.ratio is not None]
    return max(measured, key=lambda pair: pair[0])[1] if measured else None


def exit_code(gates: Iterable[Gate], *, bisect: bool = False) -> int:
    """Return 3 when any gate failed, 125 when any is inconclusive and a bisection asks, else 0."""
    verdict = overall(gates)
    if verdict is Verdict.FAIL:
        return GateFailed.exit_code
    return BISECT_SKIP_CODE if verdict is Verdict.INCONCLUSIVE and bisect else 0
