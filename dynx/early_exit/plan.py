"""The request for a classifier and the plan that is made before its weights are read: data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.plan import Decisions, ModelRequest, Plan

if TYPE_CHECKING:
    from dynx.early_exit.items import InputForm
    from dynx.runtime.decision import Decision
    from dynx.runtime.loading.check import ClassifierKind

TASK = "classify"
BUNDLED = "exits.json"
"""The file of a model's folder that may hold a profile, as exporting one writes it."""

BATCH_SIZE = 32
MAX_DISAGREEMENT = 0.02
"""Default share of labels that may differ from the full model's."""

CONFIDENCE = 0.95
"""Default confidence of that guarantee."""


HYPOTHESIS = "This example is {}."
"""Default sentence that a candidate label makes."""

AGGREGATION_STRATEGIES = ("none", "simple", "first", "average", "max")
"""How labels of tokens become entities, by the names that transformers' pipeline gives the ways."""

AGGREGATION_STRATEGY = "simple"
"""The default of them."""


@dataclass(frozen=True)
class ClassifierRequest(ModelRequest):
    """The settings of a classifier, as requested."""

    model: str = "mood"
    batch_size: int = field(default=BATCH_SIZE, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    """Tokens that texts are truncated to."""
    max_disagreement: float = field(default=MAX_DISAGREEMENT, kw_only=True)
    confidence: float = field(default=CONFIDENCE, kw_only=True)
    within: float | None = field(default=None, kw_only=True)
    """Largest difference of a regression's numbers that still counts as agreement."""
    form: InputForm = field(default="text", kw_only=True)
    """What an input is."""
    top_k: int | None = field(default=None, kw_only=True)
    """Rankings: how many documents of a query make its result; None: all."""
    candidates: tuple[str, ...] = field(default=(), kw_only=True)
    """Zero-shot: the labels to choose from."""
    hypothesis: str = field(default=HYPOTHESIS, kw_only=True)
    """Zero-shot: the sentence that a label makes, with {} for it."""
    multi_label: bool = field(default=False, kw_only=True)
    """Zero-shot: several labels of a text may hold, each judged by itself."""
    aggregation_strategy: str | None = field(default=None, kw_only=True)
    """Models that label tokens: one of `AGGREGATION_STRATEGIES`; None: the default."""
    per_class: bool = field(default=False, kw_only=True)
    """Whether the guarantee holds for each of the full model's labels, not only for all inputs together."""

    @property
    def each_label_alone(self) -> bool:
        """Whether candidate labels are judged each by itself: several may hold, or there is only one."""
        return self.multi_label or len(self.candidates) == 1

    @property
    def delta(self) -> float:
        """1 - confidence, without the rounding error of the subtraction."""
        return round(1 - self.confidence, 12)


@dataclass(kw_only=True)
class ClassifierDecisions(Decisions):
    """The settings of a classifier, as decided."""

    batch: Decision[int] | None = None
    exits: Decision[str] | None = None


@dataclass
class ClassifierPlan(Plan[ClassifierRequest, ClassifierDecisions]):
    """Everything that is decided before a classifier is loaded."""

    kind: ClassifierKind = "text"
