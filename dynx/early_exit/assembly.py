"""A classifier once it is loaded, with exits where it can have any, and the full model that a promise is measured against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dynx.errors import DeviceError, InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.backends.registry import TORCH
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dynx.early_exit.attach.full_depth import Whole
    from dynx.early_exit.attach.model import Attachment
    from dynx.early_exit.engine import Answer, Engine, Exits
    from dynx.early_exit.labels import Labels
    from dynx.early_exit.plan import ClassifierDecisions, ClassifierPlan
    from dynx.early_exit.preprocessing import Reader, Row
    from dynx.early_exit.profile_data import Knowledge
    from dynx.early_exit.types import Guarantee

    Ranges = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Blocks:
    """The blocks that a model runs: whose kernels, in which precision, and the ranges that int8 was made with."""

    backend: str = TORCH
    precision: str = "float32"
    ranges: Ranges = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.precision == "int8"


@dataclass
class LoadedClassifier:
    """A plan carried out."""

    plan: ClassifierPlan
    attachment: Attachment | Whole
    reader: Reader
    labels: Labels
    knowledge: Knowledge | None
    """What the profile says of this model's exits, where it has any that may be used."""
    blocks: Blocks = field(default_factory=Blocks)
    """What its blocks are computed by."""
    certified: Guarantee | None = None
    """What the profile shows of its answers at full depth, where it isn't the reference itself."""

    @property
    def decisions(self) -> ClassifierDecisions:
        """Every setting with its value and the reason."""
        return self.plan.decisions

    @property
    def why_full_depth(self) -> str:
        """Why every layer runs; empty where exits are used."""
        return "" if self.decisions.exits is None else self.decisions.exits.reason

    @property
    def batch(self) -> int:
        """Rows computed together."""
        return 1 if not getattr(self.reader, "pads_batches", True) else self.plan.request.batch_size

    @property
    def cut(self) -> int | None:
        """The tokens that texts are cut to, where that is fewer than the model takes."""
        limit = getattr(self.reader, "limit", None)
        return None if limit == getattr(self.reader, "own_limit", None) else limit

    def engine(self, exits: Exits | None = None, *, batch: int | None = None) -> Engine[Row]:
        """A fresh engine over the model, with these exits or none."""
        return engine_over(self.attachment, self.reader, batch or self.batch, exits)


def engine_over(attachment: Attachment | Whole, reader: Reader, batch: int, exits: Exits | None = None) -> Engine[Row]:
    """An engine for a reader's rows."""
    from dynx.early_exit.engine import Engine

    return Engine(
        attachment,  # type: ignore[arg-type]  # a Whole has no exits and is never asked for them
        reader.collate,
        length=lambda row: row.size,
        identity=lambda row: row.identity,
        exits=exits,
        batch=batch,
    )


def load_model(plan: ClassifierPlan, *, dtype: str, max_length: int | None) -> tuple[Any, Reader]:
    """The plan's model in some precision, and the reader of its inputs. Raises DynxError."""
    from dynx.early_exit.preprocessing import Images, Texts

    if plan.kind == "image" and max_length is not None:
        raise InvalidInput("`max_length` is about texts, and this model takes images")
    ready = loading.load_image_processor(plan.source) if plan.kind == "image" else loading.load_tokenizer(plan.source)
    model = loading.load_classifier(
        plan.source, plan.kind, device=plan.device, dtype=dtype, allow_pickle=plan.request.allow_pickle
    )
    reader: Reader = Images(ready, model) if plan.kind == "image" else Texts(ready, model, max_length)
    return model, reader


class Attached(NamedTuple):
    """A model with exits, or at full depth where it can't have any, and why."""

    model: Attachment | Whole
    exits: Decision[str] | None = None
    """Why there are none."""
    batch: Decision[int] | None = None
    """Why inputs are computed one by one."""


def attach_exits(model: Any, reader: Reader) -> Attached:
    """Attach exits to a model; one that can't have any stays whole, with the reason."""
    from dynx.early_exit.attach.attach import attach
    from dynx.early_exit.attach.full_depth import Whole

    example = reader.probe()
    if not getattr(reader, "pads_batches", True):
        why = "neither model nor tokenizer has a padding token"
        return Attached(Whole(model, reader.kind, example), Decision("none", why), Decision(1, why))
    try:
        return Attached(attach(model, example))
    except DeviceError:
        raise
    except UnsupportedModelError as e:
        return Attached(Whole(model, reader.kind, example), Decision("none", str(e)))


def is_reference(assembly: LoadedClassifier) -> bool:
    """Whether the assembly without exits is the reference itself."""
    blocks = assembly.blocks
    return (
        assembly.plan.dtype == "float32" and blocks.backend == TORCH and not blocks.quantized and assembly.cut is None
    )


class Reference:
    """The full model: the assembly's own where that is the reference, else loaded once more."""

    def __init__(self, assembly: LoadedClassifier) -> None:
        self._reader: Reader = assembly.reader
        if is_reference(assembly):
            self._engine: Engine[Row] = assembly.engine(exits=None)
        else:
            model, self._reader = load_model(assembly.plan, dtype="float32", max_length=None)
            self._engine = engine_over(attach_exits(model, self._reader).model, self._reader, assembly.batch)

    @property
    def blocks(self) -> int:
        """Block calls so far, times rows."""
        return self._engine.blocks

    def answers(self, items: Sequence[Any]) -> list[Answer]:
        """Of texts or paths that were read before. ModelError: one of them can't be read any more."""
        from dynx.early_exit.preprocessing import Row

        rows = self._reader.rows(items)
        if bad := [row for row in rows if isinstance(row, str)]:
            raise ModelError(f"an input can't be read a second time: {bad[0]}")
        return self._engine.window([row for row in rows if isinstance(row, Row)])

    def logits(self, items: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(n, C)."""
        import numpy as np

        return np.stack([answer.logits for answer in self.answers(items)])
