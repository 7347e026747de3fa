"""A language model with its drafters, once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dynx.speculation.model_settings import own_sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.engine import Engine
    from dynx.speculation.plan import GeneratorDecisions, GeneratorPlan
    from dynx.speculation.types import ModelSettings, Sampling


@dataclass
class LoadedGenerator:
    """A language model with its drafters, ready to write."""

    plan: GeneratorPlan
    engine: Engine
    tokenizer: Any
    settings: ModelSettings
    """The model's own decoding settings."""
    open_verifier: Callable[[], Backend]

    @property
    def decisions(self) -> GeneratorDecisions:
        """Every setting with its value and the reason."""
        return self.plan.decisions

    @cached_property
    def verifier(self) -> Backend:
        """The backend that answers are verified by: the weights that lie in the model's folder."""
        return self.open_verifier()

    @property
    def drafts(self) -> str:
        """The drafters in use, by name; "none" where there are none."""
        return "none" if self.decisions.draft is None else self.decisions.draft.value

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end an answer: the generation config's, else the tokenizer's."""
        return frozenset(self.settings.eos)

    def sampling(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """Return the caller's sampling under the model's own settings, and the model's own penalty by default."""
        return own_sampling(self.settings, temperature, top_k, top_p, repetition_penalty, seed)
