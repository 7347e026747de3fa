"""Entities of texts."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dynx.schemas.documents.common import LabelsGuarantee
from dynx.schemas.documents.fields import ABSENT, NAME, Cases, Count, CountFromOne, Form, NonEmpty


@dataclass(frozen=True, kw_only=True)
class Entity:
    """An entity, with the keys that transformers' pipeline gives it."""

    entity_group: Annotated[str, "Its label; absent with the aggregation strategy none."] = ABSENT
    entity: Annotated[str, "The label of its token, with the aggregation strategy none."] = ABSENT
    score: Annotated[float | None, "Probability of the label, as aggregated; null where it isn't finite."]
    index: Annotated[Count, "Number of its token, with the aggregation strategy none."] = ABSENT
    word: Annotated[str, "The word, as the tokenizer writes it."]
    start: Annotated[Count, "Where it begins in the text, in characters from 0."]
    end: Annotated[Count, "Where it ends: the place after its last character."]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A text whose entities are known."""

    entities: Annotated[list[Entity], "Its entities, in order."]
    layers: Annotated[int, "Layers that were computed for it."]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A text whose entities aren't."""

    error: Annotated[NonEmpty, "Why not."]
    entities: Annotated[None, "No entities."]
    layers: Annotated[None, "No layers."]


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A text and its entities, or why there are none."""

    index: Annotated[Count, "Place of the text in the input, from 0."]
    input: Annotated[str, "The text."]
    entities: Annotated[list[Entity] | None, "Its entities, in order; null where there is an error."]
    exit: Annotated[CountFromOne | None, "After which layer it left; null at full depth."]
    layers: Annotated[Count | None, "Layers that were computed for it."]
    guarantee: Annotated[
        LabelsGuarantee | None,
        "What is promised of the entities of texts; null where nothing is, or once an audit has found it broken.",
    ]
    error: Annotated[str | None, "Why there are no entities; null where they are known."]
    original: Annotated[object | dict[str, Any], "The JSON line that the text came from, with --field."] = ABSENT

    cases: ClassVar = Cases(("error",), {None: Answered, str: Failed})


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Several texts."""

    results: Annotated[list[Tagged], "The texts, in the order of the input."]


@dataclass(frozen=True, kw_only=True)
class Entities:
    """What `dynx classify --json` and `--jsonl` print of a model that labels tokens.

    The entities of a text, or a list of texts; with --jsonl each line is one.
    """

    schema: Annotated[Literal["dynx.entities/1"], NAME]
    forms: ClassVar = (
        Form("one text", Tagged, without=("event", "results")),
        Form("several texts", Texts),
    )
