"""Decodes what `generate` has prepared: strips padding, runs the engine, and pads again.

Letters in shapes: B sequences, T tokens of the padded prompts, N new tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynx.integrations.transformers import outputs
from dynx.integrations.transformers.criteria import BySequence, ends
from dynx.runtime.backends.recording import RecordingBackend
from dynx.speculation.batching import Batch
from dynx.speculation.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.integrations.transformers.prepared import Prepared
    from dynx.integrations.transformers.streaming import OnceEnded
    from dynx.speculation.types import Receipt, Request


def misfit(requests: Sequence[Request], engine: Engine) -> str | None:
    """Return why the engine can't take the requests; None if it can."""
    limit, vocab = engine.target.context, engine.target.vocab
    if any(max(request.prompt) >= vocab for request in requests):
        return f"a token of the prompt is beyond the vocabulary of {vocab}"
    if limit is not None and any(len(r.prompt) + r.max_new_tokens > limit for r in requests):
        return f"the text may grow beyond the model's context of {limit} tokens"
    return None


class Stopping:
    """Asks stopping criteria after every token, as transformers' loop does: with all token ids of the row, padding included."""

    def __init__(self, prepared: Prepared, row: int) -> None:
        self._criteria: list[Any] = []
        if prepared.asks_criteria:
            self._criteria = [c.criteria[row] if type(c) is BySequence else c for c in prepared.criteria]
            prompt = prepared.ids[row]
            self._ids = torch.cat([prompt, prompt.new_zeros(prepared.new_tokens)])[None]  # (1, T + N)
            self._length = len(prompt)

    def __call__(self, token: int) -> bool:
        """Return whether the row ends with `token`."""
        if not self._criteria:
            return False
        self._ids[0, self._length] = token
        self._length += 1
        seen = self._ids[:, : self._length]
        ended = [ends(criterion, seen) for criterion in self._criteria]  # all are asked, as `generate` does
        return any(ended)


def decode_one(prepared: Prepared, request: Request, engine: Engine, streamer: OnceEnded | None) -> tuple[Any, Receipt]:
    """Decode a batch of one; return what `generate` returns, and the receipt."""
    config = prepared.config
    recording = None
    if config.return_dict_in_generate:
        recording = RecordingBackend(engine.target)  # type: ignore[arg-type]
        engine = Engine(recording, engine.drafters, acceptance_profile=engine.acceptance_profile)
    run, stop = engine.start(request), Stopping(prepared, 0)
    tokens: list[int] = []
    for token in run:
        tokens.append(token.id)
        stopped = stop(token.id)
        if streamer is not None:
            streamer.put(torch.tensor([token.id]))
        if stopped:
            break
    sequences = torch.cat([prepared.ids, prepared.ids.new_tensor([tokens])], dim=-1)
    if recording is None:
        return sequences, run.receipt()
    return outputs.of_one(sequences, tokens, request, recording, config), run.receipt()


def decode_batch(prepared: Prepared, requests: Sequence[Request], engine: Engine) -> tuple[Tensor, list[Receipt]]:
    """Decode several sequences together; return the padded tokens (B, T + N) and a receipt for each."""
    batch = Batch(engine, len(requests))
    runs = [batch.sequence(request) for request in requests]
    batch.admit(runs)
    stops = [Stopping(prepared, row) for row in range(len(runs))]
    written: list[list[int]] = [[] for _ in runs]
    left = {row: iter(run) for row, run in enumerate(runs)}
    while left:
        for row, tokens in list(left.items()):
            token = next(tokens, None)
            if token is None:
                del left[row]
                continue
            written[row].append(token.id)
            if stops[row](token.id):
                runs[row].finish_reason = "stop"
                del left[row]
    width = max(map(len, written))
    pad = prepared.config._pad_token_tensor
    fill = 0 if pad is None else int(pad)
    new = [[*tokens, *[fill] * (width - len(tokens))] for tokens in written]
    return torch.cat([prepared.ids, prepared.ids.new_tensor(new)], dim=-1), [run.receipt() for run in runs]
