"""Drafting with a model that has another tokenizer than the target; both ways are lossless, since every draft is verified.

* `TextDrafter`, for greedy decoding: the model writes text in its own tokens, and the target's tokenizer encodes it. A token at
  the end of what is written may yet merge with what follows; it is drafted at once where such ends have turned out to be ends of
  the target's tokens, and else after the model's next token.
* `SharedVocabularyDrafter`, for sampling: the model draws among the tokens that both vocabularies have, from its distribution
  restricted to those. That is a distribution over the target's tokens, so the acceptance rules hold as they are.

Letters: V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime.backends.interface import Backend
from dynx.runtime.backends.picks import likeliest_with_probability
from dynx.runtime.decision import Decision
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.drafters.draft_sampler import OTHER_CHOICES
from dynx.speculation.drafters.token_texts import ends_whole
from dynx.speculation.drafters.translation import TranslatedText
from dynx.speculation.sampling import UNKNOWN_TOKEN_LOGIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.runtime.backends.interface import Session
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.drafters.translation import Translation
    from dynx.speculation.types import DraftSource

MOST_SHARED = 0.99
"""Share of the target's tokens that the drafter has too, from which it drafts in those alone, greedy decoding included."""

LEAST_SHARED = 0.1
"""Share below which it drafts text even where tokens are sampled: the likeliest one, as if it were certain."""

LOOK_BACK_BYTES = 32
"""Bytes before a draft that are encoded with it, so that it is cut into tokens as in the whole text; at least."""

MAX_TOKENS_PER_DRAFT = 8
"""Tokens of the draft model after which a draft token that still isn't whole is given up."""

ENDS_WELL = 0.8
"""Share of a token's occurrences that ended where a token of the target ends, from which that is expected of the next."""

PRIOR_ENDS = 4.0
"""Occurrences that all tokens' share counts for beside those of the token itself."""


class TranslatedBackend(Backend):
    """A draft model together with the translation between its tokenizer and the target's."""

    def __init__(self, inner: Backend, translation: Translation) -> None:
        self.inner, self.translation = inner, translation
        self.name, self.precision, self.vocab = inner.name, inner.precision, inner.vocab
        self.layers, self.context, self.own_threads = inner.layers, inner.context, inner.own_threads

    @property
    def how(self) -> str:
        """How it drafts, in a phrase."""
        return "another tokenizer: by text, or among shared tokens where sampling"

    @property
    def can_rollback(self) -> Decision[bool]:
        """See `Backend.can_rollback`."""
        return self.inner.can_rollback

    @property
    def can_exit(self) -> Decision[bool]:
        """See `Backend.can_exit`."""
        return self.inner.can_exit

    @property
    def can_batch(self) -> Decision[bool]:
        """See `Backend.can_batch`."""
        return Decision(False, "with another tokenizer it drafts for one text at a time")

    def open(self) -> Session:
        """Start an empty sequence of the draft model's own tokens."""
        return self.inner.open()

    def drafter(self, sampler: DraftSampler, vocab: int) -> Drafter:
        """Open a drafter for one text of a target with `vocab` tokens."""
        share = self.translation.share
        if share < (MOST_SHARED if sampler.takes_likeliest else LEAST_SHARED):
            return TextDrafter(self, sampler)
        return SharedVocabularyDrafter(self, sampler, vocab)


class _Translated:
    """What both have in common: a session over the text in the draft model's tokens."""

    origin: DraftSource = "draft"

    def __init__(self, backend: TranslatedBackend, sampler: DraftSampler) -> None:
        self._backend, self._sample, self._translation = backend, sampler, backend.translation
        self.reset()

    def reset(self) -> None:
        """See `Drafter.reset`."""
        self._session: Session | None = None
        self._text = TranslatedText(self._translation)
        self._held: list[int] = []  # ids behind the session's positions
        self._context: Sequence[int] = ()
        self._drafted: list[int] = []  # the target's tokens

    def tokens_behind(self, length: int) -> int:
        """See `Drafter.tokens_behind`; counted in the target's tokens."""
        return max(1, length - self._text.seen)

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return None: unknown before the pass."""
        return None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        if self._session is None:
            self._session = self._backend.open()
        self._context, self._drafted = tokens, []
        self._text.read(tokens)
        ids = self._text.ids
        most = max(0, min(len(self._held), len(ids) - 1))
        same = min(most, self._text.kept)
        while same < most and self._held[same] == ids[same]:
            same += 1
        self._session.rollback(same)
        del self._held[same:]

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` compares."""

    def _logits(self) -> Tensor | None:
        """Read what the session lacks and return the logits (V,) of the draft model's next token, or None."""
        session, ids = self._session, self._text.ids
        if session is None:
            raise RuntimeError("propose before sync")
        limit = self._backend.context
        feed = ids[len(self._held) :]
        if not feed or (limit is not None and len(ids) > limit) or max(feed) >= self._backend.vocab:
            return None
        row = session.forward(feed, keep=1)[0]
        self._held += feed
        return row


class SharedVocabularyDrafter(_Translated):
    """Drafts tokens that both vocabularies have."""

    def __init__(self, backend: TranslatedBackend, sampler: DraftSampler, vocab: int) -> None:
        self._vocab = vocab  # the target's
        super().__init__(backend, sampler)

    def propose(self) -> Draft | None:
        """See `Drafter.propose`."""
        shared = self._translation.shared
        if self._drafted:
            own = shared.to_own.get(self._drafted[-1])
            if own is None or not self._translation.own[own]:
                return None  # a token that the model can't read, or the end
            self._text.append(own)
        elif not self._text.whole:
            return None
        row = self._logits()
        if row is None:
            return None
        row = shared.row(row.float(), self._vocab, UNKNOWN_TOKEN_LOGIT)
        draft = self._sample(row, self._context, self._drafted, OTHER_CHOICES)
        self._drafted.append(draft.token)
        return draft


class TextDrafter(_Translated):
    """Drafts text, which the target's tokenizer encodes."""

    def __init__(self, backend: TranslatedBackend, sampler: DraftSampler) -> None:
        self._ends: dict[int, tuple[float, float]] = {}  # by token: ends that were ends of the target's tokens, and all
        self._all_ends = (3.0, 4.0)
        super().__init__(backend, sampler)

    def reset(self) -> None:
        """See `Drafter.reset`."""
        super().reset()
        self._begin()

    def _begin(self) -> None:
        self._written = bytearray()
        self._before = b""  # text in front of it that is encoded with it
        self._found: list[int] = []  # the target's tokens in what is written
        self._stops: list[int] = []  # the byte of it at which each ends
        self._probabilities: list[tuple[int, float]] = []  # of the draft model's tokens not yet drafted, by first byte
        self._over = False

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        super().sync(tokens)
        self._begin()
        text = self._text.text
        start = max(0, len(text) - LOOK_BACK_BYTES)
        while start and text[start] not in b" \n":  # no token spans the space before a word
            start -= 1
        self._before = bytes(text[start:])

    def propose(self) -> Draft | None:
        """See `Drafter.propose`."""
        if not self._text.whole:
            return None
        for _ in range(MAX_TOKENS_PER_DRAFT):
            count = len(self._drafted)
            if self._found[:count] != self._drafted:
                return None  # what was drafted merged with what came after it
            sure = 1.0
            if len(self._found) == count + 1 and not self._over:
                sure = self._ends_well()
            if len(self._found) > count and sure >= ENDS_WELL:
                return self._draft(count, sure)
            if self._over or not self._write():
                self._over = True
                if len(self._found) <= len(self._drafted):
                    return None
        return None

    def _draft(self, number: int, sure: float) -> Draft:
        token, stop = self._found[number], self._stops[number]
        while self._probabilities and self._probabilities[0][0] < stop:
            sure *= self._probabilities.pop(0)[1]
        self._drafted.append(token)
        return Draft(token, log_odds(sure))

    def _write(self) -> bool:
        """Write one more token of the draft model's; False at its end."""
        row = self._logits()
        if row is None:
            return False
        token, probability = likeliest_with_probability(row)
        start, last = len(self._written), self._text.ids[-1]
        own, target = self._translation.own, self._translation.target
        if not own[token]:
            if token == own.eos and target.eos is not None and ends_whole(self._written[-4:]):
                self._found.append(target.eos)
                self._stops.append(start + 1)
                self._probabilities.append((start, probability))
            return False
        self._written += self._text.append(token)
        self._probabilities.append((start, probability))
        if ends_whole(self._written[-4:]):
            self._encode()
            if start:
                self._learn_end(last, start in self._stops)
        return True

    def _encode(self) -> None:
        """Cut what is written into the target's tokens: as in the whole text where it begins a token there, else by itself."""
        target, begin = self._translation.target, len(self._before)
        found = target.encode_with_starts(self._before + self._written)
        if found is None or begin not in found[1]:
            found, begin = target.encode_with_starts(bytes(self._written)), 0
            if found is None or begin not in found[1]:
                self._found, self._stops = [], []
                return
        ids, starts = found
        first = starts.index(begin)
        self._found = ids[first:]
        self._stops = [start - begin for start in starts[first + 1 :]] + [len(self._written)]

    def _ends_well(self) -> float:
        """Return the share of this last token's occurrences that end where a token of the target ends."""
        hits, count = self._ends.get(self._text.ids[-1], (0.0, 0.0))
        every = self._all_ends[0] / self._all_ends[1]
        return (hits + PRIOR_ENDS * every) / (count + PRIOR_ENDS)

    def _learn_end(self, token: int, whole: bool) -> None:
        hits, count = self._ends.get(token, (0.0, 0.0))
        self._ends[token] = hits + whole, count + 1
        hits, count = self._all_ends
        self._all_ends = hits + whole, count + 1
