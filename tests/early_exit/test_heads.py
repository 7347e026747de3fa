"""Exit heads learned from a model's own answers, and a score that ranks which of them to trust."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from dynx.early_exit import heads as module
from dynx.early_exit.agreement import AgreementScore, Problem, agrees
from dynx.early_exit.heads import ExitHeads
from dynx.errors import UsageError

EXITS, OUTPUTS = 4, 3
PROBLEMS: tuple[Problem, ...] = ("single", "multi", "regression")


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    """Tiny matrices: threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def world(n: int, seed: int, features: int = 120, outputs: int = OUTPUTS) -> tuple[list[Tensor], Tensor]:
    """A frozen model: logits from 8 hidden causes that exits see the clearer, the deeper, in features of growing scale."""
    g = torch.Generator().manual_seed(99)
    spread, out = torch.randn(8, features, generator=g), torch.randn(8, outputs, generator=g)
    g = torch.Generator().manual_seed(seed)
    causes = torch.randn(n, 8, generator=g)
    pooled = [
        (
            (causes + (1.0 - 0.3 * k) * torch.randn(n, 8, generator=g)) @ spread
            + 0.3 * torch.randn(n, features, generator=g)
        )
        * 3.0**k
        + 5
        for k in range(EXITS)
    ]
    return pooled, 2 * causes @ out


def share(logits: Tensor, full: Tensor, problem: Problem, tolerance: float = 2.0) -> float:
    return float(agrees(logits, full, problem, tolerance).double().mean())


def ranking(s: np.ndarray, y: np.ndarray) -> float:
    """Area under the ROC curve."""
    good, bad = int(y.sum()), int((~y).sum())
    return float((rankdata(s)[y].sum() - good * (good + 1) / 2) / (good * bad))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("n", [100, 800], ids=["fewer rows than features", "more"])
def test_heads_find_the_models_answer(problem: Problem, n: int) -> None:
    """On new rows deeper exits agree more, and the deepest far more than chance, whichever of rows and features are more."""
    heads = ExitHeads.fit(*world(n, 1), problem)
    pooled, full = world(2000, 2)
    found = [share(z, full, problem) for z in heads.run(pooled)]

    assert all(a < b for a, b in pairwise(found))
    assert found[-1] > {"single": 0.85, "multi": 0.7, "regression": 0.6}[problem]


def test_distillation_with_the_previous_exit_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the closed-form start alone, the middle exits' distributions come closer to the model's on new rows."""
    pooled, full = world(2000, 2)

    def divergence(heads: ExitHeads) -> np.ndarray:
        target = full.log_softmax(-1)
        kl = torch.nn.functional.kl_div
        return np.array(
            [float(kl(z.log_softmax(-1), target, log_target=True, reduction="batchmean")) for z in heads.run(pooled)]
        )

    distilled = divergence(ExitHeads.fit(*world(400, 1), "single"))
    monkeypatch.setattr(module, "MAX_STEPS", 1)
    start = divergence(ExitHeads.fit(*world(400, 1), "single"))

    assert (distilled[:3] < 0.95 * start[:3]).all()
    assert distilled[3] < 1.05 * start[3]


def test_leave_one_out_is_what_it_says() -> None:
    """The honest answers equal those of ridge regressions that each left their row out, with the same penalty."""
    pooled, full = world(30, 1, features=6)
    z = pooled[0].double()
    z = (z - z.mean(0)) / z.std(0, correction=0)
    ridge = module._Ridge(z, full.double())
    fitted = z @ ridge.weight + ridge.bias
    hat = (fitted - full) / (ridge.left_out - full)  # 1 - h of each row
    lam = _penalty_of(ridge, z, full.double())
    for i in (0, 11, 29):
        rest = torch.arange(30) != i
        x = torch.cat([z, torch.ones(30, 1, dtype=torch.float64)], 1)
        gram = x[rest].T @ x[rest] + lam * torch.diag(torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64))
        left_out = x[i] @ torch.linalg.solve(gram, x[rest].T @ full.double()[rest])
        torch.testing.assert_close(ridge.left_out[i], left_out, rtol=1e-8, atol=1e-8)
    assert ((hat > 0) & (hat < 1)).all()


def _penalty_of(ridge: module._Ridge, z: Tensor, full: Tensor) -> float:
    """The penalty for which the normal equations hold."""
    residual = z.T @ (full - ridge.bias - z @ ridge.weight)
    return float((residual * ridge.weight).sum() / ridge.weight.square().sum())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_exits_run_one_by_one(problem: Problem) -> None:
    """Row by row and exit by exit, the logits are those of all rows at once, within float32's rounding."""
    heads = ExitHeads.fit(*world(100, 1), problem)
    pooled, _ = world(7, 2)
    together = heads.run(pooled)
    for row in range(7):
        previous = None
        for k in range(EXITS):
            previous = heads.logits(k, pooled[k][row : row + 1], previous)
            assert previous.dtype == torch.float32
            torch.testing.assert_close(previous[0], together[k][row], rtol=1e-4, atol=1e-4)


def test_fitting_is_deterministic_and_needs_no_gradients() -> None:
    """The same seed gives the same bits, also from tensors of an inference pass; threads are left as they were."""
    torch.set_num_threads(2)
    pooled, full = world(100, 1)
    first = ExitHeads.fit(pooled, full, "single", seed=3).to_arrays()
    with torch.inference_mode():
        again = ExitHeads.fit([x.clone() for x in pooled], full.double(), "single", seed=3).to_arrays()

    assert torch.get_num_threads() == 2
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = ExitHeads.fit(pooled, full, "single", seed=4).to_arrays()
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_exits_of_different_width_and_constant_features() -> None:
    """Stages may differ in width; a feature that never varies, or all of them, changes nothing."""
    pooled, full = world(100, 1)
    pooled[0] = torch.ones(100, 5)
    pooled[1] = torch.cat([pooled[1], torch.full((100, 3), 7.0)], 1)
    heads = ExitHeads.fit(pooled, full, "single")
    out = heads.run(pooled)

    assert all(bool(z.isfinite().all()) for z in out)
    assert float(out[0].std(0).max()) < 1e-5
    assert share(out[3], full, "single") > 0.85


@pytest.mark.parametrize("problem", PROBLEMS)
def test_arrays_bring_back_the_same_bits(problem: Problem) -> None:
    """Heads and score survive the way through arrays exactly."""
    pooled, full = world(200, 1)
    heads = ExitHeads.fit(pooled, full, problem)
    back = ExitHeads.from_arrays(heads.to_arrays())
    before, after = heads.run(pooled), back.run(pooled)

    assert back.problem == problem
    assert len(back) == EXITS
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    score = AgreementScore.fit(before, full, problem, tolerance=2.0)
    same = AgreementScore.from_arrays(score.to_arrays())
    assert np.array_equal(score(2, before[2], before[1]), same(2, before[2], before[1]))
    assert (same.problem, same.tolerance, len(same)) == (problem, score.tolerance, EXITS)


def test_foreign_arrays_are_refused() -> None:
    """Missing, misshapen, infinite or unknown content is a KeyError or ValueError, never a head."""
    pooled, full = world(50, 1)
    heads = ExitHeads.fit(pooled, full, "single")
    score = AgreementScore.fit(heads.run(pooled), full, "single")
    for change in (
        {"problem": np.float32([7])},
        {"1.weight": np.zeros((3, 2), np.float32)},
        {"1.mix": np.zeros(1, np.float32)},
        {"0.bias": np.full(OUTPUTS, np.nan, np.float32)},
        {"0.bias": np.zeros(OUTPUTS, np.float64)},
    ):
        with pytest.raises(ValueError, match=r"."):
            ExitHeads.from_arrays({**heads.to_arrays(), **change})
    with pytest.raises(KeyError):
        ExitHeads.from_arrays({name: a for name, a in heads.to_arrays().items() if name != "2.bias"})
    for change in (
        {"score.scales": np.zeros((EXITS, 2, 5))},
        {"score.weights": np.zeros((EXITS, 3))},
        {"score.kind": np.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"."):
            AgreementScore.from_arrays({**score.to_arrays(), **change})


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_the_score_ranks_and_is_calibrated(problem: Problem) -> None:
    """On rows of neither fit it ranks no worse than the head's own confidence, and its mean is the share that agrees."""
    heads = ExitHeads.fit(*world(400, 1), problem)
    pooled, full = world(600, 2)
    score = AgreementScore.fit(heads.run(pooled), full, problem)
    pooled, full = world(3000, 3)
    out = heads.run(pooled)
    for k in range(1, EXITS):
        s, y = score(k, out[k], out[k - 1]), agrees(out[k], full, problem).numpy()
        plain = out[k].softmax(-1).amax(-1) if problem == "single" else out[k].abs().amin(-1)
        assert ranking(s, y) > ranking(plain.numpy(), y) - 0.01
        assert s.mean() == pytest.approx(y.mean(), abs=0.06)


def test_a_regression_trusts_a_number_that_has_settled() -> None:
    """The smaller the step from the exit before, the higher the score."""
    pooled, full = world(600, 2, outputs=1)
    heads = ExitHeads.fit(*world(400, 1, outputs=1), "regression")
    score = AgreementScore.fit(heads.run(pooled), full, "regression", tolerance=1.0)
    steps = torch.tensor([[0.0], [0.5], [1.0], [4.0]])
    s = score(2, torch.zeros(4, 1), steps)

    assert (np.diff(s) <= 0).all()
    assert s[0] > s[-1]


@pytest.mark.parametrize("problem", ["single", "multi"])
@pytest.mark.parametrize("rows", [15, 800], ids=["margin only", "fitted"])
def test_more_confidence_never_lowers_the_score(problem: Problem, rows: int) -> None:
    """Raising the answer's lead, with all else as it was, raises the score or leaves it."""
    pooled, full = world(800, 2)
    out = ExitHeads.fit(pooled, full, problem).run(pooled)
    score = AgreementScore.fit([z[:rows] for z in out], full[:rows], problem)
    assert (score._weights[:, 1:] >= 0).all()
    for k in range(EXITS):
        line = torch.stack([torch.tensor([1.0, -2.0, -2.5]) * c for c in np.linspace(0.01, 5, 40)]).float()
        s = score(k, line, line if k else None)
        assert (np.diff(s) >= 0).all()
        assert s[-1] > s[0]


def test_too_few_disagreements_fall_back_to_the_margin() -> None:
    """With fewer than ten of either kind nothing is learned: the score is the head's own probability."""
    _, full = world(300, 1)
    score = AgreementScore.fit([full, full], full, "single")
    s = score(1, full, full)

    assert np.allclose(s, full.double().softmax(-1).amax(-1).numpy(), atol=1e-9)


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_near_ties_never_leave(problem: Problem) -> None:
    """A lead that rounding could turn, and logits that aren't finite, score exactly 0."""
    _, full = world(300, 1)
    score = AgreementScore.fit([full], full, problem)
    tie = [2.0, 2.0 + 5e-4, -3.0] if problem == "single" else [2.0, 5e-4, -3.0]
    s = score(0, torch.tensor([tie, [2.0, 5.0, -3.0], [float("nan"), 1.0, 2.0]]))

    assert s[0] == 0
    assert s[1] > 0.5
    assert s[2] == 0


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_few_rows_and_many_score_alike(outputs: int) -> None:
    """Row by row in plain numbers, or all at once in arrays; tensors and arrays; certain and torn; no two alike."""
    _, full = world(300, 1, outputs=outputs)
    noise = torch.randn(2, 300, outputs, generator=torch.Generator().manual_seed(0))
    out = [full + 2 * noise[0], full + noise[1]]
    score = AgreementScore.fit(out, full, "single")
    out = [z * torch.tensor([0.0, 1.0, 30.0, 900.0]).repeat(75)[:, None] for z in out]
    out[0][7, 0], out[1][8, 1] = float("inf"), float("nan")
    for k, before in ((0, None), (1, out[0])):
        together = score(k, out[k], before)
        one_by_one = [score(k, out[k][i : i + 1], None if before is None else before[i : i + 1])[0] for i in range(300)]
        arrays = score(k, out[k].numpy(), None if before is None else before.numpy())

        assert together == pytest.approx(np.array(one_by_one), rel=1e-9, abs=1e-14)
        assert np.array_equal(together, arrays)
        assert (together[::4] == 0).all()


def test_agreement_by_kind_of_problem() -> None:
    """One label: the same top; several: the same set at 0.5; numbers: within the tolerance."""
    a, b = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[-0.5, 1.5, -1.0]])
    assert agrees(a, b, "single").tolist() == [True]
    assert agrees(a, b, "multi").tolist() == [False]
    assert agrees(a, b, "regression", 1.0).tolist() == [False]
    assert agrees(a, b, "regression", 1.5).tolist() == [True]


def test_nonsense_is_refused() -> None:
    """Shapes that don't fit, too few rows, infinities and a missing tolerance are a UsageError."""
    pooled, full = world(50, 1)
    heads = ExitHeads.fit(pooled, full, "single")
    out = heads.run(pooled)
    for call in (
        lambda: ExitHeads.fit([], full, "single"),
        lambda: ExitHeads.fit([x[:40] for x in pooled], full, "single"),
        lambda: ExitHeads.fit([x[:10] for x in pooled], full[:10], "single"),
        lambda: ExitHeads.fit([x / 0 for x in pooled], full, "single"),
        lambda: ExitHeads("other", []),
        lambda: heads.logits(0, pooled[0], out[0]),
        lambda: heads.logits(1, pooled[1]),
        lambda: heads.logits(1, pooled[1], out[0][:3]),
        lambda: heads.logits(1, pooled[1][:, :5], out[0]),
        lambda: AgreementScore.fit(out, full[:5], "single"),
        lambda: AgreementScore.fit(out, full, "regression"),
    ):
        with pytest.raises(UsageError):
            call()
