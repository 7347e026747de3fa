"""Which calls of a classifier's `forward` may exit early, and their rows as the engine takes them.

Whatever isn't known to be what the profile is about is left to the model's own forward, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynx.early_exit.preprocessing import Example

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs of a text classifier that are honoured."""

SWITCHES = frozenset({"return_dict", "use_cache"})
"""Arguments that leave the logits unchanged."""

MORE_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")


def reason_of_call(model: Any, given: Mapping[str, Any], kind: str) -> str | None:
    """Return why a call must run the model's own forward, by its arguments and the model's state; None if it needn't."""
    if given.get("labels") is not None:
        return "labels are given"
    if model.training:
        return "the model is in training mode"
    if torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()):
        return "gradients are recorded; torch.no_grad() or torch.inference_mode() ends that"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "the model is being traced"
    for name in MORE_OUTPUTS:
        asked = given.get(name)
        if asked or (asked is None and getattr(model.config, name, False)):
            return f"{name} is set"
    main = "pixel_values" if kind == "image" else "input_ids"
    if not isinstance(given.get(main), torch.Tensor):
        return f"{main} isn't given"
    known = (main,) if kind == "image" else TEXT_INPUTS
    for name, value in given.items():
        if value is not None and value is not False and name not in known and name not in SWITCHES:
            return f"{name} is given"
    return None


def hooked(parts: Iterable[nn.Module]) -> bool:
    """Whether anybody waits for the calls of modules.

    transformers leaves hooks of its own in place once hidden states were asked for.
    """
    for module in parts:
        if not (module._forward_hooks or module._forward_pre_hooks):
            continue
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                return True
    return False


def reason_of_texts(
    given: Mapping[str, Any], limit: int | None, pad: int | None, *, pairs: bool = False, marked: bool = False
) -> str | None:
    """Return why texts aren't such as the profile is about; None where they are.

    `limit` is the number of tokens that the profile's texts are cut to, `pad` the token that fills rows up; `pairs`: it is about
    pairs of texts, `marked`: which token types tell from single ones.
    """
    ids: Any = given["input_ids"]
    mask, types = given.get("attention_mask"), given.get("token_type_ids")
    if ids.ndim != 2 or not ids.numel():
        return "input_ids is no batch of rows"
    for name, value in (("attention_mask", mask), ("token_type_ids", types)):
        if value is not None and (not isinstance(value, torch.Tensor) or value.shape != ids.shape):
            return f"{name} has another shape than input_ids"
    if mask is not None:
        seen = mask != 0
        if not bool((mask == seen.to(mask.dtype)).all()) or not bool(seen[:, 0].all()):
            return "the attention mask hides more than padding on the right"
        if not bool((seen[:, 1:] <= seen[:, :-1]).all()):
            return "the attention mask hides more than padding on the right"
    if mask is None and pad is not None and bool((ids[:, -1] == pad).any()):
        return "rows may end in padding that no attention mask hides"
    length = ids.shape[1] if mask is None else int(mask.sum(-1).max())
    if limit is not None and length > limit:
        return f"a text has {length} tokens, and the profile is about texts of at most {limit}"
    if types is not None and not pairs and bool(types.any()):
        return "pairs of texts are given, and the profile is about single ones"
    if marked and (types is None or not bool((types != 0).any(-1).all())):
        return "single texts are given, and the profile is about pairs"
    return None


def text_rows(given: Mapping[str, Any]) -> Sequence[Example]:
    """Return the rows of a batch (R, T) without their padding."""
    values = {name: given[name].tolist() for name in TEXT_INPUTS if given.get(name) is not None}
    if "attention_mask" not in values:
        values["attention_mask"] = [[1] * len(row) for row in values["input_ids"]]
    rows = []
    for i, mask in enumerate(values["attention_mask"]):
        size = sum(1 for seen in mask if seen)
        row = {name: table[i][:size] for name, table in values.items()}
        rows.append(Example(row, size, (tuple(row["input_ids"]), tuple(row.get("token_type_ids", ())))))
    return rows


def image_rows(given: Mapping[str, Any]) -> Sequence[Example]:
    """Return the rows of a batch of pixels (R, C, H, W), each an example of its own."""
    pixels: Tensor = given["pixel_values"]
    return [Example(row, 1, number) for number, row in enumerate(pixels.unbind())]
