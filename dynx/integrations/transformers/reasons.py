"""Which calls of `generate` dynx decodes, and why it leaves the others to transformers.

There are two places. `of_call` looks at the arguments: beams, caches of the caller's and the like run the model's own
`generate` from the start. `of_inputs` looks at what `generate` has prepared (processors, criteria, masks): there transformers'
own loop takes over with the same inputs. Whatever isn't known to be right here is left to transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import stopping_criteria as stopping
from transformers.generation.configuration_utils import GenerationMode

from dynx.integrations.transformers.criteria import BySequence
from dynx.speculation.prepared import first_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

CACHES = ("cache", "past_key_values", "cache_params")
"""Names of the argument for a cache, in newer and older releases."""

FOR_GENERATE = ("tokenizer", "assistant_tokenizer", "trust_remote_code")
"""Arguments that `generate` takes out before it looks at its settings."""

OWN_LOOP = (stopping.EosTokenCriteria, stopping.MaxLengthCriteria)
"""Criteria that the engine keeps to by itself."""

BY_SEQUENCE = (*OWN_LOOP, stopping.StopStringCriteria, BySequence)
"""Criteria that decide for each sequence of a batch alone, and by its tokens only."""

INPUTS = frozenset({"input_ids", "attention_mask"})
"""Inputs of a model that are honoured; any other is transformers' work."""

PREPARED = frozenset({"attention_mask", "position_ids", "use_cache", "logits_to_keep", *CACHES})
"""Inputs that `generate` prepares from those."""


def of_call(model: Any, given: Mapping[str, Any], config: Any, inputs: Mapping[str, Any]) -> str | None:
    """Return why the model's own `generate` must run; None if it needn't.

    `given` are the call's arguments, `config` and `inputs` what transformers makes of them: settings, and inputs of the model.
    """
    for name in ("custom_generate", "assistant_model", "synced_gpus"):
        if given.get(name):
            return f"{name} is given"
    if model.training:
        return "the model is in training mode"
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        return "the process is one of several"
    mode = config.get_generation_mode(None)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"{str(mode.value).replace('_', ' ')} is asked for"
    kind = config.cache_implementation
    if kind not in (None, "dynamic"):
        return f"cache_implementation is {kind}"
    if any(inputs.get(name) is not None for name in CACHES):
        return "a cache is given"
    for name in ("output_attentions", "output_hidden_states", "token_healing", "is_assistant", "prefill_chunk_size"):
        if getattr(config, name, None):
            return f"{name} is set"
    other = sorted(name for name, value in inputs.items() if value is not None and value is not False)
    return next((f"{name} is given" for name in other if name not in INPUTS), None)


def of_inputs(
    ids: Tensor,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    config: Any,
    inputs: Mapping[str, Any],
    *,
    streams: bool,
) -> str | None:
    """Return why transformers' loop must take over, by what it prepared for `ids` (B, T); None if it needn't."""
    other = sorted(name for name, value in inputs.items() if value is not None and value is not False)
    for name in other:
        if name not in PREPARED:
            return f"{name} is given"
    unknown = first_unknown(processors)
    if unknown:
        return f"{unknown} may keep a state"
    if not ids.shape[1]:
        return "the prompt has no tokens"
    mask = inputs.get("attention_mask")
    if mask is not None and not left_padded(mask, ids):
        return "the attention mask hides more than padding on the left"
    unusual = [type(c).__name__ for c in criteria if type(c) not in BY_SEQUENCE]
    if ids.shape[0] == 1:
        asked = config.return_dict_in_generate and config.output_scores
        if asked and any(type(c) not in (*BY_SEQUENCE, stopping.MaxTimeCriteria) for c in criteria):
            return "a stopping criterion may look at the scores"
        return None
    if unusual:
        return f"{unusual[0]} looks at a batch as a whole"
    if streams:
        return "a streamer takes a batch token by token"
    kinds = {type(c) for c in criteria}
    if kinds & {stopping.StopStringCriteria, BySequence} and stopping.EosTokenCriteria not in kinds:
        return "without an end token, a batch goes on until its last sequence has stopped"
    return None


def left_padded(mask: Tensor, ids: Tensor) -> bool:
    """Whether a mask (B, T) hides nothing but a beginning of each row, and no row as a whole."""
    if mask.shape != ids.shape or mask.ndim != 2:
        return False
    seen = mask != 0
    known = bool((mask == seen.to(mask.dtype)).all())
    return known and bool(seen[:, -1].all()) and bool((seen[:, 1:] >= seen[:, :-1]).all())
