"""Makes a drafter for a model: it answers prompts, many at a time, and what followed pairs of its tokens is counted.

Every answer is written greedily once, then under other seeds. Prompts whose answers test the drafter are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dynx.runtime.backends.batch_rows import batches
from dynx.speculation.batching import Batch
from dynx.speculation.calibration_prompts import make_up_opening, render_chat
from dynx.speculation.chat import USER
from dynx.speculation.drafters.followers import RATES, Followers, counted
from dynx.speculation.drafters.next_tokens import CANDIDATES
from dynx.speculation.loops import loop_start
from dynx.speculation.traces import ANSWER_TOKENS, MIN_ANSWER_TOKENS
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.calibration_check import Check
    from dynx.speculation.engine import Engine
    from dynx.speculation.run import Run
    from dynx.speculation.sequence import SequenceRun
    from dynx.speculation.traces import Text

SEQUENCES = 32
"""Answers that are written at a time."""

TEMPERATURE = 0.7
"""At which all answers after the first to a prompt are sampled: other words, and still this model's."""

HELD_OUT = 5
"""One prompt of so many tests the drafter, and isn't learned from."""

MIN_GAIN = 1.02
"""Speed-up on held-out prompts from which the drafter is kept: it takes some memory, and a moment to load."""

MIN_RATE = 0.005
"""Smallest share of right followers that is believed: none seen isn't never."""

WRITING_SHARE = 0.7
"""Share of the time that is for writing; the rest is for the comparison on held-out prompts."""

MADE_UP_PROMPTS, QUESTION_TOKENS = 128, 48
"""Prompts that a model makes up where there are none, and the most tokens of its questions."""

MARK = "\u0001"
"""Stands for a question while the place of questions is looked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Learned:
    """What was learned of how many tokens, and what it brought on held-out prompts."""

    arrays: dict[str, NDArray[Any]]
    tokens: int
    check: Check | None

    @property
    def kept(self) -> bool:
        """Whether it pays."""
        return self.check is not None and self.check.speedup >= MIN_GAIN

    @property
    def gain(self) -> float:
        """Speed-up that it brings."""
        return self.check.speedup if self.check is not None and self.kept else 1.0

    def __str__(self) -> str:
        """Say so in words."""
        if self.check is None:
            return f"a drafter learned from {self.tokens} tokens couldn't be tested"
        found = f"{self.check.speedup:.2f}x in {self.check.runs} answers to other prompts"
        aside = "" if self.kept else ", put aside"
        return f"a drafter learned from {self.tokens} tokens that the model wrote: {found}{aside}"


def learn_drafter(
    assembly: LoadedGenerator,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[Text],
    compare: Callable[[Followers, float], Check | None],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float], None] = lambda _: None,
) -> Learned:
    """Let the model answer `prompts`, and compare what that teaches on `held_out` texts; `compare` takes seconds as well."""
    began = clock()
    answers = write(assembly, prompts, budget=WRITING_SHARE * budget, clock=clock, progress=progress)
    arrays = learned(answers, held_out)
    check = compare(Followers(arrays), max(0.0, budget - (clock() - began)))
    return Learned(arrays, sum(map(len, answers)), check)


def split(prompts: Sequence[T]) -> tuple[list[T], list[T]]:
    """Return the prompts to learn from, and those that are held out."""
    held = [prompt for i, prompt in enumerate(prompts) if i % HELD_OUT == 0]
    return [prompt for i, prompt in enumerate(prompts) if i % HELD_OUT], held


def write(
    assembly: LoadedGenerator,
    prompts: Sequence[Sequence[int]],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float], None] = lambda _: None,
) -> list[list[int]]:
    """Return answers to `prompts`, each after the last two tokens of its prompt, that were begun within `budget` seconds.

    Answers end where they begin to loop.
    """
    began, out = clock(), list[list[int]]()
    requests = _requests(assembly, prompts)
    for run in _answers(assembly.engine, requests, lambda: clock() - began < budget or not out):
        answer = run.tokens
        out.append([*run.request.prompt[-2:], *answer[: loop_start(answer) or len(answer)]])
        progress(min(1.0, (clock() - began) / budget))
    return out


def _answers(engine: Engine, requests: Iterator[Request], more: Callable[[], bool]) -> Iterator[Run]:
    """Yield answers as they are done, many written at a time where the target can; none is begun where `more` says no."""
    if not batches(engine.target).value:
        while more() and (request := next(requests, None)) is not None:
            alone = engine.start(request)
            for _ in alone:
                pass
            yield alone
        return
    under_way: list[SequenceRun] = []

    def following() -> SequenceRun | None:
        request = next(requests, None) if more() else None
        if request is None:
            return None
        under_way.append(batch.sequence(request))
        return under_way[-1]

    batch = Batch(engine, SEQUENCES, more=following, speculate=False)
    batch.step()
    while under_way:
        batch.step()
        for run in [run for run in under_way if run.done]:
            under_way.remove(run)
            yield run


def _requests(assembly: LoadedGenerator, prompts: Sequence[Sequence[int]]) -> Iterator[Request]:
    """Yield requests for the prompts in turn, greedy at first, then under seeds, without end."""
    limit, sampling = assembly.engine.target.context, assembly.sampling()
    rooms = [ANSWER_TOKENS if limit is None else min(ANSWER_TOKENS, limit - len(prompt)) for prompt in prompts]
    asked = [(list(p), room) for p, room in zip(prompts, rooms, strict=True) if room >= MIN_ANSWER_TOKENS]
    for seed in count() if asked else ():
        for prompt, room in asked:
            chosen = sampling if not seed else replace(sampling, temperature=TEMPERATURE, seed=seed)
            yield Request(prompt, room, chosen, eos=assembly.end_tokens)


def made_up_prompts(assembly: LoadedGenerator, system: str | None = None) -> list[list[int]]:
    """Return prompts that the model makes up: questions of chats, written in the user's place, or beginnings of texts.

    After the beginning of a chat, up to where a question stands, a model writes the like of what it was asked in training (Xu et
    al. 2024, arXiv:2406.08464).
    """
    engine, before, after = assembly.engine, list[int](), list[int]()
    if assembly.plan.request.chat:
        empty, marked = (render_chat(assembly, [{"role": USER, "content": text}], system) for text in ("", MARK))
        at = next((i for i, (a, b) in enumerate(zip(empty, marked, strict=False)) if a != b), 0)
        before, after = empty[:at], empty[at:]
    if not before:
        return [make_up_opening(engine, number) for number in range(MADE_UP_PROMPTS)]
    sampling = replace(assembly.sampling(), temperature=1.0)
    requests = (
        Request(before, QUESTION_TOKENS, replace(sampling, seed=seed), eos=assembly.end_tokens)
        for seed in range(MADE_UP_PROMPTS)
    )
    questions = [
        [token for token in run.tokens if token not in assembly.end_tokens]
        for run in _answers(engine, requests, lambda: True)
    ]
    return [[*before, *question, *after] for question in questions if question]


def learned(answers: Sequence[Sequence[int]], held_out: Sequence[Text]) -> dict[str, NDArray[Any]]:
    """Return a profile's arrays: what followed pairs of tokens in answers, and how often that is right of held-out ones."""
    arrays = counted(answers)
    return {**arrays, RATES: rates(Followers(arrays), held_out)}


def rates(followers: Followers, texts: Sequence[Text]) -> NDArray[np.float32]:
    """Return by rank the share of texts' tokens that are what followed the two before them, where that is known."""
    seen, right = np.zeros(CANDIDATES), np.zeros(CANDIDATES)
    for text in texts:
        for before, token, after in islice(
            zip(text.tokens, text.tokens[1:], text.tokens[2:], strict=False), max(0, text.prompt - 2), None
        ):
            found = followers.after(before, token)
            seen[: len(found)] += 1
            if after in found:
                right[found.index(after)] += 1
    return np.maximum(MIN_RATE, right / np.maximum(1, seen)).astype(np.float32)
