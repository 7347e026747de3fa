"""The segments that a classifier runs as: the whole model for full depth, and the same cut where rows may exit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dynx.early_exit.segments import store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dynx.early_exit.attach.model import ExitModel
    from dynx.early_exit.engine import Exits
    from dynx.early_exit.preprocessing import Example, Preprocessor
    from dynx.early_exit.segments.engine import SegmentEngine
    from dynx.early_exit.segments.model import SegmentedModel
    from dynx.runtime.backends.openvino.blocks import Ranges


@dataclass(frozen=True)
class Cut:
    """How segments are made: precision, the blocks they end after, and the activation ranges of int8."""

    precision: str
    borders: tuple[int, ...]
    ranges: Ranges

    def __str__(self) -> str:
        where = f", cut after layer {' and '.join(map(str, self.borders))}" if self.borders else ""
        return f"{self.precision}{where}"


class Segments:
    """One classifier's segments in one precision, from the cache folder or converted when they are first needed.

    `model` returns the classifier to convert and two batches to compare it on; it isn't called where all is in the cache.
    """

    def __init__(
        self,
        cut: Cut,
        weights: str,
        threads: int,
        model: Callable[[], tuple[ExitModel, Sequence[Mapping[str, Tensor]]]],
    ) -> None:
        self.cut = cut
        self.conversion_seconds = 0.0
        """Seconds that converting took so far, where the cache didn't have what was needed."""
        self.input_seconds: dict[str, float] = {}
        """Seconds of an input at full depth, by backend, where they were timed beside each other."""
        self._weights, self._threads, self._model = weights, threads, model

    @property
    def borders(self) -> tuple[int, ...]:
        """The blocks that rows may exit after."""
        return self.cut.borders

    @property
    def precision(self) -> str:
        """The arithmetic of the segments."""
        return self.cut.precision

    @cached_property
    def whole(self) -> SegmentedModel:
        """The model in one piece. Raises UnsupportedModelError where it can't be converted."""
        return self._opened(())

    @cached_property
    def parts(self) -> SegmentedModel:
        """The model cut at the borders. Raises UnsupportedModelError where it can't be converted."""
        return self._opened(self.borders) if self.borders else self.whole

    def at(self, borders: Sequence[int]) -> Segments:
        """Return the same model with other borders."""
        other = Segments(
            Cut(self.precision, tuple(borders), self.cut.ranges), self._weights, self._threads, self._model
        )
        if "whole" in self.__dict__:
            other.__dict__["whole"] = self.whole
        other.conversion_seconds, other.input_seconds = self.conversion_seconds, self.input_seconds
        return other

    def engine(self, preprocessor: Preprocessor, batch: int, exits: Exits | None = None) -> SegmentEngine[Example]:
        """Make an engine for the examples of a preprocessor."""
        from dynx.early_exit.segments.engine import SegmentEngine

        return SegmentEngine(
            self.whole if exits is None or not exits.active else self.parts,
            preprocessor.collate,
            length=lambda row: row.size,
            identity=lambda row: row.identity,
            exits=None if exits is None or not exits.active else exits,
            batch=batch,
            limit=getattr(preprocessor, "limit", None),
        )

    def _opened(self, borders: tuple[int, ...]) -> SegmentedModel:
        folder = store.place(self._weights, self.precision, borders, self.cut.ranges)
        found = store.load(folder, threads=self._threads)
        if found is not None:
            return found
        exit_model, probes = self._model()
        began = time.perf_counter()
        made = store.make(
            exit_model,
            probes,
            borders,
            precision=self.precision,
            ranges=self.cut.ranges,
            threads=self._threads,
            folder=folder,
        )
        self.conversion_seconds = time.perf_counter() - began
        return made


@dataclass(frozen=True)
class Pending:
    """Segments that a run turns to once that pays: until then the float32 model answers, on PyTorch and at full depth.

    Inputs may end at any time. So converting starts once the time that it would have saved so far is as long as itself: however
    many inputs there are, the run takes at most twice as long as if their number had been known.
    """

    segments: Segments
    seconds: float
    """How long converting takes, as calibration measured."""
    saved: float
    """Share of PyTorch's time that OpenVINO saves."""

    def pays(self, spent: float) -> bool:
        """Whether converting pays by now; `spent` are the seconds of answers on PyTorch so far."""
        return spent * self.saved >= self.seconds


def as_measured(segments: Segments) -> dict[str, Any]:
    """Return what a profile keeps of the times of segments, in seconds."""
    return {"conversion": segments.conversion_seconds, "input": segments.input_seconds}


def as_profile(segments: Segments) -> dict[str, Any]:
    """Return what a profile keeps of segments, beside the ranges."""
    return {"precision": segments.precision, "borders": list(segments.borders)}
