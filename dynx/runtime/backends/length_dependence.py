"""Finds how a model's logits depend on the length of the whole text, and what that requires of passes and caches.

`rope_type: longrope` has two sets of frequencies, one for texts up to the original context and one for longer texts.
`rope_type: dynamic` computes the frequencies anew for each length beyond it. transformers takes a pass's last position for the
length, so the logits depend on how a text was cut into passes. `generate`'s cut is the right one: the prompt in one pass, then
one token a pass. Its keys keep the frequencies of the pass that wrote them, except in models that drop the cache where the
frequencies change (Phi-3, PhiMoE) and read the whole text again.

Sparse attention (`keep_window_size`, `index_topk`) chooses among the positions of a text as soon as there are more than it keeps,
and there too a token's choice depends on the pass that it is in.

    dependence = find(model)            # None for every other model
    dependence.max_pass_length(start)   # tokens that one pass from this position may hold; None without a limit
    dependence.reset()                  # before a pass: transformers keeps the latest length in the module
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

LONGROPE, DYNAMIC = "longrope", "dynamic"
SPARSE_SETTINGS = ("keep_window_size", "index_topk")
"""Settings of sparse attention: positions that a token attends to."""

FAR_POSITION = 1 << 20
"""A position beyond every original context."""

TRIAL_LIMIT_TOKENS = 5
"""Length at which logits begin to depend on it during a trial: a few passes of a few tokens then see that."""


class LengthDependence:
    """How one model's logits depend on the length: by frequencies of `kind` LONGROPE or DYNAMIC, or by sparse attention.

    `rereads`: where the text becomes longer than `limit`, the model's own `generate` reads the whole text again.
    """

    def __init__(self, model: Any, kind: str, limit: int, modules: list[tuple[Any, str]]) -> None:
        self.kind = kind
        self.limit = limit
        """Tokens of the longest text whose logits don't depend on its length."""
        self._model, self._modules = (
            model,
            modules,
        )  # rotary modules with the prefix of their attributes, or attention's
        for module, prefix in modules:
            if kind == DYNAMIC and not hasattr(module, f"{prefix}max_seq_len_cached"):
                setattr(module, f"{prefix}max_seq_len_cached", module.max_seq_len_cached)
        self.rereads = self._rereads()

    def __str__(self) -> str:
        what = "attention" if self.kind in SPARSE_SETTINGS else "rotation"
        return f"{what} ({self.kind}) depends on the length of the whole text"

    @property
    def beyond(self) -> str:
        """How a text longer than `limit` is decoded, in words."""
        if self.rereads:
            return "the text is read once more"
        return "drafts go on" if self.kind == LONGROPE else "each token has a pass of its own"

    def max_pass_length(self, start: int) -> int | None:
        """Tokens of one pass from position `start` on that have the logits that passes of one token would give."""
        if start < self.limit:
            return self.limit - start
        return None if self.kind == LONGROPE else 1

    def reset(self) -> None:
        """Reset the lengths that earlier passes left in the modules."""
        if self.kind == DYNAMIC:
            for module, prefix in self._modules:
                setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Have logits depend on the length from `TRIAL_LIMIT_TOKENS` tokens on, for a trial of what happens there."""
        kept, undo = self.limit, []
        rotary = [module.config for module, _ in self._modules if self.kind not in SPARSE_SETTINGS]
        configs = {id(config): config for config in (self._model.config, *rotary)}
        for config in configs.values():
            if self.kind == LONGROPE and hasattr(config, "original_max_position_embeddings"):
                undo.append((config.__dict__, "original_max_position_embeddings"))
            if self.kind == DYNAMIC:
                undo.append((config.__dict__, "max_position_embeddings"))
        for module, prefix in self._modules:
            if self.kind in SPARSE_SETTINGS:
                undo.append((module.__dict__, self.kind))
            elif self.kind == LONGROPE:
                undo.append((_parameters(module, prefix), "original_max_position_embeddings"))
            else:
                undo.extend(
                    [(module.__dict__, f"{prefix}max_seq_len_cached"), (module.__dict__, "original_max_seq_len")]
                )
        before = [(where, name, where.get(name)) for where, name in undo]
        self.limit = TRIAL_LIMIT_TOKENS
        for where, name in undo:
            where[name] = TRIAL_LIMIT_TOKENS
        try:
            yield
        finally:
            self.limit = kept
            for where, name, value in before:
                where[name] = value
            self.reset()

    def _rereads(self) -> bool:
        """Whether the model's own preparation of a step drops the cache where the text becomes longer than the limit."""
        with self.lowered():
            ids = torch.zeros(1, TRIAL_LIMIT_TOKENS + 1, dtype=torch.long, device=self._model.device)
            cache = DynamicCache()
            cache.update(*(torch.zeros(1, 1, TRIAL_LIMIT_TOKENS, 2, device=ids.device) for _ in range(2)), 0)
            name = "cache" if "cache" in _arguments(self._model) else "past_key_values"
            inputs = self._model.prepare_inputs_for_generation(
                ids, next_sequence_length=1, attention_mask=torch.ones_like(ids), use_cache=True, **{name: cache}
            )
        count = int(inputs["input_ids"].shape[1])
        if count not in (1, TRIAL_LIMIT_TOKENS + 1):
            raise UnsupportedModelError(
                f"{self._model.config.model_type} reads {count} tokens where it should read one"
            )
        return count > 1


def growing(config: Any) -> str | None:
    """Return the `rope_type` or sparse setting of a text config that makes logits depend on the length, or None."""
    sparse = next((name for name in SPARSE_SETTINGS if isinstance(getattr(config, name, None), int)), None)
    return next((kind for kind, _ in _types(getattr(config, "rope_parameters", None) or {})), sparse)


def _types(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each growing `rope_type` and the kind of layer that it is of, "" for all."""
    if "rope_type" in parameters:
        if kind := _growing(parameters["rope_type"]):
            yield kind, ""
        return
    for layer, each in parameters.items():
        if isinstance(each, dict) and (kind := _growing(each.get("rope_type"))):
            yield kind, layer


def _growing(kind: Any) -> str | None:
    """Classify a `rope_type` as transformers does."""
    if not isinstance(kind, str):
        return None
    return DYNAMIC if DYNAMIC in kind else LONGROPE if kind == LONGROPE else None


def find(model: Any) -> LengthDependence | None:
    """Return how a model depends on the length; None where it doesn't.

    Raises UnsupportedModelError for one that depends on the length in a way that isn't known.
    """
    kind = model.config.model_type
    found: dict[tuple[str, int], list[tuple[Any, str]]] = {}
    for module in model.modules():
        for name in SPARSE_SETTINGS:
            if isinstance(limit := vars(module).get(name), int):
                found.setdefault((name, limit), []).append((module, ""))
        if not any(name.endswith("inv_freq") for name in module._buffers):
            continue
        types = getattr(module, "rope_type", None)
        own = types if isinstance(types, dict) else {"": types}
        known = [(growth, layer) for layer, each in own.items() if (growth := _growing(each))]
        for growth, layer in known:
            prefix = f"{layer}_" if layer else ""
            if growth == LONGROPE:
                limit = _parameters(module, prefix)["original_max_position_embeddings"]
            else:
                limit = module.original_max_seq_len
            found.setdefault((growth, int(limit)), []).append((module, prefix))
        if not known and _depends_on_length(module, [layer for layer in own if layer]):
            raise UnsupportedModelError(f"{kind} rotates positions otherwise in a longer text")
    if not found:
        return None
    if len(found) > 1:
        raise UnsupportedModelError(f"{kind} depends on several lengths of the text")
    ((growth, limit), modules), *_ = found.items()
    return LengthDependence(model, growth, limit, modules)


def _parameters(module: Any, prefix: str) -> dict[str, Any]:
    parameters: dict[str, Any] = module.config.rope_parameters
    return parameters[prefix[:-1]] if prefix else parameters


@torch.inference_mode()
def _depends_on_length(module: nn.Module, layers: list[str]) -> bool:
    """Whether a rotary module turns position 3 otherwise where a far position is asked for too.

    One that is called in another way isn't part of a decoder.
    """
    device = next(iter(module.buffers())).device
    near = torch.tensor([[3]], device=device)
    both = torch.tensor([[3, FAR_POSITION]], device=device)
    for layer in layers or [""]:
        more = {"layer_type": layer} if layer else {}
        try:
            outputs = (module(torch.zeros(1, 1, 1, device=device), at, **more) for at in (near, both, near))
            # Most return (cos, sin); Llama 4 returns one complex tensor.
            alone, beside, again = ((out,) if isinstance(out, Tensor) else out for out in outputs)
            pairs = [(a[:, :1], b[:, :1]) for some in (beside, again) for a, b in zip(alone, some, strict=True)]
            if not all(torch.equal(a, b) for a, b in pairs):
                return True
        except Exception:  # noqa: BLE001, S112 - a foreign module may raise anything
            continue
    return False


def _arguments(model: Any) -> Mapping[str, Any]:
    import inspect

    return inspect.signature(model.forward).parameters
