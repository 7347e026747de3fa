"""What a profile holds of a pipeline that draws."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.common import CacheKind, Certificate, Grid, Seconds, Similarity
from dynx.schemas.documents.fields import ABSENT, Count, Fraction, NonNegative


@dataclass(frozen=True, kw_only=True)
class PictureSeconds(Seconds):
    """Seconds of one picture."""

    plain: Annotated[NonNegative, "By the pipeline's own run."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class TriedSetting:
    """A setting that was compared."""

    solver: Annotated[str, "Name of the solver."] = ABSENT
    steps: Annotated[Count, "Steps of the grid."] = ABSENT
    guided: Annotated[float | None, "Share of the steps with classifier-free guidance; null for all."] = ABSENT
    skip: Annotated[NonNegative, "As in a schedule."] = ABSENT
    cache: Annotated[NonNegative, "As in a schedule."] = ABSENT
    cache_kind: Annotated[CacheKind, "Kind of the feature cache; absent without one."] = ABSENT
    rows: Annotated[NonNegative, "Batch rows through the network for each picture."] = ABSENT
    tail: Annotated[float, "SSIM that few pictures are below."] = ABSENT
    median: Annotated[float, "Median SSIM."] = ABSENT
    backend: Annotated[str, "Whose kernels computed, where not those the pipeline was loaded with."] = ABSENT
    precision: Annotated[str, "In what precision, where not that of the pipeline."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """What a run costs on a backend."""

    backend: Annotated[str, "Whose kernels compute: torch-eager, torch-compiled or openvino."] = ABSENT
    precision: Annotated[str, "Precision of the network."] = ABSENT
    parts: Annotated[list[str], "Parts beside the network that run on it too: text encoders, the decoder."] = ABSENT
    batches: Annotated[
        dict[str, Annotated[list[NonNegative], "Of a picture beside the network, of a network call, of the start."]],
        "Seconds by the number of pictures in a network call.",
    ] = ABSENT
    files: Annotated[
        dict[str, list[list[str]]], "Part and folder in the cache of what is compiled, by the same number."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class DrawMeasured:
    """Seconds and likeness of pictures."""

    seconds: Annotated[PictureSeconds, "Seconds of one picture."] = ABSENT
    likeness: Annotated[dict[str, Similarity], "By number of steps."] = ABSENT
    tried: Annotated[list[TriedSetting], "Settings that were compared."] = ABSENT
    kernels: Annotated[str, "Why those kernels, with their times."] = ABSENT
    runs: Annotated[list[RunTimes], "What runs cost on the backends that the evidence holds for."] = ABSENT
    further: Annotated[
        dict[str, PictureSeconds], "Seconds of one picture on further backends, by backend and precision."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Grids of few steps, which all begin alike."""

    fine: Annotated[Grid, "The grid that they are cut from."] = ABSENT
    nodes: Annotated[dict[str, Annotated[list[Count], "Indices into the fine grid."]], "By number of steps."] = ABSENT
    solver: Annotated[str, "Name of the solver."] = ABSENT
    guided: Annotated[float | None, "Share of the steps with classifier-free guidance; null for all."] = ABSENT
    skip: Annotated[NonNegative, "As in a schedule."] = ABSENT
    cache: Annotated[NonNegative, "As in a schedule."] = ABSENT
    cache_kind: Annotated[CacheKind, "Kind of the feature cache; absent without one."] = ABSENT
    magnitudes: Annotated[
        list[NonNegative], "By how much blocks change their input, at each node of the fine grid."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class FurtherBackend:
    """A backend in reduced precision."""

    backend: Annotated[str, "Whose kernels compute."]
    precision: Annotated[str, "Precision of the network."]


@dataclass(frozen=True, kw_only=True)
class DrawFitted:
    """In how many steps pictures may be drawn."""

    ladder: Annotated[Ladder, "Grids of few steps, which all begin alike."] = ABSENT
    full_steps: Annotated[Count, "Steps of the pipeline's own run."] = ABSENT
    pixels: Annotated[tuple[Count, Count] | None, "Width and height of the pictures."] = ABSENT
    backend: Annotated[str, "Whose kernels were fastest."] = ABSENT
    precision: Annotated[str, "Precision of the network."] = ABSENT
    guidance: Annotated[float | None, "Weight of classifier-free guidance; null where the pipeline has none."] = ABSENT
    negative: Annotated[str | None, "Negative prompt; null for none."] = ABSENT
    size: Annotated[tuple[Count, Count] | None, "Width and height that were asked for; null: the pipeline's own."] = (
        ABSENT
    )
    scheduler: Annotated[str, "Class of the pipeline's scheduler in diffusers."] = ABSENT
    strength: Annotated[Fraction | None, "Noise that was added to pictures to start from; null: from noise alone."] = (
        ABSENT
    )
    control_scale: Annotated[float, "How much control pictures counted; absent without a ControlNet."] = ABSENT
    quality: Annotated[Fraction, "SSIM that was asked for."] = ABSENT
    further: Annotated[
        list[FurtherBackend], "Backends in reduced precision that have evidence of their own; absent for none."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class FurtherEvidence:
    """The test of a further backend, on pictures of its own."""

    certificate: Certificate = ABSENT


@dataclass(frozen=True, kw_only=True)
class DrawEvidence:
    """Pictures and tests behind it."""

    data: Annotated[str, "Hash of the prompts."] = ABSENT
    prompts: Annotated[Count, "How many."] = ABSENT
    certificate: Certificate = ABSENT
    reached: Annotated[
        Similarity | None, "SSIM of the pictures that were tested, by the rule that passed; null where none did."
    ] = ABSENT
    further: Annotated[
        dict[str, FurtherEvidence], "Tests of further backends, by backend and precision; absent for none."
    ] = ABSENT
    basis: Annotated[
        Literal["model"], "The evidence came with the model or from another machine; absent where it was drawn here."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class DrawProfile:
    """What was measured and learned of a pipeline that draws."""

    measured: Annotated[DrawMeasured, "Seconds and likeness of pictures."]
    fitted: Annotated[DrawFitted, "In how many steps pictures may be drawn."]
    evidence: Annotated[DrawEvidence, "Pictures and tests behind it."]
