"""Passes over a tree of tokens on an eager model: each token attends to its ancestors alone, at the position of its depth.

Stock modules take the mask as it is, so which architectures it works for is found out by trying (`tried`): some compute
positions from the mask, or have no place for one. The keys and values of a tree lie one after the other in the cache; `keep_rows`
moves those that stay.

Letters in shapes: T tokens of the tree, C tokens before it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.errors import DeviceError
from dynx.runtime.backends.picks import as_picks
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL, SLIDING = "full_attention", "sliding_attention"


class TreeSession:
    """The part of an `EagerSession` that runs trees."""

    _backend: Any
    _cache: Any
    _length: int

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int], *, picks: bool = False) -> Tensor | list[int]:
        """See `Session.forward_tree`."""
        self._cache.position = self._length
        rows = self._backend.run(tokens, self._cache, None, **tree_arguments(self._backend, self._length, parents))
        self._length += len(tokens)
        return as_picks(rows) if picks else rows

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """See `Session.keep`."""
        keep_rows(self._cache, start, rows)
        self._length = start + len(rows)


def tree_arguments(backend: Any, before: int, parents: Sequence[int]) -> dict[str, Any]:
    """Return the model's arguments for a tree after `before` tokens: masks (1, 1, T, C + T) and positions (1, T)."""
    config, count = backend.config, len(parents) + 1
    depth = torch.zeros(count, dtype=torch.long)
    own = torch.eye(count, dtype=torch.bool)
    for row, parent in enumerate(parents, start=1):
        own[row] |= own[parent]
        depth[row] = depth[parent] + 1
    seen = torch.cat([torch.ones(count, before, dtype=torch.bool), own], dim=1)
    positions = before + depth
    masks = {FULL: _additive(seen, backend)}
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if SLIDING in kinds:
        keys = torch.cat([torch.arange(before), positions])
        masks[SLIDING] = _additive(seen & (keys[None] > positions[:, None] - int(window or 0)), backend)
    mask = masks[next(iter(kinds))] if len(kinds) == 1 else {kind: masks[kind] for kind in kinds}
    return {"attention_mask": mask, "position_ids": positions[None].to(backend.device)}


def _additive(seen: Tensor, backend: Any) -> Tensor:
    """Return 0 where `seen` and the least number elsewhere, which attention with or without fused kernels adds to scores."""
    out = torch.zeros(seen.shape, dtype=backend.model.dtype)
    return out.masked_fill_(~seen, torch.finfo(out.dtype).min)[None, None].to(backend.device)


@torch.inference_mode()
def keep_rows(cache: Any, start: int, rows: Sequence[int]) -> None:
    """Move the keys and values of `rows` of the tree that begins at `start` to the places from there on."""
    first = next((i for i, row in enumerate(rows) if row != i), None)
    if first is None:
        return
    at = torch.tensor([start + row for row in rows[first:]])
    for layer in cache.layers:
        for held in (layer.keys, layer.values):
            moved = held[..., at.to(held.device), :]
            held[..., start + first : start + len(rows), :] = moved


@torch.inference_mode()
def tried(backend: Any, session: Any) -> Decision[bool]:
    """Test on a few tokens whether the rows of a tree, and those after one of its branches was kept, are those of chains."""
    kind = backend.config.model_type
    if not backend.can_rollback.value or backend.keeps_states or backend.length_dependence is not None:
        return Decision(False, f"{kind} isn't decoded on dynx's key-value cache")
    if backend.name != "torch-eager":
        return Decision(False, f"{backend.name} runs no passes over trees")
    if not {"position_ids", "attention_mask"} <= set(inspect.signature(backend.model.forward).parameters):
        return Decision(False, f"{kind} takes no positions or no mask")
    if other := set(getattr(backend.config, "layer_types", None) or ()) - {FULL, SLIDING}:
        return Decision(False, f"{kind} has layers of another kind ({', '.join(sorted(map(str, other)))})")
    text = [(7 * i + 3) % backend.vocab for i in range(6)]
    tree, parents = [(11 * i + 5) % backend.vocab for i in range(6)], [0, 1, 0, 3, 1]
    try:
        chain, own = session(backend), session(backend)
        chain.forward(text)
        own.forward(text)
        gap, scale = 0.0, 1.0
        for path in ([0, 1, 2], [0, 3, 4]):
            want = chain.forward([tree[row] for row in path])
            rows = own.forward_tree(tree, parents)[path]
            own.keep(len(text), path)
            for mine, theirs in ((rows, want), (own.forward(text[:2]), chain.forward(text[:2]))):
                gap = max(gap, float((mine - theirs).abs().max()))
                scale = max(scale, float(theirs.abs().max()))
            chain.rollback(len(text))
            own.rollback(len(text))
    except DeviceError:
        raise
    except Exception as e:  # noqa: BLE001 - any failure of a foreign model means: no trees
        return Decision(False, f"{kind} doesn't take a tree's mask ({type(e).__name__})")
    if not gap <= (1e-3 if backend.model.dtype == torch.float32 else 0.08) * scale:
        return Decision(False, f"{kind} gives other logits in trees than in chains (by {gap:.2g})")
    return Decision(True, "tested: a tree's logits are those of chains")
