"""Learn a classifier's exits once, from inputs without labels: heads, score, rules, costs, and what may be promised.

1. Leave out repeated inputs, and cut the rest at random into three parts: heads, rules, certificate.
2. Run all of them through the whole model, looking in after every block; and through the full float32 model, where that is
   another one.
3. Fit heads on the first part. On the second fit the score, time the exits (`measure`), and choose those that pay.
4. Fit the heads that remain anew, draw up the rules, and certify one of them on the third part, seen here for the first time.
5. Run plain and dynamic in turns on the third part, to see what the costs are worth.

Nothing here prints; `progress` hears (share done, what is being done).
"""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.attach.model import Attachment
from dynx.early_exit.backends import RANGES, fastest
from dynx.early_exit.costs import measure_costs
from dynx.early_exit.features import Collected, Inputs, candidates, collect
from dynx.early_exit.heads import AgreementScore, ExitHeads, agrees
from dynx.early_exit.preprocessing import Row
from dynx.early_exit.profile_data import Evidence, Fitted, to_arrays, to_json
from dynx.early_exit.reference import Reference, is_reference
from dynx.errors import UnsupportedModelError, UsageError
from dynx.runtime.binomial import percent, smallest_sample, supports
from dynx.runtime.certify import choose_rules, deduplicate, split
from dynx.runtime.hashing import text_hash
from dynx.runtime.profile import Profile
from dynx.runtime.weights import still

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.early_exit.setup import Assembly
    from dynx.runtime.certify import Certificate

Progress = Callable[[float, str], None]

MOST = {"text": 6000, "image": 3000}
"""Inputs used: enough for 0.5 % at 95 %, and an end to how long it takes and, for pictures, to how much memory."""

FEWEST = 60
"""Inputs below which nothing is fitted."""

CHECKED = 600
"""Inputs of the certificate that also time plain against dynamic."""

SEED = 0


@dataclass(frozen=True)
class Findings:
    """Everything learned; `profile` and `arrays` are what gets stored."""

    inputs: int  # given, repeated ones left out
    unreadable: int
    parts: tuple[int, int, int]
    power: str
    fitted: Fitted | None
    certificate: Certificate | None
    agreement: dict[int, float]
    """After each block tried: share of part two that its head answers like the full model."""
    measured: tuple[float, float, float] | None
    """Plain time over dynamic time on inputs of part three: median, least, most of the rounds."""
    summary: str
    profile: Profile
    arrays: dict[str, NDArray[Any]]


def power(n: int, eps: float, delta: float) -> str:
    """What n inputs can show, before any of them is run."""
    third = len(split(n, SEED)[2])
    return f"{third:,} of {n:,} inputs certify: {supports(third, eps, delta)}"


def calibrate(
    assembly: Assembly,
    inputs: Inputs,
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Learn the assembly's exits; timing takes about `budget` seconds, the rest what the inputs take.

    UsageError: too few inputs, or a regression without a tolerance. UnsupportedModelError: the model can't have exits.
    """
    wish = assembly.plan.wish
    if not isinstance(assembly.attachment, Attachment):
        raise UnsupportedModelError(assembly.decisions["exits"].reason)
    require_tolerance(assembly)
    rows, items, unreadable = _distinct(assembly, inputs)
    parts = split(len(rows), SEED)
    said = power(len(rows), wish.max_disagreement, wish.delta)
    if len(rows) < FEWEST:
        lost = f" ({unreadable:,} can't be read)" if unreadable else ""
        raise UsageError(
            f"{len(rows)} different inputs{lost}; at least {FEWEST} are needed", hint=f"better: {_wanted(wish)}"
        )
    first = [rows[i] for i in parts[0]]
    fastest(assembly, first, clock, lambda what: progress(0.0, what))
    progress(0.0, "running the full model")
    truth = None
    if not is_reference(assembly):
        truth = torch.from_numpy(Reference(assembly).logits(items))
    depths = candidates(assembly.attachment.depth)
    seen = collect(assembly, rows, depths, truth, lambda x: progress(0.05 + 0.35 * x, "running the full model"))
    learned = learn(
        assembly,
        seen,
        rows,
        (parts[0], parts[1]),
        len(parts[2]),
        budget=budget,
        clock=clock,
        progress=lambda x, what: progress(0.4 + 0.45 * x, what),
    )
    whole = _at_full_depth(assembly, seen.rows(parts[2]))
    if learned is None:
        return _nothing(assembly, inputs, rows, parts, unreadable, said, whole)
    fitted, agreement = learned
    evidence = evidence_of(fitted, seen.rows(parts[2]), assembly)
    certificate = fitted.certify(evidence, assembly.batch, wish.max_disagreement, wish.delta)
    progress(0.87, "checking on the clock")
    measured = None
    if certificate.active:
        measured = confirm(assembly, fitted, certificate, [rows[i] for i in parts[2]], 0.3 * budget, clock)
    summary = in_words(fitted, certificate, measured, assembly)
    profile, arrays = _profile(
        assembly, inputs, fitted, evidence, certificate, agreement, measured, parts, summary, whole
    )
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    progress(1.0, "")
    return Findings(
        len(rows), unreadable, sizes, said, fitted, certificate, agreement, measured, summary, profile, arrays
    )


def require_tolerance(assembly: Assembly) -> None:
    """UsageError: a regression, and nobody said when two numbers agree."""
    if assembly.labels.problem == "regression" and not assembly.plan.wish.tolerance:
        raise UsageError(
            "the model gives numbers, and numbers are hardly ever equal",
            hint="--within T says how far an answer may be off",
        )


def _wanted(wish: Any) -> str:
    least = smallest_sample(wish.max_disagreement, wish.delta)
    return f"{10 * least:,} or more, for {percent(wish.max_disagreement)} at {percent(wish.confidence)}"


def _distinct(assembly: Assembly, inputs: Inputs) -> tuple[list[Row], list[Any], int]:
    """Rows that differ from each other, and their items; at most `MOST`, drawn at random."""
    firsts, most = deduplicate(inputs.names), MOST[assembly.reader.kind]
    if len(firsts) > most:
        firsts = np.sort(np.random.default_rng(SEED).choice(firsts, most, replace=False))
    items = [inputs.items[i] for i in firsts]
    made = assembly.reader.rows(items)
    rows, kept, known = [], [], set()
    for item, row in zip(items, made, strict=True):
        if isinstance(row, Row) and row.identity not in known:
            known.add(row.identity)
            rows.append(row)
            kept.append(item)
    return rows, kept, sum(isinstance(row, str) for row in made)


def learn(
    assembly: Assembly,
    seen: Collected,
    rows: Sequence[Row],
    parts: tuple[NDArray[np.int64], NDArray[np.int64]],
    certifying: int,
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> tuple[Fitted, dict[int, float]] | None:
    """Heads from the first part, score, rules and costs from the second, for a certificate on `certifying` other rows.

    Also the agreement of every exit tried. None where no exit pays at the risk that the certificate can show.
    """
    wish, problem = assembly.plan.wish, assembly.labels.problem
    tolerance = wish.tolerance or 0.0
    one, two = seen.rows(parts[0]), seen.rows(parts[1])

    def fit(depths: Sequence[int]) -> tuple[ExitHeads, AgreementScore]:
        heads = ExitHeads.fit(one.at(depths).pooled, one.truth, problem, seed=SEED)
        score = AgreementScore.fit(heads.run(two.at(depths).pooled), two.truth, problem, tolerance=tolerance)
        return heads, score

    progress(0.0, f"fitting {len(seen.depths)} exits")
    heads, score = fit(seen.depths)
    scores, agree = two.seen_by(heads, score, tolerance)
    agreement = {depth: float(share) for depth, share in zip(seen.depths, agree[:, :-1].mean(axis=0), strict=True)}
    progress(0.5, "timing exits")
    kept = list(seen.depths)
    sample = [rows[i] for i in parts[1]]
    costs = {
        batch: measure_costs(
            assembly.attachment,  # type: ignore[arg-type]
            assembly.reader.collate,
            sample,
            kept,
            heads=heads,
            score=score,
            length=lambda row: row.size,
            batch=batch,
            budget=budget / 2,
            clock=clock,
        )
        for batch in sorted({1, assembly.batch})
    }
    main = costs[assembly.batch]
    rules = choose_rules(scores, agree, main, wish.max_disagreement, wish.delta, certifying)
    if not np.isfinite(rules.thresholds).any():
        return None
    if len(rules.kept) < len(kept):
        progress(0.8, "fitting those that pay")
        kept = [seen.depths[k] for k in rules.kept]
        costs = {size: c.at(rules.kept) for size, c in costs.items()}
        heads, score = fit(kept)
        scores, agree = two.at(kept).seen_by(heads, score, tolerance)
        rules = choose_rules(
            scores, agree, costs[assembly.batch], wish.max_disagreement, wish.delta, certifying, prune=False
        )
    return Fitted(tuple(kept), heads, score, rules, costs), agreement


def evidence_of(fitted: Fitted, seen: Collected, assembly: Assembly) -> Evidence:
    """What the rows of a certificate show."""
    tolerance = assembly.plan.wish.tolerance or 0.0
    scores, agree = seen.at(fitted.depths).seen_by(fitted.heads, fitted.score, tolerance)
    return Evidence(scores, agree, assembly.labels.ids(seen.truth.numpy()))


def confirm(
    assembly: Assembly,
    fitted: Fitted,
    certificate: Certificate,
    rows: Sequence[Row],
    budget: float,
    clock: Callable[[], float],
) -> tuple[float, float, float]:
    """Plain over dynamic on the clock, in turns on the same rows: median, least and most of the rounds."""
    rows = rows[:CHECKED]
    plain, dynamic = assembly.engine(), assembly.engine(fitted.exits(certificate.thresholds))
    plain.window(rows[: 2 * assembly.batch])
    dynamic.window(rows[: 2 * assembly.batch])
    began, ratios = clock(), list[float]()
    while len(ratios) < 3 or (clock() - began < budget and len(ratios) < 15):
        times = {}
        for engine in (plain, dynamic) if len(ratios) % 2 else (dynamic, plain):
            start = clock()
            engine.window(rows)
            times[id(engine)] = clock() - start
        ratios.append(times[id(plain)] / times[id(dynamic)])
    return statistics.median(ratios), min(ratios), max(ratios)


def in_words(
    fitted: Fitted, certificate: Certificate, measured: tuple[float, float, float] | None, assembly: Assembly
) -> str:
    """The decision in a sentence."""
    if not certificate.active:
        return certificate.words
    if measured and measured[0] < 1:
        return f"full depth: on the clock exits within {percent(certificate.eps)} make it {measured[0]:.2f}x as fast"
    used = [d for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    layers = mean_layers(fitted, certificate, assembly.attachment.depth)
    clock = f", {measured[0]:.2f}x on the clock" if measured else ""
    return (
        f"exits after layer {' and '.join(map(str, used))}: {layers:.2f} of {assembly.attachment.depth} layers on average, "
        f"{certificate.speedup:.2f}x of plain expected{clock}; {certificate.words}"
    )


def mean_layers(fitted: Fitted, certificate: Certificate, depth: int) -> float:
    """Layers per input, on the rows of the certificate."""
    each = np.asarray([*fitted.depths, depth], dtype=np.float64)
    return float((each * np.asarray(certificate.exits)).sum() / certificate.n)


def _profile(
    assembly: Assembly,
    inputs: Inputs,
    fitted: Fitted,
    evidence: Evidence,
    certificate: Certificate,
    agreement: dict[int, float],
    measured: tuple[float, float, float] | None,
    parts: Sequence[NDArray[np.int64]],
    summary: str,
    whole: dict[str, int],
) -> tuple[Profile, dict[str, NDArray[Any]]]:
    shape, seconds = to_json(fitted)
    labels, wish = assembly.labels, assembly.plan.wish
    by_class = [
        {"label": name, "inputs": rows, "disagreements": bad}
        for name, (rows, bad) in zip(labels.names, certificate.by_class, strict=False)
    ]
    body = _envelope(assembly, inputs)
    fields = {
        "measured": seconds | {"clock": None if measured is None else list(measured), "batch": assembly.batch},
        "fitted": shape
        | {
            "problem": labels.problem,
            "tolerance": wish.tolerance,
            "max_length": assembly.cut,
            "max_disagreement": wish.max_disagreement,
            "agreement": {str(depth): share for depth, share in agreement.items()},
            "backend": assembly.blocks.backend,
        },
        "evidence": body["evidence"]
        | {
            "parts": [len(part) for part in parts],
            "certificate": certificate.to_json(),
            "by_class": by_class,
            "full_depth": whole,
        },
        "decision": {"summary": summary},
    }
    return Profile(**(body | fields)), to_arrays(fitted, evidence) | _ranges(assembly)


def _ranges(assembly: Assembly) -> dict[str, NDArray[Any]]:
    """What int8 was made with."""
    return {RANGES + name: ends for name, ends in assembly.blocks.ranges.items()}


def _at_full_depth(assembly: Assembly, seen: Collected) -> dict[str, int]:
    """How many of these rows the model itself, before any exit, answers otherwise than the reference."""
    same = agrees(seen.logits, seen.truth, assembly.labels.problem, assembly.plan.wish.tolerance or 0.0)
    return {"n": len(seen), "disagreements": int((~same).sum())}


def _envelope(assembly: Assembly, inputs: Inputs) -> dict[str, Any]:
    plan = assembly.plan
    return {
        "key": plan.key,
        "model_name": plan.source.name,
        "weights": still(plan.weights, plan.source.folder),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "device": {
            "name": plan.machine.cpu if plan.device == "cpu" else plan.device,
            "threads": assembly.decisions["threads"].value,
        },
        "evidence": {"data": text_hash(inputs.names), "inputs": len(inputs.names)},
    }


def _nothing(
    assembly: Assembly,
    inputs: Inputs,
    rows: Sequence[Row],
    parts: Sequence[NDArray[np.int64]],
    unreadable: int,
    said: str,
    whole: dict[str, int],
) -> Findings:
    """Findings of a model whose exits don't pay: a profile that says so, so that nobody asks again."""
    eps = assembly.plan.wish.max_disagreement
    summary = f"full depth: no exit is right often enough to pay for looking, within {percent(eps)}"
    body = _envelope(assembly, inputs)
    body |= {
        "measured": {},
        "fitted": {"depths": [], "max_disagreement": eps, "backend": assembly.blocks.backend},
        "evidence": body["evidence"] | {"full_depth": whole},
        "decision": {"summary": summary},
    }
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    return Findings(
        len(rows), unreadable, sizes, said, None, None, {}, None, summary, Profile(**body), _ranges(assembly)
    )
