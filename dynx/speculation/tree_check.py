"""Measures in calibration whether trees of candidates pay: answers with them against answers with chains alone, in turns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.speculation.calibration_check import Check
from dynx.speculation.engine import AcceptanceProfile, Engine
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    next_tokens: Mapping[int, tuple[int, ...]],
    texts: Sequence[Text],
    sampling: Sampling,
    budget: float,
) -> Check | None:
    """Write the texts again with trees and without, in turns; None where there are no trees or too little time.

    Its speed-up is that of trees over chains. Each answer begins with what the profile will hold.
    """
    if not drafters.present or not engine.target.can_tree.value:
        return None
    began, times = engine.clock(), list[tuple[float, float]]()
    models = {(origin, True): model for origin, model in found.acceptance_models.items()}
    for i, text in enumerate(texts):
        request = Request(text.tokens[: text.prompt], len(text.tokens) - text.prompt, sampling)
        spent: dict[bool, float] = {}
        for trees in (False, True) if i % 2 else (True, False):
            profile = AcceptanceProfile(
                *copy.deepcopy((found.costs, models)), rate, from_profile=True, next_tokens=next_tokens
            )
            run = Engine(
                engine.target, replace(drafters, trees=trees), acceptance_profile=profile, clock=engine.clock
            ).start(request)
            for _ in run:
                pass
            receipt = run.receipt()
            spent[trees] = receipt.seconds - receipt.prefill_seconds
        times.append((spent[False], spent[True]))
        if i + 1 >= MIN_ANSWERS and engine.clock() - began > budget:
            break
    return Check.of(times) if len(times) >= MIN_ANSWERS else None
