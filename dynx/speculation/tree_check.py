"""Measures in calibration whether trees of candidates pay: answers with them against answers with chains alone, in turns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.speculation.calibration_check import Check
from dynx.speculation.engine import AcceptanceProfile, Engine
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.drafters.followers import Followers
    from dynx.speculation.engine import Drafters
    from dynx.speculation.prediction import FitResult
    from dynx.speculation.traces import Text
    from dynx.speculation.types import Sampling

MIN_ANSWERS = 2
"""Answers below which nothing is concluded."""


def compare_trees(
    engine: Engine,
    drafters: Drafters,
    found: FitResult,
    rate: float,
    texts: Sequence[Text],
    sampling: Sampling,
    budget: float,
    followers: Followers | None = None,
    *,
    trees_before: bool = False,
) -> Check | None:
    """Write the texts again with trees and without, in turns; None where there are no trees or too little time.

    Its speed-up is that of trees over chains, or with `followers` of trees that have them over what there was before: trees
    without them or, unless `trees_before`, chains. Each answer begins with what the profile will hold.
    """
    if not drafters.present or not engine.target.can_tree.value:
        return None
    began, times = engine.clock(), list[tuple[float, float]]()
    models = {(origin, True): model for origin, model in found.acceptance_models.items()}
    next_tokens = engine.acceptance_profile.next_tokens

    def seconds(text: Text, *, after: bool) -> float:
        known = AcceptanceProfile(
            *copy.deepcopy((found.costs, models)),
            rate,
            from_profile=True,
            next_tokens=next_tokens,
            followers=followers if after else None,
        )
        able = replace(drafters, trees=after or trees_before)
        request = Request(text.tokens[: text.prompt], len(text.tokens) - text.prompt, sampling)
        run = Engine(engine.target, able, acceptance_profile=known, clock=engine.clock).start(request)
        for _ in run:
            pass
        receipt = run.receipt()
        return receipt.seconds - receipt.prefill_seconds

    for i, text in enumerate(texts):
        spent = {after: seconds(text, after=after) for after in ((False, True) if i % 2 else (True, False))}
        times.append((spent[False], spent[True]))
        if i + 1 >= MIN_ANSWERS and engine.clock() - began > budget:
            break
    return Check.of(times) if len(times) >= MIN_ANSWERS else None
