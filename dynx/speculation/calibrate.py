"""Calibrates a target and its drafters once: costs, acceptance, the exit layer, and whether any of it pays.

1. Time the passes (`measure`), and run those wider that cost less so.
2. Let the target write texts, from prompts given or of the form that will run (`calibration_prompts`), and run each drafter over
   every text once (`traces`).
3. Fit acceptance, then replay the texts under the dynamic policy for each set of drafters, and take the smallest set that is as
   good as any (`prediction`).
4. Run it, plain and dynamic in turns. Where that contradicts the replay, the passes are timed once more, since a busy moment may
   have hit some of them only; what still turns out slower than plain is put aside (`calibration_check`).

Nothing here prints; `progress` is called with (share done, what is being done).
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dynx.runtime.hashing import text_hash
from dynx.runtime.identity import still
from dynx.runtime.loading import DRAFTER_FOLDER
from dynx.runtime.profile import Profile
from dynx.speculation.batch_size import for_profile
from dynx.speculation.calibration_check import CheckedDrafters, Progress, check_best_set, names, refutation
from dynx.speculation.calibration_prompts import evenly, own_prompts
from dynx.speculation.draft_vocabulary import choose_draft_vocabulary
from dynx.speculation.exactness import noise_if_exact
from dynx.speculation.known_drafters import place_of
from dynx.speculation.learned_drafter import learn_drafter, made_up_prompts, split
from dynx.speculation.own_candidates import ask, can_pay, to_json
from dynx.speculation.prediction import FitResult, learn
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.timing import Samples, measure_with_padding
from dynx.speculation.traces import Text, lookup_traces, read_early, read_model, write_texts
from dynx.speculation.tree_check import compare_trees

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.engine import Drafters
    from dynx.speculation.head_traces import HeadPass
    from dynx.speculation.round_costs import Costs
    from dynx.speculation.simulate import DraftTrace
    from dynx.speculation.traces import DrafterPass
    from dynx.speculation.types import DraftSource, Sampling

MAX_TEXTS, MIN_TEXTS = 24, 4
"""Texts to write: they differ more from each other than their parts do, so many short ones are worth more than few long ones."""

PASSES_SHARE, WRITING_SHARE, OWN_CANDIDATES_SHARE, CHECK_SHARE, TREE_CHECK_SHARE, BATCH_SHARE = (
    0.28,
    0.32,
    0.08,
    0.12,
    0.12,
    0.04,
)
"""Shares of the budget: for timing passes, writing texts, asking the target what it thinks likely after single tokens, the check
at least, comparing answers with trees of candidates, and batches. What is left over goes to the noise of passes."""

SHARE_BY_CHECK = 1 - TREE_CHECK_SHARE - BATCH_SHARE - 0.04
"""Share of the budget that may be spent when the check ends."""

TYPICAL_ANSWER_PASSES = 64
"""Plain passes that a text takes: most end before they reach `ANSWER_TOKENS`."""

MAX_QUIET_SPREAD = 0.35
"""Spread of a pass's times, as a share of their median, beyond which the machine counts as busy."""


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
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)  # of the profile


def calibrate(
    assembly: LoadedGenerator,
    *,
    budget: float,
    clock: Callable[[], float],
    prompts: Sequence[Sequence[int]] = (),
    system: str | None = None,
    learning: float = 0.0,
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Measure the assembly's target and drafters within about `budget` seconds, and learn a drafter in `learning` more.

    `prompts` (token ids) stand for the user's work; without any they are chats under the message `system` where the plan's form
    is a chat's, else beginnings of texts. Passes are timed with the threads that answers are written with. What is learned
    (`learned_drafter`) holds what the target wrote; one prompt of five tests it alone.
    """
    with assembly.engine.computing():
        return _calibrate(assembly, budget, clock, prompts, system, learning, progress)


def _calibrate(
    assembly: LoadedGenerator,
    budget: float,
    clock: Callable[[], float],
    prompts: Sequence[Sequence[int]],
    system: str | None,
    learning: float,
    progress: Progress,
) -> Findings:
    began = clock()
    engine, plan = assembly.engine, assembly.plan
    target, small = engine.target, engine.drafters.model
    sampling = assembly.sampling()
    exits = exit_candidates(target) if "self" in plan.kinds else ()

    def time_passes(begin: float, share: float) -> tuple[Samples, dict[int, int]]:
        def move(done: float) -> None:
            progress(begin + share * done, "timing passes")

        move(0.0)
        return measure_with_padding(target, small, exits, budget=share * budget, clock=clock, progress=move)

    samples, padded_lengths = time_passes(0.0, PASSES_SHARE)
    each = samples.curve("target")(1)
    count = int(min(MAX_TEXTS, max(MIN_TEXTS, WRITING_SHARE * budget / (TYPICAL_ANSWER_PASSES * each))))
    lessons, prompts = split(prompts) if learning and prompts else ([], prompts)
    written = write_texts(
        engine,
        evenly(prompts, count) if prompts else own_prompts(assembly, system),
        count,
        sampling,
        clock,
        WRITING_SHARE * budget,
        lambda x: progress(0.35 + 0.35 * x, "writing texts"),
        end_tokens=assembly.end_tokens,
    )
    texts = written.texts
    candidates: dict[int, list[int]] = {}
    if plan.kinds and can_pay(samples.curve("target")):
        root = texts[0].tokens[texts[0].prompt - 1]  # after which an answer begins
        candidates = ask(target, texts, root, budget=OWN_CANDIDATES_SHARE * budget, clock=clock)
        engine.know(candidates)
    progress(0.7, "reading them with each drafter")
    drafter_passes: dict[str, Sequence[DrafterPass | HeadPass]] = {
        f"exit {e}": [read_early(target, t, e, sampling) for t in texts] for e in exits
    }
    vocabulary = choose_draft_vocabulary(small, texts, samples, clock)
    if small is not None:
        drafter_passes["draft"] = [read_model(small, t, target.vocab, sampling) for t in texts]
    progress(0.8, "replaying")
    ngrams = sampling.own.new_ngrams
    looked_up = [lookup_traces(t, engine.library, ngrams) for t in texts] if "lookup" in plan.kinds else None
    fit_result = learn(texts, drafter_passes, looked_up, samples, exits, target.layers)

    def check(given: FitResult, predictions: dict[str, float], lookup: bool) -> tuple[CheckedDrafters, Drafters]:
        left = max(CHECK_SHARE * budget, SHARE_BY_CHECK * budget - (clock() - began))
        return check_best_set(engine, given, predictions, texts, sampling, left, lookup=lookup, progress=progress)

    lookup = looked_up is not None
    checked, chosen = check(fit_result, fit_result.predictions, lookup)
    if checked.contradicts_replay:
        samples, padded_lengths = time_passes(0.85, PASSES_SHARE / 2)
        fit_result = learn(texts, drafter_passes, looked_up, samples, exits, target.layers)
        checked, chosen = check(fit_result, fit_result.predictions, lookup)
    put_aside: list[str] = []
    left = dict(fit_result.predictions)
    while checked.refuted and checked.check is not None and (checked.origins or lookup):
        put_aside.append(refutation(checked, fit_result))
        blamed: list[DraftSource] = [o for o in checked.origins if o != "lookup"] or ["lookup"]
        lookup = lookup and "lookup" not in blamed
        left = {name: value for name, value in left.items() if not set(name.split(" + ")) & set(blamed)}
        checked, chosen = check(fit_result, left, lookup)
    origins, predicted = checked.origins, checked.expected
    rate = predicted / fit_result.costs.target(1)
    trees = compare_trees(engine, chosen, fit_result, rate, texts, sampling, TREE_CHECK_SHARE * budget)
    predicted *= max(1.0, trees.speedup if trees else 1.0)
    branching = trees is not None and trees.speedup > 1
    learned = None
    if learning and chosen.present:
        learned = learn_drafter(
            assembly,
            lessons or made_up_prompts(assembly, system),
            texts,
            lambda followers, seconds: compare_trees(
                engine, chosen, fit_result, rate, texts, sampling, seconds, followers, trees_before=branching
            ),
            budget=learning,
            clock=clock,
            progress=lambda x: progress(x, "writing for a drafter"),
        )
    kept = learned is not None and learned.kept
    predicted *= learned.gain if learned is not None else 1.0
    costs, best_exit = fit_result.costs, fit_result.exit_layers
    each = samples.curve("target")(1)
    acceptance = {o: _first_rate(t) for o, t in fit_result.traces.items()}
    by_exit = {
        e: _first_rate([r.traces(t) for r, t in zip(drafter_passes[f"exit {e}"], texts, strict=True)]) for e in exits
    }
    quantization = against_unquantized(assembly, texts, sampling)
    spread = samples.spread("target")
    said = {
        f"{written.loops} of {len(texts)} texts were cut where they began to loop": written.loops,
        f"trees of candidates: {trees.speedup if trees else 1:.2f}x of chains in {trees.runs if trees else 0} answers": trees,
        f"{learned}": learned,
        f"put aside: {'; '.join(put_aside)}": put_aside,
        f"the machine was busy (times of one pass spread by {spread:.0%}), so calibrate again when it isn't": spread
        > MAX_QUIET_SPREAD,
    }
    summary = "; ".join(
        [in_words(checked, acceptance, costs, best_exit), *(words for words, true in said.items() if true)]
    )
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
            "change": costs.switching,
            "spread": spread,
            "batch": for_profile(assembly, drafting="draft" in origins, budget=BATCH_SHARE * budget, clock=clock),
            "noise": noise_if_exact(
                target, [(t.tokens, t.prompt) for t in texts[:2]], chosen.exit_layers, padded_lengths
            ),
        },
        fitted={
            "origins": list(origins),
            "exit_layers": chosen.exit_layers,
            "own_candidates": to_json(candidates) if branching or kept else {},
            "trees": branching or kept,
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
            "loops_cut": written.loops,
            "first_guess_acceptance": dict(acceptance),
            "first_guess_acceptance_by_exit": {str(e): a for e, a in by_exit.items()},
            "predicted_speedup": predicted,
            "predicted_speedup_by_drafters": fit_result.predictions,
            "put_aside": put_aside,
            "checked_texts": checked.check.runs if checked.check else 0,
            "tree_speedup": trees.speedup if trees else None,
            "learned_tokens": learned.tokens if learned else 0,
            "learned_speedup": learned.check.speedup if learned and learned.check else None,
            "measured_speedup": checked.check.speedup if checked.check else None,
            "measured_margin": checked.check.margin if checked.check and math.isfinite(checked.check.margin) else None,
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
        learned.arrays if learned is not None and kept else {},
    )


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


def _first_rate(by_text: Sequence[Sequence[DraftTrace]]) -> float:
    offered = [t for traces in by_text for t in traces if t.signals]
    return sum(t.kept > 0 for t in offered) / len(offered) if offered else 0.0


def in_words(
    checked: CheckedDrafters, acceptance: dict[DraftSource, float], costs: Costs, exit_layers: int | None
) -> str:
    """Describe the decision in a sentence."""
    named = names(exit_layers)
    whole = costs.target(1)

    def case(origin: DraftSource) -> str:
        draft = 0.0 if origin == "lookup" else costs.draft[origin](1)
        step = (
            costs.verify(origin, 1, costs.target.reference) - whole
            if origin != "self"
            else draft - costs.target(1) + costs.complete(2)
        )
        even = max(0.0, (draft + step) / whole)
        return f"{named[origin]} has {acceptance.get(origin, 0.0):.0%} of its tokens accepted and breaks even at {even:.0%}"

    if not checked.origins:
        tried = "; ".join(case(o) for o in acceptance) or "there is nothing to draft with"
        return f"plain decoding, unless the text repeats itself: {tried}"
    seen = ""
    if checked.check and checked.replayed_speedup:
        found, replayed_speedup = checked.check, checked.replayed_speedup
        seen = f" ({found.runs} answers took {found.speedup:.2f}x where the replay says {replayed_speedup:.2f}x)"
    return (
        f"draft with {' and '.join(named[o] for o in checked.origins)}: {checked.expected:.2f}x of plain expected{seen}; "
        + "; ".join(case(o) for o in checked.origins)
    )
