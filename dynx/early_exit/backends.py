"""A classifier's blocks on the backend that a plan names: PyTorch, or OpenVINO where it is installed; in int8 on request.

Embeddings, pooling and the head stay as they are. The answers of the new blocks on a few inputs are compared with those of the
model as it was loaded, and then exits are attached and tested as for any model. How often a quantized model disagrees on the
user's inputs is measured and certified by calibration, not here.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

from dynx.early_exit.assembly import BlockBackend
from dynx.errors import DeviceError, InvalidInput, UnsupportedModelError
from dynx.runtime.backends.registry import ALIASES, OPENVINO, TITLES, TORCH, attempt, time_in_turns, usable
from dynx.runtime.binomial import percent
from dynx.runtime.decision import Decision
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.assembly import AnyEngine, LoadedClassifier, Ranges
    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.engine import Answer
    from dynx.early_exit.plan import ClassifierPlan, ClassifierRequest
    from dynx.early_exit.preprocessing import Example, Preprocessor
    from dynx.runtime.profile import Profile


QUANTIZATIONS = ("none", "int8")
"""Values of `quantize` that classifiers support."""

LOGIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.08, "float16": 0.08, "int8": 0.25}
"""Largest change of a logit, relative to the largest one, by precision: a wrong scale or mask changes them far more."""

RANGES_PREFIX = "quantization."
"""Prefix of a profile's arrays with the activation ranges of each layer."""

MAX_OBSERVED_INPUTS = 512
"""Most inputs that activation ranges are observed on."""

MAX_SHARE_OF_DISAGREEMENT = 0.6
"""Largest share of the allowed disagreement that quantization may use up: more leaves too little for exits."""

RACE_BATCHES_PER_ROUND, RACE_ROUNDS = 3, 7
"""Batches in a round of the timing comparison, of lengths spread over those of the inputs, and rounds."""


def choose(request: ClassifierRequest, device: str, profile: Profile | None) -> Decision[str]:
    """Choose the backend of a run. Raises InvalidInput or DeviceError where the requested one isn't available."""
    asked = ALIASES.get(request.backend, request.backend)
    if asked not in ("auto", TORCH, OPENVINO):
        raise InvalidInput(f"`backend` {request.backend}: classifiers run on torch or openvino")
    there = cast("dict[str, Decision[bool]]", usable(device, request.quantize))
    if asked != "auto":
        if not there[asked].value:
            raise DeviceError(f"`backend` {request.backend}: {there[asked].reason}")
        return Decision(asked, "asked for")
    if profile is not None:
        measured = measured_backend(profile)
        if measured in (TORCH, OPENVINO) and there[measured].value:
            why = "measured to be the fastest here" if "backend" in profile.fitted else "what the profile is about"
            return Decision(measured, why)
    if not there[TORCH].value:
        raise DeviceError(f"`quantize` {request.quantize}: {there[TORCH].reason}")
    others = "; calibrating times OpenVINO too" if there[OPENVINO].value else ""
    return Decision(TORCH, f"nothing is measured yet{others}")


def measured_backend(profile: Profile) -> str:
    """Return the backend that a profile's evidence and costs were measured on."""
    return str(profile.fitted.get("backend", TORCH))


def ranges_of(plan: ClassifierPlan) -> dict[str, NDArray[np.float32]]:
    """Return the activation ranges in the plan's profile, by layer."""
    return {
        name.removeprefix(RANGES_PREFIX): array for name, array in plan.arrays.items() if name.startswith(RANGES_PREFIX)
    }


def requested_blocks(plan: ClassifierPlan, backend: str, ranges: Ranges | None = None) -> BlockBackend:
    """Return the block backend that a plan requests, on this backend."""
    precision = plan.request.quantize if plan.request.quantize != "none" else plan.dtype
    return BlockBackend(backend, precision, ranges or {})


def load_dtype(plan: ClassifierPlan, backend: str) -> str:
    """Return the precision to load the model in: around OpenVINO's blocks everything stays in float32."""
    return "float32" if backend == OPENVINO else plan.dtype


def replace_blocks(
    exit_model: ClassifierModel, preprocessor: Preprocessor, block_backend: BlockBackend, threads: int
) -> ClassifierModel:
    """Replace the model's blocks and attach exits again. After UnsupportedModelError the model can't be used any more."""
    import torch

    from dynx.early_exit.attach.attach import attach
    from dynx.early_exit.attach.equivalence_check import without_padding
    from dynx.early_exit.attach.model import ExitModel
    from dynx.runtime.backends import packed_linear

    if block_backend.backend == TORCH and not block_backend.quantized:
        return exit_model
    if not isinstance(exit_model, ExitModel):
        raise UnsupportedModelError(f"{type(exit_model.model).__name__} has no blocks that could be replaced")
    model, probe_batch, modules = exit_model.model, preprocessor.probe(), exit_model.blocks
    exit_model.detach()

    uncached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def logits(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(**inputs, **uncached).logits.float()
        return without_padding(out, inputs)

    probes = probes_of(probe_batch, exit_model.kind)
    before = [logits(inputs) for inputs in probes]
    if block_backend.backend == OPENVINO:
        from dynx.runtime.backends.openvino import blocks as openvino_blocks

        if block_backend.quantized and not block_backend.ranges:
            raise UnsupportedModelError("OpenVINO multiplies in int8 once calibration has seen how large numbers get")
        openvino_blocks.always_mask(model)
        with torch.no_grad():
            openvino_blocks.replace(
                modules,
                [lambda inputs=inputs: logits(inputs) for inputs in probes],  # type: ignore[misc]
                precision=block_backend.precision,
                threads=threads,
                ranges=block_backend.ranges,
            )
    else:
        able = packed_linear.available("int8")
        if not able.value:
            raise UnsupportedModelError(able.reason)
        with torch.inference_mode():
            if not packed_linear.pack(torch.nn.ModuleList(modules), "int8", lambda: logits(probes[0])):
                raise UnsupportedModelError(f"{type(model).__name__} has no linear layers to quantize")
        model.eval()  # the new layers too
    for inputs, expected in zip(probes, before, strict=True):
        gap = (logits(inputs) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        if not gap <= LOGIT_TOLERANCE[block_backend.precision]:  # also catches NaN
            raise UnsupportedModelError(
                f"{type(model).__name__} gives other logits in {block_backend.precision} on {TITLES[block_backend.backend]} "
                f"(by {gap:.0%} of the largest)"
            )
    return attach(model, probe_batch, reduced_precision=block_backend.precision != "float32")


def probes_of(probe_batch: Mapping[str, Tensor], kind: str) -> list[dict[str, Tensor]]:
    """Make two batches of different numbers of rows, and for texts of different lengths."""
    few = {name: value[:2] for name, value in probe_batch.items()}
    if kind == "text":
        width = int(probe_batch["input_ids"].shape[1])
        shorter = max(1, width // 2 + 1)
        few = {n: v[:, :shorter] if v.dim() > 1 and v.shape[1] == width else v for n, v in few.items()}
    return [dict(probe_batch), few]


def use_fastest_backend(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    clock: Callable[[], float],
    on_stage: Callable[[str], None] = lambda _: None,
) -> None:
    """Give the assembly the fastest backend that its plan allows, timed on `rows`, which also give the activation ranges.

    `on_stage` is called with what is being done. Raises UnsupportedModelError where the requested backend can't run the model.
    """
    from dynx.early_exit.assembly import engine_over

    plan = assembly.plan
    asked = plan.decisions.backend.value == OPENVINO
    if assembly.block_backend.backend == OPENVINO or (plan.request.backend != "auto" and not asked):
        return
    if not usable(plan.device, plan.request.quantize)[OPENVINO].value:
        return
    on_stage("converting for OpenVINO")
    times: dict[str, float] = {}
    try:
        with attempt(OPENVINO, plan.source.name):
            other, preprocessor, block_backend = _on_openvino(assembly, rows)
            if not asked:
                on_stage("timing PyTorch and OpenVINO")
                beside = engine_over(other, preprocessor, assembly.batch, threads=BESIDE_ANOTHER_RUNTIME)
                engines: dict[str, AnyEngine] = {TORCH: assembly.engine(), OPENVINO: beside}
                times = race(engines, rows, assembly.batch, clock, plan.source.name)
    except UnsupportedModelError as e:
        if asked:
            raise
        plan.decisions.backend = Decision(TORCH, f"OpenVINO can't run it: {e}")
        return
    if not asked:
        winner = min(times, key=lambda name: times[name])
        timings = ", ".join(f"{TITLES[name]} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
        plan.decisions.backend = Decision(winner, f"{timings} an input, in batches of {assembly.batch}")
        if winner != OPENVINO:
            return
    assembly.exit_model, assembly.preprocessor, assembly.block_backend = other, preprocessor, block_backend


def _on_openvino(
    assembly: LoadedClassifier, rows: Sequence[Example]
) -> tuple[ClassifierModel, Preprocessor, BlockBackend]:
    """Load the assembly's model again, with its blocks on OpenVINO."""
    import torch

    from dynx.early_exit.assembly import attach_exits, engine_over, load_model
    from dynx.early_exit.attach.model import ExitModel, model_inputs
    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    plan = assembly.plan
    model, preprocessor = load_model(plan, dtype=load_dtype(plan, OPENVINO), max_length=plan.request.max_length)
    exit_model = attach_exits(model, preprocessor).model
    block_backend = requested_blocks(plan, OPENVINO)
    if block_backend.quantized and isinstance(exit_model, ExitModel):
        seen = sorted(rows[:MAX_OBSERVED_INPUTS], key=lambda row: row.size)

        def run() -> None:
            with torch.inference_mode():
                for at in range(0, len(seen), assembly.batch):
                    model(**model_inputs(preprocessor.collate(seen[at : at + assembly.batch])))

        block_backend = requested_blocks(plan, OPENVINO, openvino_blocks.observe(exit_model.blocks, run))
    others = rows[MAX_OBSERVED_INPUTS:][:MAX_OBSERVED_INPUTS] or rows
    expected = engine_over(exit_model, preprocessor, assembly.batch).window(others)
    made = replace_blocks(exit_model, preprocessor, block_backend, plan.threads)
    got = engine_over(made, preprocessor, assembly.batch).window(others)
    if block_backend.quantized and (why := too_many_differ(assembly, others, got, expected)):
        raise UnsupportedModelError(why)
    return made, preprocessor, block_backend


def too_many_differ(
    assembly: LoadedClassifier, rows: Sequence[Example], got: Sequence[Answer], expected: Sequence[Answer]
) -> str | None:
    """Say that too many answers differ from the float32 model's for exits to be added; None where they don't."""
    import numpy as np
    import torch

    tolerance = 0.0
    if assembly.plan.kind != "tokens":
        tolerance = assembly.tolerance(torch.from_numpy(np.stack([answer.logits for answer in expected])))
    differ = assembly.labels.same(rows, got, rows, expected, tolerance).count(False)
    eps = assembly.plan.request.max_disagreement
    if differ <= MAX_SHARE_OF_DISAGREEMENT * eps * len(rows):
        return None
    return f"{differ:,} of {len(rows):,} answers differ, too many for {percent(eps)}"


def answers_of(engine: AnyEngine, rows: Sequence[Example]) -> Tensor:
    """Return an engine's logits (n, C)."""
    import torch

    return torch.stack([torch.from_numpy(answer.logits) for answer in engine.window(rows)])


def race(
    engines: Mapping[str, AnyEngine],
    rows: Sequence[Example],
    batch: int,
    clock: Callable[[], float],
    name: str,
    backend_of: Callable[[str], str] = str,
) -> dict[str, float]:
    """Time engines of the model called `name`, batches in turns; return median seconds per input.

    No two rounds have batches of the same shape, as runs with exits rarely do: OpenVINO compiles kernels for each shape.
    """
    ordered = sorted(rows, key=lambda row: row.size)

    def job(engine: AnyEngine) -> Callable[[int], int]:
        def run(number: int) -> int:
            if number == 0:
                return len(engine.window(ordered[-batch:]))  # the longest inputs allocate what all need
            size = min(len(ordered), batch - (number - 1) % max(1, batch // 2))
            spread = 2 * RACE_BATCHES_PER_ROUND
            for at in range(1, spread, 2):
                start = (len(ordered) - size) * at // spread
                engine.window(ordered[start : start + size])
            return RACE_BATCHES_PER_ROUND * size

        return run

    seconds, failed = time_in_turns(
        {name: job(engine) for name, engine in engines.items()},
        clock,
        rounds=RACE_ROUNDS,
        backend_of=backend_of,
        model=name,
    )
    for error in failed.values():
        raise error
    return seconds
