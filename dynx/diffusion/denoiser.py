"""Intercept the calls of a pipeline's network: count them, answer them with an earlier prediction, or run half the batch.

`forward` is replaced on the instance, so pipelines, hooks and compiled code still call the same module; leaving the `with`
restores it. This module handles calls only, not schedules or noise: an `Order` states what happens to the calls of
each step. Most pipelines call once a step, with guidance as a batch of two halves; some call twice.
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

LATENT_ARGUMENTS = ("sample", "hidden_states", "x", "latents")
"""Names of the noisy input of networks where it isn't the first argument."""

TEXT_ARGUMENTS = ("encoder_hidden_states", "encoder_hidden_states_t5", "prompt_embeds", "context")
"""Names of the text embedding among the arguments of networks."""

UNBATCHED_ARGUMENTS = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "txt_seq_lens"})
"""Arguments without a batch dimension, whatever their length."""


@dataclass(frozen=True)
class Order:
    """State what to do with the network's calls in a step."""

    kind: Literal["compute", "reuse", "idle"] = "compute"
    """Idle repeats the last output whatever the input, for the rest of the loop after an early finish."""
    half: int | None = None
    """Compute only this half of the batch, 0 or 1, and answer with it for both."""
    rows: int = 0
    """Batch size of the calls that may be halved; calls of other sizes run whole."""


@dataclass
class Call:
    """Hold the input and the output of one call of a step."""

    noisy: Tensor  # (R, …) as the network took it
    level: float  # sigma
    output: Any
    raw: Tensor  # (R, …) the prediction in `output`


class Denoiser:
    """Count and answer the calls of `module` between `attach` and `detach`, or inside a `with`.

    `carry(prediction, x, sigma, x_now, sigma_now)` converts a prediction to another point of the trajectory; by default the
    tensor is reused unchanged.
    """

    def __init__(self, module: nn.Module, carry: Carry | None = None, kernels: NetworkBackend | None = None) -> None:
        self.module = module
        self.kernels = kernels
        """The backend that computes the calls; None: the module itself."""
        self.cache: BlockCache | None = None
        """The feature cache, enabled and disabled with the interception; None for none."""
        self.cached = 0
        """Calls of which only the first block ran; `calls` doesn't include them."""
        self.calls = 0
        """Number of times the network ran."""
        self.rows = 0
        """Number of batch rows that the network ran for."""
        self.order = Order()
        self.level = 0.0
        """Sigma of the step in progress."""
        self.embedding: Tensor | None = None
        """(R, …) the text embedding of the first call; None before it, and for a network without one."""
        self.seen: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None
        """Callback with the arguments of every call before it is handled; it may raise to leave the pipeline."""
        self._carry = carry
        self._memory: list[Call] = []
        self._timestep_arguments: list[Any] = []
        self._at = 0  # calls so far in this step
        self._forward: Callable[..., Any] | None = None
        self._before: Any = None

    def attach(self) -> None:
        """Replace `forward`. Raises RuntimeError if it is replaced already."""
        if self._forward is not None:
            raise RuntimeError("attached twice")
        self._before = self.module.__dict__.get("forward")
        self._forward = self.module.forward
        self.module.forward = self._answer
        if self.cache is not None:
            self.cache.attach()

    def detach(self) -> None:
        """Restore the module's own `forward`."""
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
        """Begin a new step with this order, at the noise level `level` (sigma)."""
        self.order, self.level, self._at = order, level, 0

    @property
    def timesteps(self) -> list[float]:
        """Timesteps passed to the network, one for each call that ran. Reading them synchronises with the device."""
        return [_number(value) for value in self._timestep_arguments]

    @property
    def last(self) -> Call | None:
        """The latest call of this step, None before the first."""
        return self._memory[self._at - 1] if self._at else None

    @property
    def calls_in_step(self) -> int:
        """Number of calls that the pipeline has made in this step, whether the network ran or not."""
        return self._at

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if self.seen is not None:
            self.seen(args, kwargs)
        if not self._memory:
            self.embedding = text_embedding(kwargs)
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
        self._timestep_arguments.append(kwargs.get("timestep", args[1] if len(args) > 1 else None))
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
    """Return the noisy latents (R, …) among a network's arguments. Raises TypeError if there are none."""
    for value in (*args[:1], *(kwargs.get(name) for name in LATENT_ARGUMENTS)):
        if isinstance(value, Tensor):
            return value
    raise TypeError("the network was called without latents")


def text_embedding(kwargs: dict[str, Any]) -> Tensor | None:
    """Return the text embedding (R, …) among a network's arguments, or None."""
    return next((kwargs[name] for name in TEXT_ARGUMENTS if isinstance(kwargs.get(name), Tensor)), None)


def _number(value: Any) -> float:
    """Return the number in a timestep argument, a scalar or one value for each row; NaN for anything else."""
    if isinstance(value, Tensor) and value.numel():
        return float(value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) else float("nan")


def prediction(output: Any) -> Tensor:
    """Return the predicted noise, picture or velocity in a network's output. Raises TypeError if there is none."""
    first = output if isinstance(output, Tensor) else output[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"the network answered with {type(first).__name__}")
    return first


def _with_prediction(output: Any, raw: Tensor) -> Any:
    """Return the output with its prediction replaced."""
    if isinstance(output, Tensor):
        return raw
    if isinstance(output, tuple):
        return (raw, *output[1:])
    first, *others = output.keys()
    return type(output)(**{first: raw}, **{name: output[name] for name in others})


def halved(value: Any, rows: int, half: int, name: str | None = None) -> Any:
    """Slice one half of the batch from every tensor in `value` that has `rows` rows."""
    if isinstance(value, Tensor):
        batched = value.dim() > 0 and value.shape[0] == rows and name not in UNBATCHED_ARGUMENTS
        return value[half * (rows // 2) : (half + 1) * (rows // 2)] if batched else value
    if isinstance(value, (tuple, list)):
        return type(value)(halved(item, rows, half) for item in value)
    if isinstance(value, dict):
        return {key: halved(item, rows, half, str(key)) for key, item in value.items()}
    return value


def conditional_half(raw: Tensor, guided: Tensor) -> int | None:
    """Return which half of a batch (2B, …) is the conditional one, given the guided result (B, …), or None if that is unclear.

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
