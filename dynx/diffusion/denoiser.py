"""A pipeline's network with dynx in front of it: calls are counted, answered from memory, or halved.

`forward` is replaced on the instance, so pipelines, hooks and compiled code go on calling the same module, and leaving the `with`
puts back what was there. It knows what a call is, and nothing of schedules or noise: it is told what to do with the
calls of each step. Most pipelines call once a step, with guidance as a batch of two halves; some call twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from dynx.diffusion.caching import BlockCache
    from dynx.runtime.backends.network import NetworkBackend

    Carry = Callable[[Tensor, Tensor, float, Tensor, float], Tensor]

INPUTS = ("sample", "hidden_states", "x", "latents")
"""What networks call their noisy input, where it isn't their first argument."""

SHARED = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "txt_seq_lens"})
"""Arguments that are one for the whole batch, however long."""


@dataclass(frozen=True)
class Order:
    """What to do with the network's calls in a step."""

    kind: Literal["compute", "reuse", "idle"] = "compute"
    """Idle answers what it answered last, whatever the input: for the rest of a loop that has landed."""
    half: int | None = None
    """Compute only this half of the batch, 0 or 1, and answer with it for both."""
    rows: int = 0
    """Of the batches that may be halved; others aren't what they look like."""


@dataclass
class Call:
    """One call of a step: what went in, what came out."""

    noisy: Tensor  # (R, …) as the network took it
    level: float  # sigma
    output: Any
    raw: Tensor  # (R, …) the prediction in `output`


class Denoiser:
    """Counts and answers the calls of `module` between `attach` and `detach`, or inside a `with`.

    `carry(prediction, x, sigma, x_now, sigma_now)` says what a prediction means at another place; the same tensor by default.
    """

    def __init__(self, module: nn.Module, carry: Carry | None = None, kernels: NetworkBackend | None = None) -> None:
        self.module = module
        self.kernels = kernels
        """What computes the calls that run, where that isn't the module as it is."""
        self.cache: BlockCache | None = None
        """Put on and off with it."""
        self.cached = 0
        """Calls of which only the first block ran; they are none of `calls`."""
        self.calls = 0
        """Times the network ran."""
        self.rows = 0
        """Batch rows that it ran for."""
        self.order = Order()
        self.level = 0.0
        """Sigma of the step in progress."""
        self.seen: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None
        """Shown every call's arguments before anything is done; may raise to leave the pipeline."""
        self._carry = carry
        self._memory: list[Call] = []
        self._told: list[Any] = []
        self._at = 0  # calls so far in this step
        self._forward: Callable[..., Any] | None = None
        self._before: Any = None

    def attach(self) -> None:
        """Put `forward` in place. Raises RuntimeError if it is already."""
        if self._forward is not None:
            raise RuntimeError("attached twice")
        self._before = self.module.__dict__.get("forward")
        self._forward = self.module.forward
        self.module.forward = self._answer
        if self.cache is not None:
            self.cache.attach()

    def detach(self) -> None:
        """Put the module's own `forward` back."""
        if self._forward is None:
            return
        if self.cache is not None:
            self.cache.detach()
        if self._before is None:
            del self.module.forward
        else:
            self.module.forward = self._before
        self._forward = self._before = None

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def next(self, order: Order, level: float) -> None:
        """A new step begins."""
        self.order, self.level, self._at = order, level, 0

    @property
    def timesteps(self) -> list[float]:
        """That the network was told, in its own unit, for each call that ran. Waits for the device."""
        return [_number(value) for value in self._told]

    @property
    def last(self) -> Call | None:
        """The latest call of this step, None before the first."""
        return self._memory[self._at - 1] if self._at else None

    @property
    def calls_in_step(self) -> int:
        """How often the pipeline has called in this step, whether the network ran or not."""
        return self._at

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if self.seen is not None:
            self.seen(args, kwargs)
        number, self._at = self._at, self._at + 1
        known = self._memory[number] if number < len(self._memory) else None
        if known is not None and self.order.kind == "idle":
            return known.output
        noisy = noisy_input(args, kwargs)
        if known is not None and self.order.kind == "reuse" and noisy.shape == known.noisy.shape:
            raw = known.raw
            if self._carry is not None:
                raw = self._carry(known.raw, known.noisy, known.level, noisy, self.level)
            return _with_prediction(known.output, raw)
        output = self._compute(args, kwargs, noisy, number)
        raw = prediction(output)
        self._memory[number : number + 1] = [Call(noisy, self.level, output, raw)]
        self._told.append(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        return output

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], noisy: Tensor, number: int) -> Any:
        rows = int(noisy.shape[0])
        half = self.order.half
        if half is None or rows != self.order.rows:
            return self._run(args, kwargs, rows, f"call {number}")
        output = self._run(
            halved(args, rows, half), halved(kwargs, rows, half), rows // 2, f"call {number}, half {half}"
        )
        raw = prediction(output)
        return _with_prediction(output, torch.cat([raw, raw]))

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, name: str) -> Any:
        if self._forward is None:
            raise RuntimeError("called while detached")
        if self.kernels is not None:
            output, answered = self.kernels(self._forward, args, kwargs), False
        elif self.cache is None:
            output, answered = self._forward(*args, **kwargs), False
        else:
            with self.cache.call(name):
                output = self._forward(*args, **kwargs)
            answered = self.cache.answered
        if answered:
            self.cached += 1
        else:
            self.calls += 1
            self.rows += rows
        return output


def noisy_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The noisy latents among a network's arguments (R, …). Raises TypeError where there are none."""
    for value in (*args[:1], *(kwargs.get(name) for name in INPUTS)):
        if isinstance(value, Tensor):
            return value
    raise TypeError("the network was called without latents")


def _number(value: Any) -> float:
    """A timestep as networks are told it, one or one for each row; NaN for anything else."""
    if isinstance(value, Tensor) and value.numel():
        return float(value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) else float("nan")


def prediction(output: Any) -> Tensor:
    """The predicted noise, picture or velocity in a network's answer. Raises TypeError where there's none."""
    first = output if isinstance(output, Tensor) else output[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"the network answered with {type(first).__name__}")
    return first


def _with_prediction(output: Any, raw: Tensor) -> Any:
    """The same answer with another prediction in it."""
    if isinstance(output, Tensor):
        return raw
    if isinstance(output, tuple):
        return (raw, *output[1:])
    first, *others = output.keys()
    return type(output)(**{first: raw}, **{name: output[name] for name in others})


def halved(value: Any, rows: int, half: int, name: str | None = None) -> Any:
    """Everything that has a row for each of `rows`, with only one half of them."""
    if isinstance(value, Tensor):
        batched = value.dim() > 0 and value.shape[0] == rows and name not in SHARED
        return value[half * (rows // 2) : (half + 1) * (rows // 2)] if batched else value
    if isinstance(value, (tuple, list)):
        return type(value)(halved(item, rows, half) for item in value)
    if isinstance(value, dict):
        return {key: halved(item, rows, half, str(key)) for key, item in value.items()}
    return value


def conditional_half(raw: Tensor, guided: Tensor) -> int | None:
    """Which half of a batch (2B, …) is the conditional one, from what the pipeline made of both (B, …); None: can't tell.

    Classifier-free guidance is u + g·(c - u) with g > 1 (Ho and Salimans 2022). Seen from half 0 that is a step along the
    difference of halves by g where 1 is the conditional one, by 1 - g < 0 where 0 is. Anything that isn't such a step (another
    formula, a rescaled one) is not what answering with one half could stand for.
    """
    if raw.shape[0] != 2 * guided.shape[0] or raw.dim() != guided.dim():
        return None
    first, second = (h[:, : guided.shape[1]].double().flatten() for h in raw.chunk(2))
    moved, apart = guided.double().flatten() - first, second - first
    if moved.shape != apart.shape or not float(apart.norm()) > 0:
        return None
    by = float(moved @ apart / (apart @ apart))
    rounding = 4 * torch.finfo(raw.dtype).eps * (1 + abs(by)) * float(first.norm() + second.norm())
    if float((moved - by * apart).norm()) > 1e-3 * float(moved.norm()) + rounding:
        return None
    return 1 if by > 1 else 0 if by < 0 else None
