"""Data of the generation task: a caller's request, and the plan decided before the weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.runtime.plan import Decisions, ModelRequest, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.runtime.decision import Decision
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile

TASK = "generate"
BUNDLED = "drafts.json"
"""File of a model's folder that may hold a profile with its drafters' acceptance and another machine's costs."""

DRAFT_KINDS = ("auto", "none", "self", "lookup", "mtp")
"""Values of `draft` besides a model's name."""


@dataclass(frozen=True)
class GeneratorRequest(ModelRequest):
    """A caller's request to a language model."""

    model: str = "story"
    adapters: tuple[str, ...] = field(default=(), kw_only=True)
    """LoRA adapters to fold in: folders or hub ids, each maybe with a weight after a colon."""
    quantize: str = field(default="auto", kw_only=True)
    draft: str = field(default="auto", kw_only=True)
    lookup: Path | None = field(default=None, kw_only=True)
    exact: bool = field(default=False, kw_only=True)
    chat: bool = field(default=False, kw_only=True)
    """Whether prompts run in the model's chat template, which a profile may have been measured on."""


@dataclass(kw_only=True)
class GeneratorDecisions(Decisions):
    """The settings of a language model, as decided."""

    adapters: Decision[str] | None = None
    """LoRA adapters, and which model they were made for."""
    weights: Decision[str] | None = None
    """What becomes of weights that are stored in few bits."""
    part: Decision[str] | None = None
    """Which part of a multimodal model runs."""
    state: Decision[str] | None = None
    """What the model keeps between forward passes, where that isn't an ordinary key-value cache."""
    decoding: Decision[str] | None = None
    sampling: Decision[str] | None = None
    draft: Decision[str] | None = None
    exact: Decision[str] | None = None
    batch: Decision[int] | None = None


@dataclass
class GeneratorPlan(Plan[GeneratorRequest, GeneratorDecisions]):
    """Everything that is decided before a language model is loaded."""

    packed: bool = False
    """Whether quantized weights are left to the package that made them."""
    drafter: Source | None = None
    kinds: frozenset[str] = frozenset()
    """The drafters wanted: "draft", "self", "lookup"."""
    auto: bool = False
    """Whether dynx may drop or add drafters."""
    drafter_dtype: str = "float32"
    """The draft model's precision: whatever is fastest, since it only drafts."""
    without_head: str = ""
    """Why the model's own head isn't used, where it isn't."""

    @property
    def own_profile(self) -> Profile | None:
        """The profile that was measured on this device."""
        return None if self.bundled else self.profile

    @property
    def fitted(self) -> dict[str, Any]:
        """The profile's fitted values of the drafters; empty without one.

        A profile of other prompts, texts for chats or chats for texts, doesn't say which drafters are worth having.
        """
        if self.profile is None:
            return {}
        left_out = ("origins", "lookup") if self.of_other_prompts else ()
        return {name: value for name, value in self.profile.fitted.items() if name not in left_out}

    @property
    def of_other_prompts(self) -> bool:
        """Whether the profile was measured on texts and this run is of chats, or the other way round."""
        return self.profile is not None and self.profile.key.form != self.key.form
