"""The last words of a command that failed."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.fields import NAME, Limit, NonEmpty


@dataclass(frozen=True, kw_only=True)
class Error:
    """The last line on stderr of a command that failed under --json or --jsonl, unless stderr is a terminal."""

    schema: Annotated[Literal["dynx.error/1"], NAME] = "dynx.error/1"
    kind: Annotated[
        str,
        (
            "What kind of failure, by the name of its class in dynx.errors: UsageError, ModelError, "
            "UnsupportedModelError, GateFailed, Undecided, NoProfileError, DeviceError, or DynxError for any other."
        ),
    ]
    message: Annotated[NonEmpty, "What went wrong, in a sentence."]
    hint: Annotated[str | None, "What to do next; null where there is nothing to say."]
    exit_code: Annotated[int, Limit(minimum=1, maximum=125), "That the command ends with."]
