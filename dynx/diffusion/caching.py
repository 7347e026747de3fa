"""Apply diffusers' first-block cache to a transformer: where the first block's output hardly changes, the others are skipped.

The cache itself is diffusers' (`FirstBlockCacheConfig`, after TeaCache; Liu et al. 2024). Here it is enabled for one run, with
a separate state for each call of a step. A hook inside the last block, which runs with that block or not at all,
distinguishes calls that ran the whole network from calls that ran its first block only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

BLOCK_LIST_NAMES = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""Attributes in which transformers keep their blocks, in the order in which they run."""


def why_not(network: Any) -> str | None:
    """Return why a network can't be cached, or None if it can."""
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
    """Cache one network between `attach` and `detach`. Raises ValueError where `why_not` has a reason."""

    def __init__(self, network: Any, threshold: float) -> None:
        if reason := why_not(network):
            raise ValueError(reason)
        self._network, self._threshold = network, threshold
        self._ran = False
        self._hook: Any = None

    def attach(self) -> None:
        """Enable the cache, empty."""
        from diffusers import FirstBlockCacheConfig

        self._network.enable_cache(FirstBlockCacheConfig(threshold=self._threshold))
        inner = next(_blocks(self._network)[-1].children())
        self._hook = inner.register_forward_pre_hook(self._seen)

    def detach(self) -> None:
        """Disable the cache and restore the network."""
        if self._hook is not None:
            self._hook.remove()
            self._network.disable_cache()
            self._hook = None

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Wrap one call of the network; calls with the same name share a cache state."""
        self._ran = False
        with self._network.cache_context(name):
            yield

    @property
    def answered(self) -> bool:
        """Whether the latest call ran its first block only."""
        return not self._ran

    def _seen(self, *_: Any) -> None:
        self._ran = True
