"""The engine of early exit: whatever is batched, stopped, merged and repeated, each row gets its own answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.classifiers import PAD, VOCAB, classifier, images
from torch import Tensor

from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.attach.attach import attach
from dynx.early_exit.batching import Batch, ParkedRows
from dynx.early_exit.engine import Engine, Exits
from dynx.early_exit.heads import ExitHeads
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = tuple[int, ...]

DEPTHS = (1, 2, 3)
NEVER = np.full(3, np.inf)


def rows_of_text(count: int, seed: int = 0) -> list[Row]:
    """Random rows of 2 to 17 tokens, none of them padding."""
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(PAD + 1, VOCAB, rng.integers(2, 18))) for _ in range(count)]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Right-padded."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.fixture(scope="module", params=["bert", "gpt2", "deberta-v2"])
def attached(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tiny classifier of four blocks with exits attached."""
    with attach(classifier(request.param), collate(rows_of_text(3))) as exit_model:
        yield exit_model


def learned(exit_model: Any, thresholds: Any, rows: Sequence[Row] | None = None) -> Exits:
    """Heads and scores fitted on 200 rows."""
    inputs = collate(rows_of_text(200, seed=9) if rows is None else rows)
    pooled: list[Tensor] = []
    full = exit_model.run(
        inputs, exits=DEPTHS, watch=lambda _k, hidden, _rows: pooled.append(exit_model.pool(hidden, inputs))
    ).logits
    heads = ExitHeads.fit(pooled, full, "single")
    return Exits(
        DEPTHS, heads, AgreementScore.fit(heads.run(pooled), full, "single"), np.asarray(thresholds, dtype=float)
    )


def alone(exit_model: Any, row: Row) -> Tensor:
    """What the model itself says about one row."""
    with torch.no_grad():
        logits: Tensor = exit_model.model(**collate([row])).logits[0]
    return logits


def by_hand(exit_model: Any, exits: Exits, row: Row) -> tuple[int | None, Tensor]:
    """The exit and logits of one row, all of its exits looked at, in one full pass on its own."""
    inputs = collate([row])
    pooled: list[Tensor] = []
    full = exit_model.run(
        inputs, exits=DEPTHS, watch=lambda _k, hidden, _rows: pooled.append(exit_model.pool(hidden, inputs))
    ).logits
    previous = None
    for k, x in enumerate(pooled):
        logits = exits.heads.logits(k, x, previous)
        if exits.score(k, logits, previous)[0] >= exits.thresholds[k]:
            return k, logits[0]
        previous = logits
    return None, full[0]


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_without_exits_rows_get_the_model_s_answer(attached: Any, batch: int) -> None:
    """In the order of the rows, whatever they were batched with, and never a head's."""
    rows = rows_of_text(21)

    answers = Engine(attached, collate, length=len, batch=batch).window(rows)

    for row, answer in zip(rows, answers, strict=True):
        assert torch.from_numpy(answer.logits) == pytest.approx(alone(attached, row), abs=2e-5)
        assert (answer.exit, answer.layers, answer.score) == (None, attached.depth, None)


def test_thresholds_of_infinity_are_no_exits(attached: Any) -> None:
    """The engine doesn't even stop there."""
    engine = Engine(attached, collate, length=len, exits=learned(attached, NEVER))
    assert engine.exits is None


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_staged_batches_answer_as_each_row_would_alone(attached: Any, batch: int) -> None:
    """Rows that stopped in different batches and went on together leave where they'd have left, with those logits."""
    rows = rows_of_text(40, seed=2)
    exits = learned(attached, [0.9, 0.85, 0.8])
    scores = np.array([_score(attached, exits, row) for row in rows])
    exits = Exits(DEPTHS, exits.heads, exits.score, np.quantile(scores, 0.6, axis=0) + 1e-4)

    engine = Engine(attached, collate, length=len, exits=exits, batch=batch)
    answers = engine.window(rows)

    assert len({a.exit for a in answers}) >= 3, "the test needs rows that leave at different depths"
    for row, answer in zip(rows, answers, strict=True):
        exit_, logits = by_hand(attached, exits, row)
        assert answer.exit == exit_
        assert torch.from_numpy(answer.logits) == pytest.approx(logits, abs=1e-4)
        assert answer.layers == (attached.depth if exit_ is None else DEPTHS[exit_])
    assert engine.block_calls == sum(a.layers for a in answers) < attached.depth * len(rows)


@pytest.mark.parametrize(
    ("lengths", "resumes"), [([17] * 8 + [4] * 8, False), ([10] * 40, True)], ids=["apart", "alike"]
)
def test_rows_wait_only_where_others_will_resume_with_them(
    attached: Any, monkeypatch: pytest.MonkeyPatch, lengths: list[int], resumes: bool
) -> None:
    """A batch that nobody can join goes on at once: stopping and resuming it would only cost."""
    rng = np.random.default_rng(4)
    rows = [tuple(int(t) for t in rng.integers(PAD + 1, VOCAB, length)) for length in lengths]
    exits = learned(attached, [0.9, 0.85, 0.8])
    scores = np.array([_score(attached, exits, row) for row in rows])
    exits = Exits(DEPTHS, exits.heads, exits.score, np.quantile(scores, 0.6, axis=0) + 1e-4)
    run, started = attached.run, list[bool]()

    def counted(*args: Any, **kwargs: Any) -> Any:
        started.append(kwargs.get("start") is not None)
        return run(*args, **kwargs)

    monkeypatch.setattr(attached, "run", counted)
    answers = Engine(attached, collate, length=len, exits=exits, batch=8).window(rows)

    assert started.count(False) == len(rows) // 8
    assert any(started) == resumes
    assert {a.exit for a in answers} > {0, None}


def _score(exit_model: Any, exits: Exits, row: Row) -> list[float]:
    inputs = collate([row])
    pooled: list[Tensor] = []
    exit_model.run(inputs, exits=DEPTHS, watch=lambda _k, h, _rows: pooled.append(exit_model.pool(h, inputs)))
    logits = exits.heads.run(pooled)
    return [float(exits.score(k, z, logits[k - 1] if k else None)[0]) for k, z in enumerate(logits)]


def test_the_blocks_counted_are_the_blocks_computed(attached: Any) -> None:
    """A hook on the last block sees only the rows that went on, and none where all left before."""
    rows = rows_of_text(12, seed=3)
    exits = learned(attached, [1e-9, np.inf, np.inf])  # near-ties have a score of 0 and stay
    engine = Engine(attached, collate, length=len, exits=exits)

    answers = engine.window(rows)

    stayed = sum(a.exit is None for a in answers)
    assert engine.block_calls == (len(rows) - stayed) + attached.depth * stayed
    assert stayed < len(rows)


def test_equal_rows_are_computed_once(attached: Any) -> None:
    """And their answers say so."""
    row, other = rows_of_text(2, seed=4)
    engine = Engine(attached, collate, length=len, identity=lambda r: r)

    first, second, third = engine.window([row, other, row])

    assert engine.block_calls == 2 * attached.depth
    assert (first.repeated, second.repeated, third.repeated, third.layers) == (False, False, True, 0)
    assert (third.logits == first.logits).all()


def test_an_empty_window_has_no_answers(attached: Any) -> None:
    """Nothing is run."""
    assert Engine(attached, collate, length=len).window([]) == []


def test_images_of_changing_shape_go_through_the_stages() -> None:
    """Swin halves its map between stages; there is nothing to pad."""
    pixels = images(9)["pixel_values"]
    with attach(classifier("swin"), {"pixel_values": pixels[:3]}) as exit_model:
        depths = tuple(range(1, exit_model.depth))
        pooled: list[Tensor] = []
        many = images(60, seed=5)
        full = exit_model.run(
            many, exits=depths, watch=lambda _k, h, _r: pooled.append(exit_model.pool(h, many))
        ).logits
        heads = ExitHeads.fit(pooled, full, "single")
        score = AgreementScore.fit(heads.run(pooled), full, "single")
        exits = Exits(depths, heads, score, np.full(len(depths), 2.0))  # looked at, and never taken
        engine = Engine[int](exit_model, lambda rows: {"pixel_values": pixels[list(rows)]}, exits=exits, batch=4)

        answers = engine.window(range(9))

        with torch.no_grad():
            want = exit_model.model(pixel_values=pixels).logits
        assert torch.from_numpy(np.stack([a.logits for a in answers])) == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize(("share", "forwards"), [(0.75, [8] * 10), (0.1, [8] * 8)])
def test_rows_that_are_few_wait_for_others(share: float, forwards: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of eight batches that stayed make two full ones; where most stay, they go on at once."""
    rows = [(*row[:6], *[7] * (6 - len(row))) for row in rows_of_text(64, seed=6)]
    seen: list[int] = []
    with attach(classifier("bert"), collate(rows[:3])) as exit_model:
        exits = learned(exit_model, NEVER)
        scores = [_score(exit_model, exits, row)[0] for row in rows]
        exits = Exits(DEPTHS, exits.heads, exits.score, np.array([np.quantile(scores, 1 - share), np.inf, np.inf]))
        run = exit_model.run

        def counted(inputs: Any, **how: Any) -> Any:
            seen.append(len(inputs["input_ids"]))
            return run(inputs, **how)

        monkeypatch.setattr(exit_model, "run", counted)
        answers = Engine(exit_model, collate, length=len, exits=exits, batch=8).window(rows)

    assert sum(a.exit == 0 for a in answers) == pytest.approx(64 * share, abs=1)
    assert seen[:8] == [8] * 8
    assert sorted(seen, reverse=True) == forwards


def test_rows_wait_only_for_rows_of_like_length(attached: Any) -> None:
    """One long row doesn't make short ones as long."""
    rows = [(5,) * n for n in (17, 16, 4, 4, 3)]
    groups = ParkedRows(merges_lengths=True)
    for numbers in ([0, 1], [2, 3, 4]):
        inputs = collate([rows[i] for i in numbers])
        state = attached.run(inputs, stop=1).state
        sizes = np.array([len(rows[i]) for i in numbers])
        groups.add(Batch(np.array(numbers), sizes, inputs, int(sizes[0]), state, torch.zeros(len(numbers), 5)))

    taken = [groups.take(4, lambda _: pytest.fail("nothing to pad")) for _ in range(2)]

    assert [group.numbers.tolist() for group in taken] == [[0, 1], [2, 3, 4]]
    assert len(groups) == 0


def test_a_model_that_merges_no_lengths_is_given_equal_ones() -> None:
    """FNet mixes padding in, so that a longer neighbour would change the answer."""
    rows = rows_of_text(60, seed=8)
    small = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64}
    with attach(classifier("fnet", **small), collate(rows[:3])) as exit_model:
        exits = learned(exit_model, NEVER, [row[:2] for row in rows_of_text(200, seed=9)])
        scores = np.array([_score(exit_model, exits, row)[0] for row in rows])
        exits = Exits(DEPTHS, exits.heads, exits.score, np.array([np.quantile(scores, 0.3), np.inf, np.inf]))

        answers = Engine(exit_model, collate, length=len, exits=exits, batch=8).window(rows)

        assert not exit_model.merges_lengths
        for row, answer in zip(rows, answers, strict=True):
            exit_, logits = by_hand(exit_model, exits, row)
            assert answer.exit == exit_
            assert torch.from_numpy(answer.logits) == pytest.approx(logits, abs=1e-4)


def test_parts_that_do_not_belong_together_are_refused(attached: Any) -> None:
    """Exits need rising depths and as many heads, scores and thresholds; the last block is no exit; batches have rows."""
    exits = learned(attached, NEVER)
    for depths, thresholds in (((1, 2), NEVER), ((2, 1, 3), NEVER), ((0, 1, 2), NEVER), (DEPTHS, NEVER[:2])):
        with pytest.raises(UsageError):
            Exits(depths, exits.heads, exits.score, thresholds)
    with pytest.raises(UsageError, match="saves nothing"):
        Engine(attached, collate, exits=Exits((1, 2, 4), exits.heads, exits.score, np.ones(3)))
    with pytest.raises(UsageError):
        Engine(attached, collate, batch=0)
