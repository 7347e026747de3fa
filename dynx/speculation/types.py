"""The engine's input and output: a request, a stream of tokens, a receipt."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.speculation.prepared import PreparedProcessors

DraftSource = Literal["target", "draft", "self", "lookup", "table"]
"""The source of a token; "table" for candidates beside a draft, in a tree.

A token of the target's own, from a plain pass or after a rejection, is "target"."""

MIN_REPETITION_PENALTY = 1e-6
"""Smallest repetition penalty by which, and by whose inverse, logits can be multiplied without overflow."""

MIN_SAMPLING_TEMPERATURE = 1e-6
"""Temperature below which a softmax in float32 gives the likeliest token all the probability, or overflows."""

FinishReason = Literal["length", "eos", "stop", "context", "interrupted"]


@dataclass(frozen=True)
class DrafterCandidate:
    """One candidate drafter of a round: tokens it must read first, and its first draft's signal if known."""

    origin: DraftSource
    tokens_behind: int = 1
    signal: float | None = None


@dataclass(frozen=True)
class ModelSettings:
    """A model's own decoding settings that change the text, by transformers' names; see `model_settings`."""

    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    repetition_penalty: float = 1.0  # unless the caller has another
    eos: tuple[int, ...] = ()  # the ids that the settings about an answer's end mean
    stop: tuple[str, ...] = ()  # texts that end an answer
    prepared: PreparedProcessors | None = None  # in place of `values`, where transformers' `generate` prepared them

    @property
    def new_ngrams(self) -> int | None:
        """The number of tokens in a row that a text may not have twice; None where it may repeat itself."""
        sizes = [self.values.get(name) for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")]
        sizes += [getattr(p, "ngram_size", None) for p in (self.prepared.processors if self.prepared else ())]
        return min((size for size in sizes if size), default=None)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits; a temperature below `MIN_SAMPLING_TEMPERATURE` takes the most likely one.

    `seed` makes sampling reproducible: the same seed gives the text that plain decoding gives with it, whatever was
    drafted. Without a seed a rule that accepts more is used; its text has the same distribution. `own` are the model's
    settings, which plain decoding keeps to as well, except for the repetition penalty, which is the caller's.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    own: ModelSettings = field(default_factory=ModelSettings, repr=False)

    def __post_init__(self) -> None:
        """Raise InvalidInput for values that make no distribution, NaN included."""
        sane = 0 <= self.temperature < inf and self.top_k >= 0 and 0 <= self.top_p <= 1
        sane = sane and MIN_REPETITION_PENALTY <= self.repetition_penalty <= 1 / MIN_REPETITION_PENALTY
        if not sane or (self.seed is not None and self.seed < 0):
            raise InvalidInput(f"can't sample with {self}")

    @property
    def greedy(self) -> bool:
        """Whether decoding is deterministic: the argmax of the logits."""
        return self.temperature < MIN_SAMPLING_TEMPERATURE


@dataclass(frozen=True)
class Request:
    """One continuation to write."""

    prompt: Sequence[int]  # token ids, at least one
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    eos: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    continues: bool = (
        True  # whether the answer goes on with the prompt's text, rather than being one of its own, as in a chat
    )

    @property
    def any_prefix(self) -> bool:
        """Whether any number of the drafts may be verified: not where chance draws and accepts them (see `acceptance`)."""
        return self.sampling.greedy or self.sampling.seed is not None


@dataclass(frozen=True)
class Token:
    """One token of the answer and the text that can be shown now.

    `text` may be empty (part of a character, or held back as the possible beginning of a stop string).
    """

    id: int
    text: str
    origin: DraftSource


@dataclass
class DrafterTally:
    """One drafter's part in a run."""

    rounds: int = 0
    drafted: int = 0
    submitted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    accepted_by_position: list[int] = field(default_factory=list)
    submitted_by_position: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float | None:
        """Share of submitted tokens that were accepted."""
        return self.accepted / self.submitted if self.submitted else None

    def add(self, *, drafted: int, submitted: int, accepted: int, seconds: float) -> None:
        """Count one round; `seconds` is the time of drafting."""
        self.rounds += 1
        self.drafted += drafted
        self.submitted += submitted
        self.accepted += accepted
        self.seconds += seconds
        for i in range(submitted):
            if i == len(self.submitted_by_position):
                self.submitted_by_position.append(0)
                self.accepted_by_position.append(0)
            self.submitted_by_position[i] += 1
            self.accepted_by_position[i] += i < accepted


@dataclass(frozen=True)
class RedecodeStats:
    """What re-decoding near ties took in an exact run."""

    bound: float  # logits by which rounding may move a decision; 0 where passes are batch-invariant
    near_ties: int = 0  # decisions closer than that, re-decoded by plain passes
    redecoded: int = 0  # plain passes that this took
    seconds: float = 0.0


@dataclass(frozen=True)
class Receipt:
    """Statistics of an answer: what it cost and what was saved. Times are in seconds."""

    prompt_tokens: int
    tokens: int
    finish_reason: FinishReason
    seconds: float  # from the request to the last token
    prefill_seconds: float  # of that, the prompt
    first_token_seconds: float | None
    target_forwards: int  # passes of the target after the prompt
    drafters: Mapping[str, DrafterTally]
    guarantee: str
    plain_seconds: float | None  # what plain decoding would have taken, from its measured cost
    plain_measured: str | None  # where that cost comes from: "profile", "this run" or None
    sequences: float = 1.0  # answers that shared each pass, on average; times are this one's share of them
    exact: RedecodeStats | None = None  # where exactness was asked for
    idle: bool = False  # whether there was a draft model that was never used
    reused_tokens: int = 0  # of the prompt, held by a kept cache and not read again
    tree_forwards: int = 0  # passes of the target that verified a tree of candidates
    tree_candidates: int = 0  # candidates in those
    tree_tokens: int = 0  # tokens that they gave

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed, the prompt's pass left out, over the tokens that came after the first."""
        spent = self.seconds - self.prefill_seconds
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else None

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens for each target pass after the prompt; 1 is plain decoding."""
        return (self.tokens - 1) / self.target_forwards if self.target_forwards else None

    @property
    def speedup(self) -> float | None:
        """Plain decoding's measured time over this run's, both without the prompt."""
        spent = self.seconds - self.prefill_seconds
        return self.plain_seconds / spent if self.plain_seconds and spent > 0 else None
