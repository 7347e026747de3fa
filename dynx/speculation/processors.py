"""transformers' own logits processors for a model's decoding settings, in the order in which its `generate` builds them.

All of them look at the token ids so far and at nothing else, so the scores at a position don't depend on which drafter
wrote the tokens before it: a verification pass applies them row by row. Letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.runtime.lazy_imports import OnUse
from dynx.runtime.torch_on_use import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.types import ModelSettings

hf = OnUse("transformers.generation.logits_process")

Process = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Maps token ids (1, T) and scores (1, V) to scores (1, V)."""


def make_processors(
    settings: ModelSettings,
    repetition_penalty: float,
    prompt: Sequence[int],
    max_new_tokens: int,
    vocab: int,
    device: torch.device,
) -> tuple[list[Process], list[Process]]:
    """Build the processors that come before temperature and filters, and those after.

    `repetition_penalty` is the caller's choice, so it stands beside the model's settings. Raises what transformers raises for
    values that make no sense.
    """
    ids = torch.tensor([list(prompt)], device=device, dtype=torch.long)
    eos = torch.tensor(settings.eos, device=device, dtype=torch.long) if settings.eos else None
    begin = _Begin(settings, ids, max_new_tokens, eos, vocab)
    own = dict(settings.values)
    if repetition_penalty != 1:
        own["repetition_penalty"] = repetition_penalty
    before, after = (
        [make(own[name], begin) for name, make in table.items() if name in own] for table in (BEFORE, AFTER)
    )
    return [p for p in before if p is not None], after


@dataclass(frozen=True)
class _Begin:
    """The start of an answer, on which processors may depend."""

    settings: ModelSettings
    ids: torch.Tensor  # the prompt, (1, T)
    new: int  # tokens that may follow
    eos: torch.Tensor | None
    vocab: int

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def free(self) -> int:
        """The length at which the first token is chosen freely: a beginning of one token may have the next one forced."""
        return self.length + (self.length <= 1 and "forced_bos_token_id" in self.settings.values)


BEFORE: Mapping[str, Callable[[Any, _Begin], Any]] = {
    "sequence_bias": lambda value, _: hf.SequenceBiasLogitsProcessor(value),
    "encoder_repetition_penalty": lambda value, at: hf.EncoderRepetitionPenaltyLogitsProcessor(float(value), at.ids),
    "repetition_penalty": lambda value, _: hf.RepetitionPenaltyLogitsProcessor(float(value)),
    "no_repeat_ngram_size": lambda value, _: hf.NoRepeatNGramLogitsProcessor(value),
    "encoder_no_repeat_ngram_size": lambda value, at: hf.EncoderNoRepeatNGramLogitsProcessor(value, at.ids),
    "bad_words_ids": lambda value, at: hf.NoBadWordsLogitsProcessor(value, at.eos),
    "min_length": lambda value, at: None if at.eos is None else hf.MinLengthLogitsProcessor(value, at.eos),
    "min_new_tokens": lambda value, at: (
        None if at.eos is None else hf.MinNewTokensLengthLogitsProcessor(at.length, value, at.eos)
    ),
    "forced_bos_token_id": lambda value, _: hf.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, at: hf.ForcedEOSTokenLogitsProcessor(at.length + at.new, value, at.device),
    "remove_invalid_values": lambda _value, _at: hf.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, at: hf.ExponentialDecayLengthPenalty(value, at.eos, at.length),
    "suppress_tokens": lambda value, at: hf.SuppressTokensLogitsProcessor(value, at.device),
    "begin_suppress_tokens": lambda value, at: hf.SuppressTokensAtBeginLogitsProcessor(value, at.free, at.device),
}
"""Processors before temperature and filters, in order."""

AFTER: Mapping[str, Callable[[Any, _Begin], Any]] = {
    "watermarking_config": lambda value, at: value.construct_processor(at.vocab, at.device),
    "renormalize_logits": lambda _value, _at: hf.LogitNormalization(),
}
"""Processors after temperature and filters, in order."""
