"""Cuts a call that asks for several pictures into calls for one each, and puts their outputs together.

Each picture then has a schedule of its own, and is the one that its noise and prompt give alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.diffusion.denoiser import noisy_input
from dynx.diffusion.sampler import Mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

NOISE_BLOCK = 16
"""PyTorch fills normal noise on a processor in blocks of so many numbers: whole ones are the same drawn at once or in turn."""


def why_not(given: Mapping[str, Any], device: torch.device) -> str | None:
    """Return why a call's pictures can't be drawn one after the other; None where they can, or where there is one."""
    prompts, each = _prompts(given), _each(given)
    if not isinstance(each, int) or each < 1 or not prompts:
        return "no picture is asked for"
    count = len(prompts) * each
    negative, generator = given.get("negative_prompt"), given.get("generator")
    if isinstance(negative, (list, tuple)) and len(negative) != len(prompts):
        return f"{len(negative)} negative prompts are given for {len(prompts)} prompts"
    if isinstance(generator, (list, tuple)) and len(generator) != count:
        return f"{len(generator)} generators are given for {count} pictures"
    if count == 1:
        return None
    if device.type != "cpu":
        return f"on {device.type} several pictures share network calls"
    if given.get("callback_on_step_end") is not None:
        return "a callback expects the pictures of a call together"
    return None


def single_calls(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of a call for each picture, in the order of the output."""
    prompts, each = _prompts(given), _each(given)
    if len(prompts) * each == 1:
        return [dict(given)]
    negative, generator = given.get("negative_prompt"), given.get("generator")
    calls = []
    for number in range(len(prompts) * each):
        call = dict(given)
        if "prompt" in given:
            call["prompt"] = prompts[number // each]
        if isinstance(negative, (list, tuple)):
            call["negative_prompt"] = negative[number // each]
        if isinstance(generator, (list, tuple)):
            call["generator"] = generator[number]
        call |= {name: 1 for name in ("num_images_per_prompt", "batch_size") if name in given}
        calls.append(call)
    return calls


def together(outputs: Sequence[Any]) -> Any:
    """Return the outputs of a call for each picture as those of one call. Raises Mismatch for outputs of an unknown kind."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, tuple):
        return tuple(_joined(values) for values in zip(*outputs, strict=True))
    if not is_dataclass(first):
        raise Mismatch(f"outputs of {type(first).__name__} can't be put together")
    made: Any = type(first)
    return made(**{f.name: _joined([getattr(out, f.name) for out in outputs]) for f in fields(first)})


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, list):
        return [one for value in values for one in value]
    raise Mismatch(f"outputs of {type(first).__name__} can't be put together")


@contextmanager
def checked_noise(network: nn.Module) -> Iterator[None]:
    """Check the noise that a pipeline's network is called with. Raises Mismatch."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_noise(noisy_input(args, kwargs)[0])

    handle = network.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def check_noise(latents: torch.Tensor) -> None:
    """Raise Mismatch where noise (C, …) drawn picture by picture isn't what the pipeline draws for all of them at once."""
    if latents.numel() % NOISE_BLOCK:
        raise Mismatch(f"noise of {latents.numel()} numbers for a picture depends on how many are drawn together")


def states(generator: Any) -> list[tuple[torch.Generator, torch.Tensor]]:
    """Return the generators of a call with their states; without any, PyTorch's own."""
    several = generator if isinstance(generator, (list, tuple)) else [generator or torch.default_generator]
    return [(one, one.get_state()) for one in several if isinstance(one, torch.Generator)]


def _prompts(given: Mapping[str, Any]) -> list[Any]:
    prompt = given.get("prompt")
    return list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]


def _each(given: Mapping[str, Any]) -> Any:
    return next((given[n] for n in ("num_images_per_prompt", "batch_size") if given.get(n) is not None), 1)
