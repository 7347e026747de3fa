"""Decoding settings that name nothing but ends, sampling and lengths, read without transformers.

Most models' generation configs are like that, and they mean the same whoever reads them. Any other key, or a value of another
kind, is left to transformers.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_FILE_BYTES = 1 << 20


def _id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _ids(value: Any) -> bool:
    return _id(value) or (isinstance(value, list) and bool(value) and all(map(_id, value)))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


READ: dict[str, Callable[[Any], bool]] = {
    "eos_token_id": _ids,
    "bos_token_id": _id,
    "pad_token_id": _id,
    "do_sample": _flag,
    "temperature": _positive,
    "top_p": _share,
    "top_k": _id,
    "max_length": lambda value: _id(value) and value > 0,
    "use_cache": lambda value: value is True,
    "output_attentions": lambda value: value is False,
    "output_hidden_states": lambda value: value is False,
    "_from_model_config": _flag,
    "transformers_version": lambda value: isinstance(value, str),
}
"""Keys that are read here, and the values that they may have."""


def read(file: Path) -> SimpleNamespace | None:
    """Return the settings in `file` by name; None for a file that transformers has to read."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(name in READ and READ[name](value) for name, value in found.items()):
        return None
    return SimpleNamespace(**found)
