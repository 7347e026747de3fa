"""Decides to how many tokens a draft model's output head is cut, from the texts that the target wrote in calibration.

Kept are the tokens that the target wrote, then those with the lowest ids, which byte-pair encoding learned first because they
are the most frequent. For each size the pass is timed, and the share of another half's tokens that it covers is counted; the size
is chosen by the speed-up that follows from both.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from dynx.runtime.lazy_imports import OnUse
from dynx.speculation.disk_drafters import USUAL_ACCEPTANCE, forecast
from dynx.speculation.drafters.translated import TranslatedBackend
from dynx.speculation.drafters.translation import TranslatedText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.timing import Samples
    from dynx.speculation.traces import Text

trimmed: Any = OnUse("dynx.runtime.backends.trimmed")  # PyTorch's, and every start reads this module

SIZES = (2048, 4096, 8192, 16384, 32768, 65536)
"""Numbers of tokens to try."""

MIN_GAIN = 1.02
"""Factor in the forecast from which a head is cut."""

TIMED_PASSES, CONTEXT_TOKENS = 9, 16


def choose_draft_vocabulary(
    small: Backend | None, texts: Sequence[Text], samples: Samples, clock: Callable[[], float]
) -> list[int] | None:
    """Cut the head of a draft model if that pays, and take the saved time off the samples of its passes.

    Returns the ids that were kept, None where the head stays whole.
    """
    inner: Any = small.inner if isinstance(small, TranslatedBackend) else small
    if small is None or not texts or not trimmed.can_trim(inner):
        return None
    read = [_own_ids(small, text) for text in texts]
    whole = _seconds(inner, clock)
    target = samples.curve("target")(1)
    best, chosen, saved = MIN_GAIN * forecast(whole / target), None, 0.0
    for size in (size for size in SIZES if size < inner.vocab // 2):
        covered = coverage(read, size)
        trimmed.trim(inner, order(read, size))
        seconds = _seconds(inner, clock)
        if (gain := forecast(seconds / target, USUAL_ACCEPTANCE * covered)) > best:
            best, chosen, saved = gain, size, whole - seconds
    if chosen is None:
        trimmed.untrim(inner)
        return None
    kept = order(read, chosen)
    trimmed.trim(inner, kept)
    for (what, _, _), values in samples.cells.items():
        if what == "draft":
            values[:] = [max(value - saved, 0.05 * value) for value in values]
    return kept


def order(texts: Sequence[tuple[Sequence[int], int]], size: int) -> list[int]:
    """Return the `size` tokens to keep: those written, the most frequent first, then the lowest ids."""
    counts = Counter(token for ids, prompt in texts for token in ids[prompt:])
    kept = [token for token, _ in counts.most_common(size)]
    known = set(kept)
    return kept + [token for token in range(size) if token not in known][: size - len(kept)]


def coverage(texts: Sequence[tuple[Sequence[int], int]], size: int) -> float:
    """Return the share of each half's tokens that is kept by the other half's counts, or is in the prompt."""
    halves = [texts[0::2], texts[1::2]]
    hits = total = 0
    for teach, play in (halves, halves[::-1]):
        kept = set(order(teach, size))
        for ids, prompt in play:
            known = kept.union(ids[:prompt])
            hits += sum(token in known for token in ids[prompt:])
            total += len(ids) - prompt
    return hits / total if total else 0.0


def _own_ids(small: Backend, text: Text) -> tuple[list[int], int]:
    """Return a text in the drafter's ids, and how many of them are the prompt."""
    if not isinstance(small, TranslatedBackend):
        return list(text.tokens), text.prompt
    follower = TranslatedText(small.translation)
    follower.read(text.tokens[: text.prompt])
    prompt = len(follower.ids)
    follower.read(text.tokens)
    return list(follower.ids), prompt


def _seconds(backend: Any, clock: Callable[[], float]) -> float:
    """Return the median time of a pass of one token."""
    session = backend.open()
    session.forward(list(_some_ids(backend.vocab)), keep=1)
    times = []
    for _ in range(TIMED_PASSES):
        began = clock()
        session.pick([3 % backend.vocab])
        times.append(clock() - began)
        session.rollback(CONTEXT_TOKENS)
    return statistics.median(times)


def _some_ids(vocab: int) -> Iterable[int]:
    return ((7 * i + 1) % vocab for i in range(CONTEXT_TOKENS))
