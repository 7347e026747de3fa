"""PyTorch's number of threads belongs to the program around dynx, and is one where another runtime computes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dynx.runtime.threads import torch_threads
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.types import Request
from tests.support.models import Stub, StubSession, scripted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VOCAB = 20
SCRIPT = [3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """A host program that computes with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Watched(Stub):
    """A backend that notes how many threads PyTorch has in each of its passes."""

    def __init__(self, *, own_threads: bool) -> None:
        super().__init__(VOCAB, scripted(VOCAB, SCRIPT))
        self.own_threads = own_threads
        self.seen: list[int] = []

    def open(self) -> StubSession:
        """A session that tells."""
        watched = self

        class Session(StubSession):
            def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Any:
                watched.seen.append(torch.get_num_threads())
                return super().forward(tokens, keep=keep)

        return Session(self)


@pytest.mark.parametrize(("own", "threads", "inside"), [(False, None, 3), (False, 2, 2), (True, None, 1), (True, 2, 1)])
def test_passes_have_the_threads_that_suit_the_backend(own: bool, threads: int | None, inside: int) -> None:
    """In each pass, the prompt's included; and between two tokens, as afterwards, the program has its own again."""
    target = Watched(own_threads=own)
    run = Engine(target, Drafters(lookup=True), threads=threads).start(Request(SCRIPT[:4], 8))
    between = [torch.get_num_threads() for _ in run]

    assert set(target.seen) == {inside}
    assert set(between) == {3} == {torch.get_num_threads()}


def test_an_error_puts_the_threads_back() -> None:
    """A pass that fails leaves the program as it was."""

    class Failing(Watched):
        def open(self) -> StubSession:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        Engine(Failing(own_threads=True), Drafters(lookup=False)).start(Request([1, 2], 4))
    with pytest.raises(ZeroDivisionError), torch_threads(1):
        _ = 1 / 0
    assert torch.get_num_threads() == 3


def test_what_others_set_inside_is_undone() -> None:
    """Without a number the threads stay as they are, and come back if something changed them."""
    with torch_threads():
        assert torch.get_num_threads() == 3
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 3


LATER = """
import sys
from dynx.runtime.threads import set_torch_threads, torch_threads
from dynx.runtime.torch_on_use import torch
with torch_threads(1):
    assert "torch" not in sys.modules
    inside = torch.get_num_threads()
    again = torch.get_num_threads()
print(inside, again, torch.get_num_threads())
"""

MEANT = """
import sys
from dynx.runtime.threads import set_torch_threads, torch_threads
from dynx.runtime.torch_on_use import torch
set_torch_threads(3)
with torch_threads(1):
    pass
assert "torch" not in sys.modules
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("code", "told"), [(LATER, "1 1 2"), (MEANT, "3")], ids=["imported inside", "imported later"])
def test_torch_has_the_threads_it_was_meant_to_have_once_it_is_imported(code: str, told: str) -> None:
    """Asking for threads doesn't import it; what was asked for holds as soon as it is there, and no longer than that."""
    settings = {**os.environ, "OMP_NUM_THREADS": "2"}  # what it chooses by itself
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings)
    assert found.stdout.strip() == told
