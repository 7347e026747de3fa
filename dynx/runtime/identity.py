"""What a source computes with, in a few hex digits: its folder's weights and the adapters that are folded into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.errors import ModelError
from dynx.runtime import lora
from dynx.runtime.hashing import hash_json, model_hash
from dynx.runtime.weights import weights_hash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dynx.runtime.loading.source import Source


def model_key(source: Source, exclude: Iterable[str] = ()) -> str:
    """`model_hash` of the source's folder, and of what its adapters add."""
    found = model_hash(source.folder, exclude=exclude, code=source.trusted)
    return hash_json([found, lora.identity(source.adapters)]) if source.adapters else found


def weights_key(source: Source, exclude: Iterable[str] = ()) -> str:
    """`weights_hash` of the source's folder, and of what its adapters add."""
    found = weights_hash(source.folder, exclude)
    return found[:16] + hash_json([found, lora.identity(source.adapters)]) if source.adapters else found


def still(before: str, source: Source, exclude: Iterable[str] = ()) -> str:
    """Return the key `before` if it still holds. Raises `ModelError` where weights changed in between."""
    if weights_key(source, exclude) != before:
        raise ModelError(f"the weights of {source.name} changed while they were measured", hint="run it again")
    return before
