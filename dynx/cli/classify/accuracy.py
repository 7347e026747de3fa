"""Compares answers with true labels: accuracy, macro-F1 and agreement, counted while answers arrive.

The truth is a file with a row for each row of the input: a label, or a table with the label in its last column.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dynx.cli.pieces import lines, undecoded
from dynx.cli.tables import table
from dynx.errors import UsageError
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dynx.cli.pieces import Line
    from dynx.cli.tables import Cells

Interval: TypeAlias = "Callable[[int, int, float], tuple[float, float]]"
"""Function from (trials, hits, 1 - confidence) to the bounds (low, high)."""

MAX_NAMED_LABELS = 5
"""Largest number of unknown labels in an error message."""


@dataclass(frozen=True)
class Gold:
    """The true label of each row, as an id; None where the file has none."""

    name: str
    labels: Sequence[str]
    """Names of the labels, by id."""
    rows: Sequence[int | None]


def read_gold(path: Path, labels: Sequence[str], *, quoted: bool = False) -> Gold:
    """Read the true labels; `labels` are the model's names by id, and the file uses names or ids, names if both fit.

    `quoted`: it is a table as Python's csv module writes them, like the input; else each line is a row, whatever it quotes.
    Of a row whose text can't be read the label still counts. A first row with an unknown label above known ones is a header.
    Raises UsageError naming the labels that aren't known, and where the file can't be read.
    """
    try:
        with path.open("rb") as file:
            source = lines(file, str(path), keep=quoted)
            read = [_label(row) for row in table(source)] if quoted else [_plain_label(line) for line in source]
    except OSError as e:
        raise UsageError(f"can't read {path}: {e.strerror or e}") from None
    bad = next((error for _, error in read if error is not None), None)
    if bad is not None:
        raise UsageError(f"{path} has a label that is {bad}")
    cells = [cell for cell, _ in read]
    names = {name: id_ for id_, name in reversed(list(enumerate(labels)))}
    ids = {str(id_): id_ for id_ in range(len(labels))}
    found = Counter(cell for cell in cells if cell)
    if not found:
        raise UsageError(f"{path} has no labels")
    known = max((names, ids), key=lambda known: sum(found[cell] for cell in known))
    unknown = [cell for cell in found if cell not in known]
    if unknown == [cells[0]] and found[cells[0]] == 1 and len(found) > 1:
        unknown, cells = [], cells[1:]
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED_LABELS} more" if len(unknown) > MAX_NAMED_LABELS else ""
        shown = ", ".join(cell[:40] for cell in unknown[:MAX_NAMED_LABELS])
        raise UsageError(
            f"{path} has labels that are unknown to the model: {shown}{more}",
            hint=f"its labels are {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}, or 0 to {len(labels) - 1}",
        )
    return Gold(str(path), labels, [known[cell] if cell else None for cell in cells])


def _label(row: Cells) -> tuple[str, str | None]:
    """Return the last cell of a row, and why it isn't text; of a row that isn't a table's, the text after the last tab."""
    cell = (row.line.rpartition("\t")[2] if row.error is not None else row.cells[-1]).strip()
    return cell, undecoded(cell, row.offset)


def _plain_label(line: Line) -> tuple[str, str | None]:
    cell = line.text.rpartition("\t")[2].strip()
    return cell, line.error if line.cut or undecoded(cell, line.offset) else None


@dataclass(frozen=True)
class Share:
    """A proportion with its interval."""

    hits: int
    of: int
    low: float
    high: float
    confidence: float

    @property
    def value(self) -> float:
        """The proportion: hits / of."""
        return self.hits / self.of

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] ({self.hits} of {self.of})"

    def json(self) -> dict[str, Any]:
        """Return the proportion and its interval for a JSON document."""
        return {"value": self.value, "low": self.low, "high": self.high, "hits": self.hits, "of": self.of}


@dataclass(frozen=True)
class Report:
    """The quality of the answers; None where there was nothing to compare."""

    accuracy: Share | None
    macro_f1: float | None
    """Mean F1 of the labels that occur among the true labels or the answers."""
    agreement: Share | None
    """Share of answers that equal the full model's."""
    unscored: int
    """Number of rows without an answer or without a true label."""
    confidence: float

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values to print."""
        rows = []
        if self.accuracy is not None and self.macro_f1 is not None:
            rows = [("accuracy", str(self.accuracy)), ("macro-F1", f"{self.macro_f1:.4f}")]
        if self.agreement is not None:
            rows.append(("agreement", f"{self.agreement} with the full model"))
        if self.unscored:
            rows.append(("not scored", str(self.unscored)))
        return [*rows, ("intervals", f"{self.confidence:.4g}, Clopper-Pearson")] if rows else []

    def json(self) -> dict[str, Any]:
        """Return the report for a JSON document."""
        return {
            "accuracy": self.accuracy.json() if self.accuracy else None,
            "macro_f1": self.macro_f1,
            "agreement": self.agreement.json() if self.agreement else None,
            "unscored": self.unscored,
            "confidence": self.confidence,
        }


class Tally:
    """Counts answers against a `Gold`, in memory that doesn't grow with their number."""

    def __init__(self, gold: Gold, *, confidence: float = 0.95, interval: Interval = two_sided) -> None:
        self._gold, self._confidence, self._interval = gold, confidence, interval
        self._ids = {name: id_ for id_, name in reversed(list(enumerate(gold.labels)))}
        self._pairs: Counter[tuple[int, int]] = Counter()  # (truth, answer)
        self._compared = self._agreed = 0

    def add(self, index: int, label: str | None, full: str | None = None) -> None:
        """Count the answer to row `index`, None for no answer, and the full model's label if known."""
        if label is None:
            return
        if full is not None:
            self._compared += 1
            self._agreed += label == full
        truth = self._gold.rows[index] if index < len(self._gold.rows) else None
        if truth is not None:
            self._pairs[truth, self._ids.get(label, -1)] += 1

    def agreed(self, hits: int, of: int) -> None:
        """Count agreement of answers that were compared elsewhere."""
        self._agreed += hits
        self._compared += of

    def report(self, rows: int) -> Report:
        """Return the report for an input of `rows` rows. Raises UsageError if there are more or fewer true labels."""
        truths = len(self._gold.rows)
        while truths > rows and self._gold.rows[truths - 1] is None:
            truths -= 1  # blank lines at the end
        if truths != rows:
            raise UsageError(
                f"{self._gold.name} has {_count(truths, 'label')} and the input {_count(rows, 'row')}",
                hint="--labels needs one label per input row, in the same order",
            )
        scored = self._pairs.total()
        hits = sum(count for (truth, answer), count in self._pairs.items() if truth == answer)
        return Report(
            accuracy=self._share(hits, scored),
            macro_f1=macro_f1(self._pairs) if scored else None,
            agreement=self._share(self._agreed, self._compared),
            unscored=rows - scored,
            confidence=self._confidence,
        )

    def _share(self, hits: int, of: int) -> Share | None:
        if not of:
            return None
        low, high = self._interval(of, hits, 1 - self._confidence)
        return Share(hits, of, low, high, self._confidence)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def macro_f1(pairs: Counter[tuple[int, int]]) -> float:
    """Return the mean over labels of 2·hits / (truths + answers); `pairs` counts (truth, answer)."""
    hits: Counter[int] = Counter()
    occurrences: Counter[int] = Counter()
    for (truth, answer), count in pairs.items():
        occurrences[truth] += count
        occurrences[answer] += count
        if truth == answer:
            hits[truth] += count
    return math.fsum(2 * hits[label] / occurrences[label] for label in occurrences) / len(occurrences)
