"""Learn a target and its drafters once: costs, acceptance, the exit layer, and whether any of it pays.

1. Time the passes (`measure`).
2. Let the target write texts, from prompts given or from openings it makes up itself.
3. Read every text once with each drafter. At each position that gives the drafter's guess and its confidence; as long
   as guesses come true, a drafter that runs ahead sees the very same tokens, so one pass shows how many of its drafts would
   stay from every position, for every exit layer at once.
4. Fit acceptance, then replay the texts under the dynamic policy for each set of drafters, and keep the smallest set that is as
   good as any. Fitting and prediction use different texts.
5. Run it, plain and dynamic in turns, to see what the prediction is worth and what a round costs beyond its passes.

Nothing here prints; `progress` hears (share done, what is being done).
"""

from __future__ import annotations

import copy
import datetime as dt
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import combinations
from typing import TYPE_CHECKING, cast

from dynx.runtime.hashing import text_hash
from dynx.runtime.profile import Profile
from dynx.speculation.confidence import Reliability, log_odds
from dynx.speculation.drafters.lookup import LookupDrafter
from dynx.speculation.engine import PRIORS, Drafters, Engine, Knowledge, grant
from dynx.speculation.events import Origin, Request, Sampling
from dynx.speculation.measure import Samples, costs_from, measure
from dynx.speculation.policy import LONGEST_DRAFT, Costs, Dynamic, Plain
from dynx.speculation.replay import Guess, Recording, simulate
from dynx.speculation.replay import Outcome as ReplayOutcome
from dynx.speculation.sampling import Warp

if TYPE_CHECKING:
    from torch import Tensor

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.setup import Assembly

ANSWER = 96
"""Tokens per text: enough for lookup to find repetitions, short enough for several texts."""

OPENING = 24
"""Tokens of an opening that the model makes up."""

MOST_TEXTS, LEAST_TEXTS = 12, 4

ROUND, WALKS = 12, 3
"""Drafts per round when acceptance is fitted, and how many walks through a text, each begun one token later."""

WORTH = 1.01
"""A further drafter must promise this much more speed to be worth loading."""

PAYS = 1.02
"""Predicted speed-up from which guessing is kept on by default."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Text:
    """Token ids the target wrote after `prompt` of its own or the user's."""

    tokens: Sequence[int]  # prompt included
    prompt: int


@dataclass
class Findings:
    """Everything learned; `profile` is what gets stored."""

    samples: Samples
    costs: Costs
    acceptance: dict[Origin, float]  # share of first guesses that come true
    acceptance_by_exit: dict[int, float]
    exit_layers: int | None
    origins: tuple[Origin, ...]  # drafters worth having
    predicted: float
    measured: float | None  # on the texts of the check
    said: float | None  # the replay's prediction for those same texts
    summary: str
    profile: Profile
    predictions: dict[str, float] = field(default_factory=dict)  # by set of drafters


def calibrate(
    assembly: Assembly,
    *,
    budget: float,
    clock: Callable[[], float],
    prompts: Sequence[Sequence[int]] = (),
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Learn the assembly's target and drafters within about `budget` seconds.

    `prompts` (token ids) stand for the user's work; without any the target makes up openings.
    """
    engine, plan = assembly.engine, assembly.plan
    target, small = engine.target, engine.drafters.model
    sampling = Sampling(repetition_penalty=assembly.repetition_penalty)
    exits = exit_candidates(target) if "self" in plan.kinds else ()
    progress(0.0, "timing passes")
    samples = measure(
        target, small, exits, budget=0.35 * budget, clock=clock, progress=lambda x: progress(0.35 * x, "timing passes")
    )
    each = samples.curve("target")(1)
    count = int(min(MOST_TEXTS, max(LEAST_TEXTS, 0.35 * budget / (ANSWER * each))))
    texts = write_texts(
        engine, prompts, count, sampling, clock, 0.4 * budget, lambda x: progress(0.35 + 0.35 * x, "writing texts")
    )
    progress(0.7, "reading them with each drafter")
    readings = {f"exit {e}": [read_early(target, t, e, sampling) for t in texts] for e in exits}
    if small is not None:
        readings["draft"] = [read_model(small, t, target.vocab, sampling) for t in texts]
    progress(0.8, "replaying")
    best_exit = pick_exit(texts, readings, samples, exits, target.layers)
    costs = costs_from(samples, best_exit, target.layers)
    traces: dict[Origin, list[list[Guess]]] = {}
    if small is not None:
        traces["draft"] = [r.traces(t) for r, t in zip(readings["draft"], texts, strict=True)]
    if best_exit is not None:
        traces["self"] = [r.traces(t) for r, t in zip(readings[f"exit {best_exit}"], texts, strict=True)]
    if "lookup" in plan.kinds:
        traces["lookup"] = [lookup_traces(t, engine.drafters.library) for t in texts]
    predictions = predict_sets(texts, traces, costs)
    origins, predicted = choose_set(predictions)
    reliability = fit(traces, range(len(texts)))
    knowledge = Knowledge(costs, {(o, True): r for o, r in reliability.items()}, predicted / each, from_profile=True)
    chosen = Drafters(
        small if "draft" in origins else None,
        best_exit if "self" in origins else None,
        "lookup" in plan.kinds,
        engine.drafters.library,
    )
    progress(0.85, "checking")
    measured = confirm(
        Engine(target, chosen, knowledge=knowledge, clock=clock),
        texts,
        sampling,
        0.15 * budget,
        lambda x: progress(0.85 + 0.15 * x, "checking"),
    )
    acceptance = {o: _first_rate(t) for o, t in traces.items()}
    by_exit = {e: _first_rate([r.traces(t) for r, t in zip(readings[f"exit {e}"], texts, strict=True)]) for e in exits}
    drafting = {o: t for o, t in traces.items() if o in chosen_origins(chosen)}
    said = None
    if measured is not None and drafting:
        replayed = {o: t[: measured.texts] for o, t in drafting.items()}
        said = _share_of_plain(texts[: measured.texts], replayed, costs, reliability, predicted / each)
    quantization = against_unquantized(assembly, texts, sampling)
    summary = in_words(origins, predicted, measured, said, acceptance, costs, best_exit)
    profile = Profile(
        key=plan.key,
        model_name=plan.source.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions={n: metadata.version(n) for n in ("torch", "transformers")},
        device={
            "name": plan.machine.cpu if plan.device == "cpu" else plan.device,
            "threads": assembly.decisions["threads"].value,
        },
        measured={
            "target": costs.target.to_json(),
            "complete": costs.complete.to_json() if costs.complete.known else None,
            "draft": {o: c.to_json() for o, c in costs.draft.items() if c.known and o != "lookup"},
            "overhead": {o: s for o, s in costs.overhead.items() if o in origins},
            "spread": samples.spread("target"),
        },
        fitted={
            "origins": list(origins),
            "exit_layers": best_exit if "self" in origins else None,
            "reliability": {o: r.to_json() for o, r in reliability.items()},
            "tokens_per_second": predicted / each,
            "backend": str(assembly.decisions["backend"].value),
        },
        evidence={
            "backend": assembly.decisions["backend"].reason,
            "quantization": quantization,
            "texts": len(texts),
            "tokens": sum(len(t.tokens) - t.prompt for t in texts),
            "data": text_hash(" ".join(map(str, t.tokens)) for t in texts),
            "self_written": not prompts,
            "first_guess_acceptance": dict(acceptance),
            "first_guess_acceptance_by_exit": {str(e): a for e, a in by_exit.items()},
            "predicted_speedup": predicted,
            "predicted_speedup_by_drafters": predictions,
            "checked_texts": measured.texts if measured else 0,
            "measured_speedup": measured.speedup if measured else None,
            "predicted_speedup_of_checked": said,
        },
        decision={"summary": summary},
    )
    return Findings(
        samples,
        costs,
        acceptance,
        by_exit,
        best_exit,
        origins,
        predicted,
        measured.speedup if measured else None,
        said,
        summary,
        profile,
        predictions,
    )


def against_unquantized(
    assembly: Assembly, texts: Sequence[Text], sampling: Sampling
) -> dict[str, float | int | str] | None:
    """How the quantized model's texts look to the one that it was made from; None where nothing is quantized.

    Of their tokens the share that is its first choice too, and by what factor the quantized model's perplexity on its own
    texts' prompts and answers differs from its. Both read the same tokens, one pass a text.
    """
    plan = assembly.plan
    if plan.key.quantization == "none":
        return None
    from dynx.speculation.kernels import torch_backend

    reference, warp = torch_backend(plan, plan.source), Warp(sampling)
    alike = tokens = 0
    extra = 0.0
    for text in texts:
        ids = list(text.tokens)
        count = len(ids) - text.prompt
        ours, theirs = (
            b.open().forward(ids[:-1], keep=count)[:, : assembly.engine.target.vocab].float()
            for b in (assembly.engine.target, reference)
        )
        first = warp.scores(theirs, ids[: text.prompt], ids[text.prompt :]).argmax(-1).tolist()
        alike += sum(a == b for a, b in zip(first, ids[text.prompt :], strict=True))
        tokens += count
        written = theirs.new_tensor(ids[text.prompt :]).long()[:, None]
        extra += sum(
            sign * float(rows.log_softmax(-1).gather(-1, written).sum()) for rows, sign in ((theirs, 1), (ours, -1))
        )
    return {
        "reference": f"{plan.source.name} in {plan.dtype}",
        "tokens": tokens,
        "agreement": alike / max(1, tokens),
        "perplexity_ratio": math.exp(extra / max(1, tokens)),
    }


def exit_candidates(target: Backend) -> tuple[int, ...]:
    """Layers to consider leaving after: up to six, spread over the first two thirds; none if the target can't exit."""
    if not target.can_exit.value:
        return ()
    last = max(1, target.layers * 2 // 3)
    return tuple(sorted({max(1, round(last * i / 6)) for i in range(1, 7)}))


def write_texts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling,
    clock: Callable[[], float],
    budget: float,
    progress: Callable[[float], None],
) -> list[Text]:
    """Greedy continuations of `prompts`, or of openings sampled from the model. At least two, whatever the budget."""
    began, texts = clock(), []
    writer = Engine(engine.target, engine.drafters, clock=clock)
    for i in range(min(count, len(prompts)) if prompts else count):
        prompt = list(prompts[i]) if prompts else make_up_opening(writer, i)
        limit = engine.target.context
        room = ANSWER if limit is None else min(ANSWER, limit - len(prompt))
        if room < 8:
            continue
        run = writer.start(Request(prompt, room, sampling))
        for _ in run:
            pass
        texts.append(Text([*prompt, *run.tokens], len(prompt)))
        progress((i + 1) / count)
        if len(texts) >= 2 and clock() - began > budget:
            break
    return texts


def make_up_opening(engine: Engine, number: int) -> list[int]:
    """A prompt of the target's own, sampled at temperature 1 from a token chosen by `number`."""
    start = (number * 7919 + 11) % engine.target.vocab  # any token will do; a prime step spreads them
    run = engine.start(Request([start], OPENING, Sampling(temperature=1.0, seed=number)), Plain())
    for _ in run:
        pass
    return [start, *run.tokens]


@dataclass(frozen=True)
class Reading:
    """A drafter's guess for each token of a text from the second on: its signal, and whether it is the text's."""

    signals: Sequence[float]
    right: Sequence[bool]

    def traces(self, text: Text) -> list[Guess]:
        """What the drafter would have offered at each position of the answer from its second token on."""
        out = []
        for at in range(text.prompt + 1, len(text.tokens)):
            stop = min(at + LONGEST_DRAFT, len(text.tokens))
            run = self.right[at - 1 : stop - 1]
            kept = run.index(False) if False in run else len(run)
            out.append(Guess(tuple(self.signals[at - 1 : stop - 1]), kept))
        return out


def read_model(small: Backend, text: Text, vocab: int, sampling: Sampling) -> Reading:
    """A draft model over a whole text, in one pass."""
    limit = small.context or len(text.tokens)
    tokens = list(text.tokens[:limit])
    rows = small.open().forward(tokens[:-1])[:, :vocab]
    return _reading(rows, tokens, sampling)


def read_early(target: Backend, text: Text, layers: int, sampling: Sampling) -> Reading:
    """The target's first layers over a whole text, in one pass."""
    rows = target.open().forward_early(list(text.tokens[:-1]), layers)
    if rows is None:
        raise RuntimeError("an early pass with a head gave no logits")
    return _reading(rows, list(text.tokens), sampling)


def _reading(rows: Tensor, tokens: list[int], sampling: Sampling) -> Reading:
    probabilities = Warp(sampling).probabilities(rows, tokens[:1], tokens[1:])
    best, guesses = probabilities.max(-1)
    return Reading(
        [log_odds(p) for p in best.tolist()], [g == t for g, t in zip(guesses.tolist(), tokens[1:], strict=True)]
    )


def lookup_traces(text: Text, library: Sequence[int]) -> list[Guess]:
    """What lookup would have offered at each position of the answer from its second token on."""
    drafter, out = LookupDrafter(library), []
    for at in range(text.prompt + 1, len(text.tokens)):
        drafter.sync(text.tokens[:at])
        signals: list[float] = []
        kept, missed = 0, False
        for i in range(min(LONGEST_DRAFT, len(text.tokens) - at)):
            draft = drafter.propose()
            if draft is None:
                break
            signals.append(draft.signal)
            missed = missed or draft.token != text.tokens[at + i]
            kept += not missed
        out.append(Guess(tuple(signals), kept))
    return out


def fit(traces: dict[Origin, list[list[Guess]]], chosen: Iterable[int]) -> dict[Origin, Reliability]:
    """Acceptance as a function of signal and position, from the texts numbered `chosen`.

    Positions are visited as rounds would visit them, each beginning where the one before left off: where a text repeats
    itself a round covers a dozen tokens, and counting each of them would make the whole text look that easy.
    """
    numbers, out = list(chosen), {}
    for origin, by_text in traces.items():
        weights, typical = PRIORS[origin]
        out[origin] = Reliability(weights, typical=typical)
        out[origin].fit(
            (signal, j + 1, float(j < kept))
            for i in numbers
            for start in range(WALKS)
            for signals, kept in _rounds(by_text[i], start)
            for j, signal in enumerate(signals[: kept + 1])
        )
    return out


def _rounds(guesses: Sequence[Guess], at: int) -> Iterator[tuple[tuple[float, ...], int]]:
    """(signals, kept) of rounds of at most `ROUND` drafts through one text from position `at`."""
    while at < len(guesses):
        kept = min(guesses[at].kept, ROUND)
        yield guesses[at].signals[:ROUND], kept
        at += kept + 1


@dataclass(frozen=True)
class Check:
    """Plain's time over dynamic's, both summed over `texts` texts, prompts left out."""

    speedup: float
    texts: int


def chosen_origins(drafters: Drafters) -> tuple[Origin, ...]:
    """What an engine with these drafters can draft with."""
    has = {"draft": drafters.model is not None, "self": bool(drafters.exit_layers), "lookup": drafters.lookup}
    return tuple(cast("Origin", origin) for origin, there in has.items() if there)


def predict(texts: Sequence[Text], traces: dict[Origin, list[list[Guess]]], costs: Costs) -> float:
    """Expected speed-up over plain, each half of the texts replayed with what the other half taught.

    Replayed twice: a user's run starts from the rate that the profile promises, and that is only known after the first time.
    """
    rate = None
    for _ in range(2):
        tokens, seconds = _replay(texts, traces, costs, rate)
        rate = tokens / seconds
    return rate * costs.target(1, _middle(texts)) if rate else 1.0


def _replay(
    texts: Sequence[Text], traces: dict[Origin, list[list[Guess]]], costs: Costs, rate: float | None
) -> tuple[int, float]:
    halves = [range(0, len(texts), 2), range(1, len(texts), 2)]
    tokens, seconds = 0, 0.0
    stake = grant(rate * costs.target(1) if rate else 2.0)
    for teach, play in (halves, reversed(halves)):
        learned = fit(traces, teach)
        for i in play:
            outcome = _replay_one(
                texts[i], {o: by_text[i] for o, by_text in traces.items()}, costs, learned, rate, stake
            )
            tokens, seconds = tokens + outcome.tokens, seconds + outcome.seconds
    return tokens, seconds


def _replay_one(
    text: Text,
    guesses: dict[Origin, list[Guess]],
    costs: Costs,
    learned: dict[Origin, Reliability],
    rate: float | None,
    stake: float,
) -> ReplayOutcome:
    policy = Dynamic(copy.deepcopy(costs), copy.deepcopy(learned), rate=rate, grant=stake)
    return simulate(Recording(text.prompt + 1, guesses), policy, costs)


def _share_of_plain(
    texts: Sequence[Text],
    traces: dict[Origin, list[list[Guess]]],
    costs: Costs,
    learned: dict[Origin, Reliability],
    rate: float,
) -> float:
    """Predicted speed-up over plain on `texts` for an engine that starts from the finished fit, as the check's does."""
    stake, plain, seconds = grant(rate * costs.target(1)), 0.0, 0.0
    for i, text in enumerate(texts):
        outcome = _replay_one(text, {o: t[i] for o, t in traces.items()}, costs, learned, rate, stake)
        plain += outcome.tokens * costs.target(1, _middle([text]))
        seconds += outcome.seconds
    return plain / seconds


def _middle(texts: Sequence[Text]) -> int:
    return int(statistics.median((t.prompt + len(t.tokens)) / 2 for t in texts))


def predict_sets(texts: Sequence[Text], traces: dict[Origin, list[list[Guess]]], costs: Costs) -> dict[str, float]:
    """Predicted speed-up for every set of drafters, under names like "draft + lookup"; "none" is plain."""
    out = {"none": 1.0}
    for size in range(1, len(traces) + 1):
        for names in combinations(traces, size):
            out[" + ".join(names)] = predict(texts, {o: traces[o] for o in names}, costs)
    return out


def choose_set(predictions: dict[str, float]) -> tuple[tuple[Origin, ...], float]:
    """The smallest set within `WORTH` of the best, and its prediction; no set at all below `PAYS`."""
    best = max(predictions.values())
    for name, value in sorted(
        predictions.items(), key=lambda item: (item[0].count("+") + (item[0] != "none"), -item[1])
    ):
        if value * WORTH >= best and (name == "none" or value >= PAYS):
            return cast("tuple[Origin, ...]", () if name == "none" else tuple(name.split(" + "))), value
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
        traces: dict[Origin, list[list[Guess]]] = {
            "self": [r.traces(t) for r, t in zip(readings[f"exit {e}"], texts, strict=True)]
        }
        worth[e] = predict(texts, traces, costs_from(samples, e, layers))
    return max(worth, key=lambda e: worth[e]) if worth else None


def confirm(
    engine: Engine, texts: Sequence[Text], sampling: Sampling, budget: float, progress: Callable[[float], None]
) -> Check | None:
    """Plain and dynamic in turns on the first texts' prompts, each dynamic run starting from the fit.

    The texts are those that were fitted, so this tests the replay, not how well the texts stand for others.
    What rounds cost beyond their passes stays in the engine's knowledge; its fits are not touched.
    """
    began, count, totals = engine.clock(), 0, {True: 0.0, False: 0.0}
    tables = copy.deepcopy(engine.knowledge)
    for i, text in enumerate(texts):
        request = Request(text.tokens[: text.prompt], min(ANSWER, len(text.tokens) - text.prompt), sampling)
        for policy in (Plain(), None) if i % 2 else (None, Plain()):
            fresh = copy.deepcopy(tables)
            run = Engine(engine.target, engine.drafters, knowledge=fresh, clock=engine.clock).start(request, policy)
            for _ in run:
                pass
            receipt = run.receipt()
            totals[policy is None] += receipt.seconds - receipt.prefill_seconds
            if policy is None:
                for origin, seconds in fresh.costs.overhead.items():
                    known = engine.knowledge.costs.overhead
                    known[origin] = min(seconds, known.get(origin, seconds))
        count = i + 1
        progress(count / len(texts))
        if count >= 3 and engine.clock() - began > budget:
            break
    return Check(totals[False] / totals[True], count) if count else None


def _first_rate(by_text: Sequence[Sequence[Guess]]) -> float:
    offered = [t for traces in by_text for t in traces if t.signals]
    return sum(t.kept > 0 for t in offered) / len(offered) if offered else 0.0


def in_words(
    origins: Sequence[Origin],
    predicted: float,
    measured: Check | None,
    said: float | None,
    acceptance: dict[Origin, float],
    costs: Costs,
    exit_layers: int | None,
) -> str:
    """The decision in a sentence."""
    names = {"draft": "the draft model", "self": f"an exit after layer {exit_layers}", "lookup": "lookup"}
    whole = costs.target(1)

    def case(origin: Origin) -> str:
        draft = 0.0 if origin == "lookup" else costs.draft[origin](1)
        step = (
            costs.verify(origin, 1, costs.target.reference) - whole
            if origin != "self"
            else draft - costs.target(1) + costs.complete(2)
        )
        even = max(0.0, (draft + step) / whole)
        return f"{names[origin]} guesses {acceptance.get(origin, 0.0):.0%} right and breaks even at {even:.0%}"

    if not origins:
        tried = "; ".join(case(o) for o in acceptance) or "there is nothing to draft with"
        return f"plain decoding, unless the text repeats itself: {tried}"
    seen = ""
    if measured and said:
        seen = f" ({measured.texts} of the texts took {measured.speedup:.2f}x where the replay says {said:.2f}x)"
    return (
        f"draft with {' and '.join(names[o] for o in origins)}: {predicted:.2f}x of plain expected{seen}; "
        + "; ".join(case(o) for o in origins)
    )
