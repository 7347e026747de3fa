"""Adapters (LoRA and its kin) that lie in a model's folder. None is applied there, so each is named rather than passed over.

Language models get those that the caller names (`lora`). diffusers loads an adapter only when told to. transformers applies the
one that an `adapter_config.json` describes where peft is installed, and passes over it where it isn't: the same folder would be
two models.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIG_FILE = "adapter_config.json"
PIPELINE_FILE = "model_index.json"

ADAPTER_NAME = re.compile(r"(adapter_model|pytorch_lora_weights)\b.*\.(safetensors|bin)")
"""What peft and diffusers call them."""

MODEL_NAME = re.compile(r"(model|diffusion_pytorch_model)\b.*\.safetensors")
"""What loaders take for the model itself; some models hold adapters of their own beside their other weights."""

ADAPTER_TENSOR_NAME = re.compile(r"(^|[._])(lora|hada|lokr|ia3)([._]|$)")
"""Names of tensors of low-rank adapters, in the styles of peft, diffusers, kohya and LyCORIS."""

MAX_HEADER_BYTES = 100_000_000  # safetensors refuses longer headers itself

HINT = (
    "move it into a folder of its own, which `adapters` folds into a language model; or merge it into the weights first "
    "(merge_and_unload in peft, fuse_lora in diffusers)"
)


def adapters(folder: Path) -> list[str]:
    """Names of the files right in `folder` that hold an adapter, by name or by their tensors' names."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    files = [n for n in names if ADAPTER_NAME.fullmatch(n) or (n.endswith(".safetensors") and _holds_one(folder / n))]
    return files or [n for n in names if n == CONFIG_FILE]


def base_of(folder: Path) -> str | None:
    """Return the name of the model that the folder's adapter was made for, or None."""
    base = _json(folder / CONFIG_FILE).get("base_model_name_or_path")
    return base if isinstance(base, str) and base.isprintable() and base else None


def unapplied(folder: Path) -> list[str]:
    """List the adapters in a pipeline's folder and in those of its parts, by relative path."""
    parts = [name for name, part in _json(folder / PIPELINE_FILE).items() if isinstance(part, list)]
    return [*adapters(folder), *(f"{name}/{file}" for name in sorted(parts) for file in adapters(folder / name))]


def refuse(name: str, folder: Path) -> None:
    """Raise UnsupportedModelError where a folder that transformers loads holds an adapter. diffusers' configs name a class."""
    if "_class_name" not in _json(folder / "config.json") and (found := adapters(folder)):
        raise UnsupportedModelError(
            f"{name} has a LoRA adapter ({found[0]}) among its weights, where it isn't applied", hint=HINT
        )


def refuse_alone(name: str, folder: Path) -> None:
    """Raise UnsupportedModelError where a folder without a model's own config holds an adapter instead."""
    if found := adapters(folder):
        base = base_of(folder)
        words = f" for {base}" if base else ""
        raise UnsupportedModelError(
            f"{name} is a LoRA adapter{words} ({found[0]}) and no model", hint="merge it into its model first"
        )


def said(files: Sequence[str]) -> str:
    """Describe the adapters that aren't applied, for a warning."""
    one = len(files) == 1
    words = f"{files[0]} is a LoRA adapter and isn't" if one else f"{', '.join(files)} are LoRA adapters and aren't"
    return f"{words} applied: the pictures are the pipeline's own without {'it' if one else 'them'}"


def _holds_one(file: Path) -> bool:
    """Whether most tensors of a safetensors file are an adapter's; False for a damaged file, which its loader reports."""
    if MODEL_NAME.fullmatch(file.name):
        return False
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: Any = json.loads(f.read(length)) if length < MAX_HEADER_BYTES else None
    except (OSError, ValueError):
        return False
    names = [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []
    return 2 * sum(ADAPTER_TENSOR_NAME.search(name) is not None for name in names) > len(names)


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one for a missing or damaged file, which its loader reports."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
