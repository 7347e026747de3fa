"""Finds which part of a prompt is longer than a pipeline's text encoders read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
UNLIMITED_TOKENS = 100_000
"""Length in tokens above which a tokenizer's limit means unlimited; transformers uses 10³⁰."""

MAX_QUOTED_CHARS = 80


@dataclass(frozen=True)
class Cut:
    """The truncated end of a prompt."""

    text: str
    limit: int
    """Largest number of tokens read, including special tokens."""
    some: bool
    """Whether only some of the encoders truncate the prompt."""

    def words(self, what: str) -> str:
        """Format the warning; `what` names the text that was too long."""
        who = "one of the text encoders takes" if self.some else "the text encoder takes"
        flat = " ".join(self.text.split())
        quoted = flat if len(flat) <= MAX_QUOTED_CHARS else "… " + flat[-MAX_QUOTED_CHARS:]
        return f"{what} is longer than the {self.limit} tokens that {who}; cut: {quoted!r}"


def unread(pipe: Any, text: str) -> Cut | None:
    """Return what would be truncated from `text`, the most if encoders differ; None where all of it is read."""
    cuts = [_cut(pipe, name, text) for name in TOKENIZERS if getattr(pipe, name, None) is not None]
    missing = [cut for cut in cuts if cut is not None]
    if not missing:
        return None
    longest, limit = max(missing, key=lambda cut: len(cut[0]))
    return Cut(longest, limit, some=len(missing) < len(cuts))


def _cut(pipe: Any, name: str, text: str) -> tuple[str, int] | None:
    tokenizer = getattr(pipe, name)
    limit = _limit(pipe, name)
    if limit is None or not callable(tokenizer):
        return None
    try:
        encoded = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        ids = encoded["input_ids"]
        kept = limit - tokenizer.num_special_tokens_to_add()
        if len(ids) <= kept:
            return None
        if getattr(tokenizer, "is_fast", False):
            return text[encoded.token_to_chars(kept).start :], limit
        return str(tokenizer.decode(ids[kept:], skip_special_tokens=True)), limit
    except (AttributeError, TypeError, ValueError, KeyError):  # not a text tokenizer after all
        return None


def _limit(pipe: Any, name: str) -> int | None:
    """Return the number of tokens that an encoder reads. T5 has no limit, but pipelines set one for it."""
    own = getattr(getattr(pipe, name), "model_max_length", None)
    encoder = type(getattr(pipe, name.replace("tokenizer", "text_encoder"), None)).__name__
    call = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    asked = call.default if call is not None and "CLIP" not in encoder else None
    known = [n for n in (own, asked) if isinstance(n, int) and 0 < n < UNLIMITED_TOKENS]
    return min(known) if known else None
