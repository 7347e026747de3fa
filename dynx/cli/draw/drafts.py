"""Reads a picture's metadata: to print it, and to draw the picture again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.draw import png
from dynx.errors import UsageError
from dynx.schemas.documents import picture as documents

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PRINTED_TIMESTEPS = 6
"""Largest number of timesteps that are printed; JSON has all."""


@dataclass(frozen=True)
class Asked:
    """Settings of a picture besides prompt and seed; None is the pipeline's default."""

    size: tuple[int, int] | None = None
    guidance: float | None = None
    negative: str | None = None

    def document(self) -> documents.Asked:
        """Return the settings for a picture's metadata."""
        return documents.Asked(size=self.size, guidance=self.guidance, negative=self.negative)


@dataclass(frozen=True)
class Draft:
    """A picture that can be drawn again."""

    path: Path
    prompt: str
    seed: int
    asked: Asked
    model: str
    weights: str

    def check(self, model: str, weights: str) -> None:
        """Raise UsageError unless this model drew it."""
        if self.weights != weights:
            by = f"the model {self.model}, not by {model}" if model != self.model else f"other weights of {model}"
            raise UsageError(f"{self.path} was drawn by {by}", hint="give that model with -m MODEL")


def read_draft(path: Path) -> Draft:
    """Read a draft from a file that dynx drew. Raises UsageError for any other file."""
    facts = png.read(path)
    if isinstance(start := facts.get("start"), dict):
        raise UsageError(
            f"{path} started from a picture, {start.get('image')}, which --finish doesn't have",
            hint=f"draw it again with --image and --seed {facts.get('seed')}",
        )
    if isinstance(control := facts.get("control"), dict):
        raise UsageError(
            f"{path} was drawn under control of a picture, {control.get('image')}, which --finish doesn't have",
            hint=f"draw it again with --control-image and --seed {facts.get('seed')}",
        )
    try:
        asked = facts["asked"]
        size, guidance, negative = asked["size"], asked["guidance"], asked["negative"]
        found = Draft(
            path,
            _text(facts["prompt"]),
            int(facts["seed"]),
            Asked(
                None if size is None else (int(size[0]), int(size[1])),
                None if guidance is None else float(guidance),
                None if negative is None else _text(negative),
            ),
            _text(facts["model"]),
            _text(facts["weights"]),
        )
        if not 0 <= found.seed < 1 << 63:
            raise ValueError
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise UsageError(f"{path} lacks some settings that are needed to draw it again") from None
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def print_facts(paths: Sequence[str], *, json: bool, jsonl: bool, schema: str) -> None:
    """Print the metadata of files to stdout, as rows or as JSON. Raises UsageError for the first file without metadata."""
    from dynx.cli.console import Terminal

    terminal = Terminal(json=json or jsonl)
    found = [(path, png.read(Path(path))) for path in paths]
    documents = [{**facts, "path": path} for path, facts in found]
    if jsonl or (json and len(documents) == 1):
        for document in documents:
            terminal.document(document)
    elif json:
        terminal.document({"schema": schema, "results": documents})
    else:
        terminal.write("\n".join(table(rows(path, facts)) for path, facts in found))


def rows(path: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the metadata as rows of printable text."""
    steps = facts.get("steps")
    told = facts.get("timesteps")
    size = facts.get("size")
    found: list[tuple[str, Any]] = [
        ("file", path),
        ("prompt", facts.get("prompt")),
        ("negative", facts.get("negative")),
        ("seed", facts.get("seed")),
        ("size", "×".join(map(str, size)) if isinstance(size, list) else size),
        ("guidance", facts.get("guidance")),
        ("start", _start(facts.get("start"))),
        ("control", _control(facts.get("control"))),
        ("model", " ".join(str(facts[k]) for k in ("model", "weights", "dtype") if facts.get(k))),
        ("solver", facts.get("solver")),
        ("steps", _steps(steps) if isinstance(steps, dict) else None),
        ("calls", f"{facts.get('calls')} of the network, {facts.get('rows')} rows" if "calls" in facts else None),
        ("timesteps", _some(told) if isinstance(told, list) else None),
        ("state", ", ".join(words for key, words in STATES.items() if facts.get(key)) or "finished"),
        ("notes", "; ".join(map(str, facts["notes"])) if isinstance(facts.get("notes"), list) else None),
        ("guarantee", (facts.get("guarantee") or "none") if "guarantee" in facts else None),
        ("profile", (facts.get("profile") or "none") if "profile" in facts else None),
        ("dynx", facts.get("dynx")),
    ]
    return [(label, printable(str(value))) for label, value in found if value not in (None, "")]


STATES = {
    "draft": "a draft",
    "landed": "stopped early, at the estimate of the clean image",
    "flagged": "blackened by the pipeline's safety checker",
}


def _control(control: Any) -> str | None:
    return f"{control.get('image')}, scale {control.get('scale')}" if isinstance(control, dict) else None


def _start(start: Any) -> str | None:
    if not isinstance(start, dict):
        return None
    masked = ", masked" if start.get("mask") else ""
    return f"{start.get('image')}, strength {start.get('strength')}{masked}"


def _steps(steps: dict[str, Any]) -> str:
    return f"{steps.get('run')} run, {steps.get('skipped')} skipped of {steps.get('planned')}"


def _some(told: list[Any]) -> str:
    words = [f"{t:.5g}" if isinstance(t, float) else str(t) for t in told]
    return ", ".join(
        words if len(words) <= MAX_PRINTED_TIMESTEPS else [*words[: MAX_PRINTED_TIMESTEPS - 1], "…", words[-1]]
    )


def printable(text: str) -> str:
    """Return `text` on one line, without characters that control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(pairs: Sequence[tuple[str, str]]) -> str:
    """Format labels and values in two columns."""
    width = max((len(label) for label, _ in pairs), default=0)
    return "".join(f"{label:<{width}}  {value}\n" for label, value in pairs)
