"""The likeliest token is the argmax of the logits, the first of equals, whatever computes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynx.runtime.backends.picks import likeliest, likeliest_with_probability

NAN, INF = float("nan"), float("inf")


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), max_size=6))
@settings(max_examples=200, deadline=None)
def test_of_equals_the_first(rows: list[list[int]]) -> None:
    """Ties are frequent among small integers, and the index is always the first largest one's."""
    got = likeliest(torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 5))

    assert got == [row.index(max(row)) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 49152])
def test_as_torch_says(dtype: torch.dtype, vocab: int) -> None:
    """In every precision, on wide rows, and with ties made by rounding to 16 bits."""
    rows = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab)).mul(4).round().to(dtype)

    assert likeliest(rows) == rows.argmax(-1).tolist()


def test_what_is_no_number_comes_first() -> None:
    """Infinities and NaN are ordered as PyTorch orders them."""
    rows = torch.tensor([[1.0, INF, INF, 2.0], [-INF, -INF, -INF, -INF], [1.0, NAN, INF, NAN]])

    assert likeliest(rows) == rows.argmax(-1).tolist() == [1, 0, 1]


def test_probability_is_softmax() -> None:
    """A token's probability is softmax's, also of a row in 16 bits and of one that is part of a larger tensor."""
    row = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1))[:, :900][1]
    for each in (row, row.bfloat16()):
        token, probability = likeliest_with_probability(each)

        assert token == int(each.argmax())
        assert probability == pytest.approx(float(each.float().softmax(-1).max()), rel=1e-6)
