"""Documents in the order of their scores."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dynx.schemas.documents.common import LabelsGuarantee
from dynx.schemas.documents.fields import ABSENT, NAME, Cases, Count, Form, NonEmpty


@dataclass(frozen=True, kw_only=True)
class RankedDocument:
    """A document of a query."""

    index: Annotated[Count, "Its place among the query's documents in the input, from 0."]
    score: Annotated[float | None, "The full model's score; null where it isn't finite."]
    text: Annotated[str, "The document."]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A query whose documents are ranked."""

    documents: Annotated[list[RankedDocument], "From best to worst."]
    of: Annotated[Count, "Documents that it had."]
    layers: Annotated[Count, "Layers that were computed for all of them."]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A query whose documents aren't."""

    error: Annotated[NonEmpty, "Why not."]
    documents: Annotated[None, "No documents."]
    of: Annotated[None, "No number."]
    layers: Annotated[None, "No layers."]


@dataclass(frozen=True, kw_only=True)
class RankedQuery:
    """A query and its documents in the order of their scores, or why there is none."""

    index: Annotated[Count, "Place of the query in the input, from 0."]
    query: Annotated[str, "The query."]
    documents: Annotated[
        list[RankedDocument] | None, "From best to worst; with --top-k only that many. Null where there is an error."
    ]
    of: Annotated[Count | None, "Documents that the query had."]
    layers: Annotated[Count | None, "Layers that were computed for all of them."]
    guarantee: Annotated[
        LabelsGuarantee | None,
        "What is promised of which documents are the first; null where nothing is, or once an audit has found it broken.",
    ]
    error: Annotated[str | None, "Why there is no ranking; null where there is one."]
    original: Annotated[object | dict[str, Any], "The JSON line that the query came from."] = ABSENT

    cases: ClassVar = Cases(("error",), {None: Answered, str: Failed})


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """Several queries."""

    results: Annotated[list[RankedQuery], "The queries, in the order of the input."]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What `dynx classify --rank --json` and `--jsonl` print.

    A list of queries; with --jsonl each line is one.
    """

    schema: Annotated[Literal["dynx.rank/1"], NAME]
    forms: ClassVar = (
        Form("one query", RankedQuery, without=("event", "results")),
        Form("several queries", Rankings),
    )
