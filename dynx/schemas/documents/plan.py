"""What a command would do."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.common import Decision
from dynx.schemas.documents.fields import NAME, Task


@dataclass(frozen=True, kw_only=True)
class PlannedDecision(Decision):
    """A decision, and who made it."""

    origin: Annotated[str, "Who set it: command line, a variable, a file and its key, or decided."]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What --dry-run --json prints."""

    schema: Annotated[Literal["dynx.plan/1"], NAME] = "dynx.plan/1"
    command: Annotated[Task, "Which command it is of."]
    model: Annotated[str, "Name of the model."]
    profile: Annotated[str | None, "Id of the profile that would be used; null for none."]
    decisions: Annotated[dict[str, PlannedDecision], "By setting: its value, and why and by whom it has that."]
