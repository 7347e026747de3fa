"""Passes of several tokens that go on from a recurrent state, for models whose modules begin such passes from an empty one.

Most recurrent models read a prompt with one rule and later tokens, one at a time, with another; for some the first rule knows no
earlier state (Mamba, Falcon-Mamba, Jamba and Zamba scan from zero; RecurrentGemma pads its convolution with zeros). Inside
`continued(model, cache)` these parts go on from the state: the scan by the rule of single tokens, token after token, while
projections, feed-forward layers and the head still see all tokens at once.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

SCAN, STEP = "mamba_selective_scan", "mamba_selective_state_update"
"""transformers' functions for several tokens and for one."""


class _Scan:
    """Stands in for the scan over several tokens: one step a token, from the state of the mixer that is running."""

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self._step = step
        self.state: Tensor | None = None
        self.calls = 0  # of the running mixer: models with a scan for each head make several

    def __call__(
        self,
        hidden: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        D: Tensor | None = None,  # noqa: N803 - transformers' name
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Take transformers' arguments: (B, D, T) of inputs, (B, N, T) of projections."""
        if self.state is None:
            raise RuntimeError("a scan outside a mixer")
        state = (self.state[:, self.calls] if self.state.dim() > 3 else self.state).clone()
        self.calls += 1
        outs = [
            self._step(
                state,
                hidden[..., t],
                dt[..., t],
                a,
                b[..., t],
                c[..., t],
                D,
                z=None if z is None else z[..., t],
                dt_bias=delta_bias,
                dt_softplus=delta_softplus,
            )
            for t in range(hidden.shape[-1])
        ]
        out = torch.stack(outs, dim=-1)
        return (out, state) if return_last_state else out


@contextmanager
def continued(model: nn.Module, cache: Any) -> Iterator[None]:
    """Let passes inside go on from the states in `cache`, or in the model's modules."""
    hooks: list[Any] = []
    replaced: list[tuple[ModuleType, Any]] = []
    convolutions: list[nn.Module] = []
    try:
        module: Any
        for module in model.modules():
            if hasattr(module, "conv1d_state") and hasattr(module, "conv_1d") and module.conv1d_state is not None:
                _go_on(module, module.conv1d_state)
                convolutions.append(module.conv_1d)
            home = sys.modules.get(type(module).__module__)
            if home is None or not isinstance(getattr(module, "layer_idx", None), int):
                continue
            if not hasattr(home, SCAN) or not hasattr(home, STEP):
                continue
            layers = getattr(cache, "layers", ())
            states = getattr(layers[module.layer_idx], "recurrent_states", None) if layers else None
            if not states or states[0] is None or not hasattr(module, "conv1d"):
                continue
            scan = getattr(home, SCAN)
            if not isinstance(scan, _Scan):
                replaced.append((home, scan))
                scan = _Scan(getattr(home, STEP))
                setattr(home, SCAN, scan)
            hooks.append(module.register_forward_pre_hook(_enter(scan, states)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for home, scan in replaced:
            setattr(home, SCAN, scan)
        for convolution in convolutions:
            del convolution.forward


def _enter(scan: _Scan, states: dict[int, Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        scan.state, scan.calls = states[0], 0

    return hook


def _go_on(block: Any, state: Tensor) -> None:
    """Let a block's convolution see the inputs before (B, D, W-1) in place of padding, and keep the latest."""
    convolution, before = block.conv_1d, state.clone()
    inner = type(convolution).forward

    def forward(inputs: Tensor) -> Tensor:
        whole = torch.cat((before.to(inputs.dtype), inputs), -1)
        block.conv1d_state = whole[..., whole.shape[-1] - before.shape[-1] :].clone()
        out: Tensor = inner(convolution, whole)
        return out[..., before.shape[-1] :]

    convolution.forward = forward
