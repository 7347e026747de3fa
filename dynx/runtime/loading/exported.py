"""Folders that hold a model in OpenVINO's own format (optimum-intel's layout), looked at as text, without OpenVINO."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from dynx.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

MODEL_FILE = "openvino_model.xml"

KINDS = {"u4": "int4", "i4": "int4", "nf4": "int4", "u8": "int8", "i8": "int8", "f16": "float16", "bf16": "bfloat16"}
"""How weights of each element type are stored; float32 for the others."""


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model in OpenVINO's format and none in another."""
    return (folder / MODEL_FILE).is_file() and not any(folder.glob("*.safetensors"))


def weights_kind(folder: Path) -> str:
    """Return how the weights are stored, by the element type of most of their numbers: int4, int8, bfloat16, float16 or float32.

    Read from the text of the graph, without OpenVINO. Raises ModelError.
    """
    counts: dict[str, int] = {}
    try:
        text = (folder / MODEL_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise ModelError(f"{folder / MODEL_FILE} can't be read: {e.strerror or e}") from None
    for attributes in re.findall(r'<data (element_type="[^>]*offset="\d+"[^>]*)/>', text):
        found = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
        count = prod(int(size) for size in found.get("shape", "").split(",") if size.strip().isdigit())
        kind = KINDS.get(found["element_type"], "float32")
        counts[kind] = counts.get(kind, 0) + count
    return max(counts, key=lambda kind: counts[kind], default="float32")


def check_files(folder: Path) -> None:
    """Check that the weights beside the graph are as long as it says. Raises ModelError."""
    weights = (folder / MODEL_FILE).with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{folder} has no {weights.name}", hint="download or copy it again")
    text = (folder / MODEL_FILE).read_text(encoding="utf-8", errors="replace")
    if not text.rstrip().endswith("</net>"):
        raise ModelError(f"{folder / MODEL_FILE} is truncated or no OpenVINO model", hint="download or copy it again")
    ends = [int(offset) + int(size) for offset, size in re.findall(r'offset="(\d+)"[^>]*? size="(\d+)"', text)]
    size = weights.stat().st_size
    if size < max(ends, default=0):
        raise ModelError(
            f"{weights} is truncated: {size} bytes, {max(ends)} expected", hint="download or copy it again"
        )
