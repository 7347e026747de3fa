"""Answers of a language model, and their tokens."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dynx.schemas.documents.common import Decision
from dynx.schemas.documents.fields import (
    ABSENT,
    EVENT,
    NAME,
    Count,
    CountFromOne,
    Form,
    Fraction,
    Limit,
    NonNegative,
)


@dataclass(frozen=True, kw_only=True)
class DrafterReceipt:
    """One drafter's part in an answer."""

    rounds: Annotated[Count, "Rounds in which it drafted."]
    drafted: Annotated[Count, "Draft tokens that it proposed."]
    submitted: Annotated[Count, "Of those, tokens that the model verified."]
    accepted: Annotated[Count, "Of those, tokens that were accepted."]
    acceptance: Annotated[Fraction | None, "accepted over submitted; null where nothing was verified."]
    submitted_by_position: Annotated[list[Count], "submitted, by position in the draft."]
    accepted_by_position: Annotated[list[Count], "accepted, by position in the draft."]
    seconds: Annotated[NonNegative, "Time spent on drafting."]


@dataclass(frozen=True, kw_only=True)
class ExactReceipt:
    """Decisions that rounding could have made, and what it took to make them again."""

    bound_logits: Annotated[
        NonNegative, "How far rounding may move a logit; 0 where wide passes give narrow ones' bits."
    ]
    near_ties: Annotated[Count, "Decisions closer than that, made again by plain passes."]
    reread_tokens: Annotated[Count, "Plain passes that it took."]
    seconds: Annotated[NonNegative, "Time that it took."]


@dataclass(frozen=True, kw_only=True)
class TreeReceipt:
    """Passes of the model that verified several candidates for a place in the text."""

    target_forwards: Annotated[Count, "Passes that verified a tree of candidates."]
    candidates: Annotated[Count, "Candidates in them."]
    tokens: Annotated[Count, "Tokens that they gave."]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an answer cost and what was saved."""

    prompt_tokens: Annotated[Count, "Tokens of the prompt."]
    reused_tokens: Annotated[Count, "Of those, tokens that a kept cache held, so that they weren't read again."] = (
        ABSENT
    )
    draft_model_idle: Annotated[
        bool, "Whether there was a draft model that was never used, since it wouldn't have saved time."
    ] = ABSENT
    tokens: Annotated[Count, "Tokens of the answer."]
    seconds: Annotated[NonNegative, "From the request to the last token."]
    prefill_seconds: Annotated[NonNegative, "Of that, the pass over the prompt."]
    first_token_seconds: Annotated[NonNegative | None, "From the request to the first token; null where there is none."]
    tokens_per_second: Annotated[
        NonNegative | None,
        "Speed of decoding after the first token, without the prompt's pass; null for fewer than two tokens.",
    ]
    target_forwards: Annotated[Count, "Passes of the model after the prompt's own."]
    tokens_per_forward: Annotated[
        NonNegative | None,
        "Tokens for each pass of the model after the prompt's own; 1 is plain decoding, null where there was no pass.",
    ]
    drafters: Annotated[
        dict[Literal["draft", "self", "lookup", "table"], DrafterReceipt],
        (
            "By drafter: the draft model (draft), the model's own first layers (self), prompt lookup (lookup), or what the text "
            "and the model itself had after the last tokens before, in trees (table)."
        ),
    ]
    trees: Annotated[TreeReceipt, "Passes that verified a tree of candidates."] = ABSENT
    guarantee: Annotated[str, "What is promised of the answer, in words."]
    plain_seconds: Annotated[NonNegative | None, "What plain decoding would have taken; null where that isn't known."]
    plain_measured: Annotated[Literal["profile", "this run"] | None, "Where that is known from."]
    speedup: Annotated[
        NonNegative | None,
        "Plain decoding's time over this answer's, both without the prompt; null where that isn't known.",
    ]
    rows: Annotated[
        float,
        Limit(minimum=1),
        (
            "Answers that shared each pass of the model, on average: 1 unless --lines batched them. All times are "
            "this answer's share."
        ),
    ] = ABSENT
    exact: Annotated[
        ExactReceipt | None,
        "Under --exact: decisions that rounding could have made, and what it took to make them again; else null.",
    ] = ABSENT
    profile: Annotated[str | None, "Id of the profile that was used; null for none."]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where an answer differs from plain decoding."""

    position: Annotated[Count, "Index in the answer."]
    token_id: Annotated[Count, "The token that was written."]
    plain_token_id: Annotated[Count, "The token that the plain model takes."]
    token: Annotated[str, "The text of the first."]
    plain_token: Annotated[str, "The text of the second."]
    margin_logits: Annotated[
        float | None, "How much better the plain model finds its own; null where the other has no probability."
    ]
    within_rounding: Annotated[bool, "Whether rounding alone explains it."]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What plain decoding says of an answer."""

    verdict: Annotated[
        Literal["identical", "rounding", "different", "plausible", "implausible"],
        (
            "identical: plain decoding writes the same; rounding: it differs where two tokens are as good as tied; "
            "plausible: as likely as the model's own samples."
        ),
    ]
    rule: Annotated[
        Literal["greedy", "seed", "chance"],
        "What is compared: the likeliest tokens, the draws of the seed, or without a seed how likely the text is.",
    ]
    tokens: Annotated[Count, "Tokens that were verified."]
    differences: Annotated[Count, "Tokens that the plain model wouldn't have taken."]
    first_difference: Annotated[Difference | None, "The first of them; null for none."]
    smallest_margin_logits: Annotated[float | None, "How close the closest decision was; null where none was made."]
    mean_log_likelihood: Annotated[float | None, "Mean logarithm of a token's probability; null where one has none."]
    deviation: Annotated[
        float | None,
        (
            "Without a seed: standard deviations between the text's log-likelihood and that of the model's own "
            "samples; else null."
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt and what was written after it."""

    index: Annotated[Count, "Place of the prompt, from 0."]
    model: Annotated[str, "Name of the model."]
    prompt: Annotated[str | None, "The text that was continued or answered; null for a conversation."]
    messages: Annotated[list[dict[str, Any]], "The conversation that was answered."] = ABSENT
    original: Annotated[object | dict[str, Any], "The JSON line that the prompt came from, with --field."] = ABSENT
    text: Annotated[str, "What was written."]
    token_ids: Annotated[list[Count], "The same in the model's tokens."]
    finish_reason: Annotated[
        Literal["length", "eos", "stop", "context", "interrupted"],
        (
            "Why it ended: as long as was asked for (length), by the model itself (eos), before a --stop text (stop), "
            "the model's context is full (context), or Ctrl-C (interrupted)."
        ),
    ]
    seed: Annotated[Count | None, "Of the sampling; null where none was given."]
    receipt: Receipt
    decisions: Annotated[dict[str, Decision], "By setting: its value and why it has that."]
    verification: Annotated[
        Verification | None,
        "With --verify: what the plain model says of the answer; null for one that was interrupted.",
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of an answer."""

    index: Annotated[Count, "Which answer."]
    id: Annotated[Count | None, "The token; null: text that was only held back."]
    text: Annotated[
        str, "What can be shown now: empty for a part of a character, or a possible beginning of a --stop text."
    ]
    origin: Annotated[Literal["target", "draft", "self", "lookup", "table"], "Who proposed the token first."]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A prompt of --lines that can't be continued."""

    index: Annotated[Count, "Place of the prompt, from 0."]
    model: Annotated[str, "Name of the model."]
    prompt: Annotated[
        str | None,
        (
            "The prompt; of a line that is none the line itself, with U+FFFD in place of what isn't UTF-8, and of one that is "
            "too long its beginning; null for a conversation."
        ),
    ]
    messages: Annotated[list[dict[str, Any]], "The conversation that can't be answered."] = ABSENT
    original: Annotated[object | dict[str, Any], "The JSON line that the prompt came from, with --field."] = ABSENT
    line: Annotated[CountFromOne, "Number of the line, with --field."] = ABSENT
    error: Annotated[str, "Why it has no answer."]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Several answers."""

    results: Annotated[list[Answer | Failure], "An answer for each prompt, in their order, or why there is none."]


@dataclass(frozen=True, kw_only=True)
class TokenEvent(Token):
    """A token was written."""

    event: Annotated[Literal["token"], EVENT]


@dataclass(frozen=True, kw_only=True)
class ResultEvent(Answer):
    """An answer is complete."""

    event: Annotated[Literal["result"], EVENT]


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Failure):
    """A prompt has no answer."""

    event: Annotated[Literal["error"], EVENT]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What `dynx generate --json` and `--jsonl` print.

    An answer, a list of them with --lines, or a line for each token and answer; a prompt of --lines without an answer
    says why.
    """

    schema: Annotated[Literal["dynx.generate/1"], NAME]
    forms: ClassVar = (
        Form("one result", Answer, without=("event", "results")),
        Form("several results", Answers),
        Form("event: token", TokenEvent),
        Form("event: result", ResultEvent),
        Form("event: error", ErrorEvent),
    )
