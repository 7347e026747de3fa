"""What a draft head would draft at each position of a text, several tokens deep, in a few passes.

A model's drafts behind accepted ones are what it says of the text itself, so one pass over the text shows all of them. A chained
head isn't so: behind its first draft it goes on from states of its own. Each depth takes a pass in which every position has a
chain of its own; a mask lets it see the text before it and itself.

Letters: N tokens of the text, R positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dynx.runtime.backends.trimmed import sayable
from dynx.runtime.heads.networks import ChainHead, ParallelHeads
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.simulate import DraftTrace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynx.speculation.drafters.head import HeadBackend
    from dynx.speculation.types import Sampling

MAX_DEPTH = 8
"""Drafts looked at behind each position; what heads draft further on is hardly ever accepted."""


class Answered(Protocol):
    """A prompt's tokens with the answer's behind them."""

    @property
    def tokens(self) -> Sequence[int]:
        """Ids of all tokens."""

    @property
    def prompt(self) -> int:
        """How many of them are the prompt."""


@dataclass(frozen=True)
class HeadPass:
    """A head's drafts: by depth, and at each depth by position, the signals and whether the drafts equal the text's tokens."""

    signals: Sequence[Sequence[float]]
    right: Sequence[Sequence[bool]]

    def traces(self, text: Answered) -> list[DraftTrace]:
        """Return the head's drafts at each position of the answer from its second token on."""
        out = []
        for row in range(len(text.tokens) - text.prompt - 1):
            signals = tuple(depth[row] for depth in self.signals if row < len(depth))
            right = [depth[row] for depth in self.right if row < len(depth)]
            out.append(DraftTrace(signals, right.index(False) if False in right else len(right)))
        return out


@torch.inference_mode()
def read_head(small: HeadBackend, text: Answered, vocab: int, sampling: Sampling) -> HeadPass:
    """Run a head over a text that its target has read."""
    tokens = list(text.tokens)
    count = len(tokens) - text.prompt - 1  # positions of the answer from its second token on
    session = small.target.open()
    session.forward(tokens[:-1], keep=1)
    found = session.hidden_states(0)
    if count < 1 or found is None or found[0] > 0:
        return HeadPass([], [])
    features = found[1]  # (N-1, F)
    head = small.head
    if isinstance(head, ChainHead):
        rows = _chained(head, tokens, features, text.prompt - 1)
    else:
        assert isinstance(head, ParallelHeads)  # noqa: S101 - there are no others
        rows = (head.logits(features[text.prompt - 1 : -depth or None], depth) for depth in range(len(head.heads)))
    processors = LogitsProcessors(sampling, tokens[: text.prompt], len(tokens) - text.prompt, vocab)
    said = sayable(small, tokens)
    signals, right = [], []
    for depth, logits in enumerate(rows, start=1):
        first = text.prompt + depth  # token that the first row drafts
        left = len(tokens) - first
        if left < 1:
            break
        found_here = processors.probabilities(logits[:left, :vocab], tokens[:first], tokens[first:])
        best, picks = found_here.max(-1)
        signals.append([log_odds(p) for p in best.tolist()])
        drafts = zip(picks.tolist(), tokens[first:], said[first:], strict=True)
        right.append([draft == token and known for draft, token, known in drafts])
    return HeadPass(signals, right)


def _chained(head: ChainHead, tokens: list[int], features: Tensor, first: int) -> Iterator[Tensor]:
    """Yield by depth the logits of chains that begin behind the pairs from number `first` on, less one chain a depth."""
    cache = head.open()
    states = head(tokens[1:], head.fuse(features), cache)[first:-1]  # the last pair's draft is behind the text
    yield head.logits(states)
    total, chains = len(tokens) - 1, len(states)
    seen = torch.arange(total) <= (first + torch.arange(chains))[:, None]  # (R, N-1)
    own = torch.eye(chains, dtype=torch.bool)
    for depth in range(2, MAX_DEPTH + 1):
        seen = torch.cat([seen, own], dim=1)
        left = chains - depth + 1
        if left < 1:
            return
        behind = [*tokens[first + depth :], *[tokens[-1]] * depth][:chains]  # those beyond the text stand for none
        positions = first + depth - 1 + torch.arange(chains)
        states = head(behind, states, cache, **_arguments(seen, positions, states))
        yield head.logits(states[:left])


def _arguments(seen: Tensor, positions: Tensor, states: Tensor) -> dict[str, Any]:
    mask = torch.zeros(seen.shape, dtype=states.dtype).masked_fill_(~seen, torch.finfo(states.dtype).min)
    return {"attention_mask": mask[None, None].to(states.device), "position_ids": positions[None].to(states.device)}
