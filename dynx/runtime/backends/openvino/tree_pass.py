"""What a pass over trees of tokens needs besides the tokens: positions by depth, and which token attends to which.

Keys and values of a tree lie one after the other in the blocks, whatever their depth. Rows have the bits of the pass over their own
chain as far as was tried on loading (`tried`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynx.runtime.backends.interface import Part

TRIAL_CONTEXTS = (5, 40)
"""Tokens before the trees of the trial: with places in one block, and in two."""


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

    True where they are the same but for rounding; `Decision.reason` begins with "bit for bit" where they are the same bits.
    """
    if "qq_bias" not in backend.inputs:
        return Decision(False, "an exported graph has no inputs for trees")
    same, gap, scale = True, 0.0, 1.0
    tree = [(11 * i + 5) % backend.vocab for i in range(7)]
    parents = [0, 1, 0, 3, 1, 4]
    for before in TRIAL_CONTEXTS:
        if before + 2 * len(tree) > backend.last:
            continue
        text = [(7 * i + 3) % backend.vocab for i in range(before)]
        for path in ([0, 1, 2], [0, 3, 4, 6], [0, 1, 5]):
            chain, own = backend.open(), backend.open()
            chain.forward(text, keep=1)
            own.forward(text, keep=1)
            want = chain.forward([tree[row] for row in path])
            got = own.forward_tree(tree, parents)[path]
            own.keep(before, path)
            pairs = [(got, want), (own.forward(text[:2]), chain.forward(text[:2]))]
            for mine, theirs in pairs:
                same = same and bool((mine == theirs).all())
                gap = max(gap, float((mine - theirs).abs().max()))
                scale = max(scale, float(theirs.abs().max()))
    if not gap <= tolerance * scale:
        return Decision(False, f"trees have other logits than chains (by {gap:.2g})")
    return Decision(True, f"{'bit for bit' if same else 'but for rounding'} the logits of chains, tested on loading")
