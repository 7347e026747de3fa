"""Reads the model's own decoding settings from its generation config, and decides how each field is treated.

transformers' `generate` acts on all of them, so "plain decoding" means decoding under them:

    APPLIED     change the logits by the token ids alone; transformers' own processors apply them at every position
    CALLER      how to sample and how much to write; the caller decides, and the plan reports what the model asked for
    NO_EFFECT   speed, memory, padding, what `generate` returns besides the tokens: the text is the same
    REFUSED     other ways of decoding, or state besides the tokens; refused with the reason

`stop_strings` and `eos_token_id` end the answer, as the caller's own stop strings do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError, UnsupportedModelError
from dynx.speculation.types import ModelSettings, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

APPLIED = (
    "sequence_bias",
    "encoder_repetition_penalty",  # of a decoder: the prompt's tokens
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "watermarking_config",
    "renormalize_logits",
)
"""Fields that change logits, in the order in which `generate` applies them."""

ENDING = ("eos_token_id", "stop_strings")

CALLER: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1.0,),
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
"""Fields of sampling, with `generate`'s defaults, which ask for nothing."""

LENGTHS = ("max_length", "max_new_tokens")
"""Fields that limit the length, which the caller always sets."""

NO_EFFECT = (
    # beams alone, and without them nothing
    "early_stopping",
    "length_penalty",
    "diversity_penalty",
    "num_beam_groups",
    # memory and speed
    "use_cache",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "low_memory",
    # transformers' own speculative decoding, which keeps the text, and what tunes it
    "use_mtp",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_ensemble_weight",  # acts with an assistant that is handed to `generate`
    "speculation_type",
    # what is returned besides the tokens
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    # one sequence is never padded and always has a first token
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    # where the config comes from
    "_from_model_config",
    "transformers_version",
)
"""Fields that leave the text of one sequence of a decoder as it is."""


def _given(value: Any, _config: Any) -> bool:
    return value is not None


def _true(value: Any, _config: Any) -> bool:
    return bool(value)


def _more_than_one(value: Any, _config: Any) -> bool:
    return value is not None and value != 1


def _contrastive(value: Any, config: Any) -> bool:
    return bool(value and value > 0 and (config.top_k is None or config.top_k > 1))


def _quantized(value: Any, _config: Any) -> bool:
    return bool(value == "quantized")


REFUSED: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "num_beams": ("beam search", _more_than_one),
    "num_return_sequences": ("several answers to a prompt", _more_than_one),
    "penalty_alpha": ("contrastive search", _contrastive),
    "dola_layers": ("DoLa decoding", _given),
    "constraints": ("constrained beam search", _given),
    "force_words_ids": ("constrained beam search", _given),
    "guidance_scale": ("classifier-free guidance, which needs a second model pass for every token", _more_than_one),
    "token_healing": ("token healing, which changes the prompt", _true),
    "max_time": ("a time limit, by which the text depends on the clock", _given),
    "cache_implementation": ("a quantized cache, which rounds keys and values", _quantized),
    "is_assistant": ("stopping where the model is unsure, as an assistant of transformers does", _true),
}
"""Fields that make another text in a way that isn't done here: what they ask for, and when they do."""

FIELDS = frozenset((*APPLIED, *ENDING, *CALLER, *LENGTHS, *NO_EFFECT, *REFUSED))
"""Every field that is accounted for."""

CONFIG_FILE = "generation_config.json"


def read_settings(config: Any, eos: Iterable[int] = ()) -> ModelSettings:
    """Return the settings that a GenerationConfig (None: none) asks for; `eos` are the ids that end an answer.

    Raises UnsupportedModelError for fields that can't be honoured, or are unknown.
    """
    if config is None:
        return ModelSettings(eos=tuple(sorted(eos)))
    for name, (what, asks) in REFUSED.items():
        value = getattr(config, name, None)
        if asks(value, config):
            raise UnsupportedModelError(
                f"the model's generation config asks for {what} ({name}: {_short(value)})",
                hint=f"without {name} in {CONFIG_FILE} it is decoded greedily or by sampling",
            )
    _check_watermark(config)
    for name in sorted(vars(type(config)()).keys() - FIELDS):
        if not name.startswith("_") and getattr(config, name, None) is not None:
            raise UnsupportedModelError(
                f"the model's generation config sets {name}, and dynx doesn't know what that does to the text",
                hint=f"take {name} out of {CONFIG_FILE}",
            )
    own = {name: getattr(config, name, None) for name in APPLIED}
    if own["min_new_tokens"] is not None:
        own["min_length"] = None  # the one in new tokens wins, 0 included
    penalty = own.pop("repetition_penalty")
    values = {name: value for name, value in own.items() if _acts(name, value)}
    return ModelSettings(values, _number(penalty), tuple(sorted(eos)), stop_strings(config))


def _number(penalty: Any) -> float:
    try:
        found = float(penalty or 1.0)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ModelError(
            f"the model's generation config has repetition_penalty {_short(penalty)}", hint=f"correct {CONFIG_FILE}"
        )
    return found


def own_sampling(
    own: ModelSettings,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> Sampling:
    """Return the caller's sampling under the model's own settings, and the model's penalty by default. Raises InvalidInput."""
    penalty = own.repetition_penalty if repetition_penalty is None else repetition_penalty
    return Sampling(temperature, top_k, top_p, penalty, seed, own)


def end_tokens(config: Any, tokenizer: Any = None) -> frozenset[int]:
    """Return the ids that end an answer: the generation config's, else the tokenizer's."""
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def stop_strings(config: Any) -> tuple[str, ...]:
    """Return the texts that end an answer by the model's own settings."""
    found = getattr(config, "stop_strings", None) or ()
    return (found,) if isinstance(found, str) else tuple(map(str, found))


def sampling_asked(config: Any) -> str:
    """Describe the model's own sampling settings, which aren't used; "" where it has none."""
    found = {name: getattr(config, name, None) for name in CALLER}
    return ", ".join(f"{n} {_short(v)}" for n, v in found.items() if v is not None and v not in CALLER[n])


def in_words(settings: ModelSettings) -> str:
    """Describe the settings that are applied, for a decision."""
    penalty = {} if settings.repetition_penalty == 1 else {"repetition_penalty": settings.repetition_penalty}
    words = [f"{name} {_short(value)}" for name, value in (penalty | dict(settings.values)).items()]
    if settings.stop:
        words.append(f"stop_strings {_short(list(settings.stop))}")
    return ", ".join(words)


def _acts(name: str, value: Any) -> bool:
    """Whether a value makes `generate` use the field's processor."""
    if value is None or (value == [] and name in ("suppress_tokens", "begin_suppress_tokens")):
        return False
    if name == "encoder_repetition_penalty":
        return bool(value != 1)
    if name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"):
        return bool(value != 0)
    if name in ("remove_invalid_values", "renormalize_logits"):
        return value is True
    return True


def _check_watermark(config: Any) -> None:
    kind = type(getattr(config, "watermarking_config", None)).__name__
    if kind not in ("NoneType", "WatermarkingConfig"):
        raise UnsupportedModelError(
            f"the model's generation config asks for a watermark that keeps a state besides the text ({kind})",
            hint=f"take watermarking_config out of {CONFIG_FILE}",
        )


def _short(value: Any) -> str:
    value = value.to_dict() if hasattr(value, "to_dict") else value
    text = str(value)
    return text if len(text) <= 60 else text[:57] + " …"
