"""Drafting across tokenizers: what a draft model with a tokenizer of its own reads, and which tokens it shares with the target.

The target's text so far is spelt in the drafter's tokens. Only the end of it is encoded anew each round, from a few tokens back,
since new text may merge with what stood before; the tokens in front of the first change stay, and with them the keys and values.

Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from dynx.runtime.torch_on_use import torch
from dynx.speculation.drafters.token_texts import TokenTexts, ends_whole, starts_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LOOK_BACK_TOKENS = 6
"""Tokens before new text that are encoded again with it."""

MAX_OTHER_IDS = 0.01
"""Share of a vocabulary's tokens, reserved names mostly, that may have other ids in another if ids are to be passed on."""


def translation_between(target: Any, own: Any) -> Translation | None:
    """Return the translation from a target's tokenizer to a drafter's, or None where their ids mean the same.

    Raises UnsupportedModelError where they differ and can't be compared.
    """
    first, second = target.get_vocab(), own.get_vocab()
    small, large = sorted((first, second), key=len)
    if first == second or sum(large.get(token) != i for token, i in small.items()) <= MAX_OTHER_IDS * len(small):
        return None
    return Translation(target, own)


@dataclass(frozen=True)
class SharedTokens:
    """Pairs of tokens with the same text."""

    own: Tensor  # the drafter's ids, (N,)
    target: Tensor  # the target's ids, (N,)
    to_own: dict[int, int]

    def row(self, logits: Tensor, vocab: int, otherwise: float) -> Tensor:
        """Return a drafter's logits (V,) as those of the target's tokens, `otherwise` for tokens that it lacks."""
        out = logits.new_full((vocab,), otherwise)
        out[self.target.to(out.device)] = logits[self.own.to(out.device)]
        return out


class Translation:
    """Two tokenizers, the target's and the drafter's. Raises UnsupportedModelError where one of them has no texts of tokens."""

    def __init__(self, target: Any, own: Any) -> None:
        self.target, self.own = TokenTexts(target), TokenTexts(own)

    @cached_property
    def shared(self) -> SharedTokens:
        """The tokens that both have."""
        theirs = self.target.by_text
        pairs = [(token, theirs[text]) for text, token in self.own.by_text.items() if text in theirs]
        names = self.target.special_names
        pairs += [(token, names[name]) for name, token in self.own.special_names.items() if name in names]
        if self.own.eos is not None and self.target.eos is not None:
            pairs.append((self.own.eos, self.target.eos))
        by_target = {b: a for a, b in pairs}  # one of each
        return SharedTokens(torch.tensor(list(by_target.values())), torch.tensor(list(by_target)), by_target)

    @cached_property
    def share(self) -> float:
        """Share of the target's tokens that the drafter has too."""
        return len(self.shared.to_own) / max(1, len(self.target.by_text))

    def text(self, token: int) -> bytes:
        """Return what the drafter reads for one of the target's tokens.

        A special token is read as the drafter's of the same name, and left out where it has none.
        """
        name = self.target.special_name(token)
        return name.encode() if name in self.own.special_names else self.target[token]


class TranslatedText:
    """A text of the target's tokens, spelt in the drafter's."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._tokens: list[int] = []  # the target's
        self.text = bytearray()
        self.ids: list[int] = list(translation.own.prefix)  # the drafter's, with drafts that were appended
        self.starts: list[int] = [0] * len(self.ids)  # bytes of the text before each
        self._fixed = len(self.ids)
        self.kept = 0  # ids in front that the latest `read` left as they were
        self._changed = False  # whether the tokenizer changes the text, so that where its tokens begin is a guess
        self._spelt = 0  # bytes of the text that the ids stand for

    @property
    def seen(self) -> int:
        """The target's tokens that were read."""
        return len(self._tokens)

    @property
    def whole(self) -> bool:
        """Whether the text ends between two characters, so that a drafter can go on with it."""
        return ends_whole(self.text[-4:])

    def append(self, token: int) -> bytes:
        """Append a draft token of the drafter's; returns its text."""
        text = self._translation.own[token]
        self.ids.append(token)
        self.starts.append(self._spelt)
        self._spelt += len(text)
        return text

    def read(self, tokens: Sequence[int]) -> None:
        """Follow the target's text to `tokens`, which begin as they did before; drafts that it doesn't have are dropped."""
        done = len(self._tokens)
        if len(tokens) < done or (done and tokens[done - 1] != self._tokens[-1]):
            raise ValueError("another text")
        before, self.kept = len(self.text), len(self.ids)
        for token in tokens[done:]:
            self.text += self._translation.text(token)
        self._tokens.extend(tokens[done:])
        self._keep_common(before)
        self._spell()

    def _keep_common(self, before: int) -> None:
        """Drop drafts from the first whose text isn't the target's; the text before byte `before` is as it was."""
        own = self._translation.own
        first = len(self.ids)
        while first > self._fixed and self.starts[first - 1] >= before:
            first -= 1
        for at in range(first, len(self.ids)):
            text, start = own[self.ids[at]], self.starts[at]
            if not text or self.text[start : start + len(text)] != text:
                self._cut(at)
                return

    def _cut(self, at: int) -> None:
        """Drop the ids from number `at` on."""
        self.kept = min(self.kept, at)
        if at < len(self.ids):
            self._spelt = self.starts[at]
            del self.ids[at:], self.starts[at:]

    def _spell(self) -> None:
        """Encode what isn't spelt yet, up to the last whole character, from a few tokens back.

        From further back where no token there is as it was; the whole text where the tokenizer changes it.
        """
        own, back = self._translation.own, LOOK_BACK_TOKENS
        end = next(n for n in range(len(self.text), -1, -1) if ends_whole(self.text[max(0, n - 4) : n]))
        while self._spelt < end:
            first = self._fixed if self._changed else max(self._fixed, len(self.ids) - back)
            while self._fixed < first < len(self.ids) and not starts_whole(self.text, self.starts[first]):
                first -= 1
            begin = self.starts[first] if self._fixed < first < len(self.ids) else 0
            found = own.encode_with_starts(bytes(self.text[begin:end]))
            if found is None and first > self._fixed:
                self._changed = True
            elif found is None:
                ids = own.encode(self.text[:end].decode("utf-8", "replace"))
                self._replace(
                    first, ids, [min(at, end) for at in accumulate((len(own[t]) for t in ids), initial=0)], end
                )
            elif first == self._fixed:
                self._replace(first, found[0], [max(0, start) for start in found[1]], end)
            elif not self._join(first, begin, end, *found):
                back *= 4

    def _join(self, first: int, begin: int, end: int, ids: list[int], starts: list[int]) -> bool:
        """Join ids encoded from byte `begin` to those before, at the first token that both have; False where there is none."""
        held = {start: at for at, start in enumerate(self.starts[first:], first)}
        for n, start in enumerate(starts):
            at = held.get(begin + start)
            if at is not None and self.ids[at] == ids[n]:
                self._replace(at, ids[n:], [begin + s for s in starts[n:]], end)
                return True
        return False

    def _replace(self, at: int, ids: list[int], starts: list[int], end: int) -> None:
        """Put `ids` in place of those from number `at` on; they reach byte `end`."""
        self._cut(at)
        self.ids += ids
        self.starts += starts[: len(ids)]
        self._spelt = end
