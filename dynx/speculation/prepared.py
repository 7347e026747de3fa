"""Logits processors that transformers' `generate` has prepared for a whole batch, made fit for one of its sequences.

A processor may be used here if its scores depend on the tokens before the position and on nothing else. Then drafts that are
rejected leave no trace in it. That holds for transformers' own classes listed below and for no others: a subclass, or a class
that isn't known, may keep a state. Letters: B sequences of a batch, T tokens with padding.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import logits_process as hf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FUNCTIONS: tuple[type, ...] = (hf.PrefixConstrainedLogitsProcessor,)
"""Processors that call a function of the user's, which is asked about the text itself and never about drafts."""

STATELESS: frozenset[type] = frozenset(
    found
    for name in (
        "SequenceBiasLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "EncoderNoRepeatNGramLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "PrefixConstrainedLogitsProcessor",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "ExponentialDecayLengthPenalty",
        "SuppressTokensLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "WatermarkLogitsProcessor",
        "LogitNormalization",
    )
    if (found := getattr(hf, name, None)) is not None  # older releases lack some
)
"""The classes that may be used, subclasses not included."""


@dataclass(frozen=True)
class PreparedProcessors:
    """The processors of one sequence, in order; they see `padding` before its tokens, as `generate` shows it to them."""

    processors: tuple[Any, ...]
    padding: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to apply."""
        return bool(self.processors)

    @property
    def pure(self) -> bool:
        """Whether none of them calls a function of the user's."""
        return not any(isinstance(p, FUNCTIONS) for p in self.processors)

    def without_functions(self) -> PreparedProcessors:
        """Return those that call no function of the user's."""
        return replace(self, processors=tuple(p for p in self.processors if not isinstance(p, FUNCTIONS)))


def first_unknown(processors: Iterable[Any]) -> str | None:
    """Return the class of the first processor that may keep a state; None if there is none."""
    return next((type(p).__name__ for p in processors if type(p) not in STATELESS), None)


def for_sequence(processors: Iterable[Any], row: int, rows: int, padding: Iterable[int]) -> PreparedProcessors:
    """Return the processors of sequence `row` of the `rows` in a batch, answers to the same prompt counted each."""
    return PreparedProcessors(tuple(_for_sequence(p, row, rows) for p in processors), tuple(padding))


def _for_sequence(processor: Any, row: int, rows: int) -> Any:
    if isinstance(processor, hf.RepetitionPenaltyLogitsProcessor):
        start = getattr(processor, "prompt_ignore_length", None)
        if isinstance(start, torch.Tensor):  # (B,)
            return _with(processor, prompt_ignore_length=start[row : row + 1])
    elif isinstance(processor, hf.EncoderRepetitionPenaltyLogitsProcessor):
        ids = processor.encoder_input_ids  # (prompts, T)
        at = row // (rows // ids.shape[0])
        return _with(processor, encoder_input_ids=ids[at : at + 1])
    elif isinstance(processor, hf.EncoderNoRepeatNGramLogitsProcessor):
        at = row // (rows // processor.batch_size)
        return _with(processor, batch_size=1, generated_ngrams=[processor.generated_ngrams[at]])
    elif isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed: Callable[[int, Any], list[int]] = processor._prefix_allowed_tokens_fn
        prompt = row // processor._num_beams
        return hf.PrefixConstrainedLogitsProcessor(lambda _, text: allowed(prompt, text), 1)
    return processor


def _with(processor: Any, **values: Any) -> Any:
    """Return a copy with other attributes."""
    other = copy(processor)
    for name, value in values.items():
        setattr(other, name, value)
    return other
