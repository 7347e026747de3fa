"""What a task counts while it is measured."""

from dataclasses import dataclass
from typing import Annotated

from dynx.schemas.documents.common import Similarity
from dynx.schemas.documents.fields import ABSENT, Count, Drafter, Fraction, Key, NonNegative


@dataclass(frozen=True, kw_only=True)
class PositionCounts:
    """Draft tokens by their position in a draft."""

    submitted: Annotated[list[Count], "Draft tokens that the model verified."]
    accepted: Annotated[list[Count], "Of those, draft tokens that were accepted."]


@dataclass(frozen=True, kw_only=True)
class FirstMismatch:
    """Where an answer first differs from plain's."""

    case: Annotated[Count, "Index of the case."]
    position: Annotated[Count, "Index of the token in the answer."]
    expected: Annotated[str | None, "Plain's token there; null where its answer had ended."]
    got: Annotated[str | None, "This arm's; null where its answer had ended."]
    logit_gap: Annotated[
        NonNegative, "Between plain's two highest logits there: next to nothing where rounding decided."
    ]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of answers, with its interval."""

    value: Annotated[Fraction, "hits over of."]
    low: Annotated[Fraction, "Lower end of its exact interval (Clopper and Pearson)."]
    high: Annotated[Fraction, "Upper end of the same."]
    hits: Annotated[Count, "Answers that are right."]
    of: Annotated[Count, "Answers that were compared."]
    confidence: Annotated[Fraction, "Of the interval."]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Counters of the task: generate has those of tokens and drafters, classify of layers, draw of steps."""

    tokens_per_forward: Annotated[
        NonNegative | None, "generate: tokens for each pass of the model after the prompt's own; 1 is plain decoding."
    ] = ABSENT
    passes: Annotated[NonNegative, "generate: passes of the model after the prompt's own, on average."] = ABSENT
    first_token_seconds: Annotated[NonNegative | None, "generate: seconds to the first token."] = ABSENT
    draft_drafted: Annotated[NonNegative, Key("draft drafted"), "Draft tokens of the draft model."] = ABSENT
    draft_kept: Annotated[NonNegative, Key("draft kept"), "Of those, tokens that were accepted."] = ABSENT
    self_drafted: Annotated[NonNegative, Key("self drafted"), "Draft tokens of the model's own first layers."] = ABSENT
    self_kept: Annotated[NonNegative, Key("self kept"), "Of those, tokens that were accepted."] = ABSENT
    lookup_drafted: Annotated[NonNegative, Key("lookup drafted"), "Draft tokens of prompt lookup."] = ABSENT
    lookup_kept: Annotated[NonNegative, Key("lookup kept"), "Of those, tokens that were accepted."] = ABSENT
    by_position: Annotated[
        dict[Drafter, PositionCounts], "generate: draft tokens verified and accepted, by drafter."
    ] = ABSENT
    first_mismatch: Annotated[
        FirstMismatch | None, "generate, of an arm: where an answer first differs from plain's; null where none does."
    ] = ABSENT
    mean_layers: Annotated[
        NonNegative | None, "classify: layers that an input took on average; null where nobody counts."
    ] = ABSENT
    repeated: Annotated[NonNegative, "classify: inputs that were like an earlier one, and weren't computed again."] = (
        ABSENT
    )
    left_after: Annotated[
        dict[str, Count] | None, "classify: inputs by the layer they left after; null where nobody counts."
    ] = ABSENT
    agreement: Annotated[
        Share | None, "classify, of an arm: labels that are the full float32 model's; null where that isn't known."
    ] = ABSENT
    by_label: Annotated[
        dict[str, Share] | None,
        "classify, of an arm: the same by the full model's label; null where answers aren't one label each.",
    ] = ABSENT
    accuracy: Annotated[Share | None, "classify, of an arm: labels that are true by --labels; null without."] = ABSENT
    calls: Annotated[NonNegative, "draw: times that the network ran."] = ABSENT
    rows: Annotated[NonNegative, "draw: batch rows that went through it; a guided picture takes two in a call."] = (
        ABSENT
    )
    steps_run: Annotated[NonNegative, "draw: steps at which the network ran."] = ABSENT
    steps_skipped: Annotated[NonNegative, "draw: steps that were answered with what the network said before."] = ABSENT
    steps_unguided: Annotated[NonNegative, "draw: steps run without classifier-free guidance."] = ABSENT
    mean_calls: Annotated[NonNegative, "draw, of an arm: calls of a picture on average."] = ABSENT
    mean_rows: Annotated[NonNegative, "draw, of an arm: rows of a picture on average."] = ABSENT
    ssim: Annotated[
        Similarity, "draw, of an arm: structural similarity to plain's pictures, of each case the worst of all rounds."
    ] = ABSENT
    clip: Annotated[
        Similarity | None,
        "draw, of an arm: CLIP similarity to plain's pictures; null where the pipeline has no vision tower.",
    ] = ABSENT
