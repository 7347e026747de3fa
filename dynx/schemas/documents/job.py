"""Statistics of a job over files."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dynx.schemas.documents.fields import NAME, Count, CountFromOne, NonEmpty, NonNegative


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What one kind of machine did."""

    rows: Annotated[Count, "Rows that it answered."]
    seconds: Annotated[NonNegative, "Seconds of its workers, added up, without loading the model."]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Where an audit ended early exits."""

    first_in_job: Annotated[Count, "Number in the job of the row from which on all layers ran."]
    words: Annotated[NonEmpty, "What it found."]


@dataclass(frozen=True, kw_only=True)
class JobAudit:
    """What the full model said of audited rows."""

    audited: Annotated[Count, "Rows that it checked."]
    differ: Annotated[Count, "Those whose answers differ from its own."]
    most_in_job: Annotated[
        Count | None, "Most answers of the job that differ, at the confidence; null where nothing is known."
    ]
    alarm: Annotated[Alarm | None, "Where exits ended; null where they didn't."]
    words: Annotated[NonEmpty, "The same as a sentence."]


@dataclass(frozen=True, kw_only=True)
class JobStats:
    """What a job with --input leaves in `stats.json`."""

    schema: Annotated[Literal["dynx.job/1"], NAME]
    rows: Annotated[CountFromOne, "Rows of the input."]
    errors: Annotated[Count, "Rows without an answer; `errors.jsonl` has the reasons."]
    totals: Annotated[dict[str, Count], "Sums over all rows by name: layers, tokens, steps."]
    kinds: Annotated[dict[str, Kind], "What each kind of machine did, by device, backend and threads."]
    guarantee: Annotated[dict[str, Any] | None, "What is promised of all answers; null where nothing is."]
    certificate: Annotated[dict[str, Any] | None, "What --certify found on a sample of the job; null without it."]
    audit: Annotated[JobAudit | None, "What --audit found; null without it."]
