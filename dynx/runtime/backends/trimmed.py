"""Cuts a draft model's output head to the tokens that are likely to be drafted.

A head reads one row of weights for each token of the vocabulary, which for a small model of a large vocabulary is most of a
pass. A draft model needs no token that it won't draft: `trim` keeps given ones, and `want` adds whatever tokens the model reads,
the prompt's among them. Logits keep their places; tokens without a row get one that no sampler picks.

Lossless: what is drafted is still a distribution over the target's tokens, and the target decides.

Letters: V vocabulary, D hidden size, K tokens kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

LEFT_OUT_LOGIT = -1e4
"""Logit of a token without a row: very unlikely, and finite, also in 16 bits."""

MAX_GROWTH = 2
"""Factor of the kept tokens that those read may let the head grow to; then it begins with the kept ones again."""


class TrimmedHead(nn.Module):
    """The rows of a linear output head for some tokens, in the place of the whole head."""

    def __init__(self, whole: nn.Linear, tokens: Sequence[int]) -> None:
        super().__init__()
        self.whole = whole
        self.base = torch.tensor(sorted(set(tokens)), device=whole.weight.device)
        self._reset()

    def _reset(self) -> None:
        weight, bias = self.whole.weight, self.whole.bias
        self.kept = self.base
        self.rows = weight[self.kept].detach().contiguous()  # (K, D)
        self.offsets = None if bias is None else bias[self.kept].detach()
        self.known = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
        self.known[self.kept] = True

    @property
    def weight(self) -> Tensor:
        """The whole head's weights, as other code of the model may ask for."""
        return self.whole.weight

    @torch.no_grad()
    def want(self, ids: Tensor) -> None:
        """Keep the tokens `ids` too."""
        missing = ids[~self.known[ids]]
        if not missing.numel():
            return
        missing = torch.unique(missing)
        if len(self.kept) + len(missing) > MAX_GROWTH * max(1, len(self.base)) + len(missing):
            self._reset()
            missing = torch.unique(ids[~self.known[ids]])
        weight, bias = self.whole.weight, self.whole.bias
        self.kept = torch.cat([self.kept, missing])
        self.rows = torch.cat([self.rows, weight[missing].detach()])
        if self.offsets is not None:
            self.offsets = torch.cat([self.offsets, bias[missing].detach()])
        self.known[missing] = True

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (…, V) of hidden states (…, D)."""
        some = nn.functional.linear(states, self.rows, self.offsets)
        out = some.new_full((*some.shape[:-1], self.known.shape[0]), LEFT_OUT_LOGIT)
        out[..., self.kept] = some
        return out


def can_trim(backend: Any) -> bool:
    """Whether a backend computes its logits by a head that can be cut: a plain linear one, run eagerly."""
    model = getattr(backend, "model", None)
    return (
        getattr(backend, "name", "") == "torch-eager"
        and model is not None
        and type(model.get_output_embeddings()) is nn.Linear
        and isinstance(model.get_input_embeddings(), nn.Module)
    )


def sayable(backend: Any, ids: Sequence[int]) -> list[bool]:
    """For each token of a text, whether a backend whose head may be cut could draft it there: it is kept, or was read before."""
    head = getattr(backend, "model", None) and backend.model.get_output_embeddings()
    if not isinstance(head, TrimmedHead):
        return [True] * len(ids)
    known, out = set(head.base.tolist()), []
    for token in ids:
        out.append(token in known)
        known.add(token)
    return out


def trim(backend: Any, tokens: Sequence[int]) -> None:
    """Cut the head of a backend's model, in place, to `tokens`; ids that the head lacks are ignored."""
    untrim(backend)
    model = backend.model
    whole = model.get_output_embeddings()
    head = TrimmedHead(whole, [token for token in tokens if 0 <= token < whole.weight.shape[0]])
    model.set_output_embeddings(head)
    head.hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: head.want(inputs[0].flatten()))


def untrim(backend: Any) -> None:
    """Give a backend's model its whole head back."""
    head = backend.model.get_output_embeddings()
    if isinstance(head, TrimmedHead):
        hook: Any = head.hook
        hook.remove()
        backend.model.set_output_embeddings(head.whole)
