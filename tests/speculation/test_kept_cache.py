"""A cache kept between turns: the same text as without it, and only what is new is read."""

from __future__ import annotations

from typing import Any

import pytest
from support.models import ROLLING, STATEFUL, UNCONTINUED, VOCAB, Clock, TimedBackend, tiny

from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Static
from dynx.speculation.types import Request

FIRST = [7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18]
NEXT = [3, 7, 30, 2, 12]


class Counting(TimedBackend):
    """A backend whose sessions note how many tokens each pass has."""

    def open(self) -> Any:
        """Open a session that counts."""
        session = super().open()
        forward = session.forward
        self.passes: list[int] = []

        def counted(tokens: Any, **more: Any) -> Any:
            self.passes.append(len(tokens))
            return forward(tokens, **more)

        session.forward = counted  # type: ignore[method-assign]
        return session


@pytest.fixture(params=ROLLING)
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine over every architecture that can be rolled back."""
    return Engine(Counting(tiny(request.param), Clock()), Drafters(lookup=True))


def finished(engine: Engine, prompt: list[int], kept: Any = None, stop_after: int = 20) -> Any:
    """Run to the end, or up to a number of tokens as Ctrl-C does."""
    run = engine.start(Request(prompt, 20), Static("lookup", 3), kept=kept)
    for _ in run:
        if len(run.tokens) >= stop_after:
            break
    return run


@pytest.mark.parametrize("stop_after", [20, 5])
def test_a_second_turn_reads_what_is_new(engine: Engine, stop_after: int) -> None:
    """Also after an answer that was stopped between two of the tokens of one pass."""
    first = finished(engine, FIRST, stop_after=stop_after)
    prompt = [*FIRST, *first.tokens, *NEXT]
    held = len(first.kept.tokens)
    alone = finished(engine, prompt)
    assert alone.receipt().reused_tokens == 0
    again = finished(engine, prompt, kept=first.kept)

    assert again.tokens == alone.tokens
    assert held >= len(prompt) - len(NEXT) - 1
    assert again.receipt().reused_tokens == held
    assert again.receipt().prompt_tokens == len(prompt)


def test_what_differs_is_read_again(engine: Engine) -> None:
    """From the first token that isn't the same; at least the last token is read, for the logits after it."""
    first = finished(engine, FIRST)
    prompt = [*FIRST[:6], (FIRST[6] + 1) % VOCAB, *NEXT]
    alone = finished(engine, prompt).tokens
    again = finished(engine, prompt, kept=first.kept)
    assert (again.tokens, again.receipt().reused_tokens) == (alone, 6)

    same = finished(engine, prompt, kept=again.kept)
    assert (same.tokens, same.receipt().reused_tokens) == (alone, len(prompt) - 1)
    other = finished(engine, [(prompt[0] + 1) % VOCAB, *NEXT], kept=same.kept)
    assert other.receipt().reused_tokens == 0


def test_the_first_pass_is_as_long_as_what_is_new() -> None:
    """The prompt's pass has the tokens that the cache lacks."""
    target = Counting(tiny(next(iter(ROLLING))), Clock())
    engine = Engine(target, Drafters(lookup=False))
    first = engine.start(Request(FIRST, 8))
    list(first)
    passes = target.passes
    prompt = [*FIRST, *first.tokens, *NEXT]
    before = len(passes)
    run = engine.start(Request(prompt, 1), kept=first.kept)
    list(run)
    assert passes[before] == len(prompt) - run.receipt().reused_tokens == len(NEXT) + 1


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_is_kept_where_nothing_is_dropped(kind: str) -> None:
    """A state that ends where the new prompt goes on is used; else a copy from before, and where there is none all is read."""
    engine = Engine(TimedBackend(tiny(kind), Clock()), Drafters(lookup=False))
    first = engine.start(Request(FIRST, 20))
    list(first)
    kept, prompt = first.kept, [*FIRST, *first.tokens, *NEXT]
    again, alone = engine.start(Request(prompt, 4), kept=kept), engine.start(Request(prompt, 4))
    assert [t.id for t in again] == [t.id for t in alone]
    assert again.receipt().reused_tokens == len(kept.tokens)

    other = [*prompt[:4], (prompt[4] + 1) % VOCAB]
    again, alone = engine.start(Request(other, 4), kept=again.kept), engine.start(Request(other, 4))
    assert [t.id for t in again] == [t.id for t in alone]
    assert again.receipt().reused_tokens == 0


@pytest.mark.parametrize("kind", UNCONTINUED)
def test_a_state_that_cant_be_rolled_back_is_read_anew(kind: str) -> None:
    """The whole prompt, as without a kept cache."""
    engine = Engine(TimedBackend(tiny(kind), Clock()), Drafters(lookup=False))
    first = engine.start(Request(FIRST, 4))
    list(first)
    prompt = [*FIRST, *first.tokens, *NEXT]
    again, alone = engine.start(Request(prompt, 4), kept=first.kept), engine.start(Request(prompt, 4))
    assert [t.id for t in again] == [t.id for t in alone]
    assert again.receipt().reused_tokens == 0
