"""Replaces a loaded model's `generate` by one that decodes with drafts, through transformers' own `custom_generate`.

transformers prepares each call as ever: settings, inputs, processors, criteria. Its decoding loop alone is replaced, and stays
in place for whatever dynx doesn't do (`reasons`).
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from transformers import GenerationMixin
from transformers.generation import stopping_criteria as stopping

from dynx.errors import UnsupportedModelError
from dynx.integrations.transformers import decoding, outputs, reasons
from dynx.integrations.transformers.known import known_of
from dynx.integrations.transformers.prepared import Prepared
from dynx.integrations.transformers.stats import CallStats
from dynx.integrations.transformers.streaming import OnceEnded
from dynx.runtime.backends.batch import can_batch
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.decision import Decision
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.own_candidates import from_json

if TYPE_CHECKING:
    from torch import Tensor

    from dynx.integrations.transformers.known import Known


class Attachment:
    """The `generate` of an attached model. Calls from several threads are decoded one after the other."""

    __name__ = "generate"

    def __init__(
        self,
        model: Any,
        assistant: Any,
        tokenizer: Any,
        *,
        lookup: bool | None,
        profile: str | None = None,
        replaced: Any = None,
    ) -> None:
        self.model, self.assistant, self.tokenizer, self.lookup = model, assistant, tokenizer, lookup
        self.wanted = profile
        self.replaced = replaced
        """What stood in the place of `generate` in the model itself; None where that was the class's method."""
        self.stats: CallStats | None = None
        """The latest call's statistics; None before the first."""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._made_for: Any = None
        self._known: Known | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a copy makes anew."""
        made = ("_lock", "_engine", "_made_for", "_known")
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set a copy up."""
        vars(self).update(state)
        self._reset()

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the original method, for those who inspect it."""
        return inspect.signature(functools.partial(type(self.model).generate, self.model))

    @property
    def engine(self) -> Engine:
        """The engine, made on first use, and anew where the model has moved or changed its precision."""
        now = [_state(module) for module in (self.model, self.assistant) if module is not None]
        if self._engine is None or self._made_for != now:
            target, small = backends(self.model, self.assistant)
            self._known = known_of(self.model, self.assistant, self.wanted)
            self._engine, self._made_for = _engine(target, small, self._known, lookup=self.lookup), now
        return self._engine

    @property
    def profile(self) -> Decision[str]:
        """The id of the profile in use, or "none", and the reason."""
        _ = self.engine
        return Decision("none", "") if self._known is None else self._known.profile

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the model's own `generate` does; its documentation holds."""
        own = type(self.model).generate
        given = _signature(own).bind(self.model, *args, **kwargs).arguments
        given.pop("self")
        given |= given.pop("kwargs", {})
        streamer = None
        if given.get("streamer") is not None and given.get("custom_generate") is None:
            streamer = given["streamer"] = OnceEnded(given["streamer"])
        try:
            reason = self._prepare(given, streamer)
            if reason is not None:
                self.stats = CallStats(reason=reason)
            out = own(self.model, **given)
        except BaseException:
            if streamer is not None:
                streamer.fail()
            raise
        if streamer is not None:
            streamer.end()
        return out

    def _prepare(self, given: dict[str, Any], streamer: OnceEnded | None) -> str | None:
        """Put dynx's loop into the arguments of a call, or return why not."""
        inputs = {
            name: value for name, value in given.items() if name not in _signature(type(self.model).generate).parameters
        }
        for name in reasons.FOR_GENERATE:
            inputs.pop(name, None)
        config, inputs = self.model._prepare_generation_config(given.get("generation_config"), **inputs)
        reason = reasons.of_call(self.model, given, config, inputs)
        if reason is not None:
            return reason
        if config.stop_strings is not None:  # `generate` loses the tokenizer on the way to a loop of one's own
            tokenizer = given.pop("tokenizer", None) or self.tokenizer
            if tokenizer is None:
                return "stop_strings need a tokenizer"  # as `generate` itself will say
            own = list(given.get("stopping_criteria") or ())
            if not any(type(c) is stopping.StopStringCriteria for c in own):
                own.insert(0, stopping.StopStringCriteria(tokenizer=tokenizer, stop_strings=config.stop_strings))
            given |= {"stop_strings": None, "stopping_criteria": stopping.StoppingCriteriaList(own)}
        given["custom_generate"] = functools.partial(self._decode, streamer)
        return None

    def _decode(
        self,
        streamer: OnceEnded | None,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Decode what `generate` has prepared."""
        prepared = Prepared(
            input_ids, model_kwargs.get("attention_mask"), logits_processor, stopping_criteria, generation_config
        )
        reason = reasons.of_inputs(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            model_kwargs,
            streams=streamer is not None,
        )
        if reason is None:
            with self._lock:
                engine, several = self.engine, input_ids.shape[0] > 1
                requests = prepared.requests()
                reason = decoding.misfit(requests, engine)
                if reason is None and several and not (able := can_batch(engine.target)).value:
                    reason = able.reason
                more = several and generation_config.return_dict_in_generate
                if reason is None and more:
                    reason = outputs.why_not(engine.target, prepared)  # type: ignore[arg-type]
                if reason is None and several:
                    out, receipts = decoding.decode_batch(prepared, requests, engine)
                    self.stats = CallStats(tuple(receipts))
                    return outputs.of_batch(model, out, prepared, model_kwargs) if more else out
                if reason is None:
                    out, receipt = decoding.decode_one(prepared, requests[0], engine, streamer)
                    self.stats = CallStats((receipt,))
                    return out
        self.stats = CallStats(reason=reason)
        return type(model)._sample(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=streamer,
            **model_kwargs,
        )


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _state(model: Any) -> tuple[Any, ...]:
    """Return what an engine is made for."""
    return id(model), model.device, model.dtype, getattr(model.config, "_attn_implementation", None)


def backends(model: Any, assistant: Any) -> tuple[EagerBackend, EagerBackend | None]:
    """Return what runs a model and its assistant. Raises UnsupportedModelError where either can't take tokens back."""
    target = EagerBackend(model)
    if not target.can_rollback.value:
        raise UnsupportedModelError(f"the model can't be attached: {target.can_rollback.reason}")
    if target.keeps_states:
        raise UnsupportedModelError(f"the model can't be attached: {target.config.model_type} keeps a recurrent state")
    small = None if assistant is None else EagerBackend(assistant)
    if small is not None and not (able := small.can_rollback).value:
        raise UnsupportedModelError(f"the assistant can't draft: {able.reason}")
    return target, small


def _engine(target: EagerBackend, small: EagerBackend | None, known: Known, *, lookup: bool | None) -> Engine:
    """Make an engine with the drafters that were asked for, and lookup where the profile recommends it."""
    # What wasn't asked for must not cost anything: it drafts when it has proved to pay.
    if small is None and not lookup:
        known.acceptance.regret_budget = 0.0
    looking = known.lookup if lookup is None else lookup
    if known.trees:
        target.trust_trees()
    known.acceptance.next_tokens = from_json(known.candidates, target.vocab)
    drafters = Drafters(small, None, looking, trees=known.trees)
    return Engine(target, drafters, acceptance_profile=known.acceptance)


def attach(
    model: Any,
    *,
    assistant: Any = None,
    tokenizer: Any = None,
    lookup: bool | None = None,
    profile: str | None = None,
) -> Any:
    """Make `model.generate` decode with drafts, and return `model`; `model.dynx.stats` tells what each call cost.

    `assistant` is a smaller model with the same vocabulary that drafts. `tokenizer` is used for `stop_strings` where a call has
    none. Drafts are also copied from the prompt and the answer: by default once that has proved to pay, with `lookup` True from
    the start, with False never. The model's stored profile gives costs and acceptance from the start; `profile` is the id of
    another, or "none", and `model.dynx.profile` says which is in use. An attached model gets the arguments that are given, and
    stays attached once. Raises UnsupportedModelError with the reason for what can't be attached, InvalidInput or NoProfileError
    where the profile that is wanted can't be used.
    """
    current = getattr(model, "__dict__", {}).get("dynx")
    if isinstance(current, Attachment):
        if (
            assistant is None
            and tokenizer is None
            and lookup in (None, current.lookup)
            and profile in (None, current.wanted)
        ):
            return model
        profile = current.wanted if profile is None else profile
        assistant = current.assistant if assistant is None else assistant
        tokenizer = current.tokenizer if tokenizer is None else tokenizer
        lookup = current.lookup if lookup is None else lookup
        replaced = current.replaced
    else:
        _check(model)
        replaced = vars(model).get("generate")
    attachment = Attachment(model, assistant, tokenizer, lookup=lookup, profile=profile, replaced=replaced)
    _ = attachment.engine  # raises before anything is changed
    model.dynx = model.generate = attachment
    return model


def detach(model: Any) -> Any:
    """Give an attached model its original `generate` back, and return it; any other model stays as it is."""
    attachment = getattr(model, "__dict__", {}).get("dynx")
    if isinstance(attachment, Attachment):
        del model.dynx, model.generate
        if attachment.replaced is not None:
            model.generate = attachment.replaced
    return model


def _check(model: Any) -> None:
    """Raise UnsupportedModelError for what has no `generate` of transformers' to replace."""
    name = type(model).__name__
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        raise UnsupportedModelError(f"{name} hands its calls on", hint="attach model.get_base_model()")
    if not isinstance(model, GenerationMixin) or not model.can_generate():
        raise UnsupportedModelError(
            f"{name} has no generate of transformers'",
            hint="attach a model with a language modeling head, or a pipeline's model",
        )
    if type(model).generate is not GenerationMixin.generate:
        raise UnsupportedModelError(f"{name} has a generate of its own")
    present = vars(model).get("generate")
    if present is not None and not _ours(present):
        raise UnsupportedModelError(f"the model's generate was replaced by {getattr(present, '__name__', present)}")


def _ours(function: Any) -> bool:
    """Whether a `generate` is the one that dynx writes into a model's folder."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__module__", "")).startswith("dynx.")
