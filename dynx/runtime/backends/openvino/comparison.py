"""Compares a converted model's logits with the torch model's, after rollbacks and in passes of several sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dynx.runtime.backends.interface import Part
from dynx.runtime.backends.openvino.precision import MAX_LOGIT_ERROR
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """What a torch model computed, for when it is gone."""

    probe: list[int]
    logits: Tensor  # (T, V), float32
    dtype: str


@torch.inference_mode()
def reference(model: Any) -> Reference:
    """Return the model's own logits of a few tokens."""
    vocab = model.config.get_text_config().vocab_size
    probe = [(7 * i + 3) % vocab for i in range(12)]
    logits = model(input_ids=torch.tensor([probe], device=model.device), use_cache=False).logits[0].float().cpu()
    return Reference(probe, logits.clone(), str(model.dtype).removeprefix("torch."))


@torch.inference_mode()
def difference(backend: Any, expected: Reference, precision: str) -> str | None:
    """Describe how `backend`'s logits differ from the torch model's beyond rounding; None where they don't."""
    probe, want = expected.probe, expected.logits
    try:
        session = backend.open()
        parts = [session.forward(probe[:4])]
        session.forward([probe[0], probe[0], probe[1]])
        session.rollback(4)
        parts += [session.forward(probe[4:9]), *[session.forward([token], keep=1) for token in probe[9:]]]
        side_by_side = _side_by_side(backend, probe)
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        return f"doesn't run on OpenVINO ({type(e).__name__})"
    gap = torch.maximum((torch.cat(parts) - want).abs(), (side_by_side - want).abs())
    scale = max(1.0, want.abs().max().item())
    if precision == "int4":
        gap, scale = gap.square().mean().sqrt(), want.square().mean().sqrt().item()
    worst = gap.max().item() / scale
    if worst <= max(MAX_LOGIT_ERROR[precision], MAX_LOGIT_ERROR[expected.dtype]):
        return None
    return f"gives other logits on OpenVINO (by {worst:.0%} of the largest)"  # also for NaN


def _side_by_side(backend: Any, probe: list[int]) -> Tensor:
    """Logits of `probe` as computed in passes with other sequences, one of which shares its blocks and parts from it."""
    session, other = backend.open(), backend.open()
    other.forward([probe[1]] * 3)
    out = [backend.forward([Part(other, probe[:2], 1), Part(session, probe[:5])])[1]]
    twin = session.fork()
    twin.rollback(3)
    out += backend.forward([Part(session, probe[5:7]), Part(other, probe[:1]), Part(twin, [probe[0]] * 4, 1)])[:1]
    out += backend.forward([Part(twin, probe[:3], 1), Part(session, probe[7:8])])[1:]
    out += backend.forward([Part(session, probe[8:]), Part(other, probe[:3], 1)])[:1]
    return torch.cat([torch.as_tensor(rows) for rows in out])
