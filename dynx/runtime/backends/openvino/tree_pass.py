"""What a pass over trees of tokens needs besides the tokens: positions by depth, and which token attends to which.

Keys and values of a tree lie one after the other in the blocks, whatever their depth. In bfloat16 a row that has others between
it and its ancestors is rounded otherwise than in its own chain: 16 of 416 rows of SmolLM2-135M, by 0.4 at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.runtime.backends.openvino.checked import is_marked, put_mark
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynx.runtime.backends.interface import Part

TRIAL_CONTEXT_TOKENS = 40
"""Tokens before the trees of the trial: places in two blocks."""

TREES_FILE, EXACT_TREES_FILE = "trees", "exact-trees"
"""Notes that passes over trees were tried, without and with `Backend.exact_trunk`."""


def depths(parents: Sequence[int], count: int) -> NDArray[np.int64]:
    """Return the depth of each of `count` tokens; those after the tree, which are padding, have that of their place."""
    out = np.arange(count, dtype=np.int64)
    for row, parent in enumerate(parents, start=1):
        out[row] = out[parent] + 1
    return out


def masks(parts: Sequence[Part], counts: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return which tokens of each part attend to which of its own, row by row, and where each part's begin.

    Both are empty where there are no trees.
    """
    if not any(part.parents for part in parts):
        return np.zeros(0, np.uint8), np.zeros(0, np.int32)
    out: list[NDArray[np.uint8]] = []
    for part, count in zip(parts, counts, strict=True):
        seen = np.tri(count, dtype=np.uint8)
        if part.parents:
            for row, parent in enumerate(part.parents, start=1):
                seen[row] = seen[parent]
                seen[row, row] = 1
        out.append(seen.reshape(-1))
    ends = np.cumsum([0, *(len(each) for each in out)])
    return np.concatenate(out), ends.astype(np.int32)


def tried(backend: Any, tolerance: float) -> Decision[bool]:
    """Compare the rows of trees, and those after one of their branches was kept, with those of chains.

    Sets `exact_trunk`: whether those of the chain with which a tree begins are the same bits.
    """
    if "qq_bias" not in backend.inputs:
        return Decision(False, "an exported graph has no inputs for trees")
    backend.trunk_only = backend.windows
    if backend.folder is not None:
        for name in (EXACT_TREES_FILE, TREES_FILE):
            if is_marked(backend.folder / name):
                backend.exact_trunk = name == EXACT_TREES_FILE
                return Decision(True, "tested when it was converted: the logits of chains")
    same, gap, scale = True, 0.0, 1.0
    tree = [(11 * i + 5) % backend.vocab for i in range(7)]
    parents = [0, 1, 0, 3, 1, 4]
    before = max(2, min(TRIAL_CONTEXT_TOKENS, backend.last - 2 * len(tree)))
    text = [(7 * i + 3) % backend.vocab for i in range(before)]
    chain, own = backend.open(), backend.open()
    chain.forward(text, keep=1)
    own.forward(text, keep=1)
    # A window counts places, so that rows beside the trunk see other tokens than in their chain once it moves.
    for path in ([0, 1, 2],) if backend.windows else ([0, 1, 2], [0, 3, 4, 6]):
        want = chain.forward([tree[row] for row in path])
        got = own.forward_tree(tree, parents)[path]
        own.keep(before, path)
        pairs = [(got, want), (own.forward(text[:2]), chain.forward(text[:2]))]
        if path == [0, 1, 2]:
            same = all(bool((mine == theirs).all()) for mine, theirs in pairs)
        gap = max(gap, *(float((mine - theirs).abs().max()) for mine, theirs in pairs))
        scale = max(scale, float(want.abs().max()))
        chain.rollback(before)
        own.rollback(before)
    if not gap <= tolerance * scale:
        return Decision(False, f"trees have other logits than chains (by {gap:.2g})")
    backend.exact_trunk = same
    if backend.folder is not None:
        put_mark(backend.folder / (EXACT_TREES_FILE if same else TREES_FILE))
    return Decision(True, "tested: the logits of chains")
