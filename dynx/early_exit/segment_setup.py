"""Loads a classifier as segments, by its profile; what the cache has is loaded without the model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.early_exit.segments import store
from dynx.early_exit.segments.segments import Cut, Pending, Segments
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.attach.hidden_state import Outcome, State, Watch
    from dynx.early_exit.attach.model import ExitModel
    from dynx.early_exit.attach.pooling import Kind
    from dynx.early_exit.plan import ClassifierPlan


@dataclass
class OutlineModel:
    """A model without weights, in the place of one whose segments run on OpenVINO: it has a size, and can't run itself."""

    model: Any
    kind: Kind
    depth: int
    merges_lengths: bool

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        start: State | None = None,
        watch: Watch | None = None,
        exits: Collection[int] = (),
        stop: int | None = None,
    ) -> Outcome:
        """Raise RuntimeError, as there are no weights."""
        raise RuntimeError("the weights of this model aren't loaded")

    def pool(self, hidden: Tensor, inputs: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Raise RuntimeError, as there are no weights."""
        raise RuntimeError("the weights of this model aren't loaded")

    def detach(self) -> None:
        """Do nothing, as nothing was attached."""


def cut_of(plan: ClassifierPlan) -> Cut | None:
    """Return how the plan's profile cut the model; None where it wasn't measured as segments, or they aren't asked for.

    Raises ValueError for a profile whose contents can't be used.
    """
    from dynx.early_exit.backends import ranges_of

    if plan.profile is None or plan.backend != OPENVINO:
        return None
    kept: Any = plan.profile.fitted.get("segments")
    if kept is None:
        return None
    borders = tuple(int(border) for border in kept["borders"])
    precision = str(kept["precision"])
    ranges = ranges_of(plan)
    if list(borders) != list(plan.profile.fitted.get("depths", ())):
        raise ValueError(f"segments that end after {borders}")
    if precision not in ("float32", "bfloat16", "int8") or (precision == "int8") != bool(ranges):
        raise ValueError(f"segments in {precision}")
    return Cut(precision, borders, ranges)


def precision_mismatch(plan: ClassifierPlan, cut: Cut) -> str | None:
    """Say that a precision was asked for that the segments don't have."""
    asked = plan.request.dtype
    if plan.request.quantize == "none" and asked not in ("auto", cut.precision):
        return f"it is about {cut.precision}, and {asked} was asked for"
    return None


def load_segments(plan: ClassifierPlan, cut: Cut, stages: Callable[[str], None]) -> LoadedClassifier:
    """Load what the profile measured. Raises UnsupportedModelError where OpenVINO can't run it."""
    from dynx.early_exit.assembly import (
        BlockBackend,
        LoadedClassifier,
        attach_exits,
        labels_for,
        load_model,
        preprocessor_for,
    )
    from dynx.early_exit.attach.model import ExitModel
    from dynx.early_exit.backends import probes_of
    from dynx.runtime import loading

    def source() -> tuple[ExitModel, Sequence[Mapping[str, Tensor]]]:
        stages(f"converting {plan.source.name} for OpenVINO")
        model, preprocessor = load_model(plan, dtype="float32", max_length=plan.request.max_length)
        exit_model = attach_exits(model, preprocessor).model
        if not isinstance(exit_model, ExitModel):
            raise UnsupportedModelError(f"{plan.source.name} can't run in parts")
        return exit_model, probes_of(preprocessor.probe(), exit_model.kind)

    segments = Segments(cut, plan.weights, plan.threads, source)
    parts = segments.parts
    outline = loading.outline_classifier(plan.source, plan.kind)
    preprocessor = preprocessor_for(plan, outline, max_length=plan.request.max_length)
    labels = labels_for(plan, outline.config)
    if plan.request.within is not None and labels.problem != "regression":
        raise InvalidInput(f"`within` is for models that give numbers, and {plan.source.name} gives labels")
    model = OutlineModel(outline, parts.kind, parts.depth, parts.merges_lengths)
    found = plan.decisions.backend
    plan.decisions.backend = Decision(found.value, f"{found.reason}; it computes in {cut}")
    return LoadedClassifier(
        plan,
        model,
        preprocessor,
        labels,
        None,
        BlockBackend(OPENVINO, cut.precision, cut.ranges),
        segments,
    )


def pending_segments(assembly: LoadedClassifier, cut: Cut) -> Pending | None:
    """Return the segments that a run of `assembly`, the model on PyTorch, turns to later; None where it should do so at once."""
    from dynx.early_exit.attach.model import ExitModel
    from dynx.early_exit.backends import probes_of

    plan, exit_model = assembly.plan, assembly.exit_model
    times: Any = {} if plan.profile is None else plan.profile.measured.get("segments", {})
    per_input = times.get("input", {})
    if not isinstance(exit_model, ExitModel) or not times.get("conversion") or not {TORCH, OPENVINO} <= set(per_input):
        return None
    probes = probes_of(assembly.preprocessor.probe(), exit_model.kind)
    segments = Segments(cut, plan.weights, plan.threads, lambda: (exit_model, probes))
    return Pending(segments, float(times["conversion"]), max(0.0, 1 - per_input[OPENVINO] / per_input[TORCH]))


def is_ready(plan: ClassifierPlan, cut: Cut) -> bool:
    """Whether the cache has what a run with exits needs, so that no conversion is needed."""
    return store.place(plan.weights, cut.precision, cut.borders, cut.ranges).is_dir()
