"""Chooses the arithmetic of a classifier at calibration: PyTorch, or OpenVINO in float32, bfloat16 or int8, timed on the inputs.

Whatever is faster has to keep the promise about the float32 model's labels, together with the exits. So a precision that uses up
most of it alone isn't a choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.early_exit.assembly import BlockBackend, attach_exits, load_model
from dynx.early_exit.attach.model import ExitModel
from dynx.early_exit.backends import MAX_OBSERVED_INPUTS, probes_of, race, too_many_differ
from dynx.early_exit.segments.segments import Cut, Segments
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.registry import ALIASES, OPENVINO, TITLES, TORCH, attempt, usable
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.early_exit.assembly import LoadedClassifier, Ranges
    from dynx.early_exit.engine import Answer
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.early_exit.preprocessing import Example


def precisions(plan: ClassifierPlan) -> list[str]:
    """Return the precisions that a request leaves open: all that the processor has kernels for, unless one is asked for."""
    from dynx.runtime.backends.openvino.tracing import multiplies_bfloat16

    if plan.request.quantize != "none":
        return [plan.request.quantize]
    if plan.request.dtype != "auto":
        return [plan.request.dtype] if plan.request.dtype in ("float32", "bfloat16") else []
    return ["float32", *(["bfloat16"] if multiplies_bfloat16() else []), "int8"]


def use_fastest(
    assembly: LoadedClassifier,
    rows: Sequence[Example],
    clock: Callable[[], float],
    on_stage: Callable[[str], None] = lambda _: None,
) -> str | None:
    """Have the assembly run on the fastest arithmetic that its request allows, timed at full depth on `rows`.

    Returns why OpenVINO can't run the model as segments; None where that was decided by the clock, or by the request.
    """
    plan = assembly.plan
    asked = ALIASES.get(plan.request.backend, plan.request.backend)
    there = usable(plan.device)[OPENVINO]
    if asked not in ("auto", OPENVINO) or not there.value:
        return None if asked == TORCH else there.reason
    on_stage("converting for OpenVINO")
    try:
        with attempt(OPENVINO, plan.source.name):
            source = _float32(assembly)
            arms, refused = _arms(assembly, source, rows)
    except UnsupportedModelError as e:
        return str(e)
    engines: dict[str, Any] = {} if asked == OPENVINO else {TORCH: assembly.engine()}
    engines |= {name: each.engine(assembly.preprocessor, assembly.batch) for name, each in arms.items()}
    if not arms:
        return "; ".join(refused)
    on_stage("timing PyTorch and OpenVINO")
    times = race(
        engines, rows, assembly.batch, clock, plan.source.name, backend_of=lambda n: TORCH if n == TORCH else OPENVINO
    )
    winner = min(times, key=lambda name: times[name])
    timings = ", ".join(f"{_title(name)} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
    left_out = "".join(f"; {why}" for why in refused)
    reason = f"{timings} an input at full depth, in batches of {assembly.batch}{left_out}"
    if winner == TORCH:
        plan.decisions.backend = Decision(TORCH, reason)
        return None
    plan.decisions.backend = Decision(OPENVINO, f"{reason}; it computes in {winner}")
    assembly.segments = arms[winner]
    assembly.alternatives = {name: (segments, times[name]) for name, segments in arms.items() if name in times}
    if TORCH in times:
        for segments, seconds in assembly.alternatives.values():
            segments.input_seconds = {TORCH: times[TORCH], OPENVINO: seconds}
    assembly.block_backend = BlockBackend(OPENVINO, winner, arms[winner].cut.ranges)
    return None


def _title(name: str) -> str:
    return TITLES[TORCH] if name == TORCH else f"{TITLES[OPENVINO]} {name}"


def _float32(assembly: LoadedClassifier) -> ExitModel:
    """Return the model in float32 on PyTorch: the assembly's own, or loaded again where that computes otherwise."""
    exit_model = assembly.exit_model
    if assembly.block_backend.backend != TORCH or assembly.block_backend.precision != "float32":
        model, preprocessor = load_model(assembly.plan, dtype="float32", max_length=assembly.plan.request.max_length)
        exit_model = attach_exits(model, preprocessor).model
    if not isinstance(exit_model, ExitModel):
        raise UnsupportedModelError(assembly.why_full_depth)
    return exit_model


def _arms(
    assembly: LoadedClassifier, source: ExitModel, rows: Sequence[Example]
) -> tuple[dict[str, Segments], list[str]]:
    """Return the whole model on OpenVINO in each precision that keeps the promise, and why others don't."""
    plan, refused = assembly.plan, list[str]()
    probes = probes_of(assembly.preprocessor.probe(), source.kind)
    others = rows[MAX_OBSERVED_INPUTS:][:MAX_OBSERVED_INPUTS] or rows
    expected: list[Answer] | None = None
    arms: dict[str, Segments] = {}
    for precision in precisions(plan):
        ranges = _observed(assembly, source, rows) if precision == "int8" else {}
        segments = Segments(Cut(precision, (), ranges), plan.weights, plan.threads, lambda: (source, probes))
        try:
            _ = segments.whole
        except UnsupportedModelError as e:
            if precision == "float32":
                raise
            refused.append(str(e))
            continue
        if precision != "float32":
            if expected is None:
                expected = _engine(assembly, source).window(others)
            got = segments.engine(assembly.preprocessor, assembly.batch).window(others)
            if why := too_many_differ(assembly, others, got, expected):
                refused.append(f"in {precision} {why}")
                continue
        arms[precision] = segments
    return arms, refused


def _engine(assembly: LoadedClassifier, source: ExitModel) -> Any:
    from dynx.early_exit.assembly import engine_over

    return engine_over(source, assembly.preprocessor, assembly.batch, threads=assembly.plan.threads)


def _observed(assembly: LoadedClassifier, source: ExitModel, rows: Sequence[Example]) -> Ranges:
    """Return the ranges of what each linear layer reads."""
    import torch

    from dynx.runtime.backends.openvino import blocks as openvino_blocks

    seen = sorted(rows[:MAX_OBSERVED_INPUTS], key=lambda row: row.size)

    def run() -> None:
        with torch.inference_mode():
            for at in range(0, len(seen), assembly.batch):
                source.run(assembly.preprocessor.collate(seen[at : at + assembly.batch]))

    return openvino_blocks.observe(source.blocks, run)
