"""What functions of rows have in common: errors stay in their rows, profiles travel, batches of any library are taken."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dynx.errors import DynxError, InvalidInput, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEEDS = 1 << 63
"""Number of seeds that a row's may have."""


class RowFunction(ABC):
    """A function of a batch of columns, which adds columns to it."""

    added: ClassVar[Mapping[str, str]]
    """Types of the columns that it always adds, by Arrow's names, or "json" for lists and objects."""

    totals: ClassVar[tuple[str, ...]] = ()
    """Values of the answers whose sums a job reports."""

    timed: ClassVar[bool] = False
    """Whether `measure_costs` tells what answers cost here, and `use_costs` takes that from a machine like this one."""

    profile_decides: ClassVar[bool] = True
    """Whether answers depend on the profile, and not only the time that they take."""

    def __init__(self, model: str, *, column: str = "text", key: str | None = None, **options: Any) -> None:
        self.model, self.column, self.key, self.options = model, column, key, options
        self.kind = ""
        """What computes: it may change the time that an answer takes, and the last bits of a score."""
        self.identity: dict[str, Any] = {}
        """What the answers depend on besides the options: weights, precision, exits; and their guarantee."""
        self._opened = False
        self._profile: tuple[str, bool] | None = None  # as JSON, and whether it came with the model

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that it adds, and their types by Arrow's names."""
        return self.added

    def prepare(self, warn: Callable[[str], None] = lambda _: None) -> list[str]:
        """Take this machine's profile along to wherever the function is sent; return what is decided, in words. Raises DynxError.

        What answers depend on is then the same everywhere, and a machine without a profile of its own has at least this one.
        """
        plan = self._make_plan(warn)
        if plan.profile is not None:
            from dynx.runtime.profile import write_arrays

            text = plan.profile.to_json(embed=write_arrays(plan.arrays) if plan.arrays else None)
            self._profile = text, plan.bundled
        elif self.profile_decides:
            self.options["profile"] = "none"
        return [f"{name}: {decision.value} ({decision.reason})" for name, decision in plan.decisions.items()]

    def _plan(self) -> Any:
        """Plan here, by the profile that was taken along where there is none, or where answers depend on it."""
        plan = self._make_plan(lambda _: None)
        if self._profile is not None and (plan.profile is None or self.profile_decides):
            from dynx.runtime.profile import read_arrays, unpack

            text, bundled = self._profile
            profile, blob = unpack(text.encode())
            if plan.profile is None or plan.profile.key != profile.key:
                plan.profile, plan.arrays = profile, {} if blob is None else read_arrays(blob)
                plan.bundled = bundled or not self.profile_decides  # costs of another machine are a guess
        self.kind = f"{plan.machine.fingerprint} {plan.device} {plan.backend} {plan.threads}"
        return plan

    @abstractmethod
    def _make_plan(self, warn: Callable[[str], None]) -> Any: ...

    def open(self) -> None:
        """Load the model, once. Raises DynxError."""
        if not self._opened:
            self._open()
            self._opened = True

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Answer rows: values of the column, and what tells the rows apart. May raise anything because of one row."""

    def rows(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Answer rows; one that raises has its error in its place. Raises ModelError, which isn't about a row."""
        self.open()
        good = [i for i, value in enumerate(values) if not isinstance(value, Exception)]
        answers = iter(self._isolated([values[i] for i in good], [keys[i] for i in good]))
        return [{"error": str(v)} if isinstance(v, Exception) else next(answers) for v in values]

    def _isolated(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        if not values:
            return []
        try:
            return self.answer(values, keys)
        except ModelError:
            raise
        except Exception as e:  # noqa: BLE001 - whatever a row does is that row's error
            if len(values) == 1:
                return [{"error": str(e) if isinstance(e, DynxError) else f"{type(e).__name__}: {e}"}]
            half = len(values) // 2
            return self._isolated(values[:half], keys[:half]) + self._isolated(values[half:], keys[half:])

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the answers' columns: a mapping of columns to lists or arrays, or a table of pyarrow."""
        table = not isinstance(batch, Mapping)
        columns = batch.to_pydict() if table else batch
        if self.column not in columns:
            raise InvalidInput(f'no `column` "{self.column}"; there is {", ".join(map(str, columns))}')
        values = [value if isinstance(value, str) else _plain(value) for value in columns[self.column]]
        keys = [f"{value}" for value in values] if self.key is None else [_plain(k) for k in columns[self.key]]
        found = self.rows(values, keys)
        own = {**self.columns, "error": "string"}
        added = {name: [row.get(name) for row in found] for name in own}
        if table:
            import pyarrow as pa

            for name, cells in added.items():
                values = [arrow_cell(cell, own[name]) for cell in cells]
                batch = batch.append_column(name, pa.array(values, type=pa.type_for_alias(arrow_type(own[name]))))
            return batch
        return {**columns, **added}


def arrow_type(kind: str) -> str:
    """Return Arrow's name of a column's type; lists and objects, of the kind "json", are stored as JSON."""
    return "string" if kind == "json" else kind


def arrow_cell(value: Any, kind: str) -> Any:
    """Return a cell as Arrow stores it."""
    return json.dumps(value, ensure_ascii=False) if kind == "json" and value is not None else value


def _plain(value: Any) -> Any:
    """Return a cell as a Python object."""
    return value.tolist() if hasattr(value, "tolist") else value


def seed_of(seed: int, key: int | str) -> int:
    """Return the seed of a row, which depends on the job's and on the row alone."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % SEEDS
