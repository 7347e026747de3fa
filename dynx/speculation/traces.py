"""Writes texts with the target and records each drafter's drafts at every position of them.

One pass of a drafter over a whole text gives its draft token and its confidence at each position. While drafts are accepted, a
drafter that runs ahead reads the same tokens, so that pass shows how many drafts would be accepted from every position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.runtime.backends.trimmed import sayable
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.drafters.translated import TranslatedBackend
from dynx.speculation.engine import Engine
from dynx.speculation.policy import MAX_DRAFT_TOKENS, Plain
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.simulate import DraftTrace
from dynx.speculation.translated_traces import read_translated
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.ngram_index import NgramIndex

ANSWER_TOKENS = 96
"""Tokens per text: enough for lookup to find repetitions, short enough for several texts."""

OPENING_TOKENS = 24
"""Tokens of an opening that the model samples."""


@dataclass(frozen=True)
class Text:
    """Token ids the target wrote after `prompt` of its own or the user's."""

    tokens: Sequence[int]  # prompt included
    prompt: int


def write_texts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling,
    clock: Callable[[], float],
    budget: float,
    progress: Callable[[float], None],
) -> list[Text]:
    """Greedy continuations of `prompts`, or of openings sampled from the model. At least two, whatever the budget."""
    began, texts = clock(), []
    writer = Engine(engine.target, engine.drafters, clock=clock)
    for i in range(min(count, len(prompts)) if prompts else count):
        prompt = list(prompts[i]) if prompts else make_up_opening(writer, i)
        limit = engine.target.context
        room = ANSWER_TOKENS if limit is None else min(ANSWER_TOKENS, limit - len(prompt))
        if room < 8:
            continue
        run = writer.start(Request(prompt, room, sampling))
        for _ in run:
            pass
        texts.append(Text([*prompt, *run.tokens], len(prompt)))
        progress((i + 1) / count)
        if len(texts) >= 2 and clock() - began > budget:
            break
    return texts


def make_up_opening(engine: Engine, number: int) -> list[int]:
    """Sample a prompt from the target at temperature 1, after a token chosen by `number`."""
    start = (number * 7919 + 11) % engine.target.vocab  # any token will do; a prime step spreads them
    run = engine.start(Request([start], OPENING_TOKENS, Sampling(temperature=1.0, seed=number)), Plain())
    for _ in run:
        pass
    return [start, *run.tokens]


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


def read_model(small: Backend, text: Text, vocab: int, sampling: Sampling) -> DrafterPass:
    """Run a draft model over a whole text in one pass."""
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
