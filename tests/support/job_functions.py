"""Functions of rows for tests of jobs: they answer at once, count letters, and fail where a row tells them to."""

from __future__ import annotations

import os
import signal
import time
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dynx.jobs.row_function import RowFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


WHO = ("The old king", "A clever fox", "My sister", "The captain", "Every morning the miller", "Nobody in the village")
WHAT = ("opened the door", "had lost a ring", "looked at the sea", "did not believe it", "rode home", "lit a candle")


def lines(rows: int) -> list[str]:
    """Return different texts, which also begin stories and describe pictures."""
    pairs = zip(range(rows), cycle(product(WHO, WHAT)), strict=False)
    return [f"{who} {what} {number} years ago" for number, (who, what) in pairs]


class Letters(RowFunction):
    """Count the letters of texts. `raise`, `exit`, `kill` and `hang` do what they say; `seconds` is the time of a row."""

    added: ClassVar[Mapping[str, str]] = {"letters": "int32", "full": "bool", "audited": "bool", "agrees": "bool"}
    totals: ClassVar[tuple[str, ...]] = ("letters",)

    def __init__(
        self, model: str = "stub", *, seconds: float = 0.0, bad_from: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.seconds, self.bad_from = seconds, bad_from
        self.full_depth = False

    def prepare(self, warn: Callable[[str], None] = lambda _: None) -> list[str]:
        """Have no plan."""
        return []

    def _make_plan(self, warn: Callable[[str], None]) -> Any: ...

    def _open(self) -> None:
        self.kind = f"{os.uname().machine}"
        self.identity = {"model": self.model, **self.options}

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Count letters; every tenth row is audited, and differs from row `bad_from` on unless at full depth."""
        if self.seconds:
            time.sleep(self.seconds * len(values))
        rows = []
        for value, key in zip(values, keys, strict=True):
            if value == "raise":
                raise RuntimeError("as the row says")
            if value == "exit":
                os._exit(7)
            if value == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if value == "hang":
                time.sleep(600)
            row: dict[str, Any] = {"letters": len(value), "full": self.full_depth}
            if self.bad_from is not None and not self.full_depth and int(key) % 10 == 0:
                row |= {"audited": True, "agrees": int(key) < self.bad_from}
            rows.append(row)
        return rows


class Timed(Letters):
    """Letters that measure what they cost: each measurement leaves a file in `folder`, and so does each use of one."""

    timed: ClassVar[bool] = True

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def measure_costs(self, rows: int) -> Any:
        """Leave a file."""
        time.sleep(0.3)
        Path(self.folder, f"measured-{os.getpid()}").touch()
        return {"rows": rows}

    def use_costs(self, costs: Any) -> None:
        """Leave a file."""
        Path(self.folder, f"used-{os.getpid()}-{costs['rows']}").touch()

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Leave a file, and count letters."""
        Path(self.folder, f"answered-{os.getpid()}").touch()
        return super().answer(values, keys)


class Sizes(Letters):
    """Open the images of paths, as `Letters` answers their names."""

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Load each image, and count its rows of pixels."""
        from PIL import Image

        rows = super().answer([value.stem for value in values], keys)
        return [{**row, "letters": Image.open(value).height} for row, value in zip(rows, values, strict=True)]
