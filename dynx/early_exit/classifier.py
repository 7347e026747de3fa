"""Classify a stream of inputs window by window, in order, with a receipt and a check of the guarantee.

A guarantee has three sources. The profile holds a certificate from earlier data. An audit runs a share of the inputs through all
layers too, and turns exits off once the evidence contradicts the guarantee. Or a random sample of the inputs themselves decides
how early the rest of them may exit (`sample_certificate.certify`).
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from dynx.early_exit.apply_profile import certify_full_depth
from dynx.early_exit.assembly import BlockBackend, Reference, is_reference
from dynx.early_exit.audit import Audit, audited
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.types import EXACT_GUARANTEE, Entities, Guarantee, Prediction, Receipt
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.backends.registry import OPENVINO, attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.early_exit.assembly import AnyEngine, LoadedClassifier
    from dynx.early_exit.engine import Answer, Exits

SEED = 0
"""Seed of the draws for audits: the same inputs are drawn in every run."""


class Classifier:
    """A model with exits that classifies one stream of inputs; `on_alarm` is called once with the audit's alarm, if any."""

    def __init__(
        self, assembly: LoadedClassifier, *, audit: float = 0.0, on_alarm: Callable[[str], None] = lambda _: None
    ) -> None:
        if not 0 <= audit <= 1:
            raise InvalidInput(f"`audit` {audit:g} is not a share between 0 and 1")
        request = assembly.plan.request
        self.assembly = assembly
        self.labels = assembly.labels
        self.audit = Audit(request.max_disagreement, request.delta) if audit else None
        self.receipt = Receipt(assembly.exit_model.depth)
        self._share, self._on_alarm = audit, on_alarm
        self._reference: Reference | None = None
        self._answered: Mapping[int, Answer] = {}
        self._number = 0  # of the next input
        self._engine: AnyEngine
        self._start()

    def _start(self) -> None:
        """Answer as the assembly was loaded to, or as its profile certifies."""
        known = None if self.assembly.pending is not None else self.assembly.exit_profile
        self._set_engine(known.exits() if known else None, known.guarantee if known else self.full_guarantee)

    def _turn_to_segments(self) -> None:
        """Answer from here on as the profile measured, where converting has paid by now. It may turn out to be impossible."""
        assembly = self.assembly
        pending = assembly.pending
        if pending is None or not pending.pays(self.receipt.seconds):
            return
        assembly.pending = None
        try:
            with attempt(OPENVINO, assembly.plan.source.name):
                _ = pending.segments.whole if assembly.exit_profile is None else pending.segments.parts
        except UnsupportedModelError as e:
            assembly.exit_profile = None
            self.receipt.backend = f"PyTorch: OpenVINO can't run it ({e})"
            return
        assembly.segments = pending.segments
        assembly.block_backend = BlockBackend(OPENVINO, pending.segments.precision, pending.segments.cut.ranges)
        assembly.certified, _words = certify_full_depth(assembly)
        self.receipt.backend = f"PyTorch for {self._number:,} inputs, then OpenVINO ({pending.segments.cut})"
        self._start()

    def set_exits(self, exits: Exits | None, guarantee: Guarantee | None, answered: Mapping[int, Answer]) -> None:
        """Switch to other exits, and to answers that are known already, by the input's number from now on."""
        self._set_engine(exits, guarantee)
        self._answered = answered

    def _set_engine(self, exits: Exits | None, guarantee: Guarantee | None) -> None:
        self._engine = self.assembly.engine(exits=exits)
        self._depths = () if exits is None else exits.depths
        self.receipt.guarantee = guarantee

    @property
    def full_guarantee(self) -> Guarantee | None:
        """The guarantee without exits: exact for the reference itself, and what a profile certifies for another model."""
        return EXACT_GUARANTEE if is_reference(self.assembly) else self.assembly.certified

    @property
    def exiting(self) -> bool:
        """Whether any input may exit early."""
        return self._engine.exits is not None

    def window(self, items: Sequence[Any]) -> list[Any]:
        """Predict the next inputs (texts, or paths of images), in order; models that label tokens give `Entities`.

        DeviceError: out of memory.
        """
        began = time.perf_counter()
        self._turn_to_segments()
        rows = self.assembly.preprocessor.rows(items)
        good = [(self._number + i, row) for i, row in enumerate(rows) if isinstance(row, Example)]
        answers = self._answers([row for _, row in good], [number for number, _ in good])
        read = iter(self.labels.read([row for _, row in good], answers, self._depths))
        failed = Entities.failed if self.assembly.plan.kind == "tokens" else Prediction.failed
        out = [failed(row) if isinstance(row, str) else next(read) for row in rows]
        self._count(rows, answers)
        self._number += len(items)
        self._audit_window(items, rows, answers)
        self.receipt.seconds += time.perf_counter() - began
        return out

    def _answers(self, rows: Sequence[Example], numbers: Sequence[int]) -> list[Answer]:
        """Return answers from the engine, and those that are known already."""
        answers = [self._answered.get(number) for number in numbers]
        fresh = iter(self._engine.window([row for row, answer in zip(rows, answers, strict=True) if answer is None]))
        return [next(fresh) if answer is None else answer for answer in answers]

    def _count(self, rows: Sequence[Example | str], answers: Sequence[Answer]) -> None:
        receipt = self.receipt
        receipt.inputs += len(rows)
        receipt.errors += sum(isinstance(row, str) for row in rows)
        receipt.truncated += sum(isinstance(row, Example) and row.truncated for row in rows)
        receipt.repeated += sum(answer.repeated for answer in answers)
        receipt.layers += sum(answer.layers for answer in answers)
        receipt.exit_counts += Counter(
            receipt.depth if answer.exit is None else self._depths[answer.exit]
            for answer in answers
            if not answer.repeated
        )

    def _audit_window(self, items: Sequence[Any], rows: Sequence[Example | str], answers: Sequence[Answer]) -> None:
        """Compare the audited share with the full model, and turn exits off once the alarm is raised."""
        if self.audit is None or not self.exiting:
            return
        numbers = [i for i, row in enumerate(rows) if isinstance(row, Example)]
        first = self._number - len(items)
        drawn = [k for k, i in enumerate(numbers) if audited(first + i, self._share, SEED)]
        if not drawn:
            return
        self._reference = self._reference or Reference(self.assembly)
        before = self._reference.block_calls
        full_rows, full = self._reference.read([items[numbers[k]] for k in drawn])
        self.receipt.audit_layers += self._reference.block_calls - before
        own = [row for row in rows if isinstance(row, Example)]
        tolerance = self.assembly.plan.request.within or 0.0
        some = [own[k] for k in drawn], [answers[k] for k in drawn]
        for agree in self.labels.same(*some, full_rows, full, tolerance):
            if self.audit.update(not agree):
                self._set_engine(None, None)
                if self.assembly.segments is not None:  # whose arithmetic may be what the disagreement comes from
                    self._engine = self._reference.engine
                self._on_alarm(f"{self.audit}; from here on every answer is the full model's")
                return
