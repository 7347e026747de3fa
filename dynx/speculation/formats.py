"""What a plan says of a model's format: adapters, weights in few bits, and the part of a multimodal model that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.backends.registry import ALIASES, OPENVINO, TORCH, choose
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_device, choose_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.speculation.plan import GeneratorRequest


EXPORTED = "openvino"
"""How a profile's key calls the weights of a model in OpenVINO's own format."""


def exported_execution(
    request: GeneratorRequest, source: Source, device: str, machine: Device
) -> tuple[Decision[str], Decision[str]]:
    """Choose backend and precision for a model in OpenVINO's own format.

    Raises InvalidInput for a request that contradicts what the model is, DeviceError where it can't run.
    """
    if source.adapters:
        raise UnsupportedModelError(f"{source.name} is an OpenVINO model, into which no adapter can be folded")
    if ALIASES.get(request.backend, request.backend) not in ("auto", OPENVINO):
        raise InvalidInput(f"`backend` {request.backend}: {source.name} is an OpenVINO model, which only OpenVINO runs")
    backend = choose(OPENVINO, "none", device, None)
    kind = loading.weights_kind(source.folder)
    if request.quantize not in ("none", kind):
        raise InvalidInput(
            f"`quantize` {request.quantize}: {source.name} is an OpenVINO model whose weights are stored as {kind}",
            hint="export it again, or start from the Hugging Face model",
        )
    reason = f"an OpenVINO model runs as it is, with weights in {kind}"
    if kind in ("int8", "int4"):
        if request.dtype not in ("auto", "float32"):
            raise InvalidInput(f"`dtype` {request.dtype}: {source.name}'s weights are {kind}, computed with in float32")
        dtype = Decision("float32", f"around weights in {kind}")
    else:
        dtype = choose_dtype(None if request.dtype == "auto" else request.dtype, device, machine, kind)
    return Decision(backend.value, reason), dtype


def stored_weights(request: GeneratorRequest, source: Source, machine: Device) -> Decision[str] | None:
    """Decide what becomes of weights in few bits: unpacked, or left to their package. None for ordinary weights."""
    if source.is_exported:
        kind = loading.weights_kind(source.folder)
        return Decision(kind, "an OpenVINO model's own; speculation is lossless relative to it")
    scheme = loading.scheme_of(source)
    if scheme is None:
        return None
    device = choose_device(request.device, machine).value
    dtype = request.dtype
    if dtype == "auto":
        dtype = choose_dtype(None, device, machine, loading.stored_dtype(source)).value
    whole = None
    if source.adapters:
        whole = "adapters are folded into unpacked weights"
    elif request.quantize != "none":
        whole = f"`quantize` {request.quantize} starts from unpacked weights"
    elif ALIASES.get(request.backend, request.backend) not in ("auto", TORCH):
        whole = f"`backend` {request.backend} computes with unpacked weights"
    decided = loading.decide(scheme, source.config(), name=source.name, device=device, dtype=dtype, whole=whole)
    if decided.value == loading.PACKED:
        return decided
    size = loading.elements(source) * (4 if dtype == "float32" else 2) / 2**30
    return Decision(
        decided.value, f"{decided.reason}; {size:.2f} GiB of weights, which is also the most that loading takes"
    )


def adapters_said(source: Source, warn: Callable[[str], None]) -> Decision[str] | None:
    """Describe the adapters of a source, and warn of one that names another model as its base."""
    if not source.adapters:
        return None
    said = []
    for each in source.adapters:
        base = each.base
        if base is None:
            said.append(f"{each.name} doesn't say which model it was made for")
            continue
        said.append(f"{each.name} was made for {base}")
        if base.rstrip("/").rpartition("/")[2].casefold() != source.base.rpartition("/")[2].casefold():
            warn(f"{each.name} was made for {base}, and is folded into {source.base} if the shapes fit")
    return Decision(", ".join(map(str, source.adapters)), f"folded into {source.base}: {'; '.join(said)}")


def part_said(source: Source) -> Decision[str] | None:
    """Describe the part of a multimodal model that runs."""
    part = loading.text_part(source.config())
    return (
        None if part is None else Decision(part.type, "the text part of a model that reads more; the rest isn't loaded")
    )
