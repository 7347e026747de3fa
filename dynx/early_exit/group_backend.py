"""The arithmetic of a calibration where several rows make a result: the fastest whose results the promise leaves room for.

Arithmetics are raced on rows. Whether the results of groups still are the full model's shows only once the groups are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.early_exit.assembly import BlockBackend
from dynx.early_exit.backends import MAX_SHARE_OF_DISAGREEMENT
from dynx.runtime.backends.registry import OPENVINO
from dynx.runtime.binomial import percent
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.features import CollectedFeatures


def use_certifiable(
    assembly: LoadedClassifier,
    collected: Callable[[], CollectedFeatures],
    differing: Callable[[CollectedFeatures], tuple[int, int]],
    loaded_on: BlockBackend,
) -> CollectedFeatures:
    """Have the assembly run on the fastest arithmetic with few enough other results, and return what it sees of all rows.

    `collected` runs all rows on what the assembly computes with; `differing` counts results that aren't the full model's at full
    depth, and all results; `loaded_on` is what the assembly's model itself computes with. Where a backend was asked for, its
    last arithmetic stays whatever it does.
    """
    plan = assembly.plan
    eps = plan.request.max_disagreement
    arms = sorted(assembly.alternatives.items(), key=lambda arm: arm[1][1])
    later = [(name, segments) for name, (segments, _) in arms if assembly.segments is not segments]
    while True:
        seen = collected()
        differ, results = differing(seen)
        last = assembly.segments is None or (not later and plan.request.backend != "auto")
        if last or differ <= MAX_SHARE_OF_DISAGREEMENT * eps * results:
            return seen
        precision = assembly.block_backend.precision
        why = f"in {precision} {differ:,} of {results:,} results differ, too many for {percent(eps)}"
        backend, reason = (
            assembly.decisions.backend,
            assembly.decisions.backend.reason.rpartition("; it computes in ")[0],
        )
        if later:
            name, assembly.segments = later.pop(0)
            assembly.block_backend = BlockBackend(OPENVINO, name, assembly.segments.cut.ranges)
            plan.decisions.backend = Decision(backend.value, f"{reason}; {why}; it computes in {name}")
        else:
            assembly.segments, assembly.block_backend = None, loaded_on
            plan.decisions.backend = Decision(loaded_on.backend, f"{reason}; {why}")
