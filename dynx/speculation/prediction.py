"""What drafting would be worth: texts replayed under the dynamic policy, for each set of drafters.

Fitting and prediction use different texts.
"""

from __future__ import annotations

import copy
import statistics
from itertools import combinations
from typing import TYPE_CHECKING, cast

from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.engine import PRIORS, starting_regret_budget
from dynx.speculation.policy import Costs, Dynamic
from dynx.speculation.simulate import DraftTrace, Outcome, Recording, simulate
from dynx.speculation.timing import Samples, costs_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dynx.speculation.traces import Reading, Text
    from dynx.speculation.types import DraftSource

ROUND, WALKS = 12, 3
"""Drafts per round when acceptance is fitted, and how many walks through a text, each begun one token later."""

WORTH = 1.01
"""A further drafter must promise this much more speed to be worth loading."""

PAYS = 1.02
"""Predicted speed-up from which guessing is kept on by default."""


def fit(traces: dict[DraftSource, list[list[DraftTrace]]], chosen: Iterable[int]) -> dict[DraftSource, AcceptanceModel]:
    """Acceptance as a function of signal and position, from the texts numbered `chosen`.

    Positions are visited as rounds would visit them, each beginning where the one before left off: where a text repeats
    itself a round covers a dozen tokens, and counting each of them would make the whole text look that easy.
    """
    numbers, out = list(chosen), {}
    for origin, by_text in traces.items():
        weights, typical = PRIORS[origin]
        out[origin] = AcceptanceModel(weights, typical=typical)
        out[origin].fit(
            (signal, j + 1, float(j < kept))
            for i in numbers
            for start in range(WALKS)
            for signals, kept in _rounds(by_text[i], start)
            for j, signal in enumerate(signals[: kept + 1])
        )
    return out


def _rounds(guesses: Sequence[DraftTrace], at: int) -> Iterator[tuple[tuple[float, ...], int]]:
    """(signals, kept) of rounds of at most `ROUND` drafts through one text from position `at`."""
    while at < len(guesses):
        kept = min(guesses[at].kept, ROUND)
        yield guesses[at].signals[:ROUND], kept
        at += kept + 1


def predict(texts: Sequence[Text], traces: dict[DraftSource, list[list[DraftTrace]]], costs: Costs) -> float:
    """Expected speed-up over plain, each half of the texts replayed with what the other half taught.

    Replayed twice: a user's run starts from the rate that the profile promises, and that is only known after the first time.
    """
    rate = None
    for _ in range(2):
        tokens, seconds = _replay(texts, traces, costs, rate)
        rate = tokens / seconds
    return rate * costs.target(1, _middle(texts)) if rate else 1.0


def _replay(
    texts: Sequence[Text], traces: dict[DraftSource, list[list[DraftTrace]]], costs: Costs, rate: float | None
) -> tuple[int, float]:
    halves = [range(0, len(texts), 2), range(1, len(texts), 2)]
    tokens, seconds = 0, 0.0
    regret_budget = starting_regret_budget(rate * costs.target(1) if rate else 2.0)
    for teach, play in (halves, reversed(halves)):
        learned = fit(traces, teach)
        for i in play:
            outcome = _replay_one(
                texts[i], {o: by_text[i] for o, by_text in traces.items()}, costs, learned, rate, regret_budget
            )
            tokens, seconds = tokens + outcome.tokens, seconds + outcome.seconds
    return tokens, seconds


def _replay_one(
    text: Text,
    guesses: dict[DraftSource, list[DraftTrace]],
    costs: Costs,
    learned: dict[DraftSource, AcceptanceModel],
    rate: float | None,
    regret_budget: float,
) -> Outcome:
    policy = Dynamic(copy.deepcopy(costs), copy.deepcopy(learned), rate=rate, regret_budget=regret_budget)
    return simulate(Recording(text.prompt + 1, guesses), policy, costs)


def share_of_plain(
    texts: Sequence[Text],
    traces: dict[DraftSource, list[list[DraftTrace]]],
    costs: Costs,
    learned: dict[DraftSource, AcceptanceModel],
    rate: float,
) -> float:
    """Predicted speed-up over plain on `texts` for an engine that starts from the finished fit, as the check's does."""
    regret_budget, plain, seconds = starting_regret_budget(rate * costs.target(1)), 0.0, 0.0
    for i, text in enumerate(texts):
        outcome = _replay_one(text, {o: t[i] for o, t in traces.items()}, costs, learned, rate, regret_budget)
        plain += outcome.tokens * costs.target(1, _middle([text]))
        seconds += outcome.seconds
    return plain / seconds


def _middle(texts: Sequence[Text]) -> int:
    return int(statistics.median((t.prompt + len(t.tokens)) / 2 for t in texts))


def predict_sets(
    texts: Sequence[Text], traces: dict[DraftSource, list[list[DraftTrace]]], costs: Costs
) -> dict[str, float]:
    """Predicted speed-up for every set of drafters, under names like "draft + lookup"; "none" is plain."""
    out = {"none": 1.0}
    for size in range(1, len(traces) + 1):
        for names in combinations(traces, size):
            out[" + ".join(names)] = predict(texts, {o: traces[o] for o in names}, costs)
    return out


def choose_set(predictions: dict[str, float]) -> tuple[tuple[DraftSource, ...], float]:
    """The smallest set within `WORTH` of the best, and its prediction; no set at all below `PAYS`."""
    best = max(predictions.values())
    for name, value in sorted(
        predictions.items(), key=lambda item: (item[0].count("+") + (item[0] != "none"), -item[1])
    ):
        if value * WORTH >= best and (name == "none" or value >= PAYS):
            return cast("tuple[DraftSource, ...]", () if name == "none" else tuple(name.split(" + "))), value
    return (), 1.0


def pick_exit(
    texts: Sequence[Text],
    readings: dict[str, list[Reading]],
    samples: Samples,
    exits: Sequence[int],
    layers: int,
) -> int | None:
    """The exit whose drafts alone would serve best, or None without candidates."""
    worth: dict[int, float] = {}
    for e in exits:
        traces: dict[DraftSource, list[list[DraftTrace]]] = {
            "self": [r.traces(t) for r, t in zip(readings[f"exit {e}"], texts, strict=True)]
        }
        worth[e] = predict(texts, traces, costs_from(samples, e, layers))
    return max(worth, key=lambda e: worth[e]) if worth else None
