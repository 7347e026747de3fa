"""Puts together what `generate` returns besides tokens: scores, logits and the key-value cache.

Of one sequence they are kept while it is decoded. Of a batch they are computed again in one pass over the finished sequences,
which sees them padded as transformers' own loop does. B sequences, T tokens of the padded prompts, N new tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dynx.speculation.sampling import LogitsProcessors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dynx.integrations.transformers.prepared import Prepared
    from dynx.runtime.backends.eager import EagerBackend
    from dynx.runtime.backends.recording import RecordingBackend
    from dynx.speculation.types import Request

EXACT = frozenset({"float32", "float64"})
"""Precisions in which another pass gives the same scores but for rounding that no one sees."""


def of_one(sequences: Tensor, tokens: list[int], request: Request, recording: RecordingBackend, config: Any) -> Any:
    """Return one sequence (1, T + N) with the scores, logits and cache that were asked for."""
    start = len(request.prompt)
    values: dict[str, Any] = {}
    if config.output_scores or config.output_logits:
        logits = recording.session.logits(start - 1, start - 1 + len(tokens)).clone()  # (N, V)
        if config.output_logits:
            values["logits"] = tuple(row[None] for row in logits)
        if config.output_scores:
            processors = LogitsProcessors.for_request(request, recording.vocab)
            scores = processors.scores(logits, request.prompt, tokens[:-1])
            values["scores"] = tuple(row[None] for row in scores)
    cache = recording.session.cache(start + len(tokens) - 1) if config.use_cache else None
    return _output(sequences, cache, values)


def why_not(target: EagerBackend, prepared: Prepared) -> str | None:
    """Return why a batch's scores, logits and cache can't be computed again; None where they can or needn't."""
    config = prepared.config
    if not (config.output_scores or config.output_logits or config.use_cache):
        return None
    if target.precision not in EXACT:
        return f"more than the tokens of a batch is asked for, and another pass rounds otherwise in {target.precision}"
    if target.length_dependence is not None:
        return "more than the tokens of a batch is asked for, and logits depend on the text's length"
    if config.output_scores and not prepared.pure:
        return "more than the tokens of a batch is asked for, and prefix_allowed_tokens_fn would be asked twice"
    return None


def of_batch(model: Any, sequences: Tensor, prepared: Prepared, inputs: Mapping[str, Any]) -> Any:
    """Return a batch (B, T + N) with what was asked for; `inputs` are the model's, as prepared for the prompts."""
    config, start = prepared.config, prepared.ids.shape[1]
    values: dict[str, Any] = {}
    cache = None
    if config.output_scores or config.output_logits or config.use_cache:
        out = _again(model, sequences[:, :-1], inputs, sequences.shape[1] - start)
        logits = out.logits[:, start - sequences.shape[1] :].to(torch.float32, copy=True)  # (B, N, V)
        if config.output_logits:
            values["logits"] = tuple(logits.unbind(1))
        if config.output_scores:
            steps = range(logits.shape[1])
            values["scores"] = tuple(
                prepared.processors(sequences[:, : start + i], logits[:, i].clone()) for i in steps
            )
        if config.use_cache:
            cache = getattr(out, "cache", None) if _cache_name() == "cache" else out.past_key_values
    return _output(sequences, cache, values)


def _again(model: Any, ids: Tensor, inputs: Mapping[str, Any], keep: int) -> Any:
    """Run the model over texts (B, T + N - 1), with the cache that was prepared for them; logits of the last `keep` tokens."""
    kwargs = {name: value for name, value in inputs.items() if name not in ("position_ids", "logits_to_keep")}
    mask = kwargs.get("attention_mask")
    if mask is not None:
        kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=-1)
    parameters = inspect.signature(type(model).forward).parameters
    if "position_ids" in parameters and (positions := getattr(model, "_prepare_position_ids_for_generation", None)):
        kwargs["position_ids"] = positions(ids, kwargs)
    given = model.prepare_inputs_for_generation(ids, is_first_iteration=True, next_sequence_length=None, **kwargs)
    if "logits_to_keep" in parameters:
        given["logits_to_keep"] = keep
    return model(**given, return_dict=True)


def _cache_name() -> str:
    """Return the name of the cache in what `generate` returns: newer releases call it `cache`."""
    names = {field.name for field in fields(GenerateDecoderOnlyOutput)}
    return "cache" if "cache" in names else "past_key_values"


def _output(sequences: Tensor, cache: Any, values: Mapping[str, Any]) -> Any:
    held = {} if cache is None else {_cache_name(): cache}
    return GenerateDecoderOnlyOutput(sequences=sequences, **values, **held)
