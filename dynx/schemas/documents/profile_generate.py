"""What a profile holds of a language model."""

from dataclasses import dataclass
from typing import Annotated

from dynx.schemas.documents.fields import ABSENT, Count, Drafter, Fraction, Limit, NonNegative


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds of a pass, by its width."""

    reference_context: Annotated[Count, "Tokens before the pass when it was timed."]
    seconds_per_context_token: Annotated[float, "What each further token before the pass adds."]
    seconds_by_width: Annotated[dict[str, float], "By number of tokens in the pass."]
    seconds_per_context_token_by_width: Annotated[
        dict[str, float], "The same by number of tokens in the pass, where that makes a difference."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class BatchCurves:
    """Passes over several answers at once."""

    backend: Annotated[str, "What computed them; PyTorch where it isn't said."] = ABSENT
    target: Annotated[Curve, "Passes of the model, by answers in them."] = ABSENT
    draft: Annotated[Curve | None, "Passes of the draft model, by answers in them; null for none."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class GenerateMeasured:
    """Seconds of passes."""

    target: Annotated[Curve, "Passes of the model."] = ABSENT
    complete: Annotated[Curve | None, "Passes that go on after an early exit; null where there is none."] = ABSENT
    draft: Annotated[dict[str, Curve], "Passes of each drafter."] = ABSENT
    overhead: Annotated[dict[str, float], "Seconds that a draft takes besides its passes, by drafter."] = ABSENT
    change: Annotated[
        NonNegative, "Seconds that a pass takes besides where the one before had another number of tokens."
    ] = ABSENT
    spread: Annotated[
        NonNegative, "How far the times of one pass were apart: the middle half of them, over their median."
    ] = ABSENT
    batch: Annotated[BatchCurves | None, "Passes over several answers at once; null where the model can't do that."] = (
        ABSENT
    )
    noise: Annotated[
        dict[str, NonNegative], "Logits by which rounding moves, by tokens in the pass; what --exact needs."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often a drafter's tokens are accepted."""

    weights: Annotated[
        tuple[float, float, float],
        "Of a logistic regression: constant, the drafter's own confidence, logarithm of the position in the draft.",
    ]
    typical: Annotated[float, "Share of its tokens that are accepted, whatever its confidence."]
    n: Annotated[Count, "Draft tokens behind that."]


@dataclass(frozen=True, kw_only=True)
class GenerateFitted:
    """Which drafters are used, and how often they are right."""

    origins: Annotated[list[Drafter], "Drafters that pay, together."] = ABSENT
    exit_layers: Annotated[
        Count | None, "Layers after which the model drafts for itself; null where that doesn't pay."
    ] = ABSENT
    lookup: Annotated[bool, "Whether prompt lookup drafts."] = ABSENT
    reliability: Annotated[dict[str, Reliability], "By drafter."] = ABSENT
    tokens_per_second: Annotated[NonNegative, "Speed of decoding that is expected."] = ABSENT
    widened: Annotated[
        dict[str, Annotated[int, Limit(minimum=2)]],
        "Tokens of passes that are run wider, because that costs no more, and the tokens they are run with.",
    ] = ABSENT
    backend: Annotated[str, "Whose kernels were fastest."] = ABSENT
    trees: Annotated[bool, "Whether passes verify trees of candidates, which were faster than chains."] = ABSENT
    own_candidates: Annotated[
        dict[str, list[Count]],
        "By token, the tokens that the model thinks likeliest after it, where nothing else is known.",
    ] = ABSENT
    draft_vocabulary: Annotated[
        list[Count] | None, "Ids that the draft model's output head was cut to; null where it stays whole."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class QuantizationEvidence:
    """What the model as it was says of the quantized one's texts."""

    reference: Annotated[str, "Name and precision of the model as it was."]
    tokens: Annotated[Count, "Tokens that were compared."]
    agreement: Annotated[Fraction, "Share of them that are its first choice too."]
    perplexity_ratio: Annotated[NonNegative, "Factor between the perplexities that the two find in the texts."]


@dataclass(frozen=True, kw_only=True)
class GenerateEvidence:
    """Texts and tests behind it."""

    backend: Annotated[str, "Why those kernels, with their times."] = ABSENT
    quantization: Annotated[
        QuantizationEvidence | None,
        "What the model as it was says of the quantized one's texts; null where nothing is quantized.",
    ] = ABSENT
    drafter: Annotated[str | None, "Where the draft model was, by its name or path; null for none."] = ABSENT
    texts: Annotated[Count, "Texts that it was learned from."] = ABSENT
    tokens: Annotated[Count, "Tokens written in them."] = ABSENT
    data: Annotated[str, "Hash of the texts."] = ABSENT
    self_written: Annotated[bool, "Whether the model wrote them without prompts of the caller's."] = ABSENT
    tree_speedup: Annotated[
        NonNegative | None,
        "Speed with trees of candidates over that with chains, measured; null where there were none.",
    ] = ABSENT
    learned_tokens: Annotated[Count, "Tokens that a drafter was learned from."] = ABSENT
    learned_speedup: Annotated[
        NonNegative | None, "Speed with that drafter over that without it, measured; null where none was tested."
    ] = ABSENT
    loops_cut: Annotated[Count, "Texts that were cut where they began to loop."] = ABSENT
    first_guess_acceptance: Annotated[
        dict[str, Fraction], "Share of first draft tokens that are accepted, by drafter."
    ] = ABSENT
    first_guess_acceptance_by_exit: Annotated[
        dict[str, Fraction], "The same of the model's own layers, by how many of them."
    ] = ABSENT
    predicted_speedup: Annotated[NonNegative, "Over plain decoding, by replaying the texts."] = ABSENT
    predicted_speedup_by_drafters: Annotated[dict[str, NonNegative], "The same for each set of drafters."] = ABSENT
    put_aside: Annotated[list[str], "Sets of drafters that were slower on the clock than in the replay, in words."] = (
        ABSENT
    )
    checked_texts: Annotated[
        Count, "Answers that were timed against plain decoding; 0 where there was nothing to check."
    ] = ABSENT
    measured_speedup: Annotated[NonNegative | None, "Over plain decoding on those; null where there are none."] = ABSENT
    measured_margin: Annotated[
        NonNegative | None, "How far that of other answers may lie above it, at 95 %; null where too few were timed."
    ] = ABSENT
    predicted_speedup_of_checked: Annotated[
        NonNegative | None, "What the replay says of those; null where there are none."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class GenerateProfile:
    """What was measured and learned of a language model."""

    measured: Annotated[GenerateMeasured, "Seconds of passes."]
    fitted: Annotated[GenerateFitted, "Which drafters are used, and how often they are right."]
    evidence: Annotated[GenerateEvidence, "Texts and tests behind it."]
