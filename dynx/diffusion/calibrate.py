"""Learn a pipeline's steps once: which grid and solver, how many steps a picture needs, and what may be promised of it.

1. Draw some pictures plain: the full runs that quality is measured against, and the clock.
2. Record their way over the plain run's own grid, and plan grids for every number of steps by dynamic programming.
3. On those pictures try solvers, γ, guidance for a part of the steps, and skipping, and keep what reaches the quality cheapest.
4. Draw new pictures at every number of steps, all numbers sharing their first nodes. One part fits the predictor, one draws up
   the rules, and the largest, seen once, certifies.

Nothing here prints; `progress` hears (share done, what is being done).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion.events import Request
from dynx.diffusion.grid import continuations, mean_errors, plan
from dynx.diffusion.knowledge import LOOK, PAYS, Evidence, Fitted, Ladder, to_arrays
from dynx.diffusion.predictor import Predictor, look_features, shortfall, text_features
from dynx.diffusion.quality import compare, tails
from dynx.diffusion.setup import DELTA, SHARE
from dynx.diffusion.trajectory import Trajectory, record
from dynx.errors import UnsupportedModelError, UsageError
from dynx.runtime.hashing import text_hash
from dynx.runtime.profile import Profile
from dynx.runtime.promise import Costs
from dynx.runtime.risk import percent, smallest_sample, supports

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.diffusion.quality import Tails
    from dynx.diffusion.sampler import Look
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.setup import Assembly
    from dynx.runtime.promise import Certificate

    Array = NDArray[np.float64]

Progress = Callable[[float, str], None]

LEVELS = (4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 30)
"""Numbers of steps on the ladder; those above two thirds of the plain run's are left out."""

BATCH = 8
"""Pictures drawn together."""

TRYING = 16
"""Pictures on which grids, solvers and cuts are chosen."""

SHARES = (0.3, 0.2, 0.5)
"""Of the others: predictor, rules, certificate."""

LEAST, MOST = 120, 400
"""Pictures for those three; half of `LEAST` is just enough to certify 95 % at 95 %."""

GAMMAS = (1.0, 1.2)
SOLVERS = ("dpm++2m", "euler")
CUTS: tuple[float | None, ...] = (None, 0.6, 0.4)
"""Shares of the steps with classifier-free guidance."""

SKIPS = (0.0, 0.01, 0.03)

NEAR = (0.3, 2.0)
"""Numbers of steps kept on the ladder, in units of the fewest that do for nearly all pictures."""

SEED = 0


@dataclass(frozen=True)
class Drawn:
    """Pictures of some requests by one schedule: pixels, rows of the network for each, seconds for each."""

    pixels: list[NDArray[np.float32]]
    rows: float
    calls: float
    seconds: float


@dataclass(frozen=True)
class Findings:
    """Everything learned; `profile` and `arrays` are what gets stored."""

    pictures: int
    power: str
    ladder: Ladder
    likeness: dict[int, Tails]
    """SSIM to the plain run at each number of steps, on the certifying pictures."""
    seconds: dict[int, float]
    plain_seconds: float
    full_steps: int
    certificate: Certificate
    reached: Tails | None
    """Under the certified rule."""
    correlation: float | None
    """Between steps taken and steps needed, on the certifying pictures (Spearman)."""
    constant: int | None
    """The fewest steps that would do as a constant, by the same test."""
    summary: str
    profile: Profile
    arrays: dict[str, NDArray[Any]]


def calibrate(
    assembly: Assembly,
    prompts: Sequence[str],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
) -> Findings:
    """Learn within about `budget` seconds; `prompts` are cycled, each time with other seeds.

    UnsupportedModelError: the pipeline draws plain only. UsageError: no prompts, or a budget for too few pictures.
    """
    engine, wish = assembly.engine, assembly.plan.wish
    began = clock()
    requests = _requests(assembly, prompts)
    if reason := engine.plain_reason(requests[0]):
        raise UnsupportedModelError(f"{engine.family.name} is drawn plain: {reason}")
    trying = requests[: TRYING // BATCH]
    progress(0.0, "drawing in full")
    full = [_draw(assembly, request, None, clock) for request in trying]
    reference = [pixels for drawn in full for pixels in drawn.pixels]
    seconds = float(np.median([drawn.seconds for drawn in full]))
    calls = full[0].calls
    fine = engine.course(trying[0]).grid
    progress(0.05, "recording their way")
    ways = [record(engine, request, fine)[1] for request in trying]
    ladder, tried = choose_ladder(assembly, trying, ways, reference, progress)
    left = budget - (clock() - began)
    each = seconds / calls * (2 * calls + sum(ladder.levels)) * 1.05
    count = int(min(MOST, max(LEAST, left / max(each, 1e-9))))
    if count * each > 3 * max(left, 0.0) and budget > 0:
        need = (clock() - began) + LEAST * each
        raise UsageError(
            f"{LEAST} pictures at every number of steps take about {need / 60:.0f} minutes here, and the budget is "
            f"{budget / 60:.0f}",
            hint=f"--budget {need:.0f}",
        )
    rest = requests[len(trying) :][: -(-count // BATCH)]
    looks, texts, likeness, costs, latents = _climb(
        assembly,
        rest,
        ladder,
        clock,
        lambda share: progress(0.35 + 0.6 * share, f"{count} pictures, each in every way"),
    )
    parts = _parts(len(likeness))
    predictor = Predictor.fit(looks[parts[0]], texts[parts[0]], likeness[parts[0], :-1])
    predicted = predictor(looks, texts)
    fitted = Fitted(
        ladder,
        predictor,
        costs,
        Evidence(likeness[parts[1]], predicted[parts[1]]),
        Evidence(likeness[parts[2]], predicted[parts[2]]),
    )
    certificate = fitted.certify(wish.quality, SHARE, DELTA)
    return _findings(assembly, prompts, fitted, certificate, int(calls), costs.full, latents, tried)


def power(count: int) -> str:
    """What so many pictures can show."""
    n = len(_parts(count)[2])
    said = supports(n, round(1 - SHARE, 12), DELTA, noun="pictures", failure="failure")
    return f"{n} of {count} pictures certify: {said}"


def _requests(assembly: Assembly, prompts: Sequence[str]) -> list[Request]:
    """Batches of pictures, every one with a seed of its own."""
    wish = assembly.plan.wish
    total = TRYING + MOST + BATCH
    if assembly.engine.family.prompted and not prompts:
        raise UsageError("there are no prompts")
    order = np.random.default_rng(SEED).permutation(max(1, len(prompts)))
    made = []
    for start in range(0, total, BATCH):
        numbers = range(start, start + BATCH)
        texts = tuple(prompts[order[i % len(order)]] for i in numbers) if assembly.engine.family.prompted else ()
        made.append(Request(texts, tuple(1000 + i for i in numbers), None, wish.guidance, wish.size))
    return made


def _parts(n: int) -> tuple[NDArray[np.int64], ...]:
    from dynx.runtime.promise import split

    return split(n, SEED, SHARES)


def _draw(assembly: Assembly, request: Request, schedule: Schedule | None, clock: Callable[[], float]) -> Drawn:
    began = clock()
    pictures = assembly.engine.draw(request, schedule)
    spent = clock() - began
    if bad := next((p.error for p in pictures if p.pixels is None), None):
        raise UnsupportedModelError(f"the pipeline draws no pictures: {bad}", hint="try --dtype float32")
    receipt = pictures[0].receipt
    n = len(pictures)
    return Drawn([p.pixels for p in pictures if p.pixels is not None], receipt.rows / n, receipt.calls, spent / n)


def choose_ladder(
    assembly: Assembly,
    trying: Sequence[Request],
    ways: Sequence[Trajectory],
    reference: Sequence[NDArray[np.float32]],
    progress: Progress,
) -> tuple[Ladder, list[dict[str, Any]]]:
    """The ladder that reaches the quality with the fewest rows of the network; also what was tried, for the profile.

    Solver and γ by SSIM at two middling numbers of steps; then the fewest steps that reach the quality; then guidance for a part
    of the steps, and skipping, at that number and the next, where they take fewer rows and still reach it.
    """
    quality, fine = assembly.plan.wish.quality, ways[0].grid
    levels = [k for k in LEVELS if LOOK < k <= 2 * len(fine) // 3]
    if not levels:
        raise UnsupportedModelError(f"its plain run has {len(fine)} steps, too few to leave any out")
    trials = Trials(assembly, trying, reference)
    probes = [levels[len(levels) // 3], levels[2 * len(levels) // 3]]
    choices = [(solver, gamma) for solver in SOLVERS for gamma in GAMMAS]
    best: tuple[float, Ladder] | None = None
    for at, (solver, gamma) in enumerate(choices):
        progress(0.1 + 0.1 * at / len(choices), f"trying {solver}, γ {gamma:g}")
        errors = mean_errors(way.errors(solver) for way in ways)
        ladder = _ladder(fine, errors, gamma, solver, levels)
        loss = float(np.mean([shortfall(trials.run(ladder, k).likeness).mean() for k in probes]))
        if best is None or loss < best[0]:
            best = loss, ladder
    assert best is not None  # noqa: S101 - there are solvers
    ladder = best[1]
    progress(0.2, "looking for the fewest steps")
    at = trials.fewest(ladder, quality)
    if at == len(levels):
        return ladder, trials.log
    rows = trials.run(ladder, levels[at]).rows
    cuts = [replace(ladder, guided=cut) for cut in CUTS] if assembly.engine.family.guidance == "batched" else []
    progress(0.25, "trying without guidance at the end")
    ladder, rows = trials.cheapest(ladder, cuts, levels[at : at + 2], quality, rows)
    progress(0.3, "trying to skip")
    skips = [replace(ladder, skip=skip) for skip in SKIPS]
    ladder, rows = trials.cheapest(ladder, skips, levels[at : at + 3], quality, rows)
    kept = {k: nodes for k, nodes in ladder.nodes.items() if NEAR[0] * levels[at] <= k <= NEAR[1] * levels[at]}
    return replace(ladder, nodes=kept), trials.log


@dataclass(frozen=True)
class Trial:
    """One way of drawing: SSIM of every picture, rows of the network for each."""

    likeness: Array
    rows: float

    @property
    def tail(self) -> float:
        """The SSIM that all but the allowed share of pictures reach."""
        return float(np.quantile(self.likeness, 1 - SHARE))


class Trials:
    """Draws the same few pictures in one way after another, none twice, and keeps the results."""

    def __init__(
        self, assembly: Assembly, requests: Sequence[Request], reference: Sequence[NDArray[np.float32]]
    ) -> None:
        self._assembly, self._requests, self._reference = assembly, requests, reference
        self._known: list[tuple[Schedule, Trial]] = []
        self.log: list[dict[str, Any]] = []

    def run(self, ladder: Ladder, steps: int) -> Trial:
        """All pictures in so many steps of a ladder."""
        schedule = ladder.schedule(steps)
        for known, trial in self._known:
            if known.to_json() == schedule.to_json():
                return trial
        drawn = [_draw(self._assembly, request, schedule, lambda: 0.0) for request in self._requests]
        pixels = [p for one in drawn for p in one.pixels]
        likeness = np.asarray([compare(p, q).ssim for p, q in zip(pixels, self._reference, strict=True)])
        trial = Trial(likeness, drawn[0].rows)
        self._known.append((schedule, trial))
        way = {"solver": ladder.solver, "guided": ladder.guided, "skip": ladder.skip, "steps": steps}
        self.log.append(way | {"rows": trial.rows, "tail": trial.tail, "median": float(np.median(likeness))})
        return trial

    def fewest(self, ladder: Ladder, quality: float) -> int:
        """The place among the ladder's levels from which on they reach the quality, by halving; their number if none does."""
        levels, low, high = ladder.levels, 0, len(ladder.levels)
        while low < high:
            middle = (low + high) // 2
            if self.run(ladder, levels[middle]).tail >= quality:
                high = middle
            else:
                low = middle + 1
        return low

    def cheapest(
        self, best: Ladder, others: Sequence[Ladder], levels: Sequence[int], quality: float, rows: float
    ) -> tuple[Ladder, float]:
        """Of `best`, which takes so many rows, and others: the one that reaches the quality with the fewest."""
        for ladder in others:
            for steps in levels:
                trial = self.run(ladder, steps)
                if trial.rows >= rows or trial.tail >= quality:
                    if trial.rows < rows:
                        best, rows = ladder, trial.rows
                    break
        return best, rows


def _ladder(fine: Any, errors: Array, gamma: float, solver: str, levels: Sequence[int]) -> Ladder:
    """Grids for all levels that begin like the best grid of a middling number of steps."""
    middle = levels[len(levels) // 3]
    path = plan(errors, gamma, middle).of(middle)[:LOOK]
    nodes = continuations(errors, gamma, path, max(levels))
    return Ladder(fine, {k: nodes[k] for k in levels if k in nodes}, solver)


def _climb(
    assembly: Assembly,
    requests: Sequence[Request],
    ladder: Ladder,
    clock: Callable[[], float],
    progress: Callable[[float], None],
) -> tuple[Array, Array, Array, Costs, tuple[Array, Array]]:
    """Every picture in full, on the whole ladder grid and at every number of steps.

    Returns looks (n, 6), texts (n, D), SSIM (n, L+1), costs in seconds, and clean latents (m, C) with the colours (m, 3) that
    the decoder made of them.
    """
    engine = assembly.engine
    levels = ladder.levels
    longest = ladder.longest
    looks, texts, likeness = [], [], []
    times: dict[int, list[float]] = {k: [] for k in range(len(levels) + 1)}
    colours: list[tuple[Array, Array]] = []
    for done, request in enumerate(requests):
        plain = _draw(assembly, request, None, clock)
        column = []
        clean: list[Any] = []

        def keep(look: Look, clean: list[Any] = clean) -> None:
            clean.append(look.clean)

        began = clock()
        pictures = engine.draw(request, longest, pilot=keep)
        times[len(levels)].append((clock() - began) / len(request))
        column.append(
            [compare(p.pixels, q).ssim for p, q in zip(pictures, plain.pixels, strict=True) if p.pixels is not None]
        )
        looks.append(look_features(clean[:LOOK]))
        texts.append(text_features(engine.course(request).embedding, len(request)))
        if engine.family.latent:
            colours.append(_colours(clean[-1], plain.pixels))
        for k, steps in enumerate(levels):
            drawn = _draw(assembly, request, ladder.schedule(steps), clock)
            times[k].append(drawn.seconds)
            column.insert(k, [compare(p, q).ssim for p, q in zip(drawn.pixels, plain.pixels, strict=True)])
        likeness.append(np.asarray(column).T)
        progress((done + 1) / len(requests))
    reach = tuple(float(np.median(times[k])) for k in range(len(levels)))
    costs = Costs(reach, float(np.median(times[len(levels)])), (0.0,) * len(levels))
    pairs = (
        (np.concatenate([c for c, _ in colours]), np.concatenate([rgb for _, rgb in colours]))
        if colours
        else (np.zeros((0, 0)), np.zeros((0, 3)))
    )
    return np.concatenate(looks), np.concatenate(texts), np.concatenate(likeness), costs, pairs


def _colours(clean: Any, pixels: Sequence[NDArray[np.float32]]) -> tuple[Array, Array]:
    """Latents (m, C) and the mean colours (m, 3) of the patches that the decoder made of them."""
    latents = clean.detach().float().cpu().numpy()
    if latents.ndim != 4:
        return np.zeros((0, 0)), np.zeros((0, 3))
    _, channels, high, wide = latents.shape
    patches = []
    for picture in pixels:
        h, w = picture.shape[0] // high, picture.shape[1] // wide
        if h < 1 or w < 1:
            return np.zeros((0, 0)), np.zeros((0, 3))
        cut = picture[: h * high, : w * wide].reshape(high, h, wide, w, 3)
        patches.append(cut.mean(axis=(1, 3)).reshape(-1, 3))
    return latents.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64), np.concatenate(patches).astype(
        np.float64
    )


def colour_map(latents: Array, colours: Array) -> Array | None:
    """(C + 1, 3) by least squares; None without pairs."""
    if not len(latents) or latents.shape[1] == 0:
        return None
    x = np.concatenate([latents, np.ones((len(latents), 1))], axis=1)
    found: Array = np.linalg.lstsq(x, colours, rcond=None)[0]
    return found


def needed(likeness: Array, levels: Sequence[int], full: int, quality: float) -> Array:
    """(n,) the fewest steps at which each picture reaches the quality, and does so at all larger numbers."""
    good = likeness[:, :-1] >= quality
    lasting = np.flip(np.logical_and.accumulate(np.flip(good, 1), axis=1), 1)
    first = np.where(lasting.any(1), lasting.argmax(1), len(levels))
    found: Array = np.asarray([*levels, full], dtype=np.float64)[first]
    return found


def best_constant(likeness: Array, levels: Sequence[int], quality: float) -> int | None:
    """The fewest steps that as a constant would pass the same test on these pictures; None if none does."""
    from dynx.runtime.risk import most_failures

    allowed = most_failures(len(likeness), round(1 - SHARE, 12), DELTA)
    for k, steps in enumerate(levels):
        if allowed is not None and int((likeness[:, k] < quality).sum()) <= allowed:
            return steps
    return None


def rank_correlation(a: Array, b: Array) -> float | None:
    """Spearman's, with ties by their mean rank; None where one of them doesn't vary."""

    def ranks(values: Array) -> Array:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum()
        mean: Array = ((ends - counts + ends - 1) / 2)[inverse]
        return mean

    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _findings(
    assembly: Assembly,
    prompts: Sequence[str],
    fitted: Fitted,
    certificate: Certificate,
    full_steps: int,
    full_seconds: float,
    pairs: tuple[Array, Array],
    tried: list[dict[str, Any]],
) -> Findings:
    from dynx.runtime.promise import leaves_at

    quality = assembly.plan.wish.quality
    ladder, shown = fitted.ladder, fitted.certifying.likeness
    levels = ladder.levels
    likeness = {k: tails(shown[:, i]) for i, k in enumerate(levels)}
    active = certificate.active and certificate.speedup >= PAYS
    reached = tails(fitted.reached(certificate, quality)) if active else None
    steps = np.asarray([*levels, len(ladder.fine)], dtype=np.float64)
    taken = steps[leaves_at(np.asarray(certificate.thresholds), fitted.scores(fitted.certifying, quality))]
    correlation = rank_correlation(taken, needed(shown, levels, len(ladder.fine), quality)) if active else None
    constant = best_constant(shown, levels, quality)
    summary = _in_words(ladder, certificate, taken, constant, reached, quality, active, full_steps)
    colours = colour_map(*pairs)
    profile = _profile(assembly, prompts, fitted, certificate, likeness, reached, full_steps, summary, tried, active)
    return Findings(
        pictures=len(shown) + len(fitted.choosing),
        power=power(round(len(shown) / SHARES[2])),
        ladder=ladder,
        likeness=likeness,
        seconds=dict(zip(levels, fitted.costs.reach, strict=True)),
        plain_seconds=full_seconds,
        full_steps=full_steps,
        certificate=certificate,
        reached=reached,
        correlation=correlation,
        constant=constant,
        summary=summary,
        profile=profile,
        arrays=to_arrays(fitted, colours) if active else {},
    )


def _in_words(
    ladder: Ladder,
    certificate: Certificate,
    taken: Array,
    constant: int | None,
    reached: Tails | None,
    quality: float,
    active: bool,
    full_steps: int,
) -> str:
    if not active or reached is None:
        least = smallest_sample(round(1 - SHARE, 12), DELTA)
        return (
            f"plain: no fewer steps reach SSIM {quality:g} in {percent(SHARE)} of pictures by {certificate.n} pictures "
            f"({least} at the least, all of them good)"
        )
    same = f", {constant} as a constant" if constant else ", no constant number would do"
    parts = [f"{ladder.solver} in {taken.min():.0f} to {taken.max():.0f} steps, {taken.mean():.1f} on average{same}"]
    if ladder.guided:
        parts.append(f"guided for {percent(ladder.guided)} of them")
    if ladder.skip:
        parts.append(f"skipping where it bends less than {ladder.skip:g}")
    return (
        f"{', '.join(parts)}: {certificate.speedup:.2f}x of {full_steps} steps; SSIM at least {quality:g} in "
        f"{certificate.n - certificate.disagreements} of {certificate.n} pictures, p5 {reached.p5:.3f}, worst {reached.worst:.3f}"
    )


def _profile(
    assembly: Assembly,
    prompts: Sequence[str],
    fitted: Fitted,
    certificate: Certificate,
    likeness: dict[int, Tails],
    reached: Tails | None,
    full_steps: int,
    summary: str,
    tried: list[dict[str, Any]],
    active: bool,
) -> Profile:
    plan_, family = assembly.plan, assembly.engine.family
    wish = plan_.wish
    costs = fitted.costs
    return Profile(
        key=plan_.key,
        model_name=plan_.source.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions={name: metadata.version(name) for name in ("torch", "diffusers")},
        device={
            "name": plan_.machine.cpu if plan_.device == "cpu" else plan_.device,
            "threads": assembly.decisions["threads"].value,
        },
        measured={
            "seconds": {"reach": list(costs.reach), "full": costs.full, "check": list(costs.check)},
            "likeness": {str(k): t.json() for k, t in likeness.items()},
            "tried": tried,
        },
        fitted={
            "ladder": fitted.ladder.to_json() if active else None,
            "full_steps": full_steps,
            "guidance": family.default_guidance if wish.guidance is None else wish.guidance,
            "size": None if wish.size is None else list(wish.size),
            "scheduler": family.scheduler,
            "quality": wish.quality,
        },
        evidence={
            "data": text_hash(prompts),
            "prompts": len(prompts),
            "certificate": certificate.to_json(),
            "reached": None if reached is None else reached.json(),
        },
        decision={"summary": summary},
    )
