"""Calibrates a target and its drafters once: costs, acceptance, the exit layer, and whether any of it pays.

1. Time the passes (`measure`), and run those wider that cost less so.
2. Let the target write texts, from prompts given or from openings that it samples, and run each drafter over every text once
   (`traces`).
3. Fit acceptance, then replay the texts under the dynamic policy for each set of drafters, and take the smallest set that is as
   good as any (`prediction`).
4. Run it, plain and dynamic in turns. Where that contradicts the replay, the passes are timed once more, since a busy moment may
   have hit some of them only; what still turns out slower than plain is put aside, whatever the replay says.

Nothing here prints; `progress` is called with (share done, what is being done).
"""

from __future__ import annotations

import copy
import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, cast

from dynx.runtime.hashing import text_hash
from dynx.runtime.identity import still
from dynx.runtime.loading import DRAFTER_FOLDER
from dynx.runtime.profile import Profile
from dynx.speculation.batch_size import for_profile
from dynx.speculation.draft_vocabulary import choose_draft_vocabulary
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.exactness import noise_if_exact
from dynx.speculation.known_drafters import place_of
from dynx.speculation.policy import Plain
from dynx.speculation.prediction import choose_set, fit, pick_exit, predict_sets, share_of_plain
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.timing import Samples, costs_from, measure_with_padding
from dynx.speculation.traces import ANSWER_TOKENS, DrafterPass, Text, lookup_traces, read_early, read_model, write_texts
from dynx.speculation.types import DraftSource, Request, Sampling

if TYPE_CHECKING:
    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.round_costs import Costs
    from dynx.speculation.simulate import DraftTrace

MAX_TEXTS, MIN_TEXTS = 12, 4

MIN_CHECK_RUNS = 3
"""Fewest runs of the check; texts are repeated where there are fewer."""

MAX_PREDICTION_ERROR_FACTOR = 1.5
"""Factor between the check and its prediction beyond which the measured costs must be wrong."""

MIN_LOOKUP_SPEEDUP = 0.97
"""Share of plain's speed below which prompt lookup is given up; above it the loss is a short check's noise."""

MAX_QUIET_SPREAD = 0.35
"""Spread of a pass's times, as a share of their median, beyond which the machine counts as busy."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class FitResult:
    """Costs and acceptance fitted to timings and texts together."""

    costs: Costs
    exit_layers: int | None  # the best exit, wanted or not
    traces: dict[DraftSource, list[list[DraftTrace]]]
    acceptance_models: dict[DraftSource, AcceptanceModel]
    predictions: dict[str, float]  # by set of drafters


@dataclass(frozen=True)
class Check:
    """A measured speed-up: plain decoding's time over dynamic's, summed over `runs` answers without their prompts."""

    speedup: float
    runs: int


@dataclass(frozen=True)
class CheckedDrafters:
    """A set of drafters with its expected and its measured speed-up."""

    origins: tuple[DraftSource, ...]  # worth having
    expected: float
    check: Check | None
    replayed_speedup: float | None  # the replay's speed-up on the texts of the check

    @property
    def contradicts_replay(self) -> bool:
        """Whether check and replay differ too much for both to be right."""
        if self.check is None or self.replayed_speedup is None:
            return False
        return (
            not 1 / MAX_PREDICTION_ERROR_FACTOR
            <= self.check.speedup / self.replayed_speedup
            <= MAX_PREDICTION_ERROR_FACTOR
        )

    @property
    def refuted(self) -> bool:
        """Whether it was slower than plain."""
        return self.check is not None and self.check.speedup < (1.0 if self.origins else MIN_LOOKUP_SPEEDUP)


@dataclass
class Findings:
    """All that calibration found; `profile` is what gets stored."""

    samples: Samples
    costs: Costs
    acceptance: dict[DraftSource, float]  # share of first draft tokens that are accepted
    acceptance_by_exit: dict[int, float]
    exit_layers: int | None
    origins: tuple[DraftSource, ...]  # drafters worth having
    predicted: float
    measured: float | None  # on the texts of the check
    replayed_speedup: float | None  # the replay's speed-up on those texts
    summary: str
    profile: Profile
    predictions: dict[str, float] = field(default_factory=dict)  # by set of drafters
    put_aside: tuple[str, ...] = ()  # what the check refuted, in words


def calibrate(
    assembly: LoadedGenerator,
    *,
    budget: float,
    clock: Callable[[], float],
    prompts: Sequence[Sequence[int]] = (),
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Measure the assembly's target and drafters within about `budget` seconds.

    `prompts` (token ids) stand for the user's work; without any the target makes up openings. Passes are timed with the threads
    that answers are written with.
    """
    with assembly.engine.computing():
        return _calibrate(assembly, budget, clock, prompts, progress)


def _calibrate(
    assembly: LoadedGenerator,
    budget: float,
    clock: Callable[[], float],
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> Findings:
    engine, plan = assembly.engine, assembly.plan
    target, small = engine.target, engine.drafters.model
    sampling = assembly.sampling()
    exits = exit_candidates(target) if "self" in plan.kinds else ()

    def time_passes(begin: float, share: float) -> tuple[Samples, dict[int, int]]:
        def move(done: float) -> None:
            progress(begin + share * done, "timing passes")

        move(0.0)
        return measure_with_padding(target, small, exits, budget=share * budget, clock=clock, progress=move)

    samples, padded_lengths = time_passes(0.0, 0.35)
    each = samples.curve("target")(1)
    count = int(min(MAX_TEXTS, max(MIN_TEXTS, 0.35 * budget / (ANSWER_TOKENS * each))))
    texts = write_texts(
        engine, prompts, count, sampling, clock, 0.4 * budget, lambda x: progress(0.35 + 0.35 * x, "writing texts")
    )
    progress(0.7, "reading them with each drafter")
    drafter_passes = {f"exit {e}": [read_early(target, t, e, sampling) for t in texts] for e in exits}
    vocabulary = choose_draft_vocabulary(small, texts, samples, clock)
    if small is not None:
        drafter_passes["draft"] = [read_model(small, t, target.vocab, sampling) for t in texts]
    progress(0.8, "replaying")
    ngrams = sampling.own.new_ngrams
    looked_up = [lookup_traces(t, engine.library, ngrams) for t in texts] if "lookup" in plan.kinds else None
    fit_result = learn(texts, drafter_passes, looked_up, samples, exits, target.layers)

    def check(given: FitResult, predictions: dict[str, float], lookup: bool) -> tuple[CheckedDrafters, Drafters]:
        return check_best_set(
            engine, given, predictions, texts, sampling, 0.15 * budget, lookup=lookup, progress=progress
        )

    lookup = looked_up is not None
    checked, chosen = check(fit_result, fit_result.predictions, lookup)
    if checked.contradicts_replay:
        samples, padded_lengths = time_passes(0.85, 0.15)
        fit_result = learn(texts, drafter_passes, looked_up, samples, exits, target.layers)
        checked, chosen = check(fit_result, fit_result.predictions, lookup)
    put_aside: list[str] = []
    left = dict(fit_result.predictions)
    while checked.refuted and checked.check is not None and (checked.origins or lookup):
        put_aside.append(_refutation(checked, fit_result))
        blamed: list[DraftSource] = [o for o in checked.origins if o != "lookup"] or ["lookup"]
        lookup = lookup and "lookup" not in blamed
        left = {name: value for name, value in left.items() if not set(name.split(" + ")) & set(blamed)}
        checked, chosen = check(fit_result, left, lookup)
    origins, predicted = checked.origins, checked.expected
    costs, best_exit = fit_result.costs, fit_result.exit_layers
    each = samples.curve("target")(1)
    acceptance = {o: _first_rate(t) for o, t in fit_result.traces.items()}
    by_exit = {
        e: _first_rate([r.traces(t) for r, t in zip(drafter_passes[f"exit {e}"], texts, strict=True)]) for e in exits
    }
    quantization = against_unquantized(assembly, texts, sampling)
    spread = samples.spread("target")
    summary = in_words(checked, acceptance, costs, best_exit)
    if put_aside:
        summary = f"{summary}; put aside: {'; '.join(put_aside)}"
    if spread > MAX_QUIET_SPREAD:
        summary = f"{summary}; the machine was busy (times of one pass spread by {spread:.0%}), so calibrate again when it isn't"
    profile = Profile(
        key=plan.key,
        model_name=plan.source.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions={n: metadata.version(n) for n in ("torch", "transformers")},
        device={
            "name": plan.machine.cpu if plan.device == "cpu" else plan.device,
            "threads": plan.threads,
        },
        measured={
            "target": costs.target.to_json(),
            "complete": costs.complete.to_json() if costs.complete.known else None,
            "draft": {o: c.to_json() for o, c in costs.draft.items() if c.known and o != "lookup"},
            "overhead": {o: s for o, s in costs.overhead.items() if o in origins},
            "spread": spread,
            "batch": for_profile(assembly, drafting="draft" in origins, budget=0.05 * budget, clock=clock),
            "noise": noise_if_exact(
                target, [(t.tokens, t.prompt) for t in texts[:2]], chosen.exit_layers, padded_lengths
            ),
        },
        fitted={
            "origins": list(origins),
            "exit_layers": chosen.exit_layers,
            "draft_vocabulary": vocabulary if "draft" in origins else None,
            "lookup": chosen.lookup,
            "reliability": {o: r.to_json() for o, r in fit_result.acceptance_models.items()},
            "tokens_per_second": predicted / each,
            "widened": {str(asked): run for asked, run in padded_lengths.items()},
            "backend": str(assembly.decisions.backend.value),
        },
        evidence={
            "backend": assembly.decisions.backend.reason,
            "drafter": None if plan.drafter is None else place_of(plan.drafter),
            "quantization": quantization,
            "texts": len(texts),
            "tokens": sum(len(t.tokens) - t.prompt for t in texts),
            "data": text_hash(" ".join(map(str, t.tokens)) for t in texts),
            "self_written": not prompts,
            "first_guess_acceptance": dict(acceptance),
            "first_guess_acceptance_by_exit": {str(e): a for e, a in by_exit.items()},
            "predicted_speedup": predicted,
            "predicted_speedup_by_drafters": fit_result.predictions,
            "put_aside": put_aside,
            "checked_texts": checked.check.runs if checked.check else 0,
            "measured_speedup": checked.check.speedup if checked.check else None,
            "predicted_speedup_of_checked": checked.replayed_speedup,
        },
        weights=still(plan.weights, plan.source, [DRAFTER_FOLDER]),
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
        checked.check.speedup if checked.check else None,
        checked.replayed_speedup,
        summary,
        profile,
        fit_result.predictions,
        tuple(put_aside),
    )


def learn(
    texts: Sequence[Text],
    drafter_passes: dict[str, list[DrafterPass]],
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


def check_best_set(
    engine: Engine,
    fit_result: FitResult,
    predictions: dict[str, float],
    texts: Sequence[Text],
    sampling: Sampling,
    budget: float,
    *,
    lookup: bool,
    progress: Progress,
) -> tuple[CheckedDrafters, Drafters]:
    """Check the best set of `predictions` by running it; returns the outcome and the drafters. Keeping lookup ready is free."""
    origins, expected = choose_set(predictions)
    small = engine.drafters.model if "draft" in origins else None
    chosen = Drafters(small, fit_result.exit_layers if "self" in origins else None, lookup, engine.drafters.library)
    rate = expected / fit_result.costs.target(1)
    acceptance_models = {(o, True): r for o, r in fit_result.acceptance_models.items()}
    acceptance_profile = AcceptanceProfile(fit_result.costs, acceptance_models, rate, from_profile=True)
    if not chosen_origins(chosen):
        return CheckedDrafters(origins, expected, None, None), chosen
    found = confirm(
        Engine(engine.target, chosen, acceptance_profile=acceptance_profile, clock=engine.clock),
        texts,
        sampling,
        budget,
        lambda x: progress(0.85 + 0.15 * x, "checking"),
    )
    drafting = {o: t for o, t in fit_result.traces.items() if o in chosen_origins(chosen)}
    replayed_speedup = None
    if found is not None and drafting:
        count = min(found.runs, len(texts))
        replayed = {o: t[:count] for o, t in drafting.items()}
        replayed_speedup = share_of_plain(texts[:count], replayed, fit_result.costs, fit_result.acceptance_models, rate)
    return CheckedDrafters(origins, expected, found, replayed_speedup), chosen


def against_unquantized(
    assembly: LoadedGenerator, texts: Sequence[Text], sampling: Sampling
) -> dict[str, float | int | str] | None:
    """Compare the quantized model with the one it was made from, on its own texts; None where nothing is quantized.

    Of their tokens the share that is its first choice too, and by what factor the quantized model's perplexity on its own
    texts' prompts and answers differs from its. Both read the same tokens, one pass a text.
    """
    plan = assembly.plan
    if plan.request.quantize == "none":
        return None
    from dynx.speculation.backends import torch_backend

    reference = torch_backend(plan, plan.source)
    agreeing = tokens = 0
    extra = 0.0
    for text in texts:
        ids = list(text.tokens)
        count = len(ids) - text.prompt
        ours, theirs = (
            b.open().forward(ids[:-1], keep=count)[:, : assembly.engine.target.vocab].float()
            for b in (assembly.engine.target, reference)
        )
        processors = LogitsProcessors(sampling, ids[: text.prompt], count, assembly.engine.target.vocab)
        first = processors.scores(theirs, ids[: text.prompt], ids[text.prompt :]).argmax(-1).tolist()
        agreeing += sum(a == b for a, b in zip(first, ids[text.prompt :], strict=True))
        tokens += count
        written = theirs.new_tensor(ids[text.prompt :]).long()[:, None]
        extra += sum(
            sign * float(rows.log_softmax(-1).gather(-1, written).sum()) for rows, sign in ((theirs, 1), (ours, -1))
        )
    return {
        "reference": f"{plan.source.name} in {plan.dtype}",
        "tokens": tokens,
        "agreement": agreeing / max(1, tokens),
        "perplexity_ratio": math.exp(extra / max(1, tokens)),
    }


def exit_candidates(target: Backend) -> tuple[int, ...]:
    """Return the layers to consider as exits: up to six, spread over the first two thirds; none if the target can't exit."""
    if not target.can_exit.value:
        return ()
    last = max(1, target.layers * 2 // 3)
    return tuple(sorted({max(1, round(last * i / 6)) for i in range(1, 7)}))


def chosen_origins(drafters: Drafters) -> tuple[DraftSource, ...]:
    """Return the sources that an engine with these drafters can draft with."""
    has = {"draft": drafters.model is not None, "self": bool(drafters.exit_layers), "lookup": drafters.lookup}
    return tuple(cast("DraftSource", origin) for origin, there in has.items() if there)


def confirm(
    engine: Engine, texts: Sequence[Text], sampling: Sampling, budget: float, progress: Callable[[float], None]
) -> Check | None:
    """Run plain and dynamic decoding in turns on the first texts' prompts, each dynamic run starting from the fit.

    The texts are those that were fitted, so this tests the replay, not how well the texts stand for others.
    What rounds cost beyond their passes stays in the engine's acceptance profile; its fits are not touched.
    """
    began, count, totals = engine.clock(), 0, {True: 0.0, False: 0.0}
    tables = copy.deepcopy(engine.acceptance_profile)
    for i in range(max(len(texts), MIN_CHECK_RUNS) if texts else 0):
        text = texts[i % len(texts)]
        request = Request(text.tokens[: text.prompt], len(text.tokens) - text.prompt, sampling)
        for policy in (Plain(), None) if i % 2 else (None, Plain()):
            fresh = copy.deepcopy(tables)
            run = Engine(engine.target, engine.drafters, acceptance_profile=fresh, clock=engine.clock).start(
                request, policy
            )
            for _ in run:
                pass
            receipt = run.receipt()
            totals[policy is None] += receipt.seconds - receipt.prefill_seconds
            if policy is None:
                for origin, seconds in fresh.costs.overhead.items():
                    known = engine.acceptance_profile.costs.overhead
                    known[origin] = min(seconds, known.get(origin, seconds))
        count = i + 1
        progress(count / max(len(texts), MIN_CHECK_RUNS))
        if count >= MIN_CHECK_RUNS and engine.clock() - began > budget:
            break
    return Check(totals[False] / totals[True], count) if count else None


def _first_rate(by_text: Sequence[Sequence[DraftTrace]]) -> float:
    offered = [t for traces in by_text for t in traces if t.signals]
    return sum(t.kept > 0 for t in offered) / len(offered) if offered else 0.0


def _names(lesson_exit: int | None) -> dict[DraftSource, str]:
    return {"draft": "the draft model", "self": f"an exit after layer {lesson_exit}", "lookup": "lookup"}


def _refutation(checked: CheckedDrafters, fit_result: FitResult) -> str:
    names = _names(fit_result.exit_layers)
    what = " and ".join(names[o] for o in checked.origins) or "looking for repetitions"
    took = f"{checked.check.speedup:.2f}x of plain over {checked.check.runs} answers" if checked.check else "slower"
    expected = f" where the replay said {checked.replayed_speedup:.2f}x" if checked.replayed_speedup else ""
    return f"{what} took {took}{expected}"


def in_words(
    checked: CheckedDrafters, acceptance: dict[DraftSource, float], costs: Costs, exit_layers: int | None
) -> str:
    """Describe the decision in a sentence."""
    names = _names(exit_layers)
    whole = costs.target(1)

    def case(origin: DraftSource) -> str:
        draft = 0.0 if origin == "lookup" else costs.draft[origin](1)
        step = (
            costs.verify(origin, 1, costs.target.reference) - whole
            if origin != "self"
            else draft - costs.target(1) + costs.complete(2)
        )
        even = max(0.0, (draft + step) / whole)
        return f"{names[origin]} has {acceptance.get(origin, 0.0):.0%} of its tokens accepted and breaks even at {even:.0%}"

    if not checked.origins:
        tried = "; ".join(case(o) for o in acceptance) or "there is nothing to draft with"
        return f"plain decoding, unless the text repeats itself: {tried}"
    seen = ""
    if checked.check and checked.replayed_speedup:
        found, replayed_speedup = checked.check, checked.replayed_speedup
        seen = f" ({found.runs} answers took {found.speedup:.2f}x where the replay says {replayed_speedup:.2f}x)"
    return (
        f"draft with {' and '.join(names[o] for o in checked.origins)}: {checked.expected:.2f}x of plain expected{seen}; "
        + "; ".join(case(o) for o in checked.origins)
    )
