"""Recognises draft heads by their configurations and the names of their tensors, without reading weights.

Heads in folders of their own:

* EAGLE-3: architecture `LlamaForCausalLMEagle3` and its spellings; reads three layers' states, may have a vocabulary of its own;
* EAGLE and EAGLE-2: a decoder layer behind `fc`, which reads the last states;
* Medusa: `medusa_num_heads` heads, one for each token to come.

Heads inside a model's own weights (multi-token prediction): tensors `mtp.*` (Qwen3-Next, Qwen3.5), or one decoder block more than
`num_hidden_layers` with an `eh_proj` (DeepSeek-V3, GLM-4-MoE).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dynx.errors import UnsupportedModelError
from dynx.runtime.loading.source import PICKLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dynx.runtime.loading.source import Source

MTP: Literal["mtp"] = "mtp"
"""Name of the part of a model's weights that is its own head."""

SUPPORTED = "dynx reads EAGLE, EAGLE-3 and Medusa heads, and the multi-token prediction of Qwen and DeepSeek models"

EAGLE3 = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator")
EAGLE = ("EagleLlamaForCausalLM", "EAGLEModel", "LlamaForCausalLMEagle")

OTHERS: Mapping[str, str] = {
    "dflash": "a DFlash drafter, which drafts a block by diffusion",
    "dspark": "a DSpark drafter",
    "hydra": "a Hydra head, whose drafts depend on each other",
    "mlpspeculator": "an MLP speculator",
    "mlp_speculator": "an MLP speculator",
    "lstmspeculator": "an LSTM speculator",
    "peagle": "a P-EAGLE head, which drafts in parallel",
    "parallel_drafting": "a head that drafts in parallel",
    "eagle3deepseek": "an EAGLE-3 head with a DeepSeek layer",
    "assistant": "an assistant that shares its model's key-value cache",
}
"""Formats of drafters that dynx knows by name and doesn't read, by what their configurations contain."""

MTP_FC = re.compile(r"(?:.*\.)?mtp\.fc\.weight")
MTP_BLOCK = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.eh_proj\.weight")


@dataclass(frozen=True)
class HeadFormat:
    """The format of a head; `title` is how it is called in a sentence."""

    kind: Literal["mtp", "eagle", "eagle3", "medusa"]
    title: str
    prefix: str = ""
    """Of a head inside a model: what the names of its tensors begin with."""


def head_format(source: Source) -> HeadFormat | None:
    """Return the format of a folder's head; None for what is no head. Raises UnsupportedModelError, ModelError."""
    if source.file is not None or source.is_exported:
        return None
    if source.part == MTP:
        return _own_format(source)
    if not (source.folder / "config.json").is_file():
        return None
    config = source.config()
    kinds = [str(each) for each in config.get("architectures") or ()]
    words = " ".join([*kinds, str(config.get("model_type") or ""), str(config.get("speculators_model_type") or "")])
    settings = " ".join(str(name) for name, value in config.items() if value not in (None, False))
    for mark, title in OTHERS.items():
        if mark in words.lower() or (mark != "assistant" and mark in settings.lower()):
            raise UnsupportedModelError(f"{source.name} is {title}", hint=SUPPORTED)
    if "medusa_num_heads" in config or "medusa" in words.lower():
        return HeadFormat("medusa", "Medusa heads")
    if any(each in EAGLE3 for each in kinds) or "draft_vocab_size" in config:
        return HeadFormat("eagle3", "an EAGLE-3 head")
    if any(each in EAGLE for each in kinds) or config.get("model_type") == "eagle":
        return HeadFormat("eagle", "an EAGLE head")
    if "eagle" in words.lower():
        raise UnsupportedModelError(
            f"{source.name} is a head of the format {kinds[0] if kinds else words}", hint=SUPPORTED
        )
    # The first EAGLE heads call themselves Llama; what tells is a layer behind `fc`, without an output head.
    names = tensor_names(source.folder)
    if "fc.weight" in names and "layers.0.self_attn.q_proj.weight" in names:
        return (
            HeadFormat("eagle3", "an EAGLE-3 head")
            if "midlayer.hidden_norm.weight" in names
            else HeadFormat("eagle", "an EAGLE head")
        )
    return None


def own_head(source: Source) -> Source | None:
    """Return the head inside a model's weights, as a source of its own; None where there is none that dynx reads."""
    part = replace(source, name=f"{source.name}/{MTP}", part=MTP, adapters=())
    return part if not source.adapters and _own_format(source) is not None else None


def _own_format(source: Source) -> HeadFormat | None:
    if source.file is not None or source.is_exported:
        return None
    names = tensor_names(source.folder)
    if found := next((name for name in names if MTP_FC.fullmatch(name)), None):
        return HeadFormat(MTP, "its own multi-token prediction", found[: -len("fc.weight")])
    config = source.config()
    inner = config.get("text_config")
    layers = (inner if isinstance(inner, dict) else config).get("num_hidden_layers")
    for name in names:
        if (block := MTP_BLOCK.fullmatch(name)) and int(block[1]) == layers:
            return HeadFormat(MTP, "its own multi-token prediction", name[: -len("eh_proj.weight")])
    return None


def tensor_names(folder: Path) -> frozenset[str]:
    """Return the names of a folder's tensors, from its index or its files' headers; none for files that can't be read."""
    return frozenset(_names(folder))


def _names(folder: Path) -> Iterable[str]:
    try:
        for index in folder.glob("*.safetensors.index.json"):
            yield from json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if 0 < length <= file.stat().st_size - 8:
                    yield from json.loads(f.read(length))
    except (OSError, ValueError, KeyError, TypeError):
        return  # whoever loads the files says what is wrong


def pickled(folder: Path) -> list[Path]:
    """Return a folder's pickled weights where it has no others."""
    if any(folder.glob("*.safetensors")):
        return []
    return sorted(path for pattern in PICKLES for path in folder.glob(pattern))


def layers_read(found: HeadFormat, config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Return the blocks of a target of `layers` whose inputs a head reads; `layers` itself is what enters the output head.

    EAGLE-3 heads read a low, a middle and a high layer. Where a configuration numbers them itself, the numbers in `eagle_config`
    are those of the blocks that put the states out, one less; at the top level they are as here.
    """
    if found.kind != "eagle3":
        return (layers,)
    own = config.get("eagle_config")
    inner = own.get("eagle_aux_hidden_state_layer_ids") if isinstance(own, dict) else None
    if isinstance(own, dict) and own.get("use_aux_hidden_state") is False:
        return (layers,)
    if inner:
        return tuple(sorted(int(each) + 1 for each in inner))
    if outer := config.get("eagle_aux_hidden_state_layer_ids"):
        return tuple(sorted(int(each) for each in outer))
    return tuple(sorted((2, layers // 2, layers - 3)))
