"""What a draft model with another tokenizer drafts at each position of a text, by one pass over the text in its own tokens.

A token of the target is counted as right where every token of the drafter's that begins in it is, and its confidence is their
product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime.backends.trimmed import sayable
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.translation import TranslatedText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.drafters.translated import TranslatedBackend

ROWS_AT_ONCE = 64
"""Rows of logits whose softmax is taken at once: vocabularies are large."""


def read_translated(small: TranslatedBackend, tokens: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Return signal and rightness of the drafts of all tokens but the first."""
    text = TranslatedText(small.translation)
    text.read(tokens)
    ids = text.ids[: small.context]
    said = sayable(small.inner, ids)
    right, probabilities = [False] * len(text.ids), [0.0] * len(text.ids)
    if len(ids) > 1:
        rows = small.open().forward(ids[:-1])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            best, picks = rows[start : start + ROWS_AT_ONCE].float().softmax(-1).max(-1)
            for at, (p, t) in enumerate(zip(best.tolist(), picks.tolist(), strict=True), start + 1):
                right[at], probabilities[at] = t == ids[at] and said[at], p
    signals, hits, begin, own = [], [], 0, 0
    for number, token in enumerate(tokens):
        end = begin + len(small.translation.text(token))
        sure, hit = 1.0, end > begin
        while own < len(text.ids) and (text.starts[own] < end):
            sure *= probabilities[own]
            hit = hit and right[own]
            own += 1
        if number:
            signals.append(log_odds(sure))
            hits.append(hit)
        begin = end
    return signals, hits
