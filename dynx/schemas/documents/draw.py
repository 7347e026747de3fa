"""Pictures, and the steps of drawing them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dynx.schemas.documents.common import Decision, PicturesGuarantee, Schedule, Steps
from dynx.schemas.documents.fields import ABSENT, EVENT, NAME, Count, CountFromOne, Form, Limit, NonNegative


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a picture cost."""

    calls: Annotated[Count, "Times that the network ran."]
    rows: Annotated[Count, "Batch rows that went through it; a guided picture takes two in a call."]
    steps: Steps
    seconds: Annotated[NonNegative, "How long it took."]
    solver: Annotated[str, "Who solved the equation: a solver of dynx's, or the pipeline's scheduler."]
    timesteps: Annotated[list[float], "Of each step, as the network was told."]
    schedule: Annotated[Schedule | None, "How it was drawn; null where the pipeline drew as its author made it."]
    landed: Annotated[bool, "Whether it ended early, by Ctrl-C, on the picture it was heading for."]
    notes: Annotated[list[str], "What couldn't be done as asked."]
    together: Annotated[CountFromOne, "Pictures that shared the network calls; rows and seconds are this one's share."]
    profile: Annotated[str | None, "Id of the profile that was used; null for none."]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How similar a picture is to the pipeline's own run of its seed."""

    ssim: Annotated[float, "Structural similarity; 1 for equal pictures."]
    psnr: Annotated[float | None, "Peak signal-to-noise ratio in dB; null for equal pictures."]
    ms_ssim: Annotated[float | None, "Multi-scale SSIM; null where the picture is too small for two scales."]
    scales: Annotated[Count, "Scales that fit into the picture."]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture, or why there is none."""

    index: Annotated[Count, "Place of the picture, from 0."]
    path: Annotated[str | None, "File that it is in; null where there is none, or it went to stdout."]
    prompt: Annotated[str, "What was to be drawn."]
    negative: Annotated[str | None, "What it was not to be like; null for nothing."]
    seed: Annotated[Count, "With which it can be drawn again."]
    model: Annotated[str, "Name of the pipeline."]
    size: Annotated[tuple[CountFromOne, CountFromOne] | None, "Width and height; null where there is no picture."]
    guidance: Annotated[float | None, "Weight of classifier-free guidance; null where the pipeline has none."]
    draft: Annotated[bool, "Whether it is a cheap preview."]
    source: Annotated[str | None, "The draft that it finishes; null where it finishes none."]
    flagged: Annotated[bool, "Whether the pipeline's safety checker blackened it."]
    error: Annotated[str | None, "Why there is no picture; null where there is one."]
    receipt: Annotated[Receipt | None, "What the picture cost; null where it was not drawn."]
    guarantee: Annotated[PicturesGuarantee | None, "What is promised of pictures; null where nothing is."]
    decisions: Annotated[dict[str, Decision], "By setting: its value and why it has that."]
    verification: Annotated[Verification, "With --verify: how like the pipeline's own run of this seed it is."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a picture is done."""

    index: Annotated[Count, "Which picture."]
    step: Annotated[Count, "Which step, from 1."]
    of: Annotated[CountFromOne, "Steps that are planned."]
    computed: Annotated[bool, "Whether the network ran; else the step was skipped or cached."]
    guided: Annotated[bool, "Whether with classifier-free guidance."]
    calls: Annotated[Count, "Times that the network ran so far."]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Several pictures."""

    results: Annotated[list[Picture], "The pictures, in the order they were drawn."]


@dataclass(frozen=True, kw_only=True)
class FileDocument:
    """A document by itself, of the schema dynx.picture/1."""

    schema: Annotated[Literal["dynx.picture/1"], "Name and major version of its schema."]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Several files."""

    results: Annotated[list[FileDocument], Limit(min_items=1), "What several files say of themselves."]


@dataclass(frozen=True, kw_only=True)
class StepEvent(Step):
    """A step is done."""

    event: Annotated[Literal["step"], EVENT]


@dataclass(frozen=True, kw_only=True)
class ResultEvent(Picture):
    """A picture is complete."""

    event: Annotated[Literal["result"], EVENT]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What `dynx draw --json` and `--jsonl` print.

    A picture, a list of them where several were asked for, or a line for each step and picture; with --info of several
    files what they say.
    """

    schema: Annotated[Literal["dynx.draw/1"], NAME]
    forms: ClassVar = (
        Form("one result", Picture, without=("event", "results")),
        Form("several results", Pictures),
        Form("files (--info)", Files),
        Form("event: step", StepEvent),
        Form("event: result", ResultEvent),
    )
