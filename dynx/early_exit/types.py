"""The results of a classifier: a prediction for each input, and a receipt of what they cost."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dynx.runtime.binomial import percent


@dataclass(frozen=True)
class Prediction:
    """The answer to one input; label and score are None exactly where there is an error."""

    label: str | None
    score: float | None
    scores: list[tuple[str, float]] = field(default_factory=list)
    """All labels, in any order."""
    exit: int | None = None
    """The layer that it exited after; None at full depth."""
    layers: int = 0
    """Layers that were computed."""
    error: str | None = None

    @classmethod
    def failed(cls, error: str) -> Prediction:
        """Make a prediction that holds only an error."""
        return cls(None, None, error=error)

    def ranked(self) -> list[tuple[str, float]]:
        """Sort the scores from best to worst, the label itself first."""
        return sorted(self.scores, key=lambda pair: (pair[0] != self.label, -pair[1]))


@dataclass(frozen=True)
class RankedDocument:
    """A document among those of its query: its place in the input, from 0, and its score."""

    index: int
    score: float


@dataclass(frozen=True)
class Ranking:
    """The documents of a query that make the result, from best to worst; none where there is an error."""

    documents: list[RankedDocument]
    pairs: int = 0
    """Documents of the query."""
    layers: int = 0
    """Layers that were computed for all of them."""
    error: str | None = None

    @classmethod
    def failed(cls, error: str) -> Ranking:
        """Make a ranking that holds only an error."""
        return cls([], error=error)


@dataclass(frozen=True)
class Entity:
    """An entity in a text: its label, its score, the word as the tokenizer writes it, and its place in characters."""

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None
    """Number of the token, where tokens aren't aggregated."""

    def json(self) -> dict[str, Any]:
        """Return the entity with the keys that transformers' pipeline gives it; the score has six decimals."""
        score = round(self.score, 6) if math.isfinite(self.score) else None
        if self.index is None:
            head: dict[str, Any] = {"entity_group": self.label, "score": score}
        else:
            head = {"entity": self.label, "score": score, "index": self.index}
        return {**head, "word": self.word, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Entities:
    """The entities of a text, in order; none where there is an error."""

    entities: list[Entity]
    exit: int | None = None
    """The layer that the text exited after; None at full depth."""
    layers: int = 0
    """Layers that were computed."""
    error: str | None = None

    @classmethod
    def failed(cls, error: str) -> Entities:
        """Make a result that holds only an error."""
        return cls([], error=error)


@dataclass(frozen=True)
class Guarantee:
    """The guarantee on answers, and its basis. `eps` 0: they are the full model's own."""

    eps: float
    delta: float
    n: int = 0
    """Number of inputs that certified it."""
    disagreements: int = 0
    basis: str = "full depth"
    """"full depth", "profile", "model" (a profile that came with it) or "job" (a sample of the inputs)."""
    per_class: bool = False
    """Whether it holds for the inputs of each of the full model's labels."""

    def __str__(self) -> str:
        if self.eps == 0:
            return "every answer is the full model's"
        where = "of the others " if self.basis == "job" else "of those with each label " if self.per_class else ""
        return f"at most {percent(self.eps)} {where}differ from the full model's ({percent(1 - self.delta)} confidence)"

    def json(self) -> dict[str, Any]:
        """Return the guarantee for a JSON document."""
        return {
            "max_disagreement": self.eps,
            "confidence": 1 - self.delta if self.eps else 1.0,
            "certified_on": self.n,
            "disagreements": self.disagreements,
            "basis": self.basis,
            **({"per_class": True} if self.per_class else {}),
        }


EXACT_GUARANTEE = Guarantee(0.0, 0.0)


@dataclass
class Receipt:
    """Counts and costs of a run so far. Layers are block calls of the model; `depth` of them are a full forward."""

    depth: int
    inputs: int = 0
    errors: int = 0
    truncated: int = 0
    repeated: int = 0
    """Inputs equal to an earlier one, which weren't computed again."""
    rows: int = 0
    """Pairs that all inputs consist of; 0 where an input is a single row."""
    layers: int = 0
    """Block calls for all answers."""
    audit_layers: int = 0
    """Block calls that only checked answers."""
    seconds: float = 0.0
    exit_counts: Counter[int] = field(default_factory=Counter)
    """Answers by the layer they exited after; full depth is `depth`."""
    backend: str = ""
    """What computed the answers, where that changed on the way."""
    guarantee: Guarantee | None = EXACT_GUARANTEE
    """None once an audit has rejected it."""

    @property
    def computed(self) -> int:
        """Number of inputs, or of their pairs, that the model computed."""
        return self.rows or self.inputs - self.errors - self.repeated

    @property
    def mean_layers(self) -> float | None:
        """Layers per computed input."""
        return self.layers / self.computed if self.computed else None

    @property
    def per_second(self) -> float | None:
        """Inputs per second of classifying, without reading them."""
        return self.inputs / self.seconds if self.seconds > 0 else None

    def json(self) -> dict[str, Any]:
        """Return the receipt for a JSON document; None for what is unknown."""
        return {
            "inputs": self.inputs,
            "errors": self.errors,
            "truncated": self.truncated,
            "repeated": self.repeated,
            **({"rows": self.rows} if self.rows else {}),
            "seconds": self.seconds,
            "inputs_per_second": self.per_second,
            "depth": self.depth,
            "mean_layers": self.mean_layers,
            "audit_layers": self.audit_layers,
            "left_after": {str(layer): self.exit_counts[layer] for layer in sorted(self.exit_counts)},
            "guarantee": self.guarantee.json() if self.guarantee else None,
        }
