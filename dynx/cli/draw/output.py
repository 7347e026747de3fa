"""Formats a drawn picture's facts: metadata, JSON, one line, rows, and a strip of its steps."""

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
    """A picture and its request."""

    index: int
    picture: Picture
    artist: ImageGenerator
    asked: Asked
    draft: bool
    """Whether it was drawn in few steps by --draft."""
    strip: list[str] = field(default_factory=list)
    """Outcome of each step, by the keys of `MARKS`."""
    source: Path | None = None
    """Draft that it finishes."""
    path: Path | None = None
    likeness: Likeness | None = None
    """Similarity to the pipeline's own run, if --verify measured it."""

    @property
    def promise(self) -> Any:
        """Guarantee of the picture, if it has one."""
        stats = self.picture.stats
        without = self.draft or stats.finished_early or stats.plain or self.picture.error
        return None if without else self.artist.guarantee

    @property
    def promised(self) -> str:
        """Guarantee in words."""
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
        """Width and height in pixels."""
        pixels = self.picture.pixels
        return None if pixels is None else (pixels.shape[1], pixels.shape[0])

    @property
    def profile(self) -> str | None:
        """Id of the profile."""
        profile = self.artist.assembly.plan.profile
        return profile.key.id if profile else None


@dataclass(frozen=True)
class Failure:
    """A picture that wasn't drawn, or not to its end."""

    item: Item
    error: str
    artist: ImageGenerator
    asked: Asked
    draft: bool


def said(error: Exception) -> str:
    """Format an error and its hint as one line."""
    words = next(iter(in_flags(str(error)).splitlines()), "")
    if not isinstance(error, DynxError):
        return f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{words} ({error.hint})" if error.hint else words


def failure_json(failure: Failure) -> dict[str, Any]:
    """Return a failure in the form of `result_json`, as far as it is known."""
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
    """Return the guidance scale in use, where the pipeline has one."""
    asked = artist.assembly.plan.request.guidance  # with what the model's folder asks for
    return artist.assembly.engine.adapter.default_guidance if asked is None else asked


def _decisions(artist: ImageGenerator) -> dict[str, Any]:
    return {k: {"value": d.value, "reason": d.reason} for k, d in artist.assembly.decisions.items()}


def mark(step: Step) -> str:
    """Return the outcome of a step."""
    if step.cached:
        return "cached"
    return "skipped" if not step.computed else "run" if step.guided else "unguided"


def facts(drawn: Drawn) -> dict[str, Any]:
    """Return the metadata of the picture's file, without what differs when the same picture is drawn again."""
    from dynx import __version__
    from dynx.schemas.documents.fields import as_document
    from dynx.schemas.documents.picture import PictureFile

    plan, picture = drawn.artist.assembly.plan, drawn.picture
    stats = picture.stats.json()
    del stats["seconds"], stats["together"]
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
        **_start_of(drawn),
    )
    return as_document(document)


def _start_of(drawn: Drawn) -> dict[str, Any]:
    """Return what the picture started from and what controlled it, for its metadata; nothing where that was noise alone."""
    from dynx.diffusion.apply_profile import control_scale_of, strength_of
    from dynx.schemas.documents.picture import Control, Start

    engine = drawn.artist.assembly.engine
    found: dict[str, Any] = {}
    if (start := engine.start) is not None:
        strength = strength_of(engine)
        found["start"] = Start(
            image=start.name, files=start.identity, strength=strength or 1.0, mask=start.mask is not None
        )
    if (control := engine.control) is not None:
        scale = control_scale_of(engine)
        found["control"] = Control(image=control.name, file=control.identity, scale=1.0 if scale is None else scale)
    return found


def verified(drawn: Drawn) -> str:
    """Format the outcome of --verify as a line."""
    found = drawn.likeness
    if found is None:
        return "not verified"
    if found.ssim == 1 and not math.isfinite(found.psnr):
        return "verified: pixel for pixel the pipeline's own run of this seed"
    return f"verified: SSIM {found.ssim:.4f}, PSNR {found.psnr:.1f} dB to the pipeline's own run of this seed"


def result_json(drawn: Drawn) -> dict[str, Any]:
    """Return everything known about the picture, for JSON."""
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
    """Return a letter for each step, and the meaning of the letters."""
    marks = MARKS if unicode else PLAIN_MARKS
    course = [*drawn.strip, *["left"] * (drawn.picture.stats.planned - len(drawn.strip))]
    legend = [f"{marks[kind]} {course.count(kind)} {WORDS[kind]}" for kind in MARKS if kind in course]
    return f"{''.join(marks[kind] for kind in course)}  {', '.join(legend)}"


def receipt_line(drawn: Drawn) -> str:
    """Format what a picture cost as one line."""
    stats = drawn.picture.stats
    parts = [f"seed {drawn.picture.seed}", f"{_calls(drawn)} in {stats.seconds:.2f} s"]
    if stats.skipped:
        parts.append(f"{stats.skipped} of {stats.planned} steps skipped")
    return " · ".join([*parts, drawn.promised])


def receipt_rows(drawn: Drawn) -> list[tuple[str, str]]:
    """Return all statistics, for --stats."""
    stats = drawn.picture.stats
    size = drawn.size
    cached = f", {stats.cached} cached" if stats.cached else ""
    rows = [
        ("picture", f"{size[0]}×{size[1]}, seed {drawn.picture.seed}" if size else f"none: {drawn.picture.error}"),
        ("calls", f"{_calls(drawn)}, {stats.rows} rows"),
        ("steps", f"{stats.run} run, {stats.skipped} skipped{cached} of {stats.planned}"),
        ("time", f"{stats.seconds:.3f} s{f', one of {stats.pictures} drawn together' if stats.pictures > 1 else ''}"),
        ("backend", f"{stats.backend or 'PyTorch'} ({drawn.artist.assembly.decisions.backend.reason})"),
        ("solver", stats.solver),
        ("guarantee", drawn.promised),
        ("profile", drawn.profile or "none"),
    ]
    if stats.unguided:
        rows.insert(3, ("guidance", f"skipped in {stats.unguided} of the steps run"))
    return [*rows, *(("note", note) for note in stats.notes)]


def _calls(drawn: Drawn) -> str:
    """Format the network calls, and how many the pipeline makes by default if that is more."""
    calls = drawn.picture.stats.calls
    assembly = drawn.artist.assembly
    full = assembly.step_profile.full_steps if assembly.step_profile else assembly.engine.adapter.default_steps
    words = f"{calls} network call{'' if calls == 1 else 's'}"
    return words if drawn.picture.stats.plain or calls >= full else f"{words} instead of {full}"


class Printer:
    """Writes to stdout; the subclasses are the output modes."""

    def __init__(self, terminal: Terminal, *, several: bool) -> None:
        self._terminal, self._several = terminal, several

    def step(self, index: int, step: Step) -> None:
        """Write a step of picture `index`."""

    def result(self, drawn: Drawn) -> None:
        """Write a picture, or report that its pixels aren't finite."""

    def failure(self, failure: Failure) -> None:
        """Write a failure."""

    def close(self) -> None:
        """Finish the output."""


class Paths(Printer):
    """Prints the path of each picture on a line."""

    def result(self, drawn: Drawn) -> None:
        """Print the path."""
        if drawn.path is not None:
            self._terminal.write(f"{drawn.path}\n")


class Document(Printer):
    """Prints one JSON document at the end: the picture, or a list if several are requested."""

    def __init__(self, terminal: Terminal, *, several: bool) -> None:
        super().__init__(terminal, several=several)
        self._results: list[dict[str, Any]] = []

    def result(self, drawn: Drawn) -> None:
        """Keep the picture."""
        self._results.append(result_json(drawn))

    def failure(self, failure: Failure) -> None:
        """Keep the error in the picture's place."""
        self._results.append(failure_json(failure))

    def close(self) -> None:
        """Print the document."""
        if self._results:
            body: dict[str, Any] = {"results": self._results} if self._several else self._results[0]
            self._terminal.document({"schema": SCHEMA, **body})


class JsonLines(Printer):
    """Prints a JSON line for each step and each picture."""

    def _write(self, event: str, body: dict[str, Any]) -> None:
        self._terminal.document({"schema": SCHEMA, "event": event, **body})

    def step(self, index: int, step: Step) -> None:
        """Print an event."""
        body = {"index": index, "step": step.index, "of": step.total, "computed": step.computed, "guided": step.guided}
        self._write("step", {**body, "calls": step.calls})

    def result(self, drawn: Drawn) -> None:
        """Print the picture with everything known about it."""
        self._write("result", result_json(drawn))

    def failure(self, failure: Failure) -> None:
        """Print the error in the picture's place."""
        self._write("result", failure_json(failure))
