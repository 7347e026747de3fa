"""Writes texts with the target and records each drafter's drafts at every position of them.

One pass of a drafter over a whole text gives its draft token and its confidence at each position. While drafts are accepted, a
drafter that runs ahead reads the same tokens, so that pass shows how many drafts would be accepted from every position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.runtime.backends.trimmed import sayable
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.head import HeadBackend
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.drafters.translated import TranslatedBackend
from dynx.speculation.engine import Engine
from dynx.speculation.head_traces import HeadPass, read_head
from dynx.speculation.loops import loop_start
from dynx.speculation.policy import MAX_DRAFT_TOKENS
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.simulate import DraftTrace
from dynx.speculation.translated_traces import read_translated
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.ngram_index import NgramIndex

ANSWER_TOKENS = 128
"""Tokens per text: enough for lookup to find repetitions, short enough for several texts."""

MIN_ANSWER_TOKENS = 8
"""Tokens below which an answer tells too little to be kept."""

TOKENS_BETWEEN_LOOP_CHECKS = 16
"""Tokens after which a text under way is searched for a loop."""


@dataclass(frozen=True)
class Text:
    """Token ids the target wrote after `prompt` of its own or the user's."""

    tokens: Sequence[int]  # prompt included
    prompt: int


@dataclass(frozen=True)
class WrittenTexts:
    """Texts to learn from, and how many of them were cut where they began to loop."""

    texts: list[Text]
    loops: int


def write_texts(
    engine: Engine,
    prompts: Iterable[Sequence[int]],
    count: int,
    sampling: Sampling,
    clock: Callable[[], float],
    budget: float,
    progress: Callable[[float], None],
    *,
    end_tokens: frozenset[int] = frozenset(),
) -> WrittenTexts:
    """Up to `count` greedy answers to `prompts`, up to their end or to where they begin to loop; at least two in any budget.

    Prompts whose answers are loops from the beginning, or empty, are passed over. A model that writes nothing else is measured on
    those.
    """
    began = clock()
    kept: list[Text] = []
    whole: list[Text] = []
    loops = 0
    writer = Engine(engine.target, engine.drafters, clock=clock)
    for prompt in prompts:
        limit = engine.target.context
        room = ANSWER_TOKENS if limit is None else min(ANSWER_TOKENS, limit - len(prompt))
        if room >= MIN_ANSWER_TOKENS:
            answer, length = _answer(writer, prompt, room, sampling, end_tokens)
            whole.append(Text([*prompt, *answer], len(prompt)))
            if length >= MIN_ANSWER_TOKENS:
                kept.append(Text([*prompt, *answer[:length]], len(prompt)))
                loops += length < len(answer)
        progress(max(len(kept) / count, min(1.0, (clock() - began) / budget)))
        if len(kept) >= count or (len(kept) >= 2 and clock() - began > budget):
            break
    return WrittenTexts(kept, loops) if len(kept) >= 2 else WrittenTexts(whole, 0)


def _answer(
    writer: Engine, prompt: Sequence[int], room: int, sampling: Sampling, end_tokens: frozenset[int]
) -> tuple[list[int], int]:
    """Return an answer and how many of its tokens come before a loop repeats itself."""
    run = writer.start(Request(list(prompt), room, sampling, eos=end_tokens))
    for number, _ in enumerate(run, 1):
        if number % TOKENS_BETWEEN_LOOP_CHECKS == 0 and (start := loop_start(run.tokens)) is not None:
            return run.tokens, start
    return run.tokens, loop_start(run.tokens) or len(run.tokens)


@dataclass(frozen=True)
class DrafterPass:
    """A drafter's draft for each token of a text from the second on: its signal, and whether it equals the text's."""

    signals: Sequence[float]
    right: Sequence[bool]

    def traces(self, text: Text) -> list[DraftTrace]:
        """Return the drafter's drafts at each position of the answer from its second token on."""
        out = []
        for at in range(text.prompt + 1, len(text.tokens)):
            stop = min(at + MAX_DRAFT_TOKENS, len(text.tokens))
            run = self.right[at - 1 : stop - 1]
            kept = run.index(False) if False in run else len(run)
            out.append(DraftTrace(tuple(self.signals[at - 1 : stop - 1]), kept))
        return out


def read_model(small: Backend, text: Text, vocab: int, sampling: Sampling) -> DrafterPass | HeadPass:
    """Run a draft model over a whole text in one pass, a head in a few."""
    if isinstance(small, HeadBackend):
        return read_head(small, text, vocab, sampling)
    if isinstance(small, TranslatedBackend):
        return DrafterPass(*read_translated(small, text.tokens))
    limit = small.context or len(text.tokens)
    tokens = list(text.tokens[:limit])
    rows = small.open().forward(tokens[:-1])[:, :vocab]
    found = _drafter_pass(rows, tokens, text, sampling, vocab)
    said = sayable(small, tokens)[1:]  # the pass has read tokens that a draft of them comes before
    return DrafterPass(found.signals, [a and b for a, b in zip(found.right, said, strict=True)])


def read_early(target: Backend, text: Text, layers: int, sampling: Sampling) -> DrafterPass:
    """Run the target's first layers over a whole text in one pass."""
    rows = target.open().forward_early(list(text.tokens[:-1]), layers)
    if rows is None:
        raise RuntimeError("an early pass with a head gave no logits")
    return _drafter_pass(rows, list(text.tokens), text, sampling, target.vocab)


def _drafter_pass(rows: Tensor, tokens: list[int], text: Text, sampling: Sampling, vocab: int) -> DrafterPass:
    processors = LogitsProcessors(sampling, text.tokens[: text.prompt], len(text.tokens) - text.prompt, vocab)
    probabilities = processors.probabilities(rows, tokens[:1], tokens[1:])
    best, predicted = probabilities.max(-1)
    return DrafterPass(
        [log_odds(p) for p in best.tolist()], [g == t for g, t in zip(predicted.tolist(), tokens[1:], strict=True)]
    )


def lookup_traces(text: Text, library: Sequence[int] | NgramIndex, new_ngrams: int | None = None) -> list[DraftTrace]:
    """Return prompt lookup's drafts at each position of the answer from its second token on."""
    drafter, out = LookupDrafter(library, new_ngrams), []
    for at in range(text.prompt + 1, len(text.tokens)):
        drafter.sync(text.tokens[:at])
        signals: list[float] = []
        kept, missed = 0, False
        for i in range(min(MAX_DRAFT_TOKENS, len(text.tokens) - at)):
            draft = drafter.propose()
            if draft is None:
                break
            signals.append(draft.signal)
            missed = missed or draft.token != text.tokens[at + i]
            kept += not missed
        out.append(DraftTrace(tuple(signals), kept))
    return out
