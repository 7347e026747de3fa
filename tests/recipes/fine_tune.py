"""Fine-tune a small encoder for a recipe, with checkpoints: an interrupted run continues where it was.

Data are drawn from a seeded stream, so a run that continues skips what was drawn before it and ends with the same weights.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

CHECKPOINT_STEPS, REPORT_STEPS = 40, 20


def fine_tune(
    model: Any,
    batches: Iterator[Any],
    loss_of: Callable[[Any, Any], Tensor],
    *,
    steps: int,
    rate: float,
    checkpoint: Path,
) -> None:
    """Train `model` for `steps` batches with AdamW, a warm-up of a tenth and linear decay; `loss_of` takes model and batch."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule: Callable[[int], float] = lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))  # noqa: E731
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
    parts = {"model": model, "optimiser": optimiser, "rates": rates}
    start = 0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        if kept["steps"] == steps:
            start = kept["step"]
            for name, part in parts.items():
                part.load_state_dict(kept[name])
            torch.set_rng_state(kept["random"])
            print(f"continuing after step {start}", flush=True)  # noqa: T201
    for _ in range(start):
        next(batches)
    model.train()
    began, mean = time.monotonic(), None
    for step in range(start, steps):
        loss = loss_of(model, next(batches))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % REPORT_STEPS == 0:
            print(f"step {step + 1} of {steps}: loss {mean:.3f}, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
        if (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            beside = checkpoint.with_suffix(".part")
            torch.save({"step": step + 1, "steps": steps, "random": torch.get_rng_state(), **state}, beside)
            beside.replace(checkpoint)
    checkpoint.unlink(missing_ok=True)
    model.eval()
