"""What is said of a drawn picture: in its file, in JSON, in a line, in rows, and as a strip of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.cli.flags import in_flags
from dynx.errors import DynxError

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.cli.console import Terminal
    from dynx.cli.draw.drafts import Asked
    from dynx.cli.draw.requests import Item
    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.similarity import Likeness
    from dynx.diffusion.types import Picture, Step

SCHEMA = "dynx.draw/1"

MARKS = {"run": "█", "unguided": "▒", "cached": "▓", "skipped": "░", "left": "·"}
PLAIN_MARKS = {"run": "#", "unguided": "=", "cached": "+", "skipped": ".", "left": " "}
WORDS = {"run": "run", "unguided": "run without guidance", "cached": "cached", "skipped": "skipped", "left": "left out"}


@dataclass
class Drawn:
    """A picture, or its failure, with what it came from."""

    index: int
    picture: Picture
    artist: ImageGenerator
    asked: Asked
    draft: bool
    """Few steps on purpose."""
    strip: list[str] = field(default_factory=list)
    """What became of each step, by the names of `MARKS`."""
    source: Path | None = None
    """The draft that it finishes."""
    path: Path | None = None
    likeness: Likeness | None = None
    """To the pipeline's own run, where that was asked for."""

    @property
    def promise(self) -> Any:
        """The guarantee, where the picture has one."""
        stats = self.picture.stats
        without = self.draft or stats.finished_early or stats.plain or self.picture.error
        return None if without else self.artist.guarantee

    @property
    def promised(self) -> str:
        """That in words."""
        stats = self.picture.stats
        if stats.finished_early:
            return "none: stopped early"
        if self.draft:
            return "none: a draft"
        if stats.plain:
            kernels = self.artist.assembly.engine.kernels
            return f"the pipeline's own run of {stats.planned} steps{f' on {kernels}' if kernels else ''}"
        return str(self.artist.guarantee or "none")

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height."""
        pixels = self.picture.pixels
        return None if pixels is None else (pixels.shape[1], pixels.shape[0])

    @property
    def profile(self) -> str | None:
        """Its id."""
        profile = self.artist.assembly.plan.profile
        return profile.key.id if profile else None


@dataclass(frozen=True)
class Failure:
    """A picture that was never drawn, or not to its end."""

    item: Item
    error: str
    artist: ImageGenerator
    asked: Asked
    draft: bool


def said(error: Exception) -> str:
    """An error and what to do about it, in one line."""
    words = next(iter(in_flags(str(error)).splitlines()), "")
    if not isinstance(error, DynxError):
        return f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{words} ({error.hint})" if error.hint else words


def failure_json(failure: Failure) -> dict[str, Any]:
    """As `result_json`, as far as there is anything to say."""
    item, assembly = failure.item, failure.artist.assembly
    return {
        "index": item.index,
        "path": None,
        "prompt": item.prompt,
        "negative": failure.asked.negative,
        "seed": item.seed,
        "model": assembly.plan.source.name,
        "size": None,
        "guidance": guidance_of(failure.artist),
        "draft": failure.draft,
        "source": str(item.source) if item.source else None,
        "flagged": False,
        "error": failure.error,
        "receipt": None,
        "guarantee": None,
        "decisions": _decisions(failure.artist),
    }


def guidance_of(artist: ImageGenerator) -> float | None:
    """That is used, where the pipeline says."""
    asked = artist.assembly.plan.request.guidance  # with what the model's folder asks for
    return artist.assembly.engine.adapter.default_guidance if asked is None else asked


def _decisions(artist: ImageGenerator) -> dict[str, Any]:
    return {k: {"value": d.value, "reason": d.reason} for k, d in artist.assembly.decisions.items()}


def mark(step: Step) -> str:
    """What became of a step."""
    if step.cached:
        return "cached"
    return "skipped" if not step.computed else "run" if step.guided else "unguided"


def facts(drawn: Drawn) -> dict[str, Any]:
    """For the picture's file; nothing that differs when the same picture is drawn again."""
    from dynx import __version__
    from dynx.schemas.documents.fields import as_document
    from dynx.schemas.documents.picture import PictureFile

    plan, picture = drawn.artist.assembly.plan, drawn.picture
    stats = picture.stats.json()
    del stats["seconds"]
    document = PictureFile(
        prompt=picture.prompt,
        negative=drawn.asked.negative,
        seed=picture.seed,
        size=drawn.size,
        guidance=guidance_of(drawn.artist),
        asked=drawn.asked.document(),
        model=plan.source.name,
        weights=plan.weights,
        dtype=plan.dtype,
        backend=plan.backend,
        **stats,
        draft=drawn.draft,
        flagged=picture.flagged,
        guarantee=drawn.promised,
        profile=drawn.profile,
        dynx=__version__,
    )
    return as_document(document)


def verified(drawn: Drawn) -> str:
    """The outcome of --verify as a line."""
    found = drawn.likeness
    if found is None:
        return "not verified"
    if found.ssim == 1 and not math.isfinite(found.psnr):
        return "verified: pixel for pixel the pipeline's own run of this seed"
    return f"verified: SSIM {found.ssim:.4f}, PSNR {found.psnr:.1f} dB to the pipeline's own run of this seed"


def result_json(drawn: Drawn) -> dict[str, Any]:
    """The picture with everything known about it."""
    assembly, picture = drawn.artist.assembly, drawn.picture
    verification = {} if drawn.likeness is None else {"verification": drawn.likeness.json()}
    return verification | {
        "index": drawn.index,
        "path": str(drawn.path) if drawn.path else None,
        "prompt": picture.prompt,
        "negative": drawn.asked.negative,
        "seed": picture.seed,
        "model": assembly.plan.source.name,
        "size": drawn.size,
        "guidance": guidance_of(drawn.artist),
        "draft": drawn.draft,
        "source": str(drawn.source) if drawn.source else None,
        "flagged": picture.flagged,
        "error": picture.error,
        "receipt": {**picture.stats.json(), "profile": drawn.profile},
        "guarantee": drawn.promise.json() if drawn.promise else None,
        "decisions": _decisions(drawn.artist),
    }


def strip(drawn: Drawn, *, unicode: bool) -> str:
    """A letter for each step, and what the letters mean."""
    marks = MARKS if unicode else PLAIN_MARKS
    course = [*drawn.strip, *["left"] * (drawn.picture.stats.planned - len(drawn.strip))]
    legend = [f"{marks[kind]} {course.count(kind)} {WORDS[kind]}" for kind in MARKS if kind in course]
    return f"{''.join(marks[kind] for kind in course)}  {', '.join(legend)}"


def receipt_line(drawn: Drawn) -> str:
    """What a picture cost, in one line."""
    stats = drawn.picture.stats
    parts = [f"seed {drawn.picture.seed}", f"{_calls(drawn)} in {stats.seconds:.2f} s"]
    if stats.skipped:
        parts.append(f"{stats.skipped} of {stats.planned} steps skipped")
    return " · ".join([*parts, drawn.promised])


def receipt_rows(drawn: Drawn) -> list[tuple[str, str]]:
    """The whole receipt, for --stats."""
    stats = drawn.picture.stats
    size = drawn.size
    cached = f", {stats.cached} cached" if stats.cached else ""
    rows = [
        ("picture", f"{size[0]}×{size[1]}, seed {drawn.picture.seed}" if size else f"none: {drawn.picture.error}"),
        ("calls", f"{_calls(drawn)}, {stats.rows} rows"),
        ("steps", f"{stats.run} run, {stats.skipped} skipped{cached} of {stats.planned}"),
        ("time", f"{stats.seconds:.3f} s"),
        ("solver", stats.solver),
        ("guarantee", drawn.promised),
        ("profile", drawn.profile or "none"),
    ]
    if stats.unguided:
        rows.insert(3, ("guidance", f"skipped in {stats.unguided} of the steps run"))
    return [*rows, *(("note", note) for note in stats.notes)]


def _calls(drawn: Drawn) -> str:
    """Network calls, and how many the pipeline makes by itself where that is more."""
    calls = drawn.picture.stats.calls
    assembly = drawn.artist.assembly
    full = assembly.step_profile.full_steps if assembly.step_profile else assembly.engine.adapter.default_steps
    words = f"{calls} network call{'' if calls == 1 else 's'}"
    return words if drawn.picture.stats.plain or calls >= full else f"{words} instead of {full}"


class Printer:
    """What stdout carries; the subclasses are the output modes."""

    def __init__(self, terminal: Terminal, *, several: bool) -> None:
        self._terminal, self._several = terminal, several

    def step(self, index: int, step: Step) -> None:
        """A step of picture `index` is done."""

    def result(self, drawn: Drawn) -> None:
        """A picture is there, or isn't one of numbers."""

    def failure(self, failure: Failure) -> None:
        """There is no picture."""

    def close(self) -> None:
        """No more pictures."""


class Paths(Printer):
    """The path of each picture, on a line."""

    def result(self, drawn: Drawn) -> None:
        """Write it."""
        if drawn.path is not None:
            self._terminal.write(f"{drawn.path}\n")


class Document(Printer):
    """One JSON document at the end: the picture, or a list where several were asked for."""

    def __init__(self, terminal: Terminal, *, several: bool) -> None:
        super().__init__(terminal, several=several)
        self._results: list[dict[str, Any]] = []

    def result(self, drawn: Drawn) -> None:
        """Keep it."""
        self._results.append(result_json(drawn))

    def failure(self, failure: Failure) -> None:
        """Keep its error in its place."""
        self._results.append(failure_json(failure))

    def close(self) -> None:
        """Write what there is."""
        if self._results:
            body: dict[str, Any] = {"results": self._results} if self._several else self._results[0]
            self._terminal.document({"schema": SCHEMA, **body})


class JsonLines(Printer):
    """A JSON line for each step and each picture."""

    def _write(self, event: str, body: dict[str, Any]) -> None:
        self._terminal.document({"schema": SCHEMA, "event": event, **body})

    def step(self, index: int, step: Step) -> None:
        """An event of its own."""
        body = {"index": index, "step": step.index, "of": step.total, "computed": step.computed, "guided": step.guided}
        self._write("step", {**body, "calls": step.calls})

    def result(self, drawn: Drawn) -> None:
        """The picture with all that is known of it."""
        self._write("result", result_json(drawn))

    def failure(self, failure: Failure) -> None:
        """Its error in its place."""
        self._write("result", failure_json(failure))
