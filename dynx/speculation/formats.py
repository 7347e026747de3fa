"""What a plan says of a model's format: adapters, weights in few bits, and the part of a multimodal model that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime import loading
from dynx.runtime.backends.registry import ALIASES, TORCH
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_device, choose_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.speculation.plan import GeneratorRequest


def stored_weights(request: GeneratorRequest, source: Source, machine: Device) -> Decision[str] | None:
    """Decide what becomes of weights in few bits: unpacked, or left to their package. None for ordinary weights."""
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
            warn(
                f"{each.name} was made for {base}, and is folded into {source.base}, whose modules have the same shapes"
            )
    return Decision(", ".join(map(str, source.adapters)), f"folded into {source.base}: {'; '.join(said)}")


def part_said(source: Source) -> Decision[str] | None:
    """Describe the part of a multimodal model that runs."""
    part = loading.text_part(source.config())
    return (
        None if part is None else Decision(part.type, "the text part of a model that reads more; the rest isn't loaded")
    )
