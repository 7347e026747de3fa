"""What a calibration stored, or would measure."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dynx.schemas.documents.common import Decision
from dynx.schemas.documents.fields import ABSENT, NAME, Count, Drafter, Form, NonNegative
from dynx.schemas.documents.profile import Profile


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """What would be measured."""

    model: Annotated[str, "Name of the model."]
    profile: Annotated[str, "Id of the profile that would be stored."]
    budget_seconds: Annotated[NonNegative, "Time that there is."]
    decisions: Annotated[dict[str, Decision], "By setting: its value and why it has that."]
    drafter: Annotated[str | None, "Of a language model: name of the draft model; null for none."] = ABSENT
    drafters: Annotated[list[Drafter], "Of a language model: who would be measured."] = ABSENT
    inputs: Annotated[Count, "Of a classifier: inputs in --data."] = ABSENT
    distinct: Annotated[Count, "Of a classifier: those that differ from each other."] = ABSENT
    certify: Annotated[Count, "Of a classifier: those that would test the promise."] = ABSENT
    may_differ: Annotated[
        Count | None,
        "Of a classifier: how many of those may differ for it to hold; null where they are too few to show it.",
    ] = ABSENT
    prompts: Annotated[
        Count | None, "Of a pipeline that draws: prompts in --data; null where they are made from the vocabulary."
    ] = ABSENT
    supports: Annotated[str, "Of a classifier or a pipeline: what this number of inputs can show, in words."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `dynx calibrate --json` prints: the profile that was stored, or with --dry-run what would be measured."""

    schema: Annotated[Literal["dynx.calibrate/1"], NAME]
    forms: ClassVar = (
        Form("a profile", Profile),
        Form("a plan (--dry-run)", CalibrationPlan, without=("id",)),
    )
