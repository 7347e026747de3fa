"""The profiles of a cache."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.fields import NAME


@dataclass(frozen=True, kw_only=True)
class ListedProfile:
    """One profile."""

    id: Annotated[str, "What --show, --profile and the others call it."]
    task: Annotated[str, "generate, classify or draw."]
    model: Annotated[str, "Name of the model."]
    dtype: Annotated[str, "Precision of the computation."]
    form: Annotated[
        Literal[
            "text",
            "chat",
            "pair",
            "ranking",
            "zero-shot",
            "image",
            "inpainting",
            "control",
            "control-image",
            "control-inpainting",
        ],
        "What it was measured on: plain texts, chats in the model's template, pairs of texts, queries with documents, texts "
        "with candidate labels, pictures to start from, or pictures with masks.",
    ]
    created: Annotated[str, "When it was measured, ISO 8601 in UTC."]
    stale: Annotated[str | None, "Why it isn't used any more; null where it is."]
    summary: Annotated[str, "What was found, in words."]


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """What `dynx calibrate --list --json` prints."""

    schema: Annotated[Literal["dynx.profiles/1"], NAME] = "dynx.profiles/1"
    profiles: Annotated[list[ListedProfile], "Of this machine's cache."]
