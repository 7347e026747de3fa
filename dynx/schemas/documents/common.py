"""Objects that several documents hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.fields import ABSENT, Count, Fraction, NonNegative

CacheKind = Literal["first-block", "taylor-seer", "magnitude"]
"""Kinds of feature caches of transformers."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided of one setting."""

    value: Annotated[object, "What was chosen."]
    reason: Annotated[str, "Why, in words."]


@dataclass(frozen=True, kw_only=True)
class LabelsGuarantee:
    """What is promised of labels."""

    max_disagreement: Annotated[Fraction, "Share of answers that may differ from the full model's."]
    confidence: Annotated[Fraction, "How sure that is."]
    certified_on: Annotated[Count, "Inputs that it was tested on."]
    disagreements: Annotated[Count, "Of those, inputs whose answer differed."]
    basis: Annotated[
        str,
        (
            "Where that was: full depth (no exits, so nothing to test), profile, model (its folder carries the exits) "
            "or job (a sample of this very input)."
        ),
    ]
    per_class: Annotated[
        Literal[True], "That the share holds for the answers with each label; absent where it is for all together."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class PicturesGuarantee:
    """What is promised of pictures."""

    ssim: Annotated[Fraction, "Structural similarity to the pipeline's own run of the same seed that is kept."]
    share: Annotated[Fraction, "Share of pictures that keep it."]
    confidence: Annotated[Fraction, "How sure that is."]
    certified_on: Annotated[Count, "Pictures that it was tested on."]
    below: Annotated[Count, "Of those, pictures that fell below."]
    p5: Annotated[float, "SSIM that 5 % of those are below."]
    worst: Annotated[float, "The lowest SSIM of those."]
    basis: Annotated[str, "Where that was: profile, or model (its folder carries the steps)."]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where on the noise scale the steps are."""

    timesteps: Annotated[list[float], "The timestep that the network gets at each step."]
    sigmas: Annotated[list[float], "Noise over signal before each step, and last after all of them."]
    scale: Annotated[float, "Scale of the latents that the network takes."]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How it was drawn."""

    solver: Annotated[str, "Name of the solver."] = ABSENT
    grid: Grid = ABSENT
    skip: Annotated[
        NonNegative | None,
        "A step whose trajectory bends less than this is skipped: 0 for none, null for every one that may be.",
    ] = ABSENT
    cache: Annotated[
        NonNegative, "Number of the feature cache: a threshold, or every how many steps all blocks run; 0 for no cache."
    ] = ABSENT
    cache_kind: Annotated[CacheKind, "Kind of the feature cache."] = ABSENT
    warmup: Annotated[Count, "Steps at the beginning that are never skipped."] = ABSENT
    longest_skip: Annotated[Count, "Most steps skipped in a row."] = ABSENT
    guided: Annotated[
        Count | None, "Steps with classifier-free guidance, after which it is left out; null for all."
    ] = ABSENT
    land_after: Annotated[
        Count | None, "Steps after which the run lands on the picture it is heading for; null where it goes to the end."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps were planned, run, skipped and cached."""

    planned: Annotated[Count, "Steps of the grid."]
    run: Annotated[Count, "Steps at which the network ran."]
    skipped: Annotated[Count, "Steps that were answered with what the network said before."]
    cached: Annotated[Count, "Steps at which only the network's first block ran."] = ABSENT
    unguided: Annotated[Count, "Of the steps run, those without classifier-free guidance."]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How similar pictures are to the pipeline's own of the same seeds."""

    n: Annotated[Count, "How many pictures."]
    mean: Annotated[float, "Their mean."]
    median: Annotated[float, "Their median."]
    p5: Annotated[float, "The value that 5 % are below; of fewer than 20 the worst."]
    worst: Annotated[float, "The lowest."]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The test that a promise passed."""

    eps: Annotated[Fraction, "Share of answers that may be wrong."] = ABSENT
    delta: Annotated[Fraction, "Chance that the test passes and the promise doesn't hold."] = ABSENT
    n: Annotated[Count, "Inputs or pictures that were tested."] = ABSENT
    disagreements: Annotated[Count, "Of those, answers that were wrong."] = ABSENT
    thresholds: Annotated[
        list[float | None], "By place where one may leave: the score that it takes; null for never."
    ] = ABSENT
    cost: Annotated[NonNegative, "Seconds of one, on average."] = ABSENT
    full_cost: Annotated[NonNegative, "Seconds of one all the way."] = ABSENT
    exits: Annotated[list[Count], "How many left at each place, and last those that didn't."] = ABSENT
    by_class: Annotated[
        list[Annotated[tuple[Count, Count], "Inputs, and answers that were wrong."]], "By the full model's label."
    ] = ABSENT
    words: Annotated[str, "The test in words."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds of one input."""

    reach: Annotated[list[NonNegative], "Up to each place where it may leave."]
    full: Annotated[NonNegative, "All the way."]
    check: Annotated[list[NonNegative], "Of looking whether to leave, at each of those places."]
