"""Rows exit between segments: each gets the answer that its exit rule says, whatever rows it shared a batch with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.classifiers import TEXT, VOCAB, classifier

from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.attach.attach import attach
from dynx.early_exit.engine import Exits
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.segments.engine import SegmentEngine
from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

BORDERS = (1, 3)
HIDDEN = 32


class TorchSegments:
    """A tiny BERT in segments, computed by PyTorch: what the engine needs of `SegmentedModel`, with every call recorded."""

    def __init__(self, exit_model: Any) -> None:
        self._exit_model = exit_model
        self.borders, self.depth, self.ends = BORDERS, exit_model.depth, (*BORDERS, exit_model.depth)
        self.merges_lengths, self.kind = True, "text"
        self.input_names = ("attention_mask", "input_ids")
        self.calls: list[tuple[int, int]] = []
        self.widths: list[int] = []

    def __len__(self) -> int:
        return len(self.ends)

    def needed_later(self, name: str) -> bool:
        """Only the mask is."""
        return name == "attention_mask"

    def run(
        self, number: int, inputs: Mapping[str, NDArray[Any]], hidden: NDArray[np.float32] | None = None
    ) -> list[Any]:
        """As `SegmentedModel.run`."""
        from dynx.early_exit.attach.hidden_state import State

        self.calls.append((number, len(inputs["attention_mask"])))
        self.widths.append(inputs["attention_mask"].shape[1])
        mask = torch.from_numpy(np.ascontiguousarray(inputs["attention_mask"]))
        ids = inputs.get("input_ids")
        given = {
            "input_ids": torch.zeros_like(mask) if ids is None else torch.from_numpy(ids),
            "attention_mask": mask,
        }
        start = None if hidden is None else State(self.ends[number - 1], torch.from_numpy(hidden.copy()))
        if number == len(self.ends) - 1:
            return [self._exit_model.run(given, start=start, watch=lambda *_: None).logits.numpy()]
        state = self._exit_model.run(given, start=start, stop=self.ends[number]).state.hidden
        return [state.numpy(), self._exit_model.pool(state, given).numpy()]


def collate(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Pad on the right."""
    width = max(map(len, rows))
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.fixture(scope="module")
def exit_model() -> Iterator[Any]:
    """A tiny BERT."""
    model = attach(classifier("bert"), collate([[3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [5]]))
    assert "bert" in TEXT
    yield model
    model.detach()


@pytest.fixture(scope="module")
def rows() -> list[tuple[int, ...]]:
    """Different token lists of 2 to 20 tokens, one of them twice."""
    rng = np.random.default_rng(0)
    made = [tuple(int(t) for t in rng.integers(3, VOCAB, rng.integers(2, 20))) for _ in range(60)]
    return [*made, made[7]]


def exits(thresholds: Sequence[float]) -> Exits:
    """Random heads, with the log-odds of their answers as score."""
    rng = torch.Generator().manual_seed(1)
    parts = [
        (torch.zeros(2 * HIDDEN), torch.randn(2 * HIDDEN, 5, generator=rng), torch.zeros(5), torch.zeros(5))
        for _ in BORDERS
    ]
    weights, scales = np.zeros((2, 6)), np.zeros((2, 2, 5))
    weights[:, 1], scales[:, 1] = 0.5, 1.0
    score = AgreementScore("single", weights, scales, 0.0)
    return Exits(BORDERS, ExitHeads("single", parts), score, np.asarray(thresholds))


def alone(exit_model: Any, row: Sequence[int], found: Exits) -> tuple[NDArray[np.float32], int]:
    """What the rule says of a row on its own: logits, and layers."""
    inputs = collate([row])
    answers: list[tuple[NDArray[np.float32], int]] = []
    before: list[Any] = [None]

    def watch(depth: int, hidden: Tensor, _rows: Tensor) -> Tensor | None:
        k = BORDERS.index(depth)
        logits = found.heads.logits(k, exit_model.pool(hidden, inputs), before[0])
        leaves = found.score(k, logits, before[0])[0] >= found.thresholds[k]
        before[0] = logits
        if leaves:
            answers.append((logits[0].numpy(), depth))
            return torch.empty(0, dtype=torch.long)
        return None

    out = exit_model.run(inputs, watch=watch, exits=BORDERS).logits
    return answers[0] if answers else (out[0].numpy(), exit_model.depth)


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("thresholds", [(0.8, 0.7), (np.inf, 0.7), (0.8, np.inf), (0.0001, 0.5)])
def test_every_row_gets_the_answer_of_its_rule(exit_model: Any, rows: Any, thresholds: Any, batch: int) -> None:
    """In the order of the rows, with the layers that it took; an equal row isn't computed again."""
    found = exits(thresholds)
    model: Any = TorchSegments(exit_model)
    engine: SegmentEngine[Any] = SegmentEngine(model, collate, length=len, identity=tuple, exits=found, batch=batch)
    answers = engine.window(rows)
    for row, answer in zip(rows, answers, strict=True):
        logits, layers = alone(exit_model, row, found)
        np.testing.assert_allclose(answer.logits, logits, atol=1e-4)
        assert answer.layers == (0 if answer.repeated else layers)
    assert [answer.repeated for answer in answers] == [False] * 60 + [True]
    assert engine.block_calls == sum(answer.layers for answer in answers)


def test_batches_fill_again_at_borders(exit_model: Any, rows: Any) -> None:
    """However many rows leave, later segments compute full batches, but for what is left at the end."""
    model: Any = TorchSegments(exit_model)
    SegmentEngine(model, collate, length=len, exits=exits((0.8, 0.7)), batch=8).window(rows)
    later = [count for number, count in model.calls if number > 0]
    assert sum(count == 8 for count in later) >= len(later) - 6  # lengths too different to pad together, and the rest
    assert max(count for _, count in model.calls) == 8


def test_shapes_are_few(exit_model: Any, rows: Any) -> None:
    """Tokens and rows are padded to steps, never beyond what the model takes."""
    model: Any = TorchSegments(exit_model)
    SegmentEngine(model, collate, length=len, exits=exits((0.8, 0.7)), batch=16, limit=18).window(rows)
    assert {count for _, count in model.calls} <= {1, 2, 4, 8, 16}
    widths = {width for width in model.widths if width % 4}
    assert max(model.widths) <= 19
    assert widths <= {17, 18, 19}


def test_no_exits_is_the_model(exit_model: Any, rows: Any) -> None:
    """Without thresholds that anything reaches every row runs all layers."""
    model: Any = TorchSegments(exit_model)
    for found in (None, exits((np.inf, np.inf))):
        answers = SegmentEngine(model, collate, length=len, exits=found, batch=16).window(rows)
        want = exit_model.run(collate([rows[5]])).logits[0].numpy()
        np.testing.assert_allclose(answers[5].logits, want, atol=1e-4)
        assert {answer.layers for answer in answers} == {exit_model.depth}


def test_exits_elsewhere_are_refused(exit_model: Any) -> None:
    """Heads of other layers aren't run at these borders."""
    found = exits((0.8, 0.7))
    other = Exits((1, 2), found.heads, found.score, found.thresholds)
    with pytest.raises(InvalidInput, match="cut after"):
        SegmentEngine(TorchSegments(exit_model), collate, exits=other)  # type: ignore[arg-type]
