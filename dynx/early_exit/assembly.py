"""A loaded classifier, with exits where it supports them, and the full model that the guarantee compares it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dynx.errors import DeviceError, InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.decision import Decision
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.engine import Answer, Engine, Exits
    from dynx.early_exit.entities.labels import EntityLabels
    from dynx.early_exit.groups.profile_data import GroupProfile
    from dynx.early_exit.labels import Labels
    from dynx.early_exit.plan import ClassifierDecisions, ClassifierPlan
    from dynx.early_exit.preprocessing import Example, Preprocessor
    from dynx.early_exit.profile_data import ExitProfile
    from dynx.early_exit.segments.engine import SegmentEngine
    from dynx.early_exit.segments.segments import Pending, Segments
    from dynx.early_exit.types import Guarantee

    AnyEngine = Engine[Example] | SegmentEngine[Example]
    Ranges = Mapping[str, NDArray[np.float32]]


MAX_RANKING_NOISE = 0.1
"""Largest error of a score, in standard deviations of scores, with which another arithmetic is tried for ranking."""


@dataclass(frozen=True)
class BlockBackend:
    """What computes a model's blocks: backend, precision, and the activation ranges that int8 was quantized with."""

    backend: str = TORCH
    precision: str = "float32"
    ranges: Ranges = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.precision == "int8"


@dataclass
class LoadedClassifier:
    """A plan whose model is loaded."""

    plan: ClassifierPlan
    exit_model: ClassifierModel
    preprocessor: Preprocessor
    labels: Labels | EntityLabels
    exit_profile: ExitProfile | None
    """The exits of the profile that may be used; None: all layers run."""
    block_backend: BlockBackend = field(default_factory=BlockBackend)
    """What computes the model's blocks."""
    segments: Segments | None = None
    """What runs in the place of `exit_model`, where whole segments of it run on OpenVINO."""
    alternatives: dict[str, tuple[Segments, float]] = field(default_factory=dict)
    """While calibrating: segments by precision, with the seconds of an input at full depth."""
    pending: Pending | None = None
    """What a run turns to once that pays, where starting with it would take too long."""
    group_profile: GroupProfile | None = None
    """The exits of the profile where several rows have one result; None: all layers run."""
    certified: Guarantee | None = None
    """What the profile certifies of full-depth answers, where the model isn't the reference itself."""

    @property
    def decisions(self) -> ClassifierDecisions:
        """Every setting with its value and the reason."""
        return self.plan.decisions

    @property
    def exits_early(self) -> bool:
        """Whether a profile's exits are used."""
        return self.exit_profile is not None or self.group_profile is not None

    @property
    def why_full_depth(self) -> str:
        """Why every layer runs; empty where exits are used."""
        return "" if self.decisions.exits is None else self.decisions.exits.reason

    @property
    def batch(self) -> int:
        """Rows computed together."""
        return 1 if not getattr(self.preprocessor, "pads_batches", True) else self.plan.request.batch_size

    @property
    def truncation(self) -> int | None:
        """The number of tokens that texts are truncated to, where that is fewer than the model takes."""
        limit = getattr(self.preprocessor, "limit", None)
        return None if limit == getattr(self.preprocessor, "own_limit", None) else limit

    def tolerance(self, expected: Tensor) -> float:
        """Return how far a number of the model may be off and still agree, where its numbers (n, C) are `expected`.

        Of scores that only rank documents it is a share of their spread.
        """
        if self.plan.request.form == "ranking":
            return MAX_RANKING_NOISE * float(expected.std())
        return self.plan.request.within or 0.0

    @property
    def can_exit(self) -> bool:
        """Whether the model can run in parts."""
        from dynx.early_exit.attach.model import ExitModel

        return isinstance(self.exit_model, ExitModel) if self.segments is None else bool(self.segments.borders)

    @property
    def exit_depths(self) -> tuple[int, ...]:
        """The blocks after which exits can be tried."""
        from dynx.early_exit.exit_depths import candidates

        return candidates(self.exit_model.depth) if self.segments is None else self.segments.borders

    def engine(self, exits: Exits | None = None, *, batch: int | None = None) -> AnyEngine:
        """Make a new engine over the model, with these exits or none."""
        if self.segments is not None:
            return self.segments.engine(self.preprocessor, batch or self.batch, exits)
        threads = BESIDE_ANOTHER_RUNTIME if self.block_backend.backend == OPENVINO else self.plan.threads
        return engine_over(self.exit_model, self.preprocessor, batch or self.batch, exits, threads=threads)


def engine_over(
    exit_model: ClassifierModel,
    preprocessor: Preprocessor,
    batch: int,
    exits: Exits | None = None,
    *,
    threads: int | None = None,
) -> Engine[Example]:
    """Make an engine for the examples of a preprocessor."""
    from dynx.early_exit.engine import Engine

    return Engine(
        exit_model,
        preprocessor.collate,
        length=lambda row: row.size,
        identity=lambda row: row.identity,
        exits=exits,
        batch=batch,
        threads=threads,
    )


def load_model(plan: ClassifierPlan, *, dtype: str, max_length: int | None) -> tuple[Any, Preprocessor]:
    """Load the plan's model in a precision, and the preprocessor of its inputs. Raises DynxError."""
    if plan.kind == "image" and max_length is not None:
        raise InvalidInput("`max_length` is about texts, and this model takes images")
    model = loading.load_classifier(
        plan.source, plan.kind, device=plan.device, dtype=dtype, allow_pickle=plan.request.allow_pickle
    )
    return model, preprocessor_for(plan, model, max_length=max_length)


def preprocessor_for(plan: ClassifierPlan, model: Any, *, max_length: int | None) -> Preprocessor:
    """Load the preprocessor of a model's inputs. Raises DynxError."""
    from dynx.early_exit.cross_encoder import read_cross_encoder
    from dynx.early_exit.preprocessing import ImagePreprocessor, TextPreprocessor

    if plan.kind == "image":
        return ImagePreprocessor(loading.load_image_processor(plan.source), model)
    if plan.kind == "tokens":
        from dynx.early_exit.entities.preprocessing import TokenPreprocessor

        strategy = plan.request.aggregation_strategy
        return TokenPreprocessor(loading.load_tokenizer(plan.source), model, max_length, strategy)
    form = plan.request.form
    return TextPreprocessor(
        loading.load_tokenizer(plan.source),
        model,
        max_length,
        pairs=form != "text",
        truncation="only_first" if form == "zero-shot" else "longest_first",
        own_limit=read_cross_encoder(plan.source).max_length if form == "ranking" else None,
    )


def labels_for(plan: ClassifierPlan, config: Any) -> Labels | EntityLabels:
    """Return how the logits of a model with this config become answers. Raises DynxError."""
    if plan.kind == "tokens":
        from dynx.early_exit.entities.labels import EntityLabels

        return EntityLabels(config, loading.load_tokenizer(plan.source), plan.request.aggregation_strategy)
    from dynx.early_exit.labels import Labels

    return Labels(config)


class AttachResult(NamedTuple):
    """A model with exits, or one that runs at full depth, with the reason."""

    model: ClassifierModel
    exits: Decision[str] | None = None
    """Why there are none."""
    batch: Decision[int] | None = None
    """Why inputs are computed one by one."""


def attach_exits(model: Any, preprocessor: Preprocessor) -> AttachResult:
    """Attach exits to a model; where that fails, return it as a full-depth model with the reason."""
    from dynx.early_exit.attach.attach import attach
    from dynx.early_exit.attach.full_depth import FullDepthModel

    probe_batch = preprocessor.probe()
    if not getattr(preprocessor, "pads_batches", True):
        why = "neither model nor tokenizer has a padding token"
        return AttachResult(
            FullDepthModel(model, preprocessor.kind, probe_batch), Decision("none", why), Decision(1, why)
        )
    try:
        return AttachResult(attach(model, probe_batch))
    except DeviceError:
        raise
    except UnsupportedModelError as e:
        return AttachResult(FullDepthModel(model, preprocessor.kind, probe_batch), Decision("none", str(e)))


def is_reference(assembly: LoadedClassifier) -> bool:
    """Whether the assembly without exits is the reference itself."""
    block_backend = assembly.block_backend
    return (
        assembly.plan.dtype == "float32"
        and block_backend.backend == TORCH
        and not block_backend.quantized
        and assembly.truncation is None
    )


class Reference:
    """The full float32 model: the assembly's own where that is the reference, else a second copy."""

    def __init__(self, assembly: LoadedClassifier) -> None:
        self._preprocessor: Preprocessor = assembly.preprocessor
        if is_reference(assembly):
            self.engine: AnyEngine = assembly.engine(exits=None)
        else:
            model, self._preprocessor = load_model(assembly.plan, dtype="float32", max_length=None)
            self.engine = engine_over(
                attach_exits(model, self._preprocessor).model,
                self._preprocessor,
                assembly.batch,
                threads=assembly.plan.threads,
            )

    @property
    def block_calls(self) -> int:
        """Number of block calls so far, times rows."""
        return self.engine.block_calls

    def answers(self, items: Sequence[Any]) -> list[Answer]:
        """Answer texts or paths that were read before. ModelError: one of them can't be read any more."""
        return self.read(items)[1]

    def read(self, items: Sequence[Any]) -> tuple[list[Example], list[Answer]]:
        """Return the rows of texts or paths that were read before, and their answers. ModelError as for `answers`."""
        from dynx.early_exit.preprocessing import Example

        made = self._preprocessor.rows(items)
        if bad := [row for row in made if isinstance(row, str)]:
            raise ModelError(f"an input can't be read a second time: {bad[0]}")
        rows = [row for row in made if isinstance(row, Example)]
        return rows, self.engine.window(rows)

    def logits(self, items: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits (n, C) of texts or paths that were read before."""
        import numpy as np

        return np.stack([answer.logits for answer in self.answers(items)])
