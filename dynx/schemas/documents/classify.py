"""Labels of a classifier."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dynx.schemas.documents.common import LabelsGuarantee
from dynx.schemas.documents.fields import ABSENT, NAME, Cases, Count, CountFromOne, Form, NonEmpty


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An input that has a label."""

    label: Annotated[str, "The best label."]
    layers: Annotated[int, "Layers that were computed for it."]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An input that has none."""

    error: Annotated[NonEmpty, "Why it has no label."]
    label: Annotated[None, "No label."]
    score: Annotated[None, "No probability."]
    scores: Annotated[None, "No scores."]
    layers: Annotated[None, "No layers."]


@dataclass(frozen=True, kw_only=True)
class Label:
    """An input and its label, or why it has none."""

    index: Annotated[Count, "Place of the input, from 0."]
    input: Annotated[str, "The text, or the image's path."]
    label: Annotated[
        str | None, "The best label; of a model that gives numbers its first output; null where there is none."
    ]
    score: Annotated[
        float | None, "Probability of that label, or the number that a regression gives; null where it isn't finite."
    ]
    scores: Annotated[
        dict[str, float | None] | None, "Scores by label, from best to worst; with --top-k only that many."
    ]
    exit: Annotated[CountFromOne | None, "After which layer it left; null at full depth."]
    layers: Annotated[Count | None, "Layers that were computed for it."]
    guarantee: Annotated[
        LabelsGuarantee | None,
        "What is promised of labels; null where nothing is, or once an audit has found it broken.",
    ]
    error: Annotated[str | None, "Why it has no label; null where it has one."]
    original: Annotated[object | dict[str, Any], "The JSON line that the input came from, with --field."] = ABSENT

    cases: ClassVar = Cases(("error",), {None: Answered, str: Failed})


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Several labels."""

    results: Annotated[list[Label], "The labels, in the order of the inputs."]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """What `dynx classify --json` and `--jsonl` print.

    A label for an input, or a list of them; with --jsonl each line is one label.
    """

    schema: Annotated[Literal["dynx.classify/1"], NAME]
    forms: ClassVar = (
        Form("one result", Label, without=("event", "results")),
        Form("several results", Labels),
    )
