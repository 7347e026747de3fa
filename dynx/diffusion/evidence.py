"""Draw a calibration's pictures and make evidence of them: which pictures, how many at a time, which parts propose and certify.

What comes out depends on the pipeline, its precision and the prompts, and on the machine by rounding alone. So evidence is kept
apart from times: a profile that came with a model is timed anew where it is used (`remeasure`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynx.diffusion.predictor import Predictor, cross_fit
from dynx.diffusion.profile_data import Evidence, Fitted
from dynx.diffusion.step_sweep import sweep_steps
from dynx.diffusion.types import Request
from dynx.errors import InvalidInput
from dynx.runtime.certify import split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.profile_data import StepSchedules
    from dynx.diffusion.step_sweep import StepSweep
    from dynx.runtime.certify import Costs

PICTURES_PER_BATCH = 8
"""Pictures drawn together."""

TRIAL_PICTURES = 16
"""Pictures on which grids, solvers and guidance intervals are chosen."""

SPLIT_SHARES = (0.4, 0.6)
"""Shares of the other pictures for predictor and rules, and for the certificate.

First shares of 0.3 to 0.5 did equally well in simulations of easy and hard pipelines.
"""

MIN_PICTURES, MAX_PICTURES = 120, 400
"""Least and most pictures after the trials.

The certifying part of `MIN_PICTURES` suffices for 95 % at 95 % confidence if all of them reach the quality.
"""

CALIBRATION_SEED = 0
"""Seed of the split and of the order of prompts."""


def requests_for(assembly: LoadedImageGenerator, prompts: Sequence[str]) -> list[Request]:
    """Make the requests of all batches, every picture with its own seed; the first are those of the trials.

    Raises InvalidInput for no prompts.
    """
    request = assembly.plan.request
    total = TRIAL_PICTURES + MAX_PICTURES + PICTURES_PER_BATCH
    if assembly.engine.adapter.prompted and not prompts:
        raise InvalidInput("there are no prompts")
    order = np.random.default_rng(CALIBRATION_SEED).permutation(max(1, len(prompts)))
    made = []
    for start in range(0, total, PICTURES_PER_BATCH):
        numbers = range(start, start + PICTURES_PER_BATCH)
        texts = tuple(prompts[order[i % len(order)]] for i in numbers) if assembly.engine.adapter.prompted else ()
        pictures = assembly.starts or ((assembly.engine.start,) if assembly.engine.start is not None else ())
        starts = tuple(pictures[i % len(pictures)] for i in numbers) if pictures else ()
        known = assembly.controls or ((assembly.engine.control,) if assembly.engine.control is not None else ())
        controls = tuple(known[i % len(known)] for i in numbers) if known else ()
        seeds = tuple(1000 + i for i in numbers)
        asked = request.negative, request.guidance, request.size
        made.append(Request(texts, seeds, *asked, starts=starts, controls=controls))
    return made


def sweep(
    assembly: LoadedImageGenerator,
    requests: Sequence[Request],
    schedules: StepSchedules,
    count: int,
    made: StepSweep | None,
    *,
    together: bool,
    drawn: Callable[[StepSweep], None],
) -> StepSweep:
    """Draw pictures at every number of steps on the engine's backend, until there are `count` with those `made` before.

    `requests` are those after the trials. `drawn` is called after every batch with all pictures so far.
    """
    while made is None or len(made) < count:
        fresh = requests[0 if made is None else len(made) // PICTURES_PER_BATCH]
        batch = sweep_steps(assembly.engine, fresh, schedules, together=together)
        made = batch if made is None else made + batch
        drawn(made)
    return made


def fit(made: StepSweep, schedules: StepSchedules, costs: Costs, plain: float) -> Fitted:
    """Fit the predictor on one part of the pictures, and predict the other, which certifies."""
    choosing, certifying = split(len(made), CALIBRATION_SEED, SPLIT_SHARES)
    looks, texts, shown = made.looks, made.texts, made.likeness
    predictor = Predictor.fit(looks[choosing], texts[choosing], shown[choosing, :-1])
    return Fitted(
        schedules,
        predictor,
        costs,
        plain,
        Evidence(shown[choosing], cross_fit(looks[choosing], texts[choosing], shown[choosing, :-1])),
        Evidence(shown[certifying], predictor(looks[certifying], texts[certifying])),
    )
