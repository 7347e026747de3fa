"""Predicts the speed-up of each set of drafters by replaying texts under the dynamic policy.

Fitting and prediction use different texts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, cast

from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.engine import ACCEPTANCE_PRIORS, starting_regret_budget
from dynx.speculation.policy import Dynamic
from dynx.speculation.simulate import DraftTrace, Outcome, Recording, simulate
from dynx.speculation.timing import Samples, costs_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dynx.speculation.head_traces import HeadPass
    from dynx.speculation.round_costs import Costs
    from dynx.speculation.traces import DrafterPass, Text
    from dynx.speculation.types import DraftSource

FIT_DRAFT_TOKENS, FIT_WALKS = 12, 3
"""Draft tokens per round when acceptance is fitted, and walks through a text, each begun one token later."""

MIN_EXTRA_DRAFTER_SPEEDUP = 1.01
"""Factor in speed from which a further drafter is worth loading."""

MIN_SPEEDUP = 1.02
"""Predicted speed-up from which drafting stays on by default."""


UNKNOWN_SPEEDUP = 2.0
"""Speed-up that is promised to a replay before one is known."""


@dataclass(frozen=True)
class FitResult:
    """Costs and acceptance fitted to timings and texts together."""

    costs: Costs
    exit_layers: int | None  # the best exit, wanted or not
    traces: dict[DraftSource, list[list[DraftTrace]]]
    acceptance_models: dict[DraftSource, AcceptanceModel]
    predictions: dict[str, float]  # by set of drafters


def fit(traces: dict[DraftSource, list[list[DraftTrace]]], chosen: Iterable[int]) -> dict[DraftSource, AcceptanceModel]:
    """Fit acceptance as a function of signal and position to the texts numbered `chosen`.

    Positions are visited as rounds would visit them, each beginning where the one before left off: where a text repeats
    itself a round covers a dozen tokens, and counting each of them would make the whole text look that easy.
    """
    numbers, out = list(chosen), {}
    for origin, by_text in traces.items():
        weights, typical = ACCEPTANCE_PRIORS[origin]
        out[origin] = AcceptanceModel(weights, typical=typical)
        out[origin].fit(
            (signal, j + 1, float(j < kept))
            for i in numbers
            for start in range(FIT_WALKS)
            for signals, kept in _rounds(by_text[i], start)
            for j, signal in enumerate(signals[: kept + 1])
        )
    return out


def _rounds(drafter_traces: Sequence[DraftTrace], at: int) -> Iterator[tuple[tuple[float, ...], int]]:
    """(signals, kept) of rounds of at most `FIT_DRAFT_TOKENS` drafts through one text from position `at`."""
    while at < len(drafter_traces):
        kept = min(drafter_traces[at].kept, FIT_DRAFT_TOKENS)
        yield drafter_traces[at].signals[:FIT_DRAFT_TOKENS], kept
        at += kept + 1


def predict(texts: Sequence[Text], traces: dict[DraftSource, list[list[DraftTrace]]], costs: Costs) -> float:
    """Return the expected speed-up over plain, each half of the texts replayed with models fitted to the other.

    Replayed twice: a user's run starts from the rate that the profile promises, and that is only known after the first time.
    """
    speedup = None
    for _ in range(2):
        plain, dynamic = _replay_halves(texts, traces, costs, speedup)
        speedup = plain / dynamic if dynamic else 1.0
    return speedup or 1.0


def _replay_halves(
    texts: Sequence[Text], traces: dict[DraftSource, list[list[DraftTrace]]], costs: Costs, promised: float | None
) -> tuple[float, float]:
    """Return the seconds of plain and of dynamic decoding of all texts."""
    # By the parity of the number's bits, so that texts whose kinds take turns are in both halves.
    halves = [[i for i in range(len(texts)) if i.bit_count() % 2 == half] for half in (0, 1)]
    rate = promised / costs.target(1) if promised else None
    times: list[tuple[float, float]] = []
    for teach, play in (halves, reversed(halves)):
        learned = fit(traces, teach)
        mine = {origin: [by_text[i] for i in play] for origin, by_text in traces.items()}
        times += replay([texts[i] for i in play], mine, costs, learned, rate)
    return sum(plain for plain, _ in times), sum(dynamic for _, dynamic in times)


def _replay_one(
    text: Text,
    drafter_traces: dict[DraftSource, list[DraftTrace]],
    costs: Costs,
    learned: dict[DraftSource, AcceptanceModel],
    rate: float | None,
    regret_budget: float,
) -> Outcome:
    policy = Dynamic(copy.deepcopy(costs), copy.deepcopy(learned), rate=rate, regret_budget=regret_budget)
    return simulate(Recording(text.prompt + 1, drafter_traces), policy, costs)


def replay(
    texts: Sequence[Text],
    traces: dict[DraftSource, list[list[DraftTrace]]],
    costs: Costs,
    learned: dict[DraftSource, AcceptanceModel],
    rate: float | None,
) -> list[tuple[float, float]]:
    """Predict each text's seconds of plain and of dynamic decoding, by an engine that starts from `learned` and `rate`.

    Plain passes are counted after the text's own context: where prompts differ in length, long ones take most of the time.
    """
    regret_budget, out = (
        starting_regret_budget(rate * costs.target(1) if rate else UNKNOWN_SPEEDUP, costs.change_passes),
        [],
    )
    for i, text in enumerate(texts):
        outcome = _replay_one(text, {o: t[i] for o, t in traces.items()}, costs, learned, rate, regret_budget)
        out.append((outcome.tokens * costs.target(1, (text.prompt + len(text.tokens)) // 2), outcome.seconds))
    return out


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
    """Choose the smallest set within `MIN_EXTRA_DRAFTER_SPEEDUP` of the best, with its prediction; none below `MIN_SPEEDUP`."""
    best = max(predictions.values())
    for name, value in sorted(
        predictions.items(), key=lambda item: (item[0].count("+") + (item[0] != "none"), -item[1])
    ):
        if value * MIN_EXTRA_DRAFTER_SPEEDUP >= best and (name == "none" or value >= MIN_SPEEDUP):
            return cast("tuple[DraftSource, ...]", () if name == "none" else tuple(name.split(" + "))), value
    return (), 1.0


def pick_exit(
    texts: Sequence[Text],
    drafter_passes: Mapping[str, Sequence[DrafterPass | HeadPass]],
    samples: Samples,
    exits: Sequence[int],
    layers: int,
) -> int | None:
    """Return the exit with the best predicted speed-up alone, or None without candidates."""
    worth: dict[int, float] = {}
    for e in exits:
        traces: dict[DraftSource, list[list[DraftTrace]]] = {
            "self": [r.traces(t) for r, t in zip(drafter_passes[f"exit {e}"], texts, strict=True)]
        }
        worth[e] = predict(texts, traces, costs_from(samples, e, layers))
    return max(worth, key=lambda e: worth[e]) if worth else None


def learn(
    texts: Sequence[Text],
    drafter_passes: Mapping[str, Sequence[DrafterPass | HeadPass]],
    looked_up: list[list[DraftTrace]] | None,
    samples: Samples,
    exits: Sequence[int],
    layers: int,
) -> FitResult:
    """Costs, the best exit, and what each set of drafters is worth. `drafter_passes` are by "draft" and "exit E"."""
    best_exit = pick_exit(texts, drafter_passes, samples, exits, layers)
    costs = costs_from(samples, best_exit, layers)
    traces: dict[DraftSource, list[list[DraftTrace]]] = {}
    if "draft" in drafter_passes:
        traces["draft"] = [r.traces(t) for r, t in zip(drafter_passes["draft"], texts, strict=True)]
    if best_exit is not None:
        traces["self"] = [r.traces(t) for r, t in zip(drafter_passes[f"exit {best_exit}"], texts, strict=True)]
    if looked_up is not None:
        traces["lookup"] = looked_up
    return FitResult(costs, best_exit, traces, fit(traces, range(len(texts))), predict_sets(texts, traces, costs))
