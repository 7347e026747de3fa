"""Recurrent states: passes of several tokens and rollbacks give the logits of single tokens."""

from __future__ import annotations

import random

import pytest
import torch
from support.models import HYBRID, STATEFUL, UNCONTINUED, VOCAB, tiny

from dynx.runtime.backends.batch import can_batch
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.restored import RestoringSession
from dynx.runtime.backends.stock import StockSession

KINDS = [*STATEFUL, *(kind for kind in HYBRID if kind not in UNCONTINUED)]
TEXT = [(i * i + 3 * i) % VOCAB for i in range(60)]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Assert that logits differ by no more than rounding."""
    torch.testing.assert_close(
        got, want, rtol=0.0, atol=1e-3 * max(1.0, float(want.abs().max()) if want.numel() else 0.0)
    )


@pytest.fixture(params=KINDS, scope="module")
def backend(request: pytest.FixtureRequest) -> EagerBackend:
    """Every architecture with a state that can be restored."""
    return EagerBackend(tiny(request.param))


@pytest.fixture(scope="module")
def want(backend: EagerBackend) -> torch.Tensor:
    """Logits of the text, a prompt of six tokens and then single ones."""
    session = StockSession(backend)
    return torch.cat([session.forward(TEXT[:6]), *(session.forward([token]) for token in TEXT[6:])])


def test_rollback_is_possible_and_exits_are_not(backend: EagerBackend) -> None:
    """By test on loading; batches and early exits say why not."""
    assert backend.can_rollback.value, backend.can_rollback.reason
    assert isinstance(backend.open(), RestoringSession)
    assert "keeps a recurrent state" in backend.can_exit.reason
    assert not backend.can_exit.value
    assert not can_batch(backend).value


def test_random_walks_give_the_logits_of_single_tokens(backend: EagerBackend, want: torch.Tensor) -> None:
    """Passes of every width with wrong tokens behind right ones, cut back to any length, two texts in turns."""
    rng = random.Random(7)
    sessions, at = [backend.open(), backend.open()], [6, 6]
    for session in sessions:
        session.forward(TEXT[:6])
    for _ in range(24):
        for i, session in enumerate(sessions):
            if at[i] >= len(TEXT):
                continue
            right, wrong = rng.randint(0, 5), rng.randint(0, 3)
            part = TEXT[at[i] : at[i] + right]
            if not part and not wrong:
                continue
            rows = session.forward([*part, *(rng.randrange(VOCAB) for _ in range(wrong))])
            close(rows[: len(part)], want[at[i] : at[i] + len(part)])
            at[i] += len(part)
            if rng.random() < 0.2:
                at[i] -= rng.randint(0, min(4, at[i] - 6))
            session.rollback(at[i])
            assert session.length == at[i]


def test_a_rollback_to_any_length_reads_again(backend: EagerBackend, want: torch.Tensor) -> None:
    """Also to before every copy, and to nothing; not forward."""
    session = backend.open()
    session.forward(TEXT[:6])
    session.forward(TEXT[6:30])
    for length in (30, 29, 8, 3):
        session.rollback(length)
        close(session.forward(TEXT[length : length + 2]), want[length : length + 2])
        session.rollback(length)
    session.rollback(0)
    close(session.forward(TEXT[:6]), want[:6])
    with pytest.raises(ValueError, match="roll forward"):
        session.rollback(9)


def test_plain_decoding_reads_nothing_twice(backend: EagerBackend) -> None:
    """Nor does verification where all drafts stay: each token goes through the model once."""
    session = backend.open()
    read: list[int] = []
    inner = session._step

    def step(tokens: list[int], keep: int | None) -> torch.Tensor:
        read.extend(tokens)
        return inner(tokens, keep)

    session._step = step  # type: ignore[method-assign, union-attr]
    session.forward(TEXT[:6])
    for at in range(6, 40, 2):
        session.forward(TEXT[at : at + 1])
        session.rollback(session.length)
        session.forward(TEXT[at + 1 : at + 2])
    session.forward(TEXT[40:44])
    session.rollback(44)
    session.forward(TEXT[44:48])
    assert read == TEXT[:48]


def test_the_modules_are_as_they_were(backend: EagerBackend) -> None:
    """After passes that go on from a state the unmodified model computes what it did."""
    ids = torch.tensor([TEXT[:12]])
    with torch.inference_mode():
        before = backend.model(input_ids=ids, use_cache=False).logits
        session = backend.open()
        session.forward(TEXT[:6])
        session.forward(TEXT[6:10])
        after = backend.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, after)
