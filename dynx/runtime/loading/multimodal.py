"""The text part of a model that also reads images or sounds: a language model of its own, if it can run alone.

Only the tensors of that part are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SENSES = ("vision_config", "audio_config", "vision_tower_config", "image_config", "speech_config")
"""Parts of a configuration that describe what isn't text."""

SAME_IN_TEXT = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Text parts that differ from a language model only by the positions of images: three equal positions rotate as one does."""

TEXT_TYPES_OF_FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text"}
"""Models whose configurations had the text part's settings beside the others."""

INSIDE = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(.+)")
"""Name of a tensor of the text part inside the whole model."""

OUTSIDE = re.compile(
    r"(?:model\.)?(?:vision|visual|audio|image|multi_modal|mm_|embed_vision|embed_audio|connector|speech)"
)
"""Beginnings of the names of what isn't text, where the text part has no name of its own."""


@dataclass(frozen=True)
class TextPart:
    """The text part of a multimodal model: the type of its configuration, and the type of language model that it is."""

    type: str
    runs_as: str


def text_part(config: Mapping[str, Any]) -> TextPart | None:
    """Describe the text part of a model by its config.json; None for a model of text alone."""
    if not any(isinstance(config.get(sense), dict) for sense in SENSES):
        return None
    inner = config.get("text_config") or config.get("llm_config")
    kind = inner.get("model_type") if isinstance(inner, dict) else None
    kind = (
        kind
        or TEXT_TYPES_OF_FLAT.get(str(config.get("model_type")))
        or (f"{config.get('model_type')}_text" if inner else "")
    )
    return TextPart(str(kind), SAME_IN_TEXT.get(str(kind), str(kind)))


def text_name(name: str) -> str | None:
    """Return the name in the language model of a tensor of the whole model; None for one of another part."""
    if found := INSIDE.fullmatch(name):
        return found[1] if found[1].startswith("lm_head.") else f"model.{found[1]}"
    if OUTSIDE.match(name) or not name.startswith(("model.", "lm_head.")):
        return None
    return name


def text_config(whole: Any, part: TextPart) -> Any:
    """Return the configuration of the language model in that of the whole model."""
    from transformers import AutoConfig

    found = whole.get_text_config(decoder=True)
    if part.runs_as == part.type:
        return found
    settings = {key: value for key, value in found.to_dict().items() if key not in ("model_type", "architectures")}
    rotation = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
    for key in ("mrope_section", "mrope_interleaved"):
        rotation.pop(key, None)
    for key in ("rope_type", "type"):
        if rotation.get(key) == "mrope":
            rotation[key] = "default"
    settings.pop("rope_scaling", None)
    return AutoConfig.for_model(part.runs_as, **{**settings, "rope_parameters": rotation or None})
