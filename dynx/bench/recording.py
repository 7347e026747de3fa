"""What every drafter and every exit would have said about some inputs, as lines that `dynx.bench.replay` can score policies on.

A head says on what it was recorded, what things cost, and what the dynamic policy knew; then comes a text, an input or a picture
after the other. Costs come from the profile, or are measured now. This loads models; replaying needs none.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from dynx.errors import UsageError
from dynx.runtime.binomial import most_failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dynx.bench.arms.drawing import Pair
    from dynx.bench.arms.generation import Task
    from dynx.diffusion.generator import Artist
    from dynx.early_exit.setup import Assembly as Classifying
    from dynx.runtime.certify import Certificate
    from dynx.speculation.policy import Costs
    from dynx.speculation.setup import Assembly as Writing
    from dynx.speculation.simulate import Guess
    from dynx.speculation.types import Origin

SCHEMA = "dynx.recording/1"

MEASURING = 10.0
"""Seconds for timing passes where no profile has."""

Progress: TypeAlias = Callable[[float], None]


def _line(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


def _head(task: str, header: Mapping[str, Any], **more: Any) -> str:
    made = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return _line({"schema": SCHEMA, "task": task, "created": made, "header": header, **more})


def texts(
    assembly: Writing, prompts: Sequence[Sequence[int]], task: Task, header: Mapping[str, Any], progress: Progress
) -> Iterator[str]:
    """A head, and for each prompt what every drafter guesses at each position of the answer; greedy decoding only.

    Raises UsageError with sampling, without anyone to draft, and where no answer is long enough.
    """
    from dynx.speculation import simulate
    from dynx.speculation.calibrate import chosen_origins
    from dynx.speculation.engine import PRIORS, UNKNOWN_GRANT, grant
    from dynx.speculation.simulate import Recording
    from dynx.speculation.traces import Text

    if not task.sampling.greedy:
        raise UsageError("--record records greedy decoding; leave out --temperature")
    engine = assembly.engine
    origins = chosen_origins(engine.drafters)
    if not origins:
        raise UsageError(f"there is nothing to draft with: {assembly.decisions['draft'].reason}")
    known = engine.knowledge
    recordings = []
    for i, prompt in enumerate(prompts):
        run = engine.start(task.request(prompt))
        for _ in run:
            pass
        text = Text([*prompt, *run.tokens], len(prompt))
        if len(run.tokens) > 1:
            recordings.append(Recording(len(prompt) + 1, _guesses(assembly, text, origins, task)))
        progress(0.7 * (i + 1) / len(prompts))
    if not recordings:
        raise UsageError("no answer has two tokens, so there is nothing to guess")
    costs = known.costs if known.from_profile else _measured(assembly, progress)
    fitted = {
        "reliability": {o: known.of(o, greedy=True).to_json() for o in origins},
        "rate": known.rate,
        "grant": grant((known.rate or 0.0) * known.costs.target(1)),
    }
    cold = {
        "reliability": {o: {"weights": list(PRIORS[o][0]), "typical": PRIORS[o][1], "n": 0} for o in origins},
        "rate": None,
        "grant": UNKNOWN_GRANT,
    }
    yield _head(
        "generate",
        header,
        costs=costs_json(costs),
        costs_from="profile" if known.from_profile else "measured",
        dynamic=fitted if known.from_profile else None,
        cold=cold,
    )
    yield from simulate.dump(recordings)


def _guesses(assembly: Writing, text: Any, origins: Sequence[Origin], task: Task) -> dict[Origin, Sequence[Guess]]:
    from dynx.speculation.traces import lookup_traces, read_early, read_model

    engine = assembly.engine
    target, small, layers = engine.target, engine.drafters.model, engine.drafters.exit_layers
    out: dict[Origin, Sequence[Guess]] = {}
    if small is not None and "draft" in origins:
        out["draft"] = read_model(small, text, target.vocab, task.sampling).traces(text)
    if layers and "self" in origins:
        out["self"] = read_early(target, text, layers, task.sampling).traces(text)
    if "lookup" in origins:
        out["lookup"] = lookup_traces(text, engine.drafters.library, task.sampling.own.new_ngrams)
    return out


def _measured(assembly: Writing, progress: Progress) -> Costs:
    from dynx.speculation.timing import costs_from, measure

    engine = assembly.engine
    layers = engine.drafters.exit_layers
    samples = measure(
        engine.target,
        engine.drafters.model,
        (layers,) if layers else (),
        budget=MEASURING,
        clock=engine.clock,
        progress=lambda share: progress(0.7 + 0.3 * share),
    )
    return costs_from(samples, layers, engine.target.layers)


def costs_json(costs: Costs) -> dict[str, Any]:
    """As profiles hold them."""
    return {
        "target": costs.target.to_json(),
        "complete": costs.complete.to_json() if costs.complete.known else None,
        "draft": {origin: curve.to_json() for origin, curve in costs.draft.items() if curve.known},
        "overhead": dict(costs.overhead),
    }


def labels(assembly: Classifying, items: Sequence[Any], header: Mapping[str, Any], progress: Progress) -> Iterator[str]:
    """A head, and for each input the score at every exit and whether the exit says what the full float32 model says.

    Raises UsageError where the profile has no exits.
    """
    import torch

    from dynx.early_exit.calibrate import evidence_of
    from dynx.early_exit.features import collect
    from dynx.early_exit.preprocessing import Row
    from dynx.early_exit.reference import Reference, is_reference

    known = assembly.knowledge
    if known is None:
        raise UsageError(f"there are no exits to record: {assembly.decisions['exits'].reason}", hint="dynx calibrate")
    rows = [row for row in assembly.reader.rows(list(items)) if isinstance(row, Row)]
    truth = None if is_reference(assembly) else torch.from_numpy(Reference(assembly).logits(list(items)))
    fitted, certificate = known.fitted, known.certificate
    seen = collect(assembly, rows, fitted.depths, truth, progress)
    found = evidence_of(fitted, seen, assembly)
    costs = fitted.costs_at(assembly.batch)
    yield _head(
        "classify",
        header,
        places=[*fitted.depths, assembly.attachment.depth],
        plain=costs.full,
        costs={"reach": list(costs.reach), "full": costs.full, "check": list(costs.check)},
        **_promise(certificate),
        thresholds=certificate.to_json()["thresholds"],
    )
    for scores, agree in zip(found.scores.tolist(), found.agree.tolist(), strict=True):
        yield _line({"scores": [round(s, 6) for s in scores], "right": [int(a) for a in agree]})


def _promise(certificate: Certificate) -> dict[str, Any]:
    """The share that must be right, and the share that may be wrong among as many inputs as certified it."""
    most = most_failures(certificate.n, certificate.eps, certificate.delta)
    provable = (most or 0) / certificate.n
    return {"share": 1 - certificate.eps, "confidence": 1 - certificate.delta, "provable": provable}


def pictures(
    artist: Artist, pairs: Sequence[Pair], quality: float, header: Mapping[str, Any], progress: Progress
) -> Iterator[str]:
    """A head, and for each picture how likely every number of steps seemed to be enough, and its SSIM to plain's picture.

    Raises UsageError where the profile has no steps to choose from.
    """
    from dynx.diffusion.step_sweep import climb

    assembly = artist.assembly
    known, engine = assembly.knowledge, assembly.engine
    if known is None:
        raise UsageError(
            f"there are no steps to record: {assembly.decisions['steps'].reason}",
            hint=f"dynx calibrate -m {assembly.plan.source.name}",
        )
    fitted, certificate = known.fitted, known.certificate
    made = []
    for i, pair in enumerate(pairs):
        seen = climb(engine, artist.request(*pair), fitted.ladder)
        predicted = fitted.predictor(seen.looks, seen.texts)
        scores = fitted.predictor.chances(predicted, quality)
        for chance, likeness in zip(scores.tolist(), seen.likeness.tolist(), strict=True):
            body = {"prompt": pair.prompt, "seed": pair.seed, "scores": [round(c, 6) for c in chance]}
            made.append(
                _line({**body, "ssim": [round(v, 6) for v in likeness], "right": [int(v >= quality) for v in likeness]})
            )
        progress((i + 1) / len(pairs))
    yield _head(
        "draw",
        {**header, "quality": quality},
        places=list(fitted.ladder.steps),
        plain=fitted.plain,
        costs={"reach": list(fitted.costs.reach), "full": fitted.costs.full, "check": list(fitted.costs.check)},
        **_promise(certificate),
        thresholds=certificate.to_json()["thresholds"],
    )
    yield from made
