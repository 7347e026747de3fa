"""Exits for any loaded transformers classifier: its own `forward` runs, and the blocks inside answer to dynx.

`attach` replaces the `forward` of each block on the instance. A block then knows which rows of the batch are still wanted
(`passing`). Which modules the blocks are is found out (`blocks`), the answers are then compared with the untouched model's
(`trial`), and a model that disagrees is refused with the reason.
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
    finer_first,
    plan_blocks,
    record_calls,
    source_of,
)
from dynx.early_exit.attach.equivalence_check import Sample, verify
from dynx.early_exit.attach.model import Attachment
from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.early_exit.attach.blocks import Call
    from dynx.early_exit.attach.pooling import Kind


def attach(model: Any, example: Mapping[str, Tensor], *, rounds: bool = False) -> Attachment:
    """Exits for a loaded classifier in evaluation mode, tested on rows made from `example`, a batch as it would be given.

    `rounds`: its blocks compute in less than the model's own precision, and the test has to allow for that.
    UnsupportedModelError: the model can't be run in parts or gives other answers then; it's left as it was. DeviceError: it
    ran out of memory.
    """
    name = type(model).__name__
    try:
        kind = _kind(model, example)
        with torch.no_grad():
            given = {key: value for key, value in example.items() if isinstance(value, Tensor)}
            return _attached(model, kind, given, rounds)
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


def _kind(model: Any, example: Mapping[str, Any]) -> Kind:
    """Text or image, for a model that can be tried at all."""
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
    if main not in example or not len(example[main]):
        raise Refusal(f"the example has no {main}")
    return "image" if main == "pixel_values" else "text"


def _attached(model: Any, kind: Kind, example: dict[str, Tensor], rounds: bool) -> Attachment:
    """The first class of blocks that passes the self-test."""
    if kind == "text" and "attention_mask" not in example:
        example = {**example, "attention_mask": torch.ones_like(example["input_ids"])}
    sample = Sample(model, kind, example)
    candidates = candidate_classes(model)
    kinds = {one for several in candidates for one in several}
    probes: list[list[Call]] = []
    wanted: list[Tensor] = []
    for inputs in sample.probes():
        calls, output = record_calls(model, kinds, {**inputs, **_quiet(model)})
        probes.append(calls)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(next(iter(inputs.values()))):
            raise Refusal("it doesn't return logits (rows, classes)")
        wanted.append(logits)
    first: Refusal | None = None
    for chosen in finer_first(candidates, probes[0]):
        try:
            blocks = plan_blocks(chosen, probes)
            source = source_of(model, blocks[0].module, {**sample.batch(range(PROBE_ROWS[0])), **_quiet(model)})
            if source is not None:
                with suppress(Refusal, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                    return _tested(Attachment(model, kind, blocks, source), sample, wanted[0], rounds)
            return _tested(Attachment(model, kind, blocks), sample, wanted[0], rounds)
        except Refusal as e:
            reason = e
        except Exception as e:  # of a foreign model
            if is_out_of_memory(e):
                raise
            reason = Refusal(f"it fails when run in parts ({_first_line(e)})")
        if first is None or chosen == candidates[0]:
            first = reason
    raise first or Refusal("it has no list of equal blocks")


def _tested(attachment: Attachment, sample: Sample, want: Tensor, rounds: bool) -> Attachment:
    try:
        verify(attachment, sample, want, rounds)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def _quiet(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
