"""What a promise is measured against: the model in float32, at full depth, texts cut only where the model itself must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.preprocessing import Row
from dynx.early_exit.setup import attach_exits, engine_over, load_model
from dynx.errors import ModelError
from dynx.runtime.backends.registry import TORCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.early_exit.engine import Answer, Engine
    from dynx.early_exit.preprocessing import Reader
    from dynx.early_exit.setup import Assembly


def is_reference(assembly: Assembly) -> bool:
    """Whether the assembly without exits is the reference itself."""
    blocks = assembly.blocks
    return (
        assembly.plan.dtype == "float32" and blocks.backend == TORCH and not blocks.quantized and assembly.cut is None
    )


class Reference:
    """The full model: the assembly's own where that is the reference, else loaded once more."""

    def __init__(self, assembly: Assembly) -> None:
        self._reader: Reader = assembly.reader
        if is_reference(assembly):
            self._engine: Engine[Row] = assembly.engine(exits=None)
        else:
            model, self._reader = load_model(assembly.plan, dtype="float32", max_length=None)
            self._engine = engine_over(attach_exits(model, self._reader, {}), self._reader, assembly.batch)

    @property
    def blocks(self) -> int:
        """Block calls so far, times rows."""
        return self._engine.blocks

    def answers(self, items: Sequence[Any]) -> list[Answer]:
        """Of texts or paths that were read before. ModelError: one of them can't be read any more."""
        rows = self._reader.rows(items)
        if bad := [row for row in rows if isinstance(row, str)]:
            raise ModelError(f"an input can't be read a second time: {bad[0]}")
        return self._engine.window([row for row in rows if isinstance(row, Row)])

    def logits(self, items: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(n, C)."""
        return np.stack([answer.logits for answer in self.answers(items)])
