"""Measures the passes of a target and its drafters on this machine, by number of tokens and context, and their rounding.

Cells are visited in shuffled rounds, one sample each, so that a slow minute hits all of them; the medians go into
`CostCurve`s. Sessions are warmed before the first round. Times are seconds; the clock is passed in.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from dynx.runtime.backends.padding import padded_lengths
from dynx.runtime.backends.picks import likeliest_with_probability
from dynx.runtime.costs import CostCurve
from dynx.runtime.torch_on_use import torch
from dynx.speculation.round_costs import CALIBRATED_SWITCHES, Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dynx.runtime.backends.interface import Backend, Session

TARGET_PASS_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 25)
"""Tokens per target pass; between them costs are interpolated. Kernels take rows by 4, 8 or 16: both sides of each step."""

LONG_CONTEXT_PASS_TOKENS = (1, 2, 3, 5, 8, 13, 25)
"""Tokens per target pass after longer contexts, for the slope over contexts; steps are where they are after short ones."""

DRAFT_PASS_TOKENS = (1, 2, 4, 16)
"""Tokens that a draft model reads before its first draft."""

CONTEXT_TOKENS = (32, 512, 1536)
"""Contexts at which passes are measured, the longest cut to what the model allows."""

MIN_CONTEXT_RATIO = 1.5
"""Factor between two contexts from which measuring both tells something."""

CHANGED_PASS_TOKENS = (1, 4, 6, 9)
"""Tokens of the passes between which changes of width are timed."""

CHANGE_SAMPLES = 16
"""Changes that are timed."""

MAX_SAMPLES_PER_CELL = 15
"""Samples per cell after which medians no longer move; at least 3 are taken, and fewer than this if the budget ends first."""

NOISE_PASS_TOKENS = ((2, 5, 3, 8), (9, 4, 13, 6, 7))
"""Numbers of tokens of the passes that go through a text, in a cycle, when rounding is measured."""

COMPARED_LEADING_TOKENS = 8
"""Number of likeliest tokens whose logits are compared: those between which rounding could decide."""

NOISE_TEXT_TOKENS = 40
"""Tokens that a target writes plainly where there is no text to measure rounding on."""

Cell = tuple[str, int, int]
"""(name of the model or exit, tokens, context) of a timed pass."""


@dataclass
class Samples:
    """Measured seconds by cell."""

    cells: dict[Cell, list[float]] = field(default_factory=dict)
    replays: bool = False  # see `Costs.replays`
    change: float = 0.0  # seconds more for a pass of another width than the one before

    def curve(self, what: str) -> CostCurve:
        """Fit a curve through the medians of one kind of pass, with its own drift."""
        return CostCurve.fit((n, c, s) for (w, n, c), v in self.cells.items() if w == what for s in v)

    def use_padded_passes(self, widths: Mapping[int, int]) -> None:
        """Replace the target's samples by those of the padded passes that `widths` names; drop them where there are none."""
        measured = dict(self.cells)
        for what, n, context in measured:
            if what == "target" and n in widths:
                wider = measured.get((what, widths[n], context))
                if wider is None:
                    del self.cells[what, n, context]
                else:
                    self.cells[what, n, context] = wider

    def spread(self, what: str) -> float:
        """Return the machine's noise: the median over cells of (third quartile - first quartile) / median."""
        shares = []
        for (w, _, _), values in self.cells.items():
            ordered = sorted(values)
            if w == what and len(ordered) > 3:
                q1, q2, q3 = (ordered[len(ordered) * i // 4] for i in (1, 2, 3))
                shares.append((q3 - q1) / q2)
        return sorted(shares)[len(shares) // 2] if shares else 0.0


def contexts_of(backend: Backend, extra: int = max(TARGET_PASS_TOKENS)) -> tuple[int, ...]:
    """Return the contexts to measure at, in tokens."""
    limit = max(1, (backend.context or 1 << 30) - extra)
    contexts = [min(CONTEXT_TOKENS[0], limit)]
    for each in CONTEXT_TOKENS[1:]:
        if min(each, limit) >= MIN_CONTEXT_RATIO * contexts[-1]:
            contexts.append(min(each, limit))
    return tuple(contexts)


def measure(
    target: Backend,
    small: Backend | None,
    exits: tuple[int, ...],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float], None] = lambda _: None,
    rng: random.Random | None = None,
) -> Samples:
    """Sample every cell of target ("target"), draft model ("draft") and exits ("exit E") within `budget` seconds.

    `progress` is called with the share of the budget spent.
    """
    rng, began = rng or random.Random(0), clock()  # noqa: S311 - the order of measurements is no secret
    jobs: dict[Cell, Callable[[], None]] = {}
    # A round's first draft loads weights that the target's pass drove out of the caches; the others are the cost of a
    # draft, and the first one's extra is part of a round's overhead.
    before: dict[Cell, Callable[[], None]] = {}
    for number, context in enumerate(contexts_of(target)):
        session = _filled(target, context)
        measured = LONG_CONTEXT_PASS_TOKENS if number else TARGET_PASS_TOKENS
        widths = [n for n in measured if target.context is None or context + n <= target.context]
        for n in widths:
            jobs["target", n, context] = _pass(session, context, n)
            if session.pads:
                before["target", n, context] = _pass(session, context, n, settled=True)
        for layers in exits:
            jobs[f"exit {layers}", 1, context] = _early(session, context, layers)
    if small is not None:
        for context in contexts_of(small, max(DRAFT_PASS_TOKENS)):
            session = _filled(small, context)
            for n in DRAFT_PASS_TOKENS:
                jobs["draft", n, context] = _pass(session, context, n)
                before["draft", n, context] = _pass(
                    session, context, n if session.pads else DRAFT_PASS_TOKENS[0], settled=True
                )
    samples = Samples({cell: [] for cell in jobs}, target.replays)
    for job in jobs.values():
        job()  # first calls allocate and choose kernels
    for number in range(MAX_SAMPLES_PER_CELL):
        cells = list(jobs)
        rng.shuffle(cells)
        for cell in cells:
            if cell in before:
                before[cell]()
            start = clock()
            jobs[cell]()
            samples.cells[cell].append(clock() - start)
        spent = (clock() - began) / budget
        progress(min(1.0, max(spent, (number + 1) / MAX_SAMPLES_PER_CELL)))
        if number >= 2 and spent * (number + 2) / (number + 1) > 1:
            break
    return samples


def measure_with_padding(
    target: Backend,
    small: Backend | None,
    exits: tuple[int, ...],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[Samples, dict[int, int]]:
    """Measure, and pad the target's passes where that costs no more; returns the samples as run and the padded lengths."""
    target.set_padded_lengths({})
    samples = measure(target, small, exits, budget=budget, clock=clock, progress=progress)
    wider = padded_lengths({n: seconds for n, (seconds, _) in samples.curve("target").table.items()})
    if not target.set_padded_lengths(wider):
        return samples, {}
    samples.use_padded_passes(wider)
    samples.change = measure_change(target, samples.curve("target"), wider, clock)
    return samples, wider


def measure_change(target: Backend, curve: CostCurve, padded: Mapping[int, int], clock: Callable[[], float]) -> float:
    """Measure the seconds that a pass takes besides those in `curve`, where the pass before had another width; the median."""
    context = contexts_of(target)[0]
    widths = sorted({padded.get(n, n) for n in CHANGED_PASS_TOKENS if n in curve.table or n in padded})
    session = _filled(target, context)
    if not session.pads or len(widths) < 2:
        return 0.0
    jobs = {n: _pass(session, context, n) for n in widths}
    more = []
    for _ in range(CHANGE_SAMPLES // len(widths) + 1):
        for n, job in jobs.items():
            session.set_padded_length(n)  # which the last pass wasn't
            began = clock()
            job()
            more.append(clock() - began - curve(n, context))
    return max(0.0, median(more[len(widths) :]))


def _filled(backend: Backend, context: int) -> Session:
    session = backend.open()
    session.forward([(7 * i + 1) % backend.vocab for i in range(context)], keep=1)
    return session


def _pass(session: Session, context: int, n: int, *, settled: bool = False) -> Callable[[], None]:
    tokens = [3 + i for i in range(n)]

    def job() -> None:
        if settled:
            session.set_padded_length(n)
        session.pick(tokens)  # as the engine does, with its wait for the device
        session.rollback(context)

    return job


def _early(session: Session, context: int, layers: int) -> Callable[[], None]:
    def job() -> None:
        rows = session.forward_early([3], layers)
        if rows is not None:
            likeliest_with_probability(rows[0])
        session.rollback(context)

    return job


def costs_from(samples: Samples, exit_layers: int | None, layers: int) -> Costs:
    """Compute the policy's costs from the samples.

    What remains after an exit is not timed by itself: its cost is the whole pass less the layers that ran already, each at the
    marginal price of a layer that two exits (or an exit and the whole model) show.
    """
    costs = Costs(replays=samples.replays, switching=samples.change, switches=CALIBRATED_SWITCHES)
    costs.target = _adopt(samples.curve("target"), costs)
    kinds = {what for what, _, _ in samples.cells}
    if "draft" in kinds:
        costs.draft["draft"] = _adopt(samples.curve("draft"), costs)
    if exit_layers is not None:
        costs.draft["self"] = _adopt(samples.curve(f"exit {exit_layers}"), costs)
        each = layer_seconds(samples, layers)
        whole = costs.target
        rest = {n: (max(v - each * exit_layers, 0.05 * v), w) for n, (v, w) in whole.table.items()}
        costs.complete = _later_layers(whole, rest, 1 - exit_layers / layers)
    return costs


def _later_layers(whole: CostCurve, table: dict[int, tuple[float, float]], share: float) -> CostCurve:
    """Return the curve of a share of the layers with this `table`."""
    slopes = {n: slope * share for n, slope in whole.slopes.items()}
    return CostCurve(whole.drift, table, whole.per_context * share, whole.reference, slopes)


def layer_seconds(samples: Samples, layers: int) -> float:
    """Return the seconds of one layer in a pass of one token: the slope between the shallowest exit and the whole model."""
    exits = sorted(int(w.split()[1]) for w, _, _ in samples.cells if w.startswith("exit "))
    whole = samples.curve("target")(1)
    if not exits:
        return whole / layers
    shallow = samples.curve(f"exit {exits[0]}")(1)
    return max(0.0, (whole - shallow) / (layers - exits[0]))


def _adopt(curve: CostCurve, costs: Costs) -> CostCurve:
    curve.drift = costs.drift
    return curve


def measure_noise(
    target: Backend, texts: Sequence[tuple[Sequence[int], int]] = (), *, exit_layers: int | None = None
) -> dict[int, float]:
    """Measure how far passes of several tokens move two leading logits' distance, by number of tokens; 0: bit-identical.

    `texts` are token ids and how many of them are a prompt. Each is read once one token a pass, as plain decoding does, and
    again in passes of mixed widths, so that what counts is the whole difference: of the pass, and of all the keys and values
    that passes before it wrote. Width 1 is a single token after those. With `exit_layers` the first layers also run ahead by
    themselves, as drafting with them does.
    """
    noise = dict.fromkeys(sorted({1, *(n for walk in NOISE_PASS_TOKENS for n in walk)}), 0.0)
    for tokens, prompt in texts or [_noise_text(target)]:
        plain, ids = target.open(), list(tokens)
        plain.set_padded_length(1)
        plain.forward(ids[:prompt], keep=1)
        plain.set_padded_length(1)
        want = torch.cat([plain.forward([token]) for token in ids[prompt:]])  # (N, V)
        for widths, early in ((NOISE_PASS_TOKENS[0], None), (NOISE_PASS_TOKENS[1], exit_layers)):
            session, at = target.open(), prompt
            session.forward(ids[:prompt], keep=1)
            for n in itertools.cycle(widths):
                part = ids[at : at + n]
                if len(part) < n:
                    break
                session.set_padded_length(1)
                one = session.forward(part[:1])
                session.rollback(at)
                if early is None:
                    rows = session.forward(part)
                else:
                    for token in part:
                        session.forward_early([token], early, logits=False)
                    rows = session.complete()
                noise[1] = max(noise[1], _moved(one, want[at - prompt : at - prompt + 1]))
                noise[n] = max(noise[n], _moved(rows, want[at - prompt : at - prompt + n]))
                at += n
    return noise


def _noise_text(target: Backend) -> tuple[list[int], int]:
    """Return an arbitrary prompt with the target's continuation, and the prompt's length."""
    ids = [(7 * i + 1) % target.vocab for i in range(8)]
    count = NOISE_TEXT_TOKENS if target.context is None else min(NOISE_TEXT_TOKENS, target.context - len(ids))
    session, feed = target.open(), list(ids)
    for _ in range(count):
        feed = [int(session.forward(feed, keep=1)[0].argmax())]
        ids += feed
    return ids, 8


def _moved(rows: Tensor, want: Tensor) -> float:
    """Return the largest change of a distance between leading logits in (T, V); of any logit, where none of those moved."""
    rows, want = rows.cpu(), want.cpu()  # not every device has double precision
    change = rows.double() - want.double()
    leading = change.gather(-1, want.float().topk(min(COMPARED_LEADING_TOKENS, want.shape[-1]), -1).indices)
    moved = float((leading.amax(-1) - leading.amin(-1)).max())
    return moved or float(change.abs().max())
