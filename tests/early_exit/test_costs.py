"""What exits cost, on a clock that only blocks, heads and batches move, and once on a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.classifiers import PAD, VOCAB, classifier

from dynx.early_exit import costs as module
from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.attach.attach import attach
from dynx.early_exit.costs import measure_costs
from dynx.early_exit.heads import ExitHeads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dynx.early_exit.attach.model import ExitModel

Row = tuple[int, ...]

DEPTHS = (1, 2, 3)
FIXED, EACH, EMBEDDING, LOOK, COLLATE = 5.0, 1.0, 20.0, 3.0, 2.0
"""Seconds: of a block, of a row in it, of the embeddings, of a head, of making a batch."""


def rows_of_text(count: int, *, tokens: int | None = None) -> list[Row]:
    rng = np.random.default_rng(0)
    return [tuple(int(t) for t in rng.integers(PAD + 1, VOCAB, tokens or rng.integers(2, 18))) for _ in range(count)]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.fixture
def attached() -> Iterator[ExitModel]:
    """A tiny classifier of four blocks with exits attached."""
    with attach(classifier("bert"), collate(rows_of_text(3))) as exit_model:
        yield exit_model


def fitted(exit_model: ExitModel, depths: Sequence[int]) -> tuple[ExitHeads, AgreementScore]:
    inputs = collate(rows_of_text(60))
    pooled: list[Tensor] = []
    full = exit_model.run(
        inputs, exits=depths, watch=lambda _k, h, _r: pooled.append(exit_model.pool(h, inputs))
    ).logits
    assert full is not None
    heads = ExitHeads.fit(pooled, full, "single")
    return heads, AgreementScore.fit(heads.run(pooled), full, "single")


class Virtual:
    """A clock that stands still but for what a model does: every n-th block is `hiccup` times as slow."""

    def __init__(self, exit_model: ExitModel, hiccup: float = 1.0) -> None:
        self.now, self._blocks, self._hiccup = 0.0, 0, hiccup
        for layer in exit_model.model.bert.encoder.layer:
            layer.attention.register_forward_pre_hook(self._block, with_kwargs=True)
        exit_model.model.bert.embeddings.word_embeddings.register_forward_pre_hook(self._embedded)

    def __call__(self) -> float:
        """Now."""
        return self.now

    def _block(self, _layer: Any, args: Any, kwargs: Any) -> None:
        self._blocks += 1
        hidden = args[0] if args else kwargs["hidden_states"]
        self.now += (FIXED + EACH * len(hidden)) * (self._hiccup if self._blocks % 23 == 0 else 1)

    def _embedded(self, *_: Any) -> None:
        self.now += EMBEDDING

    def score(self, *_: Any) -> None:
        """In place of a score."""
        self.now += LOOK

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Slow."""
        self.now += COLLATE
        return collate(rows)


def costs_of(exit_model: ExitModel, batch: int, **settings: Any) -> Any:
    depths = settings.pop("depths", DEPTHS)
    heads, _ = fitted(exit_model, depths)
    clock = Virtual(exit_model, settings.pop("hiccup", 1.0))
    return measure_costs(
        exit_model,
        clock.collate,
        settings.pop("rows", rows_of_text(32)),
        depths,
        heads=heads,
        score=clock.score,  # type: ignore[arg-type]
        length=len,
        batch=batch,
        clock=clock,
        **{"budget": 1e5, **settings},
    )


def test_a_batch_is_priced_by_what_is_saved(attached: ExitModel) -> None:
    """Rows that stay can be joined to full batches for nothing here, so a row that leaves saves its share of the blocks."""
    costs = costs_of(attached, 8)

    block = (FIXED + 8 * EACH) / 8
    assert costs.full == pytest.approx((EMBEDDING + COLLATE) / 8 + 4 * block)
    assert costs.reach == pytest.approx([(EMBEDDING + COLLATE) / 8 + k * block for k in DEPTHS])
    assert costs.check == pytest.approx([LOOK / 8, LOOK / 6, LOOK / 6])  # the first sees all, later ones some of them


def test_a_batch_of_one_ends_where_its_row_leaves(attached: ExitModel) -> None:
    """There is nothing to share."""
    costs = costs_of(attached, 1)

    block = FIXED + EACH
    assert costs.full == pytest.approx(EMBEDDING + COLLATE + 4 * block)
    assert costs.reach == pytest.approx([EMBEDDING + COLLATE + k * block for k in DEPTHS])
    assert costs.check == pytest.approx([LOOK] * 3)


def test_a_slow_moment_changes_nothing(attached: ExitModel) -> None:
    """Medians forget what happens now and then."""
    assert costs_of(attached, 8, hiccup=50.0) == costs_of(attached, 8)


def test_where_joining_is_dear_the_rest_of_the_batch_pays_what_is_fixed() -> None:
    """Five seconds a block whatever its batch and one for each of eight rows; those who stopped need forty to go on."""
    upto = np.array([33.0, 46.0, 59.0])
    half = np.array([29.0, 38.0, 47.0])
    medians = {
        "full_depth": np.array([*upto, 72.0]),
        "half": np.array([*half, 56.0]),
        "with_exits": np.array([2 + 33 + 27 + 9.0]),
        "without_exits": np.array([74.0]),
        "merged": np.array([26.0 + 40.0]),
    }

    costs = module._costs(medians, 8, 4)

    assert costs.full == pytest.approx(74 / 8)
    assert costs.reach == pytest.approx([74 / 8 - 3, 74 / 8 - 2, 74 / 8 - 1])
    assert costs.check == pytest.approx([3 / 8, 3 / 6, 3 / 6])


def test_costs_from_a_clock_that_makes_no_sense_are_in_order() -> None:
    """A deeper exit is never cheaper, and none is dearer than the answer or free of charge."""
    medians = {
        "full_depth": np.array([30.0, 20.0, 90.0, 72.0]),
        "half": np.array([10.0, 38.0, 47.0, 16.0]),
        "with_exits": np.array([1.0]),
        "without_exits": np.array([70.0]),
        "merged": np.array([1.0]),
    }
    costs = module._costs(medians, 8, 4)

    assert costs.reach == tuple(sorted(costs.reach))
    assert 0 <= costs.reach[0] <= costs.reach[-1] <= costs.full == 9


def test_the_budget_ends_it(attached: ExitModel) -> None:
    """After three rounds of one batch at the earliest; the share done is told."""
    told: list[float] = []
    costs_of(attached, 8, budget=1e-6, progress=told.append)
    assert len(told) == module.MIN_ROUNDS
    assert told[-1] == 1.0

    costs_of(attached, 8, progress=told.append)
    assert len(told) == module.MIN_ROUNDS + module.MAX_ROUNDS
    assert told[-1] == 1.0


@pytest.mark.parametrize(("rows", "batch"), [(1, 32), (5, 32), (3, 2)])
def test_few_rows(attached: ExitModel, rows: int, batch: int) -> None:
    """The batch is what there is."""
    size = min(rows, batch)
    costs = costs_of(attached, batch, rows=rows_of_text(rows), depths=(2,))
    assert costs.full == pytest.approx((EMBEDDING + COLLATE + 4 * (FIXED + size * EACH)) / size)
    assert len(costs.reach) == len(costs.check) == 1


@pytest.mark.parametrize("kind", ["gpt2", "fnet", "swin"])
def test_a_real_run(kind: str) -> None:
    """A causal model, one that merges no lengths, and one whose maps change their shape."""
    small = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64} if kind == "fnet" else {}
    rows: list[Any] = rows_of_text(24) if kind != "swin" else list(torch.randn(24, 3, 32, 32))
    if kind == "fnet":
        rows = rows_of_text(12, tokens=5) + rows_of_text(12, tokens=7)

    def batch_of(several: Sequence[Any]) -> dict[str, Tensor]:
        if kind != "swin":
            return collate(several)
        return {"pixel_values": torch.stack(list(several))}

    with attach(classifier(kind, **small), batch_of(rows[:3])) as exit_model:
        inputs = batch_of(rows[:8])
        wide = [int(exit_model.pool(h, inputs).shape[1]) for h in _hidden(exit_model, inputs)]
        heads = ExitHeads("single", [(torch.zeros(w), torch.ones(w, 5), torch.zeros(5), torch.zeros(5)) for w in wide])
        score = AgreementScore("single", np.ones((3, 6)), np.ones((3, 2, 5)), 0.0)

        costs = measure_costs(
            exit_model, batch_of, rows, DEPTHS, heads=heads, score=score,
            length=len if kind != "swin" else lambda _: 1, batch=8, budget=0.01,
        )  # fmt: skip

    assert 0 < costs.full < 1
    assert costs.reach == tuple(sorted(costs.reach))
    assert all(0 <= check < 1 for check in costs.check)


def _hidden(exit_model: ExitModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    seen: list[Tensor] = []
    exit_model.run(inputs, exits=DEPTHS, watch=lambda _k, hidden, _rows: seen.append(hidden))
    return seen


def test_other_devices_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock read while the device is still at it would tell nothing."""
    waits: list[str] = []
    monkeypatch.setattr(torch, "fake", SimpleNamespace(synchronize=lambda: waits.append("now")), raising=False)
    exit_model: Any = SimpleNamespace(model=SimpleNamespace(device=SimpleNamespace(type="fake")))

    assert module._tick(exit_model, lambda: 5.0)() == 5.0
    assert waits == ["now"]
