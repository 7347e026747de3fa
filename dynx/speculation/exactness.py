"""Makes greedy text identical to plain decoding's in precisions where passes of several tokens round differently.

A pass over several tokens may give slightly other logits than passes over one, and it leaves slightly other keys and values
behind, so reading a doubtful token once more by itself settles nothing: over a cache that wide passes wrote, one row is as far
from plain decoding's as several are (measured in bfloat16: 0.030 against 0.032 logits). There are three ways out:

1. Kernels whose rows don't depend on how many there are. OpenVINO's didn't in any pass of two tokens or more (five architectures,
   three precisions, contexts to 3,500), so there plain decoding's passes are run that wide as well, which next to a large model's
   weights costs 7 % or less. Where it costs less than 3 % they always are (`runtime.backends.widths`), and then every greedy text
   is plain decoding's without being asked to.
2. The same of PyTorch's, with attention computed row by row (`runtime.backends.batch_invariant`), which takes time.
3. Elsewhere a decision closer than `bound` is a near tie. Everything from the last position that is known to be as plain
   decoding leaves it is read again one token a pass, which *is* plain decoding, and the tie is decided by that. In float32
   that hardly ever happens; where it happens often, the time it takes is part of the rounds, and the policy turns to plain.

Where passes are measured not to differ by a bit, there is nothing to check; the third holds as long as rounding stays below
`bound`, twice the most that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dynx.runtime.decision import Decision
from dynx.speculation.timing import measure_noise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dynx.runtime.backends.interface import Backend

NOISE_SAFETY_FACTOR = 2.0
"""Factor on the largest measured noise: of some hundred rows that is about three standard deviations, so the bound is six."""


NO_PADDING: Mapping[int, int] = MappingProxyType({})
"""The default: no pass is padded."""


@dataclass(frozen=True)
class RoundingBound:
    """How much rounding moves the distance of two leading logits, by the pass's number of tokens."""

    noise: Mapping[int, float] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """Logits; decisions no closer than this are plain decoding's. 0: all are."""
        return NOISE_SAFETY_FACTOR * max(self.noise.values(), default=0.0)

    def first_tie(self, scores: Tensor, scale: float = 1.0) -> int | None:
        """Return the first row of (T, V) that rounding could have decided; `scale` is the factor of processing on distances."""
        if not self.bound:
            return None
        best = scores.topk(2, -1).values
        near = ~(best[:, 0] - best[:, 1] > self.bound * scale)  # also NaN
        return int(near.int().argmax()) if bool(near.any()) else None


def make_batch_invariant(target: Backend, padded_lengths: Mapping[int, int] = NO_PADDING) -> Decision[bool]:
    """Make `target`'s passes batch-invariant as far as it can; `padded_lengths` are those that are padded anyway.

    Not in float32: there every kernel depends on the width, and near-ties are too rare to matter.
    """
    if target.precision == "float32":
        return Decision(False, "float32")
    if target.set_padded_lengths({1: padded_lengths.get(2, 2), **padded_lengths}):
        return Decision(True, "passes of one token are run wider")
    from dynx.runtime.backends.batch_invariant import set_batch_invariant

    return set_batch_invariant(target)


def prepare(
    target: Backend, exit_layers: int | None = None, known: Any = None, padded_lengths: Mapping[int, int] = NO_PADDING
) -> tuple[RoundingBound, Decision[str]]:
    """Make `target`'s passes batch-invariant as far as it can, and measure the remaining noise unless `known` from a profile."""
    made = make_batch_invariant(target, padded_lengths)
    noise = read_noise(known)
    basis = "calibration"
    if noise is None:
        noise, basis = measure_noise(target, exit_layers=exit_layers), "a trial on loading"
    exact = RoundingBound(noise)
    if not exact.bound:
        how = f"; {made.reason}" if made.value else ""
        return exact, Decision(
            "by every pass", f"{basis} found that wide passes differ from narrow ones by not a bit{how}"
        )
    why = "" if target.precision == "float32" else f"; {made.reason}"
    return exact, Decision(
        "near-ties read again",
        f"{basis} saw rounding move logits by {max(noise.values()):.2g}, so decisions closer than {exact.bound:.2g} are made by "
        f"plain passes from the last plain one on{why}",
    )


def is_batch_invariant(known: Any, padded_lengths: Mapping[int, int]) -> bool:
    """Whether a profile (`known`) measured bit-identical passes under `padded_lengths`."""
    noise = read_noise(known)
    return 1 in padded_lengths and noise is not None and not any(noise.values())


def noise_if_exact(
    target: Backend,
    texts: Sequence[tuple[Sequence[int], int]],
    exit_layers: int | None,
    padded_lengths: Mapping[int, int] = NO_PADDING,
) -> dict[str, float]:
    """Measure the noise that `prepare` would, on a target's own texts, for a profile."""
    made = make_batch_invariant(target, padded_lengths)
    try:
        return {str(n): moved for n, moved in measure_noise(target, texts, exit_layers=exit_layers).items()}
    finally:
        if made.value and not target.set_padded_lengths(padded_lengths):
            from dynx.runtime.backends.batch_invariant import set_batch_invariant

            set_batch_invariant(target, on=False)


def read_noise(known: Any) -> dict[int, float] | None:
    """Return what `noise_if_exact` wrote; None for anything else."""
    try:
        noise = {int(n): float(moved) for n, moved in known.items()}
    except (AttributeError, TypeError, ValueError):
        return None
    return noise if noise and all(0 <= moved < float("inf") for moved in noise.values()) else None
