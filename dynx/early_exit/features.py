"""Features at every exit and logits of the full model: what heads, scores, rules and certificates are fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.agreement import agrees
from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.batching import batches
from dynx.early_exit.entities.labels import EntityLabels
from dynx.early_exit.token_features import TokenFeatures, collect_tokens
from dynx.errors import InvalidInput
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.entities.labels import EntitySet
    from dynx.early_exit.heads import ExitHeads
    from dynx.early_exit.preprocessing import Example
    from dynx.early_exit.segments.segments import Segments


@dataclass(frozen=True)
class Inputs:
    """Inputs of a calibration: `items` as the preprocessor takes them, `names` that identify them, in the same order."""

    items: Sequence[Any]
    names: Sequence[str]
    places: Sequence[int] | None = None
    """The index of each in the rows of the data; None: each row is an input."""
    rows: int | None = None
    """Number of rows of the data, with those that hold no input."""


@dataclass(frozen=True)
class CollectedFeatures:
    """n rows: pooled features (n, F) after each of `depths`, the logits (n, C), and those of the full float32 model."""

    depths: tuple[int, ...]
    pooled: Sequence[Tensor]
    logits: Tensor
    reference_logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def reference(self) -> Tensor:
        """What answers are compared with: the logits (n, C) of the full float32 model."""
        return self.reference_logits

    def rows(self, which: NDArray[np.int64]) -> CollectedFeatures:
        """Select rows."""
        index = torch.from_numpy(which)
        return CollectedFeatures(
            self.depths, [p[index] for p in self.pooled], self.logits[index], self.reference_logits[index]
        )

    def at(self, depths: Sequence[int]) -> CollectedFeatures:
        """Select exits by depth."""
        kept = [self.pooled[self.depths.index(depth)] for depth in depths]
        return CollectedFeatures(tuple(depths), kept, self.logits, self.reference_logits)

    def evaluate(
        self, heads: ExitHeads, score: AgreementScore, tolerance: float
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return scores (n, K) and agreements with the reference (n, K+1), the last those of the logits at full depth."""
        answers = heads.run(self.pooled)
        scores = [score(k, z, answers[k - 1] if k else None) for k, z in enumerate(answers)]
        same = [
            agrees(z, self.reference_logits, heads.problem, tolerance).cpu().numpy() for z in (*answers, self.logits)
        ]
        return np.stack(scores, axis=1), np.stack(same, axis=1)


AnyFeatures: TypeAlias = CollectedFeatures | TokenFeatures


def reference_of(assembly: LoadedClassifier, items: Sequence[Any]) -> Tensor | list[EntitySet] | None:
    """Return the full float32 model's logits (n, C), or the entities of each text; None where the assembly is that model."""
    if is_reference(assembly):
        return None
    reference = Reference(assembly)
    if isinstance(assembly.labels, EntityLabels):
        rows, answers = reference.read(items)
        return assembly.labels.sets(rows, [answer.logits for answer in answers])
    return torch.from_numpy(reference.logits(items))


def collect_any(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    depths: Sequence[int],
    reference: Tensor | Sequence[EntitySet] | None,
    progress: Callable[[float], None] = lambda _: None,
) -> AnyFeatures:
    """Collect features of rows, or of their tokens where a model labels those; `reference` is what `reference_of` returns."""
    if assembly.plan.kind != "tokens":
        return collect(assembly, rows, depths, reference if isinstance(reference, Tensor) else None, progress)
    return collect_tokens(assembly, rows, depths, None if isinstance(reference, Tensor) else reference, progress)


def collect(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    depths: Sequence[int],
    reference_logits: Tensor | None,
    progress: Callable[[float], None] = lambda _: None,
) -> CollectedFeatures:
    """Run rows through all layers and pool features at `depths`.

    `reference_logits` (n, C): None where the model is the reference itself.

    UnsupportedModelError: exits can't be attached to it.
    """
    from dynx.early_exit.attach.model import ExitModel

    exit_model, batch = assembly.exit_model, assembly.batch
    if not rows:
        raise InvalidInput("there are no inputs")
    if assembly.segments is not None:
        return _collect_by_segments(assembly, assembly.segments, rows, depths, reference_logits, progress)
    if not isinstance(exit_model, ExitModel):
        from dynx.errors import UnsupportedModelError

        raise UnsupportedModelError(assembly.why_full_depth)
    order = sorted(range(len(rows)), key=lambda i: -rows[i].size)
    pooled: list[list[Tensor]] = []
    logits: list[Tensor] = []
    taken: list[int] = []
    at = 0
    while at < len(order):
        group = order[at : at + batch]
        if not exit_model.merges_lengths:
            group = [i for i in group if rows[i].size == rows[group[0]].size]
        inputs = assembly.preprocessor.collate([rows[i] for i in group])
        seen: list[Tensor] = []

        def pool_hidden(
            _k: int, hidden: Tensor, _rows: Tensor, seen: list[Tensor] = seen, inputs: object = inputs
        ) -> None:
            seen.append(exit_model.pool(hidden, inputs).cpu())  # type: ignore[arg-type]

        out = exit_model.run(inputs, watch=pool_hidden, exits=depths).logits
        if out is None:
            raise RuntimeError("a full run gave no logits")
        pooled.append(seen)
        logits.append(out.float().cpu())
        taken += group
        at += len(group)
        progress(at / len(order))
    back = torch.from_numpy(np.argsort(np.asarray(taken)))
    full_depth_logits = torch.cat(logits)[back]
    features = [torch.cat([batch_[k] for batch_ in pooled])[back] for k in range(len(depths))]
    return CollectedFeatures(
        tuple(depths), features, full_depth_logits, full_depth_logits if reference_logits is None else reference_logits
    )


def _collect_by_segments(
    assembly: LoadedClassifier,
    segments: Segments,
    rows: Sequence[Example],
    depths: Sequence[int],
    reference_logits: Tensor | None,
    progress: Callable[[float], None],
) -> CollectedFeatures:
    """Collect from segments that end at `depths`."""
    model = segments.parts
    if tuple(depths) != model.borders:
        raise InvalidInput(f"features after blocks {tuple(depths)} of a model cut after {model.borders}")
    if not rows:
        raise InvalidInput("there are no inputs")
    pooled: list[list[Tensor]] = []
    logits: list[Tensor] = []
    taken: list[int] = []
    sizes = {number: row.size for number, row in enumerate(rows)}
    with torch_threads(BESIDE_ANOTHER_RUNTIME):
        for group in batches(sizes, assembly.batch, model.merges_lengths):
            inputs = assembly.preprocessor.collate([rows[i] for i in group])
            features, out = model.run_all({name: inputs[name].numpy() for name in model.input_names})
            pooled.append([torch.from_numpy(each) for each in features])
            logits.append(torch.from_numpy(out))
            taken += group
            progress(len(taken) / len(rows))
    back = torch.from_numpy(np.argsort(np.asarray(taken)))
    full_depth_logits = torch.cat(logits)[back]
    gathered = [torch.cat([each[k] for each in pooled])[back] for k in range(len(model.borders))]
    return CollectedFeatures(
        model.borders, gathered, full_depth_logits, full_depth_logits if reference_logits is None else reference_logits
    )
