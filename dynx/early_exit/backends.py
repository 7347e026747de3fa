"""A classifier's blocks on the kernels that a plan names: PyTorch's, or OpenVINO's where it is installed; in int8 on request.

Embeddings, pooling and the head stay as they are. Whatever runs, its answers on a few inputs are compared with those of the
model as it was loaded, and then exits are attached and tested like any model's. What a quantized model is worth on inputs
like the user's isn't known here: calibration certifies it.
"""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, cast

from dynx.errors import DeviceError, UnsupportedModelError, UsageError
from dynx.runtime.backends.registry import ALIASES, OPENVINO, TITLES, TORCH, attempt, usable
from dynx.runtime.binomial import percent
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.attach.full_depth import Whole
    from dynx.early_exit.attach.model import Attachment
    from dynx.early_exit.preprocessing import Reader, Row
    from dynx.early_exit.setup import Assembly, Plan, Wish
    from dynx.runtime.profile import Profile

    Ranges = Mapping[str, NDArray[np.float32]]

FORMS = ("none", "int8")

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.08, "float16": 0.08, "int8": 0.25}
"""Largest change of a logit, relative to the largest: a wrong scale, mask or order changes logits by their own size."""

RANGES = "quantization."
"""Arrays of a profile that say how large the inputs of each layer get."""

OBSERVED = 512
"""Inputs that this is seen on, at most."""

AMPLE = 0.6
"""Of what may differ: kernels that use up more of it leave too little for a certificate, and for exits."""

BATCHES, ROUNDS = 3, 7
"""Of a race: batches of lengths spread over the inputs' in a round, and rounds."""


@dataclass(frozen=True)
class Blocks:
    """The blocks that a model runs: whose kernels, in which precision, and the ranges that int8 was made with."""

    backend: str = TORCH
    precision: str = "float32"
    ranges: Ranges = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.precision == "int8"


def check_quantization(wish: Wish) -> str:
    """What the profile's key says of it. Raises UsageError."""
    if wish.quantize not in FORMS:
        raise UsageError(f"--quantize {wish.quantize}: classifiers have {' and '.join(FORMS)}")
    return wish.quantize


def choose(wish: Wish, device: str, profile: Profile | None) -> Decision[str]:
    """Whose kernels a run uses. Raises UsageError or DeviceError where those asked for can't be had."""
    asked = ALIASES.get(wish.backend, wish.backend)
    if asked not in ("auto", TORCH, OPENVINO):
        raise UsageError(f"--backend {wish.backend}: classifiers run on torch or openvino")
    there = cast("dict[str, Decision[bool]]", usable(device, wish.quantize))
    if asked != "auto":
        if not there[asked].value:
            raise DeviceError(f"--backend {wish.backend}: {there[asked].reason}")
        return Decision(asked, "asked for")
    if profile is not None:
        measured = measured_backend(profile)
        if measured in (TORCH, OPENVINO) and there[measured].value:
            why = "measured to be the fastest here" if "backend" in profile.fitted else "what the profile is about"
            return Decision(measured, why)
    if not there[TORCH].value:
        raise DeviceError(f"--quantize {wish.quantize}: {there[TORCH].reason}")
    others = "; calibrating times OpenVINO too" if there[OPENVINO].value else ""
    return Decision(TORCH, f"nothing is measured yet{others}")


def measured_backend(profile: Profile) -> str:
    """The kernels that a profile's evidence and costs are of."""
    return str(profile.fitted.get("backend", TORCH))


def ranges_of(plan: Plan) -> dict[str, NDArray[np.float32]]:
    """What the plan's profile says of the sizes of numbers."""
    return {name.removeprefix(RANGES): array for name, array in plan.arrays.items() if name.startswith(RANGES)}


def wanted(plan: Plan, backend: str, ranges: Ranges | None = None) -> Blocks:
    """The blocks that a plan asks for, on these kernels."""
    precision = plan.wish.quantize if plan.wish.quantize != "none" else plan.dtype
    return Blocks(backend, precision, ranges or {})


def loaded_in(plan: Plan, backend: str) -> str:
    """The precision that the model itself is loaded in: around OpenVINO's blocks everything stays exact."""
    return "float32" if backend == OPENVINO else plan.dtype


def put_in(attachment: Attachment | Whole, reader: Reader, blocks: Blocks, threads: int) -> Attachment | Whole:
    """The model with such blocks, and exits attached anew. Raises UnsupportedModelError: it isn't fit for use then."""
    import torch

    from dynx.early_exit.attach.attach import attach
    from dynx.early_exit.attach.model import Attachment
    from dynx.runtime.backends import packed_linear

    if blocks.backend == TORCH and not blocks.quantized:
        return attachment
    if not isinstance(attachment, Attachment):
        raise UnsupportedModelError(f"{type(attachment.model).__name__} has no blocks that could be replaced")
    model, example, modules = attachment.model, reader.probe(), attachment.blocks
    attachment.detach()

    uncached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def logits(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(**inputs, **uncached).logits.float()
        return out

    probes = _probes(example, attachment.kind)
    before = [logits(inputs) for inputs in probes]
    if blocks.backend == OPENVINO:
        from dynx.runtime.backends.openvino import blocks as openvino_blocks

        if blocks.quantized and not blocks.ranges:
            raise UnsupportedModelError("OpenVINO multiplies in int8 once calibration has seen how large numbers get")
        openvino_blocks.always_mask(model)
        with torch.no_grad():
            openvino_blocks.replace(
                modules,
                [lambda inputs=inputs: logits(inputs) for inputs in probes],  # type: ignore[misc]
                precision=blocks.precision,
                threads=threads,
                ranges=blocks.ranges,
            )
    else:
        able = packed_linear.available("int8")
        if not able.value:
            raise UnsupportedModelError(able.reason)
        with torch.inference_mode():
            if not packed_linear.pack(torch.nn.ModuleList(modules), "int8", lambda: logits(probes[0])):
                raise UnsupportedModelError(f"{type(model).__name__} has no linear layers to quantize")
        model.eval()  # the new layers too
    for inputs, want in zip(probes, before, strict=True):
        gap = (logits(inputs) - want).abs().max().item() / max(1.0, want.abs().max().item())
        if not gap <= TOLERANCE[blocks.precision]:  # also catches NaN
            raise UnsupportedModelError(
                f"{type(model).__name__} gives other logits in {blocks.precision} on {TITLES[blocks.backend]} "
                f"(by {gap:.0%} of the largest)"
            )
    return attach(model, example, rounds=blocks.precision != "float32")


def _probes(example: Mapping[str, Tensor], kind: str) -> list[dict[str, Tensor]]:
    """Two batches of different numbers of rows, and for texts of different lengths."""
    few = {name: value[:2] for name, value in example.items()}
    if kind == "text":
        width = int(example["input_ids"].shape[1])
        shorter = max(1, width // 2 + 1)
        few = {n: v[:, :shorter] if v.dim() > 1 and v.shape[1] == width else v for n, v in few.items()}
    return [dict(example), few]


def fastest(
    assembly: Assembly, rows: Sequence[Row], clock: Callable[[], float], heard: Callable[[str], None] = lambda _: None
) -> None:
    """Give the assembly the fastest of the kernels that its plan allows, timed on `rows`, which also say how large numbers get.

    `heard` is told what is being done. Raises UnsupportedModelError where kernels that were asked for can't run the model.
    """
    plan = assembly.plan
    asked = plan.decisions["backend"].value == OPENVINO
    if assembly.blocks.backend == OPENVINO or (plan.wish.backend != "auto" and not asked):
        return
    if not usable(plan.device, plan.wish.quantize)[OPENVINO].value:
        return
    heard("converting for OpenVINO")
    times: dict[str, float] = {}
    try:
        with attempt(OPENVINO, plan.source.name):
            other, reader, blocks = _on_openvino(assembly, rows)
            if not asked:
                heard("timing PyTorch and OpenVINO")
                times = _race(assembly, other, reader, rows, clock)
    except UnsupportedModelError as e:
        if asked:
            raise
        plan.decisions["backend"] = Decision(TORCH, f"OpenVINO can't run it: {e}")
        return
    if not asked:
        winner = min(times, key=lambda name: times[name])
        said = ", ".join(f"{TITLES[name]} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
        plan.decisions["backend"] = Decision(winner, f"{said} an input, in batches of {assembly.batch}")
        if winner != OPENVINO:
            return
    assembly.attachment, assembly.reader, assembly.blocks = other, reader, blocks


def _on_openvino(assembly: Assembly, rows: Sequence[Row]) -> tuple[Attachment | Whole, Reader, Blocks]:
    """The assembly's model once more, with OpenVINO's blocks."""
    import torch

    from dynx.early_exit.attach.model import Attachment
    from dynx.early_exit.heads import agrees
    from dynx.early_exit.setup import attach_exits, load_model
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    plan = assembly.plan
    model, reader = load_model(plan, dtype=loaded_in(plan, OPENVINO), max_length=plan.wish.max_length)
    attachment = attach_exits(model, reader, {})
    blocks = wanted(plan, OPENVINO)
    if blocks.quantized and isinstance(attachment, Attachment):
        seen = sorted(rows[:OBSERVED], key=lambda row: row.size)

        def run() -> None:
            with torch.inference_mode():
                for at in range(0, len(seen), assembly.batch):
                    model(**reader.collate(seen[at : at + assembly.batch]))

        blocks = wanted(plan, OPENVINO, openvino_blocks.observe(attachment.blocks, run))
    others = rows[OBSERVED:][:OBSERVED] or rows
    want = _answers(attachment, reader, assembly.batch, others)
    made = put_in(attachment, reader, blocks, assembly.decisions["threads"].value)
    got = _answers(made, reader, assembly.batch, others)
    if blocks.quantized:
        same = agrees(got, want, assembly.labels.problem, plan.wish.tolerance or 0.0)
        differ, eps = int((~same).sum()), plan.wish.max_disagreement
        if differ > AMPLE * eps * len(others):
            raise UnsupportedModelError(
                f"{differ:,} of {len(others):,} answers differ then, too many for {percent(eps)}"
            )
    return made, reader, blocks


def _answers(attachment: Attachment | Whole, reader: Reader, batch: int, rows: Sequence[Row]) -> Tensor:
    """Logits at full depth (n, C)."""
    import torch

    from dynx.early_exit.setup import engine_over

    answers = engine_over(attachment, reader, batch).window(rows)
    return torch.stack([torch.from_numpy(answer.logits) for answer in answers])


def _race(
    assembly: Assembly, other: Attachment | Whole, reader: Reader, rows: Sequence[Row], clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds for an input on both, full depth, batches in turns; medians.

    No two rounds have batches of the same shape, as a job with exits hardly has: OpenVINO makes its kernels ready for each.
    """
    from dynx.early_exit.setup import engine_over

    ordered = sorted(rows, key=lambda row: row.size)
    engines = {TORCH: assembly.engine(), OPENVINO: engine_over(other, reader, assembly.batch)}
    for engine in engines.values():
        engine.window(ordered[-assembly.batch :])  # the first allocates
    rng = random.Random(0)  # noqa: S311 - the order of measurements is no secret
    seen: dict[str, list[float]] = {name: [] for name in engines}
    for done in range(ROUNDS):
        size = min(len(ordered), assembly.batch - done % max(1, assembly.batch // 2))
        starts = [(len(ordered) - size) * (2 * i + 1) // (2 * BATCHES) for i in range(BATCHES)]
        names = list(engines)
        rng.shuffle(names)
        for name in names:
            began = clock()
            for start in starts:
                engines[name].window(ordered[start : start + size])
            seen[name].append((clock() - began) / (BATCHES * size))
    return {name: median(times) for name, times in seen.items()}
