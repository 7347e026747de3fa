"""diffusers' first-block cache over a transformer: where the first block says about what it said before, the others are left out.

The cache itself is diffusers' (`FirstBlockCacheConfig`, after TeaCache; Liu et al. 2024). Here it is put on for one run, each
of a step's calls remembers for itself, and calls that ran their first block only are told from those that ran whole: by a
hook inside the last block, which runs with that block or not at all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

BLOCK_LIST_NAMES = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""Where transformers keep their blocks, in the order in which they run."""


def why_not(network: Any) -> str | None:
    """Why a network can't be cached, or None."""
    if not all(hasattr(network, name) for name in ("enable_cache", "disable_cache", "cache_context")):
        return f"diffusers has no feature cache for {type(network).__name__}"
    if len(_blocks(network)) < 2:
        return "one block leaves nothing to cache"
    if getattr(network, "is_cache_enabled", False):
        return "its author has put on a cache already"
    return None


def _blocks(network: Any) -> list[nn.Module]:
    from torch import nn

    found: list[nn.Module] = []
    for name, part in network.named_children():
        if name in BLOCK_LIST_NAMES and isinstance(part, nn.ModuleList):
            found += list(part)
    return found


class BlockCache:
    """The cache of one network, on between `attach` and `detach`. Raises ValueError where `why_not` has a reason."""

    def __init__(self, network: Any, threshold: float) -> None:
        if reason := why_not(network):
            raise ValueError(reason)
        self._network, self._threshold = network, threshold
        self._ran = False
        self._hook: Any = None

    def attach(self) -> None:
        """Begin, with nothing remembered."""
        from diffusers import FirstBlockCacheConfig

        self._network.enable_cache(FirstBlockCacheConfig(threshold=self._threshold))
        inner = next(_blocks(self._network)[-1].children())
        self._hook = inner.register_forward_pre_hook(self._seen)

    def detach(self) -> None:
        """End, and leave the network as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._network.disable_cache()
            self._hook = None

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Around one call of the network; calls of one name remember each other."""
        self._ran = False
        with self._network.cache_context(name):
            yield

    @property
    def answered(self) -> bool:
        """Whether the latest call ran its first block only."""
        return not self._ran

    def _seen(self, *_: Any) -> None:
        self._ran = True
