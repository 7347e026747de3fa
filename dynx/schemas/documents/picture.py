"""How a picture was drawn."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.common import Schedule, Steps
from dynx.schemas.documents.fields import ABSENT, NAME, Count, CountFromOne


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for, which a draft is finished with; null: the pipeline's own."""

    size: Annotated[tuple[CountFromOne, CountFromOne] | None, "Width and height."]
    guidance: Annotated[float | None, "Weight of classifier-free guidance."]
    negative: Annotated[str | None, "Negative prompt."]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a picture started from, where that wasn't noise alone."""

    image: Annotated[str, "Name of the picture's file."]
    files: Annotated[str, "Hash of the picture and the mask."]
    strength: Annotated[float, "How much of the noise was added."]
    mask: Annotated[bool, "Whether a mask said what may change."]


@dataclass(frozen=True, kw_only=True)
class Control:
    """What controlled a picture, where the pipeline has a ControlNet."""

    image: Annotated[str, "Name of the picture's file."]
    file: Annotated[str, "Hash of it."]
    scale: Annotated[float, "How much it counted."]


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """How a picture was drawn, as its PNG carries it in the text "dynx" and `dynx draw --info --json` prints it."""

    schema: Annotated[Literal["dynx.picture/1"], NAME] = "dynx.picture/1"
    path: Annotated[str, "The file; only where it is printed."] = ABSENT
    prompt: Annotated[str, "What was to be drawn."]
    negative: Annotated[str | None, "What it was not to be like; null for nothing."]
    seed: Annotated[Count, "With which it can be drawn again."]
    size: Annotated[tuple[CountFromOne, CountFromOne] | None, "Width and height."]
    guidance: Annotated[float | None, "Weight of classifier-free guidance; null where the pipeline has none."]
    asked: Annotated[Asked, "What was asked for, which a draft is finished with; null: the pipeline's own."]
    model: Annotated[str, "Name of the pipeline."]
    weights: Annotated[str, "Hash of every byte of its weights."]
    dtype: Annotated[str, "Precision of the computation."]
    backend: Annotated[str, "Whose kernels computed: torch-eager, torch-compiled or openvino."]
    calls: Annotated[Count, "Times that the network ran."]
    rows: Annotated[Count, "Batch rows that went through it; a guided picture takes two in a call."]
    steps: Steps
    solver: Annotated[str, "Who solved the equation: a solver of dynx's, or the pipeline's scheduler."]
    timesteps: Annotated[list[float], "Of each step, as the network was told."]
    schedule: Annotated[Schedule | None, "How it was drawn; null where the pipeline drew as its author made it."]
    landed: Annotated[bool, "Whether it ended early, by Ctrl-C, on the picture it was heading for."]
    notes: Annotated[list[str], "What couldn't be done as asked."]
    draft: Annotated[bool, "Whether it is a cheap preview."]
    flagged: Annotated[bool, "Whether the pipeline's safety checker blackened it."]
    guarantee: Annotated[str, "What was promised, in words."]
    profile: Annotated[str | None, "Id of the profile that was used; null for none."]
    dynx: Annotated[str, "Version of dynx that drew it."]
    start: Annotated[Start, "What it started from; absent for noise alone."] = ABSENT
    control: Annotated[Control, "What controlled it; absent without a ControlNet."] = ABSENT
