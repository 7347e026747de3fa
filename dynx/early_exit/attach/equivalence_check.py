"""The check that a classifier run in parts gives the same answers as in one forward; exits require it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.early_exit.attach.blocks import PROBE_ROWS, Refusal
from dynx.early_exit.attach.hidden_state import State
from dynx.early_exit.attach.pooling import pooling_style

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dynx.early_exit.attach.blocks import Block
    from dynx.early_exit.attach.model import ExitModel
    from dynx.early_exit.attach.pooling import Kind

PROBE_TOKENS = 7
"""Tokens per row of a text probe; neither a batch size nor a multiple of one."""

MAX_EXHAUSTIVE_DEPTH = 16
"""Largest depth at which the check resumes after every block; in deeper models it takes some of them."""


class ProbeInputs:
    """Distinct rows for probes, made from an example batch so that they suit the model."""

    def __init__(self, model: Any, kind: Kind, probe_batch: dict[str, Tensor]) -> None:
        self.kind = kind
        self._probe_batch = probe_batch
        config = model.config
        self._pad = getattr(
            config.get_text_config() if hasattr(config, "get_text_config") else config, "pad_token_id", None
        )

    def probes(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of many and of few rows: padded, and for text also without padding (a model may skip the mask then)."""
        for padded in (True, False) if self.kind == "text" else (True,):
            for rows in PROBE_ROWS:
                yield self.batch(range(rows), padded=padded)

    def batch(self, rows: Sequence[int], *, width: int = PROBE_TOKENS, padded: bool = True) -> dict[str, Tensor]:
        """Make a batch of these rows: for text of 7, 5, 4 … tokens, padded on the right to `width`."""
        made = [self._text(row, width, padded=padded) if self.kind == "text" else self._image(row) for row in rows]
        return {key: torch.cat([one[key] for one in made]) for key in made[0]}

    @staticmethod
    def length(row: int) -> int:
        """Return the tokens of a row."""
        return PROBE_TOKENS if row == 0 else PROBE_TOKENS - 1 - row

    def _text(self, row: int, width: int, *, padded: bool) -> dict[str, Tensor]:
        mask = self._probe_batch["attention_mask"]
        source, length = row % mask.shape[0], self.length(row) if padded else width
        real = (mask[source] != 0).nonzero()[:, 0]
        tokens = real[(row + torch.arange(width, device=real.device)) % max(1, len(real))]
        out: dict[str, Tensor] = {}
        for key, value in self._probe_batch.items():
            has_tokens = value.dim() > 1 and value.shape[1] == mask.shape[1]
            out[key] = value[source : source + 1].index_select(1, tokens) if has_tokens else value[source : source + 1]
        out["attention_mask"] = torch.ones_like(out["attention_mask"])
        out["attention_mask"][:, length:] = 0
        if self._pad is not None:
            out["input_ids"][:, length:] = self._pad
        return out

    def _image(self, row: int) -> dict[str, Tensor]:
        out = {key: value[row % len(value)].unsqueeze(0) for key, value in self._probe_batch.items()}
        pixels = out["pixel_values"]
        out["pixel_values"] = pixels.roll(row * max(1, pixels.shape[-1] // 3), -1) * (1 - 0.2 * row) + 0.1 * row
        return out


def verify(exit_model: ExitModel, probe_inputs: ProbeInputs, expected: Tensor, reduced_precision: bool) -> None:
    """Compare runs in parts with `expected`, the unchanged model's logits for the first probe; Refusal where they differ."""
    model, depth = exit_model.model, exit_model.depth
    middle = (depth + 1) // 2
    inputs = probe_inputs.batch(range(PROBE_ROWS[0]))
    expected = without_padding(expected, inputs)
    alone = without_padding(model(**probe_inputs.batch([2]), **exit_model.options).logits, probe_inputs.batch([2]))
    if not bool(torch.isfinite(expected).all()):
        raise Refusal("its logits aren't finite")
    scale = max(1.0, expected.abs().max().item())
    floor = 2e-2 if reduced_precision or expected.dtype != torch.float32 else 1e-5
    noise = (alone - expected[2:]).abs().max().item()
    if noise > 0.05 * scale:
        raise Refusal("the answer to a row depends on the rest of its batch")
    close = max(floor, 4 * noise / scale)

    def same(got: Tensor | None, reference: Tensor, how: str) -> None:
        size = max(1.0, torch.nan_to_num(reference).abs().max().item())
        if got is None or got.shape != reference.shape:
            raise Refusal(f"it gives other rows when {how}")
        gap = (torch.nan_to_num(got) - torch.nan_to_num(reference)).abs().max().item()
        if not gap <= close * size:
            raise Refusal(f"it gives other answers when {how} (by {gap:.2g})")

    states: dict[int, Tensor] = {}

    def store_state(k: int, hidden: Tensor, _rows: Tensor) -> None:
        states[k] = hidden

    off = exit_model.run(inputs, watch=store_state, exits=range(1, depth + 1)).logits
    if off is None or not torch.equal(without_padding(off, inputs), expected):
        raise Refusal("it doesn't repeat its own logits with all exits off")
    exit_model.run(probe_inputs.batch([2, 0, 1]))  # blocks that keep state must not pass the check by it
    for k in _resume_depths(exit_model._blocks):
        resumed = exit_model.run(inputs, start=State(k, states[k])).logits
        same(None if resumed is None else without_padding(resumed, inputs), expected, f"resumed after block {k}")
    stopped = exit_model.run(inputs, stop=middle).state
    same(None if stopped is None else stopped.hidden, states[middle], f"stopped after block {middle}")

    def drop_rows(k: int, hidden: Tensor, rows: Tensor) -> Tensor | None:
        same(hidden, states[k][rows], "rows leave its batch")
        gone = 1 if k == 1 else 0 if k == max(2, middle) else None
        return None if gone is None else (rows != gone).to(hidden.device)

    remaining = exit_model.run(inputs, watch=drop_rows, exits=range(1, depth + 1))
    left = None if remaining.logits is None else without_padding(remaining.logits, probe_inputs.batch([2]))
    same(left, expected[2:], "rows leave its batch")
    causal = exit_model.kind == "text" and _is_causal(exit_model, probe_inputs, close)
    per_token = expected.dim() == 3
    exit_model.style = "tokens" if per_token else pooling_style(model, exit_model.kind, states[middle], causal=causal)
    if exit_model.kind == "text":
        merged = _merged_logits(exit_model, probe_inputs, middle)
        exit_model.merges_lengths = (merged - expected[[1, 2, 0]]).abs().max().item() <= close * scale


def _merged_logits(exit_model: ExitModel, probe_inputs: ProbeInputs, middle: int) -> Tensor:
    """Return logits of rows 1, 2 and 0, stopped in two batches of different lengths and merged."""
    short = exit_model.run(probe_inputs.batch([1, 2], width=probe_inputs.length(1)), stop=middle).state
    long = exit_model.run(probe_inputs.batch([0]), stop=middle).state
    if short is None or long is None:
        raise Refusal("it can't be stopped")
    inputs = probe_inputs.batch([1, 2, 0])
    logits = exit_model.run(inputs, start=State.merge([short, long])).logits
    if logits is None:
        raise Refusal("it can't be resumed")
    return without_padding(logits, inputs)


def without_padding(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return logits with 0 for padding, where they are of tokens (R, T, C); what a model says of padding doesn't count."""
    mask = inputs.get("attention_mask")
    if logits.dim() != 3 or mask is None:
        return logits
    return logits.masked_fill((mask == 0).to(logits.device).unsqueeze(-1), 0.0)


def _is_causal(exit_model: ExitModel, probe_inputs: ProbeInputs, close: float) -> bool:
    """Tell whether the first token's state doesn't depend on the last token."""
    inputs = probe_inputs.batch([0, 0], padded=False)
    ids = inputs["input_ids"]
    ids[1, -1] = ids[1, 0] if ids[1, 0] != ids[1, -1] else (ids[1, -1] - 1).abs()
    state = exit_model.run(inputs, stop=exit_model.depth).state
    if state is None:
        raise Refusal("it can't be stopped")
    one, other = state.hidden[:, 0].float()
    return bool(((one - other).abs().max() <= close * one.abs().max().clamp(min=1.0)).item())


def _resume_depths(blocks: Sequence[Block]) -> list[int]:
    """Choose depths to resume at: all, or evenly spaced ones and both sides of whatever runs between blocks."""
    depth = len(blocks)
    if depth <= MAX_EXHAUSTIVE_DEPTH:
        return list(range(1, depth + 1))
    spread = {1 + (depth - 1) * i // 7 for i in range(8)}
    gaps = {k for k, block in enumerate(blocks[:-1], 1) if not block.direct}
    return sorted(spread | gaps | {k + 1 for k in gaps})
