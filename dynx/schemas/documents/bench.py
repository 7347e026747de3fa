"""Results of a bench."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.bench_facts import Facts
from dynx.schemas.documents.common import Decision, LabelsGuarantee, PicturesGuarantee
from dynx.schemas.documents.fields import (
    ABSENT,
    NAME,
    Count,
    CountFromOne,
    Fraction,
    Limit,
    NonNegative,
    OpenFraction,
    Positive,
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval of a ratio."""

    low: Annotated[float | None, "Lower end; null when the sample can't bound the ratio."]
    high: Annotated[float | None, "Upper end; null when the sample can't bound the ratio."]
    confidence: Annotated[OpenFraction, "Of this interval."]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of speeds with its interval."""

    ratio: Annotated[Positive, "Speed of the arm over speed of the baseline."]
    low: Annotated[Positive | None, "Lower end of the interval; null when the sample can't bound the ratio."]
    high: Annotated[Positive | None, "Upper end of the interval; null when the sample can't bound the ratio."]
    confidence: Annotated[OpenFraction, "Of the interval."]
    pairs: Annotated[CountFromOne, "(case, round) pairs behind the estimate."]
    scope: Annotated[
        Literal["task", "cases"], "Whether the interval speaks of inputs like the measured ones, or exactly of these."
    ]
    estimator: Annotated[
        Literal["huber", "totals"],
        (
            "huber: of each input's times by Huber's M-estimate of its log ratios over the rounds (1964, Annals of "
            "Mathematical Statistics 35:73), inputs weighed by their time; totals: of the total times of the only "
            "round."
        ),
    ] = ABSENT
    here: Annotated[
        Interval | None,
        "The interval for exactly the measured inputs, which gates judge by; null where it is the one above.",
    ] = ABSENT
    leaving_one_out: Annotated[
        tuple[Positive, Positive] | None,
        (
            "Least and greatest ratio of all inputs but one, where there was one round only: how much one disturbed "
            "run can matter."
        ),
    ] = ABSENT
    detectable: Annotated[
        NonNegative | None,
        "Smallest change of the ratio on these inputs, as a fraction, that would have been seen with chance 0.8.",
    ]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an arm has no figures."""

    message: Annotated[str, "What went wrong, in words."]
    round: Annotated[Count | None, "Index of the round; null: during warm-up."]
    case: Annotated[Count, "Index of the case."]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run of one case."""

    round: Annotated[Count, "Index of the round."]
    case: Annotated[Count, "Index of the case."]
    position: Annotated[Count, "Place in the order of the arms that ran this case in this round."]
    units: Annotated[Count, "How many of the result's unit were made."]
    seconds: Annotated[Positive, "How long it took."]
    facts: Annotated[Facts, "What the task counted in this run."]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of doing the task, and what was measured of it."""

    name: Annotated[str, "Its name in tables, gates and comparisons."]
    group: Annotated[
        Literal["plain", "static", "dynamic", "external"],
        (
            "plain: nothing dynamic; static: one setting for all inputs alike; dynamic: what dynx does; external: "
            "another model, or a peer."
        ),
    ]
    reference: Annotated[bool, "Every ratio is taken to this arm."]
    speed: Annotated[NonNegative | None, "Median over rounds of units per second of the whole task."]
    ratio: Annotated[Ratio | None, "Its speed over the reference's; null where there is none."]
    identical: Annotated[
        Fraction | None,
        "Share of outputs equal to the reference's of the same case and round; of labels, for a classifier.",
    ]
    outliers: Annotated[list[Count], "Indices of samples with a modified z-score above 3.5 (Iglewicz & Hoaglin 1993)."]
    facts: Annotated[
        Facts, "Of all of its runs together: numbers are medians over the runs, or what the task makes of them."
    ]
    failure: Annotated[Failure | None, "Why an arm has no figures; null where it has."]
    samples: Annotated[list[Sample], "All of its runs, by round and case."]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A bar that the caller set, and the verdict."""

    name: Annotated[
        str,
        (
            "Which gate: min-speedup, baseline, require-identical, max-disagreement or min-quality; min-speedup may be "
            "followed by a category."
        ),
    ]
    verdict: Annotated[
        Literal["pass", "fail", "inconclusive"],
        "Whether the bar is met; inconclusive where the measurement can't tell.",
    ]
    measured: Annotated[float | None, "The figure that the gate judges; null where there is none."]
    bar: Annotated[float, "What the figure is held against."]
    reason: Annotated[str, "The verdict in words, with its numbers."]
    advisory: Annotated[bool, "Said for information: the conditions differ, so it neither passes nor fails."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Harness:
    """How it was measured."""

    overhead: Annotated[Fraction | None, "Share of the time that wasn't spent in arms; null where none was."] = ABSENT
    looks: Annotated[Count, "Times that the gates were judged."] = ABSENT
    looks_at_most: Annotated[Count, "Times that were planned."] = ABSENT
    interval_confidence: Annotated[
        Fraction, "Of the intervals that gates were judged by, which looking more than once raises."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Header:
    """Where, with what and on what it was measured."""

    model: Annotated[str, "Name of the model."] = ABSENT
    model_hash: Annotated[str, "Hash of its weights."] = ABSENT
    profile: Annotated[str | None, "Id of the profile that was used; null for none."] = ABSENT
    device: Annotated[str, "Where it ran: cpu, cuda:0 and so on."] = ABSENT
    processor: Annotated[str | None, "Name of the processor."] = ABSENT
    threads: Annotated[Count, "Processor threads."] = ABSENT
    governor: Annotated[str | None, "Frequency governor of the processor; null where it can't be read."] = ABSENT
    dtype: Annotated[str, "Precision of the computation."] = ABSENT
    versions: Annotated[dict[str, str], "Versions of dynx and of the libraries that computed."] = ABSENT
    data_hash: Annotated[str, "Hash of the inputs."] = ABSENT
    backend: Annotated[str, "Whose kernels computed: torch-eager, torch-compiled, torch-graphs, openvino, ipex."] = (
        ABSENT
    )
    drafter: Annotated[str | None, "generate: name of the draft model; null for none."] = ABSENT
    drafter_hash: Annotated[str | None, "generate: hash of its weights."] = ABSENT
    draft: Annotated[str, "generate: which drafters propose tokens, in words."] = ABSENT
    quantization: Annotated[str, "generate: how weights are stored: none, int8 or int4."] = ABSENT
    tokens_per_answer: Annotated[Count, "generate: most tokens of an answer."] = ABSENT
    temperature: Annotated[NonNegative, "generate: of the sampling; 0 is greedy."] = ABSENT
    chat: Annotated[bool, "generate: whether prompts ran in the model's chat template; absent where they didn't."] = (
        ABSENT
    )
    system: Annotated[str | None, "generate: system message of chats that have none of their own."] = ABSENT
    batch_size: Annotated[Count, "classify: inputs computed together."] = ABSENT
    inputs: Annotated[Count, "classify: how many there are."] = ABSENT
    max_length: Annotated[Count | None, "classify: tokens to which texts are cut; null for as many as there are."] = (
        ABSENT
    )
    truncated: Annotated[Count, "classify: texts that were cut."] = ABSENT
    exits: Annotated[Decision | None, "classify: after which layers inputs may leave, and why."] = ABSENT
    pipeline: Annotated[str, "draw: class of the pipeline in diffusers."] = ABSENT
    scheduler: Annotated[str, "draw: class of its scheduler in diffusers."] = ABSENT
    plain_steps: Annotated[Count, "draw: steps that its author meant it to take."] = ABSENT
    pictures: Annotated[Count, "draw: how many each arm draws in a round."] = ABSENT
    quality: Annotated[Fraction, "draw: SSIM to the pipeline's own run that was asked for."] = ABSENT
    guidance: Annotated[float | None, "draw: weight of classifier-free guidance; null where the pipeline has none."] = (
        ABSENT
    )
    size: Annotated[str, "draw: width and height that were asked for."] = ABSENT
    adapters: Annotated[list[str], "draw: LoRA adapters that were folded into the weights."] = ABSENT
    image: Annotated[str, "draw: name of the picture that pictures start from."] = ABSENT
    strength: Annotated[float, "draw: how much of the noise is added to it."] = ABSENT
    masked: Annotated[bool, "draw: whether a mask says what may change."] = ABSENT
    control_image: Annotated[str, "draw: name of the picture that controls what is drawn."] = ABSENT
    control_scale: Annotated[float, "draw: how much it counts."] = ABSENT
    steps: Annotated[Decision, "draw: how many steps pictures take, and why."] = ABSENT
    guarantee: Annotated[
        LabelsGuarantee | PicturesGuarantee | None,
        "classify and draw: what is promised of the dynamic arm; null where nothing is.",
    ] = ABSENT
    harness: Annotated[Harness, "How it was measured."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A dynamic arm against a static one."""

    arm: Annotated[str, "Name of the arm that is compared."]
    baseline: Annotated[str, "Name of the arm that it is compared with."]
    basis: Annotated[str, "Which arm the baseline is, in words."]
    ratio: Annotated[Ratio | None, "Speed of the arm over that of the baseline; null where there is none."]


@dataclass(frozen=True, kw_only=True)
class CategoryArm:
    """One arm on the inputs of one category."""

    name: Annotated[str, "Its name."]
    speed: Annotated[NonNegative | None, "Median over rounds of units per second."]
    ratio: Annotated[Ratio | None, "Its speed over the reference's; null where there is none."]
    identical: Annotated[Fraction | None, "Share of outputs equal to the reference's of the same case and round."]


@dataclass(frozen=True, kw_only=True)
class Category:
    """One kind of inputs, by a field that they carry."""

    name: Annotated[str, "Value of the field."]
    cases: Annotated[CountFromOne, "Inputs of this kind."]
    arms: Annotated[list[CategoryArm], Limit(min_items=1), "The arms of the whole result, in the same order."]
    comparisons: Annotated[
        list[Comparison], "Dynamic arms against static ones; the best static one is that of this category."
    ]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What `dynx bench` measured, compared and judged."""

    schema: Annotated[Literal["dynx.bench/1"], NAME]
    task: Annotated[str, "What the model does: generate, classify or draw."]
    unit: Annotated[str, "Plural of what is counted: tokens, images, labels."]
    header: Header
    cases: Annotated[CountFromOne, "Inputs, or parts of them, that every arm ran in every round."]
    rounds: Annotated[Count, "Complete rounds; each runs every case on every arm."]
    seconds: Annotated[NonNegative, "The whole measurement, warm-up included."]
    stopped: Annotated[
        Literal["rounds", "budget", "interrupt", "decided"],
        "What ended the measurement; decided: more rounds would have changed no verdict.",
    ]
    arms: Annotated[list[Arm], Limit(min_items=1), "What was measured side by side."]
    comparisons: Annotated[
        list[Comparison],
        "Dynamic arms against static ones.",
    ]
    categories: Annotated[
        list[Category], "The same by the kind of inputs, where they carry one; absent where they don't."
    ] = ABSENT
    gates: Annotated[list[Gate], "What was asked of the figures, and whether they meet it."]
    verdict: Annotated[Literal["pass", "fail", "inconclusive"] | None, "The worst of the gates; null without gates."]
    reading: Annotated[list[str], "The figures in sentences."]


@dataclass(frozen=True, kw_only=True)
class BenchSuite:
    """What `dynx bench` prints and exports for several models."""

    schema: Annotated[Literal["dynx.bench.suite/1"], NAME]
    verdict: Annotated[
        Literal["pass", "fail", "inconclusive"] | None, "The worst of all gates; null without gates."
    ] = ABSENT
    results: Annotated[list[Bench], Limit(min_items=1), "A result for each model, in the order they were measured."]
