"""The target's side of a round: which draft tokens are accepted, by the rule that the request calls for.

Greedy decoding and sampling with a seed accept drafts while they are the target's own tokens; sampling without a seed accepts
blocks of them (`acceptance`). Letters: V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dynx.runtime.backends.picks import likeliest
from dynx.runtime.torch_on_use import torch
from dynx.speculation.acceptance import one_hot, verify_block, verify_greedy
from dynx.speculation.sampling import LogitsProcessors, SeededGumbelNoise
from dynx.speculation.tree import walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.exactness import RoundingBound
    from dynx.speculation.tree import Walk
    from dynx.speculation.types import Request


class Verifier:
    """Verifies drafts by the acceptance rule that the request calls for."""

    def __init__(self, request: Request, vocab: int, seed: int) -> None:
        self._sampling = request.sampling
        self._processors = LogitsProcessors.for_request(request, vocab)
        self._noise = noise_for(request, vocab)
        self._seed = seed

    @cached_property
    def _generator(self) -> Generator:
        return torch.Generator().manual_seed(self._seed)

    @property
    def needs_logits(self) -> bool:
        """Whether decisions take more than the likeliest token of each row."""
        return not (self._sampling.greedy and self._processors.is_identity)

    def keep(self, drafts: Sequence[Draft], rows: Tensor | list[int], context: Sequence[int]) -> list[int]:
        """Return the tokens to append after verifying `drafts` by the logits `rows` (len(drafts) + 1, V).

        Where `needs_logits` is False, `rows` may be the likeliest token of each row instead.
        """
        draft_tokens = [d.token for d in drafts]
        if isinstance(rows, list):
            return verify_greedy(draft_tokens, rows.__getitem__)
        noise = self._noise
        if self._processors.by_position and (self._sampling.greedy or noise is not None):
            score = self._processors.row_by_row(rows, context, draft_tokens)  # none after the first rejected draft
            if noise is None:
                return verify_greedy(draft_tokens, lambda i: int(score(i).argmax()))
            return verify_greedy(draft_tokens, lambda i: noise.pick(score(i)[0].softmax(-1).cpu(), len(context) + i))
        if self._sampling.greedy:
            scores = rows if self._processors.is_identity else self._processors.scores(rows, context, draft_tokens)
            return verify_greedy(draft_tokens, likeliest(scores).__getitem__)
        p = self._processors.probabilities(
            rows, context, draft_tokens
        ).cpu()  # one wait for the device, not several a draft
        if noise is not None:
            return verify_greedy(draft_tokens, lambda i: noise.pick(p[i], len(context) + i))
        vocab = p.shape[-1]
        q = [
            one_hot(d.token, vocab, p)
            if d.probabilities is None
            else torch.nn.functional.pad(d.probabilities, (0, vocab - len(d.probabilities)))
            for d in drafts
        ]
        return verify_block(draft_tokens, torch.stack(q) if q else p[:0], p, self._uniform, self._draw)

    def walk(
        self, drafts: Sequence[Draft], parents: Sequence[int], rows: Tensor | list[int], context: Sequence[int]
    ) -> Walk:
        """Verify a tree of `drafts` that are certain (see `tree`) by the logits `rows` (len(drafts) + 1, V), or their picks."""
        tokens = [d.token for d in drafts]
        if isinstance(rows, list):
            return walk(tokens, parents, lambda row, _: rows[row])
        return walk(tokens, parents, lambda row, path: self._token(rows[row : row + 1], context, path))

    def _token(self, row: Tensor, context: Sequence[int], path: Sequence[int]) -> int:
        """Return the target's own token by its logits `row` (1, V) after the text and the drafts on `path`."""
        greedy, noise = self._sampling.greedy, self._noise
        if greedy and self._processors.is_identity:
            return likeliest(row)[0]
        scores = self._processors.scores(row, [*context, *path] if self._processors.by_position else context)
        if greedy:
            return int(scores.argmax())
        p = scores.softmax(-1)[0].cpu()
        return self._draw(p) if noise is None else noise.pick(p, len(context) + len(path))

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def _draw(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights.float(), 1, generator=self._generator))

    def first_tie(
        self, exact: RoundingBound, drafts: Sequence[Draft], rows: Tensor, context: Sequence[int]
    ) -> int | None:
        """Return the first greedy decision of `rows` (len(drafts) + 1, V) that rounding could have made."""
        scores = (
            rows.float()
            if self._processors.is_identity
            else self._processors.scores(rows, context, [d.token for d in drafts])
        )
        return exact.first_tie(scores, self._processors.distance_scale(len(context) + len(drafts)))

    def guarantee(self, target: Backend, *, exact: bool = False) -> str:
        """Describe the output relative to plain decoding of the same model, in a short phrase for the receipt."""
        if self._sampling.greedy or self._noise is not None:
            exact = exact or target.precision == "float32"
            return "identical to plain decoding" if exact else "identical to plain decoding but for rounding ties"
        return "same distribution as plain decoding"


def noise_for(request: Request, vocab: int) -> SeededGumbelNoise | None:
    """Return the noise of the request's seed; None where nothing is sampled or no seed was given."""
    sampling = request.sampling
    return SeededGumbelNoise(sampling.seed, vocab) if sampling.seed is not None and not sampling.greedy else None
