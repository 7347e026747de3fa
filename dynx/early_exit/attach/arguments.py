"""Arguments and outputs of modules: nested tuples, lists and dicts that hold tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Path = tuple[int | str, ...]
    """Indices and keys that lead to a leaf."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every leaf of nested tuples, lists and dicts, with its path."""
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def map_leaves(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the same structure with every leaf changed."""
    if isinstance(value, (tuple, list)):
        items = [map_leaves(item, change, (*path, index)) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        made = {key: map_leaves(item, change, (*path, key)) for key, item in value.items()}
        return made if type(value) is dict else type(value)(**made)
    return change(path, value)


def tensors_of(value: Any) -> dict[Path, Tensor]:
    """Return the tensors in a structure by path."""
    return {path: leaf for path, leaf in leaves(value) if isinstance(leaf, Tensor)}


def hidden_path(tensors: Mapping[Path, Tensor]) -> Path | None:
    """Find the argument that holds a block's hidden states: the first, or the one of that name."""
    for path in ((0, 0), (1, "hidden_states")):
        if path in tensors:
            return path
    return next(iter(tensors), None)


def item_at(value: Any, path: Path) -> Any:
    """Return the leaf at a path."""
    for key in path:
        value = value[key]
    return value
