"""What `generate` hands to a decoding loop, and the engine's requests for it.

Letters in shapes: B sequences, T tokens of the padded prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import stopping_criteria as stopping

from dynx.integrations.transformers.reasons import OWN_LOOP
from dynx.speculation.prepared import PreparedProcessors, for_sequence
from dynx.speculation.types import ModelSettings, Request, Sampling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Prepared:
    """What `generate` hands to a decoding loop."""

    ids: Tensor  # (B, T)
    mask: Tensor | None  # (B, T)
    processors: Any  # a LogitsProcessorList
    criteria: Any  # a StoppingCriteriaList
    config: Any

    @property
    def padding(self) -> list[int]:
        """Tokens on the left of each row that are no part of its text."""
        if self.mask is None:
            return [0] * self.ids.shape[0]
        return [int(n) for n in (self.mask == 0).sum(-1)]

    @property
    def new_tokens(self) -> int:
        """The largest number of new tokens; one at least, since criteria are asked after a token."""
        limits = [c.max_length for c in self.criteria if type(c) is stopping.MaxLengthCriteria]
        return max(1, min(limits, default=int(self.config.max_length)) - self.ids.shape[1])

    @property
    def ends(self) -> frozenset[int]:
        """The token ids that end a sequence."""
        found = [c.eos_token_id for c in self.criteria if type(c) is stopping.EosTokenCriteria]
        return frozenset(int(token) for ids in found for token in ids.flatten().tolist())

    @property
    def asks_criteria(self) -> bool:
        """Whether any criterion must be asked after every token."""
        return any(type(c) not in OWN_LOOP for c in self.criteria)

    @property
    def pure(self) -> bool:
        """Whether no processor calls a function of the user's."""
        return PreparedProcessors(tuple(self.processors)).pure

    def requests(self) -> list[Request]:
        """Return a request for each row; seeds come from PyTorch's generator, so that `manual_seed` fixes the text."""
        count, sampled = self.ids.shape[0], bool(self.config.do_sample)
        seeds = torch.randint(1 << 62, (count,)).tolist() if sampled else [None] * count
        out = []
        for row, (tokens, pads, seed) in enumerate(zip(self.ids.tolist(), self.padding, seeds, strict=True)):
            own = ModelSettings(prepared=for_sequence(self.processors, row, count, tokens[:pads]))
            sampling = Sampling(temperature=1.0 if sampled else 0.0, seed=seed, own=own)
            out.append(Request(tokens[pads:], self.new_tokens, sampling, self.ends))
        return out
