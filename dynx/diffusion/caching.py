"""Apply diffusers' feature caches to a transformer: in some steps most of its blocks don't run, and earlier features stand in.

Three kinds, each with one number that calibration tries:
- first-block (`FirstBlockCacheConfig`, after TeaCache; Liu et al. 2024): the others are skipped where the first block's output
  changes by less than a threshold;
- taylor-seer (`TaylorSeerCacheConfig`, lite; Liu et al. 2025): blocks run in every n-th step only, and what they lead to is
  extrapolated;
- magnitude (`MagCacheConfig`; Ma et al. 2025): the blocks' last residual is used while the expected change of its magnitude adds
  up to less than a threshold. The magnitudes are measured on the pipeline's own trajectories (`residual_norms`).

A cache is enabled for one run, with a separate state for each call of a step. A hook inside the last block, which runs with that
block or not at all, distinguishes calls that ran the whole network from those that were answered from the cache. diffusers'
caches of attention alone (pyramid attention broadcast, FasterCache) save no whole call, and aren't used.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from dynx.diffusion.schedule import Schedule

BLOCK_LIST_NAMES = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""Attributes in which transformers keep their blocks, in the order in which they run."""

FIRST_BLOCK, TAYLOR_SEER, MAGNITUDE = "first-block", "taylor-seer", "magnitude"

KINDS = (FIRST_BLOCK, TAYLOR_SEER, MAGNITUDE)

ALWAYS_COMPUTED = 2
"""Steps at the beginning that a cache always computes: those before the number of steps is chosen."""

MAX_CACHED_STEPS = 3
"""Most consecutive steps that the magnitude cache answers, from its authors."""

LAST_LAYER = "proj_out"
"""Name of the layer whose output the lite TaylorSeer extrapolates."""


def why_not(network: Any, kind: str = FIRST_BLOCK) -> str | None:
    """Return why a network can't be cached, or None if it can."""
    if not all(hasattr(network, name) for name in ("enable_cache", "disable_cache", "cache_context")):
        return f"diffusers has no feature cache for {type(network).__name__}"
    if len(_blocks(network)) < 2:
        return "one block leaves nothing to cache"
    if getattr(network, "is_cache_enabled", False):
        return "its author has put on a cache already"
    if kind == TAYLOR_SEER and not hasattr(network, LAST_LAYER):
        return f"{type(network).__name__} has no {LAST_LAYER} to extrapolate"
    return None


def _blocks(network: Any) -> list[nn.Module]:
    from torch import nn

    found: list[nn.Module] = []
    for name, part in network.named_children():
        if name in BLOCK_LIST_NAMES and isinstance(part, nn.ModuleList):
            found += list(part)
    return found


class BlockCache:
    """Cache one network as a schedule asks, between `attach` and `detach`. Raises ValueError where `why_not` has a reason."""

    def __init__(self, network: Any, schedule: Schedule) -> None:
        if reason := why_not(network, schedule.cache_kind):
            raise ValueError(reason)
        self._network, self._schedule = network, schedule
        self._config: Any = None
        self._ran = False
        self._hook: Any = None

    def attach(self) -> None:
        """Enable the cache, empty."""
        self._config = config_for(self._schedule)
        self._network.enable_cache(self._config)
        inner = next(_blocks(self._network)[-1].children())
        self._hook = inner.register_forward_pre_hook(self._seen)

    def replan(self, schedule: Schedule) -> None:
        """Follow another schedule from here on, of as many steps before."""
        self._schedule = schedule
        if schedule.cache_kind == MAGNITUDE and self._config is not None:  # the hooks read it at every call
            fresh = config_for(schedule)
            self._config.mag_ratios = fresh.mag_ratios
            self._config.num_inference_steps = fresh.num_inference_steps
            self._config.retention_ratio = fresh.retention_ratio

    def detach(self) -> None:
        """Disable the cache and restore the network."""
        if self._hook is not None:
            self._hook.remove()
            self._network.disable_cache()
            self._hook = self._config = None

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Wrap one call of the network; calls with the same name share a cache state."""
        self._ran = False
        with self._network.cache_context(name):
            yield

    @property
    def answered(self) -> bool:
        """Whether the latest call was answered from the cache."""
        return not self._ran

    def _seen(self, *_: Any) -> None:
        self._ran = True


def config_for(schedule: Schedule) -> Any:
    """Return diffusers' configuration of a schedule's cache."""
    import torch
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    if schedule.cache_kind == TAYLOR_SEER:
        return TaylorSeerCacheConfig(
            cache_interval=int(schedule.cache),
            disable_cache_before_step=ALWAYS_COMPUTED,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
    if schedule.cache_kind == MAGNITUDE:
        steps = len(schedule.grid)
        return MagCacheConfig(
            threshold=schedule.cache,
            max_skip_steps=MAX_CACHED_STEPS,
            retention_ratio=ALWAYS_COMPUTED / steps,
            num_inference_steps=steps,
            mag_ratios=[float(ratio) for ratio in schedule.magnitude_ratios],
        )
    return FirstBlockCacheConfig(threshold=schedule.cache)


class ResidualNorms:
    """Measure by how much a network's blocks change their input, at every call inside the `with`.

    `norms` is the mean norm of a token's change, one number for each call; it stays empty for blocks of unknown kinds.
    """

    def __init__(self, network: Any) -> None:
        self.norms: list[float] = []
        self._blocks = _blocks(network)
        self._given: Tensor | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> ResidualNorms:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        try:
            kinds = [TransformerBlockRegistry.get(type(block)) for block in (self._blocks[0], self._blocks[-1])]
        except (IndexError, ValueError):
            return self
        first, last = kinds

        def before(_: Any, args: Any, kwargs: Any) -> None:
            self._given = first._get_parameter_from_args_kwargs(first.hidden_states_argument_name, args, kwargs)

        def after(_: Any, __: Any, output: Any) -> None:
            made = output[last.return_hidden_states_index] if isinstance(output, tuple) else output
            if self._given is not None and made.shape[-1] == self._given.shape[-1]:
                change = made[:, -self._given.shape[1] :].float() - self._given.float()
                self.norms.append(float(change.norm(dim=-1).mean()))

        self._hooks = [
            self._blocks[0].register_forward_pre_hook(before, with_kwargs=True),
            self._blocks[-1].register_forward_hook(after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def ratios(norms: Sequence[float]) -> tuple[float, ...]:
    """Return the ratios of neighbouring norms, the first of which is 1."""
    return (1.0, *(later / max(earlier, 1e-12) for earlier, later in pairwise(norms)))
