"""Attach exits to any loaded transformers classifier: its own `forward` runs, with its blocks wrapped.

`attach` replaces the `forward` of each block on the instance, so that a block computes only the active rows of a batch
(`forward`). The blocks are found by probes (`blocks`), the answers are then compared with the unchanged model's
(`equivalence_check`), and a model that disagrees is refused with the reason.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.early_exit.attach.blocks import (
    PROBE_ROWS,
    Refusal,
    candidate_classes,
    find_input_module,
    order_inner_first,
    plan_blocks,
    record_calls,
)
from dynx.early_exit.attach.equivalence_check import ProbeInputs, verify
from dynx.early_exit.attach.model import ExitModel
from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.early_exit.attach.blocks import Call
    from dynx.early_exit.attach.pooling import Kind


def attach(model: Any, probe_batch: Mapping[str, Tensor], *, reduced_precision: bool = False) -> ExitModel:
    """Attach exits to a classifier in evaluation mode, and test them on rows made from `probe_batch`, a batch of its inputs.

    `reduced_precision`: its blocks compute in less than the model's own precision, and the test has to allow for that.
    UnsupportedModelError: the model can't be run in parts or gives other answers then; it is unchanged. DeviceError: out of
    memory.
    """
    name = type(model).__name__
    try:
        kind = _kind(model, probe_batch)
        with torch.no_grad():
            given = {key: value for key, value in probe_batch.items() if isinstance(value, Tensor)}
            return _attached(model, kind, given, reduced_precision)
    except (UnsupportedModelError, DeviceError):
        raise
    except Refusal as e:
        raise UnsupportedModelError(f"{name} can't have exits: {e}") from None
    except Exception as e:  # any failure of a foreign model means: leave it alone
        if is_out_of_memory(e):
            raise DeviceError(f"out of memory on {getattr(model, 'device', 'the device')}") from e
        raise UnsupportedModelError(f"{name} can't have exits: {_first_line(e)}") from e


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _kind(model: Any, probe_batch: Mapping[str, Any]) -> Kind:
    """Return text or image, for a model that passes the first checks."""
    config = model.config
    main = getattr(model, "main_input_name", None)
    if any(getattr(module.__dict__.get("forward"), "dynx_exits", False) for module in model.modules()):
        raise Refusal("it has them already")
    if getattr(config, "is_encoder_decoder", False):
        raise Refusal("it has an encoder and a decoder")
    if any(module.training for module in model.modules()):
        raise Refusal("it's in training mode (call its eval() first)")
    if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
        raise Refusal("its config asks for all hidden states or attentions, and those need every block")
    if main not in {"input_ids", "pixel_values"}:
        raise Refusal(f"its main input is {main}, neither text nor images")
    if main not in probe_batch or not len(probe_batch[main]):
        raise Refusal(f"the example has no {main}")
    return "image" if main == "pixel_values" else "text"


def _attached(model: Any, kind: Kind, probe_batch: dict[str, Tensor], reduced_precision: bool) -> ExitModel:
    """Attach exits to the first class of blocks that passes the equivalence check."""
    if kind == "text" and "attention_mask" not in probe_batch:
        probe_batch = {**probe_batch, "attention_mask": torch.ones_like(probe_batch["input_ids"])}
    probe_inputs = ProbeInputs(model, kind, probe_batch)
    candidates = candidate_classes(model)
    kinds = {one for several in candidates for one in several}
    probes: list[list[Call]] = []
    expected: list[Tensor] = []
    for inputs in probe_inputs.probes():
        calls, output = record_calls(model, kinds, {**inputs, **_without_cache(model)})
        probes.append(calls)
        logits = getattr(output, "logits", None)
        shape = tuple(logits.shape[:-1]) if isinstance(logits, Tensor) else ()
        first = next(iter(inputs.values()))
        if not isinstance(logits, Tensor) or shape not in (tuple(first.shape[:1]), tuple(first.shape[:2])):
            raise Refusal("it doesn't return logits (rows, classes), or (rows, tokens, classes)")
        expected.append(logits)
    reason_shown: Refusal | None = None
    for chosen in order_inner_first(candidates, probes[0]):
        try:
            blocks = plan_blocks(chosen, probes)
            source = find_input_module(
                model, blocks[0].module, {**probe_inputs.batch(range(PROBE_ROWS[0])), **_without_cache(model)}
            )
            if source is not None:
                with suppress(Refusal, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                    return _tested(ExitModel(model, kind, blocks, source), probe_inputs, expected[0], reduced_precision)
            return _tested(ExitModel(model, kind, blocks), probe_inputs, expected[0], reduced_precision)
        except Refusal as e:
            reason = e
        except Exception as e:  # of a foreign model
            if is_out_of_memory(e):
                raise
            reason = Refusal(f"it fails when run in parts ({_first_line(e)})")
        if reason_shown is None or chosen == candidates[0]:
            reason_shown = reason
    raise reason_shown or Refusal("it has no list of equal blocks")


def _tested(exit_model: ExitModel, probe_inputs: ProbeInputs, want: Tensor, reduced_precision: bool) -> ExitModel:
    try:
        verify(exit_model, probe_inputs, want, reduced_precision)
    except BaseException:
        exit_model.detach()
        raise
    return exit_model


def _without_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
