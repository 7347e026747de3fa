"""Features and logits of tokens: what exits of models that label tokens are learned from, with a text as the unit of the promise.

Letters: n texts, N of their tokens that count, K exits, D features, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.model import ExitModel
from dynx.early_exit.entities.labels import EntityLabels
from dynx.early_exit.entities.preprocessing import counted_of
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.entities.labels import EntitySet
    from dynx.early_exit.heads import ExitHeads
    from dynx.early_exit.preprocessing import Example

MAX_FEATURE_BYTES = 1 << 30
"""Most memory for the features of all tokens of a calibration."""


@dataclass(frozen=True)
class TokenFeatures:
    """n texts: features (N, D) of their tokens after each of `depths`, logits (N, C), and the full float32 model's entities."""

    depths: tuple[int, ...]
    pooled: Sequence[Tensor]
    logits: Tensor
    texts: Sequence[Example]
    truth: Sequence[EntitySet]
    labels: EntityLabels

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def reference_logits(self) -> Tensor:
        """What heads are fitted to: the model's own logits (N, C)."""
        return self.logits

    @property
    def reference(self) -> Sequence[EntitySet]:
        """What entities are compared with: those of the full float32 model."""
        return self.truth

    def _bounds(self) -> NDArray[np.int64]:
        """Return where each text's tokens begin, and the end."""
        return np.cumsum([0, *(int(counted_of(row).sum()) for row in self.texts)])

    def rows(self, which: NDArray[np.int64]) -> TokenFeatures:
        """Select texts."""
        bounds = self._bounds()
        tokens = [np.arange(bounds[i], bounds[i + 1]) for i in which.tolist()]
        index = torch.from_numpy(np.concatenate(tokens) if tokens else np.empty(0, np.int64))
        chosen = which.tolist()
        return TokenFeatures(
            self.depths,
            [p[index] for p in self.pooled],
            self.logits[index],
            [self.texts[i] for i in chosen],
            [self.truth[i] for i in chosen],
            self.labels,
        )

    def at(self, depths: Sequence[int]) -> TokenFeatures:
        """Select exits by depth."""
        kept = [self.pooled[self.depths.index(depth)] for depth in depths]
        return TokenFeatures(tuple(depths), kept, self.logits, self.texts, self.truth, self.labels)

    def evaluate(
        self,
        heads: ExitHeads,
        score: AgreementScore,
        tolerance: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return scores (n, K) of texts, and agreements of their entities (n, K+1), the last those of full depth."""
        answers = heads.run(self.pooled)
        bounds = self._bounds()
        scores = np.ones((len(self), len(answers)))
        for k, z in enumerate(answers):
            of_tokens = score(k, z, answers[k - 1] if k else None)
            for i, (begin, end) in enumerate(pairwise(bounds.tolist())):
                scores[i, k] = of_tokens[begin:end].min(initial=1.0)
        return scores, np.stack([self.agree(z) for z in (*answers, self.logits)], axis=1)

    def full_logits(self) -> list[NDArray[np.float32]]:
        """Return the logits (T, C) of each text at full depth; of tokens that don't count they are NaN."""
        return self._by_text(self.logits)

    def agree(self, logits: Tensor) -> NDArray[np.bool_]:
        """Tell of each text (n,) whether logits (N, C) make the full model's entities."""
        found = self.labels.sets(self.texts, self._by_text(logits))
        return np.asarray([own == truth for own, truth in zip(found, self.truth, strict=True)], dtype=np.bool_)

    def _by_text(self, logits: Tensor) -> list[NDArray[np.float32]]:
        values, at, out = logits.float().cpu().numpy(), 0, list[Any]()
        for row in self.texts:
            which = counted_of(row)
            own = np.full((row.size, values.shape[1]), np.nan, dtype=np.float32)
            own[which] = values[at : at + int(which.sum())]
            at += int(which.sum())
            out.append(own)
        return out


def collect_tokens(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    depths: Sequence[int],
    truth: Sequence[EntitySet] | None,
    progress: Callable[[float], None],
) -> TokenFeatures:
    """Run texts through all layers, and keep their tokens' features at `depths`.

    `truth` are the full float32 model's entities; None where the model is it. UnsupportedModelError: exits can't be attached.
    """
    labels = assembly.labels
    if not isinstance(labels, EntityLabels):
        raise TypeError("the model doesn't label tokens")
    from dynx.early_exit.batching import batches

    run, merges_lengths = _runner(assembly, depths)
    count = int(sum(counted_of(row).sum() for row in rows))
    bounds = np.cumsum([0, *(int(counted_of(row).sum()) for row in rows)])
    pooled: list[Tensor | None] = [None] * len(depths)
    logits: Tensor | None = None
    done = 0
    for group in batches({i: row.size for i, row in enumerate(rows)}, assembly.batch, merges_lengths):
        seen, final = run(assembly.preprocessor.collate([rows[i] for i in group]))
        if logits is None:
            logits = torch.empty(count, final.shape[2])
            pooled = [torch.empty(count, each.shape[2]) for each in seen]
        for place, i in enumerate(group):
            which = torch.from_numpy(counted_of(rows[i]).nonzero()[0])
            here = slice(int(bounds[i]), int(bounds[i + 1]))
            logits[here] = final[place, which]
            for mine, each in zip(pooled, seen, strict=True):
                if mine is not None:
                    mine[here] = each[place, which]
        done += len(group)
        progress(done / len(rows))
    if logits is None:
        raise RuntimeError("there are no inputs")
    kept = [each for each in pooled if each is not None]
    found = TokenFeatures(tuple(depths), kept, logits, rows, truth or (), labels)
    if truth is not None:
        return found
    own = labels.sets(rows, found.full_logits())
    return TokenFeatures(tuple(depths), kept, logits, rows, own, labels)


def _runner(
    assembly: LoadedClassifier, depths: Sequence[int]
) -> tuple[Callable[[Mapping[str, Tensor]], tuple[list[Tensor], Tensor]], bool]:
    """Return what runs a batch to features (R, T, D) at `depths` and logits (R, T, C); and whether padding changes nothing."""
    exit_model = assembly.exit_model
    if assembly.segments is not None:
        model = assembly.segments.parts
        if tuple(depths) != model.borders:
            raise InvalidInput(f"features after blocks {tuple(depths)} of a model cut after {model.borders}")

        def run_segments(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
            with torch_threads(BESIDE_ANOTHER_RUNTIME):
                features, out = model.run_all({name: inputs[name].numpy() for name in model.input_names})
            return [torch.from_numpy(each) for each in features], torch.from_numpy(out)

        return run_segments, model.merges_lengths
    if not isinstance(exit_model, ExitModel):
        raise UnsupportedModelError(assembly.why_full_depth)

    def run_model(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        seen: list[Tensor] = []

        def keep(_k: int, hidden: Tensor, _rows: Tensor) -> None:
            seen.append(exit_model.pool(hidden, inputs).cpu())

        out = exit_model.run(inputs, watch=keep, exits=depths).logits
        if out is None:
            raise RuntimeError("a full run gave no logits")
        return seen, out.float().cpu()

    return run_model, exit_model.merges_lengths


def within_memory(assembly: LoadedClassifier, rows: Sequence[Example], order: Sequence[int]) -> list[int]:
    """Return how many of the rows, in this order, have features that fit into `MAX_FEATURE_BYTES`."""
    config: Any = assembly.exit_model.model.config
    width = int(getattr(config, "hidden_size", None) or getattr(config, "dim", None) or 1024)
    each = 4 * width * max(1, len(assembly.exit_depths))
    tokens = np.cumsum([int(counted_of(rows[i]).sum()) for i in order])
    return list(order[: max(1, int((tokens * each <= MAX_FEATURE_BYTES).sum()))])
