"""Builds a language model of tensors that are unpacked or picked one by one: quantized folders, parts of multimodal ones.

At its peak that takes the model in its run's precision and one tensor in float32; the files are mapped, not read into memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError
from dynx.runtime.loading.multimodal import text_config, text_name, text_part
from dynx.runtime.quantized.scheme import read_scheme
from dynx.runtime.quantized.unpack import Packed

if TYPE_CHECKING:
    import torch

    from dynx.runtime.loading.source import Source
    from dynx.runtime.quantized.scheme import Scheme

PACKED_NAME = re.compile(r".*(scales?|scale_inv|packed|qweight|qzeros|absmax|quant_map|SCB|zero_point)(_\d+)?")
"""Names of tensors without which a module's weights aren't what was stored."""


def scheme_of(source: Source) -> Scheme | None:
    """Return how the source's weights are quantized, or None. Raises UnsupportedModelError with the source's name."""
    try:
        return read_scheme(source.folder, source.config())
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{source.name} can't be unpacked: {e}", hint=e.hint) from None


def needs_unpacking(source: Source) -> bool:
    """Whether transformers alone doesn't load what is wanted of the folder: packed weights, or more than a language model."""
    return scheme_of(source) is not None or text_part(source.config()) is not None


def elements(source: Source) -> int:
    """Numbers in the weights, once they are unpacked. Raises ModelError."""
    packed = _opened(source)
    try:
        return packed.elements
    finally:
        packed.close()


def stored_dtype(source: Source) -> str | None:
    """Return the precision that the configuration names, under either spelling, there or in its text part; None without one."""
    config = source.config()
    inner = config.get("text_config")
    for each in (config, inner if isinstance(inner, dict) else {}):
        if named := each.get("dtype") or each.get("torch_dtype"):
            return str(named).removeprefix("torch.")
    return None


def _opened(source: Source) -> Packed:
    scheme = scheme_of(source)
    try:
        return Packed(source.folder, scheme, text_name if text_part(source.config()) else lambda name: name)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{source.name} can't be unpacked: {e}", hint=e.hint) from None


def load_unpacked(loader: Any, source: Source, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model on the processor in `dtype`, and transformers' report of missing tensors.

    `loader` is one of transformers' Auto classes. Raises ModelError, UnsupportedModelError.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=source.trusted)
    if part := text_part(source.config()):
        config = text_config(config, part)
    packed = _opened(source)
    try:
        for each in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
            for name in ("quantization_config", "compression_config"):
                if hasattr(each, name):
                    delattr(each, name)
            if part:
                each.tie_word_embeddings = "lm_head.weight" not in packed
        with torch.device("meta"):
            kind = type(loader.from_config(config, trust_remote_code=source.trusted))
        state = dict(packed.tensors(dtype))
    finally:
        packed.close()
    model, seen = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    for name in sorted(seen["unexpected_keys"]):
        if PACKED_NAME.fullmatch(name):
            raise UnsupportedModelError(f"{source.name} can't be unpacked: {name} belongs to no layout that dynx knows")
    return model, seen
