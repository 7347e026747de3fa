"""What a profile holds of a classifier."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.common import Certificate, Seconds
from dynx.schemas.documents.fields import ABSENT, Count, Fraction, NonNegative


@dataclass(frozen=True, kw_only=True)
class SegmentSeconds:
    """Seconds of a model that OpenVINO runs in segments."""

    conversion: Annotated[NonNegative, "Of converting it; 0 where the cache had it."] = ABSENT
    input: Annotated[
        dict[str, NonNegative], "Of an input at full depth, by backend; empty where one was asked for."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ClassifyMeasured:
    """Seconds of inputs."""

    seconds_by_batch: Annotated[dict[str, Seconds], "By inputs computed together."] = ABSENT
    clock: Annotated[
        tuple[float, float, float] | None,
        (
            "Plain's time over that with exits, on the clock in turns: median, least and most of the rounds; null "
            "where it wasn't timed."
        ),
    ] = ABSENT
    batch: Annotated[Count, "Inputs computed together while calibrating."] = ABSENT
    segments: Annotated[SegmentSeconds, "Of the model in segments; absent where its layers run one by one."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ExitRules:
    """The list that a promise is certified from, strictest first."""

    family: Annotated[
        Literal["common", "cost"], "common: one threshold for all layers; cost: thresholds by what leaving there saves."
    ] = ABSENT
    kept: Annotated[list[Count], "Which of the depths are used."] = ABSENT
    words: Annotated[str, "That in words."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class FittedSegments:
    """How a model was cut that OpenVINO runs in segments."""

    precision: Annotated[Literal["float32", "bfloat16", "int8"], "What they compute in."] = ABSENT
    borders: Annotated[list[Count], "Layers that they end after, without the last."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ClassifyFitted:
    """Where inputs may leave."""

    depths: Annotated[list[Count], "Layers after which they may; none where that doesn't pay."] = ABSENT
    rules: Annotated[ExitRules, "The list that a promise is certified from, strictest first."] = ABSENT
    problem: Annotated[
        Literal["single", "multi", "regression"], "What the model answers: one label, several, or numbers."
    ] = ABSENT
    tolerance: Annotated[NonNegative | None, "How far two numbers may be apart and still agree; null for labels."] = (
        ABSENT
    )
    max_length: Annotated[Count | None, "Tokens to which texts were cut; null for as many as the model takes."] = ABSENT
    max_disagreement: Annotated[Fraction, "Share of answers that may differ."] = ABSENT
    agreement: Annotated[dict[str, Fraction], "Share of answers that are the full model's, by layer."] = ABSENT
    top_k: Annotated[Count, "Rankings: how many documents of a query were promised when it was made."] = ABSENT
    candidates: Annotated[list[str], "Zero-shot: the labels to choose from."] = ABSENT
    hypothesis: Annotated[str, "Zero-shot: the sentence that a label makes."] = ABSENT
    multi_label: Annotated[bool, "Zero-shot: whether several labels of a text may hold."] = ABSENT
    aggregation_strategy: Annotated[
        Literal["none", "simple", "first", "average", "max"], "Entities: how labels of tokens become them."
    ] = ABSENT
    backend: Annotated[str, "Whose kernels compute the layers."] = ABSENT
    segments: Annotated[FittedSegments, "How the model was cut; absent where its layers run one by one."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ClassEvidence:
    """What exits change of one label."""

    label: Annotated[str, "The full model's."] = ABSENT
    inputs: Annotated[Count, "Inputs that have it."] = ABSENT
    disagreements: Annotated[Count, "Of those, inputs that left with another."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class FullDepthEvidence:
    """The model before any exit against the full float32 model."""

    n: Annotated[Count, "Inputs that were compared."] = ABSENT
    disagreements: Annotated[Count, "Of those, answers that differ."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ClassifyEvidence:
    """Inputs and tests behind a profile."""

    data: Annotated[str, "Hash of the inputs."] = ABSENT
    inputs: Annotated[Count, "How many."] = ABSENT
    parts: Annotated[list[Count], "How many made heads, rules, and the certificate."] = ABSENT
    certificate: Certificate = ABSENT
    by_class: Annotated[list[ClassEvidence], "Where exits change answers."] = ABSENT
    full_depth: Annotated[FullDepthEvidence, "The model before any exit against the full float32 model."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ClassifyProfile:
    """What was measured and learned of a classifier."""

    measured: Annotated[ClassifyMeasured, "Seconds of inputs."]
    fitted: Annotated[ClassifyFitted, "Where inputs may leave."]
    evidence: Annotated[ClassifyEvidence, "Inputs and tests behind it."]
