"""Scores policies on a recording, and how far each is from the best possible. No model is loaded.

Two yardsticks: the *informed* oracle knows what a policy may know, and all of it beforehand (of drafters: costs, acceptance and
the rate it will reach; of exits: the best rule over the same scores that could be certified on as many inputs as the policy was,
chosen for each fifth of the inputs on all others), so that 100 % of it is the best that this information gives. The *clairvoyant*
one knows the outcomes too.

A policy is named plain, dynamic (as recorded), cold (dynamic without a profile), DRAFTER=K (always K drafts), at=N (everything
leaves after layer N, or takes N steps), threshold=T (one for all exits), or FILE.py:NAME, a class or function of the user's.
"""

from __future__ import annotations

import copy
import json
import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dynx.runtime.certify import Costs as ExitCosts
    from dynx.speculation.policy import Costs, Policy
    from dynx.speculation.simulate import Recording

SCHEMA = "dynx.scores/1"
HEAD = "dynx.recording/1"
INFORMED, CLAIRVOYANT = "informed oracle", "clairvoyant oracle"

STATIC_LENGTHS = range(1, 11)
"""Draft lengths of which the best is shown unasked."""

LEVELS = 400
"""Rules of each family among which the informed oracle of exits picks."""

FOLDS, FEWEST_FOR_FOLDS = 5, 100
"""Parts that the informed oracle of exits holds out in turn, and how few inputs make none."""

STEPS = 10
"""In which it gets more careful, down to no wrong answers at all."""

QUANTILES = [i / 100 for i in range(101)]
"""Of an exit's scores: thresholds that it is tried with by itself."""

MANY = 1_000_000
"""Inputs that a rule is chosen for with hindsight: so many that no doubt is left."""

Leave: TypeAlias = Callable[[Sequence[float]], "int | None"]
"""A user's exit policy: from the scores of one input at all exits, strictest first asked, the number of the exit or None."""


@dataclass(frozen=True)
class Score:
    """What one policy makes of the recording; `speedup` is over plain, `of_oracle` a share of the informed one's speed."""

    policy: str
    speedup: float
    of_oracle: float
    wrong: int | None = None
    """Of exits: answers that differ from the full model's, or pictures below the quality."""
    mean: float | None = None
    """Of exits: the mean place (layers or steps); of drafters: tokens for each pass of the model."""
    within: bool | None = None
    """Of exits: whether no more are wrong than the promise allows on these very inputs."""

    def json(self) -> dict[str, Any]:
        """For a document."""
        return dict(vars(self))


@dataclass(frozen=True)
class Scores:
    """All policies on one recording, the two oracles last."""

    head: Mapping[str, Any]
    count: int
    """Texts, inputs or pictures."""
    scores: Sequence[Score] = field(default_factory=tuple)

    def document(self) -> dict[str, Any]:
        """For --json."""
        head = {name: self.head.get(name) for name in ("task", "created", "header")}
        return {"schema": SCHEMA, **head, "recorded": self.count, "scores": [score.json() for score in self.scores]}

    def of(self, policy: str) -> Score | None:
        """By name."""
        return next((score for score in self.scores if score.policy == policy), None)


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The head and the lines after it. Raises UsageError for a file that isn't a recording of this version."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0]) if lines else None
    except OSError as e:
        raise UsageError(f"--replay {path} can't be read: {e.strerror or e}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        head = None
    schema = head.get("schema") if isinstance(head, dict) else None
    if not isinstance(head, dict) or schema != HEAD:
        said = f"of schema {schema!r}" if schema else "no recording"
        raise UsageError(f"--replay {path} is {said}, not {HEAD!r}", hint="dynx bench -m MODEL --record FILE makes one")
    return head, lines[1:]


def score(head: Mapping[str, Any], lines: Iterable[str], policies: Sequence[str] = ()) -> Scores:
    """Each policy in its turn; without any, plain, the best static one and dynamic. Raises UsageError."""
    try:
        scorer = _Texts(head, lines) if head.get("task") == "generate" else _Exits(head, lines)
        known = [scorer.score(name) for name in policies or scorer.usual()]
        return Scores(head, scorer.count, (*known, *scorer.oracles()))
    except UsageError:
        raise
    except (DynxError, KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        what = str(e) if isinstance(e, DynxError) else f"{type(e).__name__}: {e}"
        raise UsageError(f"the recording is damaged: {what}") from None


def _load(name: str) -> Any:
    """FILE.py:NAME, a thing that can be called. Raises UsageError."""
    file, _, what = name.rpartition(":")
    try:
        found = runpy.run_path(file).get(what)
    except OSError as e:
        raise UsageError(f"--policy {name}: {file} can't be read: {e.strerror or e}") from None
    except Exception as e:  # noqa: BLE001 - it is the user's program
        raise UsageError(f"--policy {name}: {type(e).__name__}: {e}") from None
    if not callable(found):
        raise UsageError(f"--policy {name}: {file} has no class or function {what}")
    return found


def _number(name: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= least:
        raise UsageError(f"--policy {name}: {text!r} is no number from {least:g}")
    return value


def _unknown(name: str, known: Sequence[str]) -> NoReturn:
    raise UsageError(f"--policy {name} isn't known here", hint=f"policies: {', '.join(known)}, FILE.py:NAME")


class _Texts:
    """Drafting, on texts."""

    def __init__(self, head: Mapping[str, Any], lines: Iterable[str]) -> None:
        from dynx.speculation.simulate import load

        self._head = head
        self._recordings: list[Recording] = load(lines)
        self._costs = _costs(head["costs"])
        self._plain = self._total(lambda: _plain())
        self._best = self._bounds(informed=True)
        self.count = len(self._recordings)
        self._origins = list(self._recordings[0].guesses)

    def _total(self, policy: Callable[[], Policy]) -> tuple[int, float, int]:
        """Tokens, seconds and passes over all texts, each with a policy of its own."""
        from dynx.speculation.simulate import simulate

        walks = [simulate(recording, policy(), self._costs) for recording in self._recordings]
        return sum(w.tokens for w in walks), sum(w.seconds for w in walks), sum(len(w.rounds) for w in walks)

    def _bounds(self, *, informed: bool) -> float:
        """Seconds of an oracle over all texts."""
        from dynx.speculation.simulate import oracle

        return sum(oracle(recording, self._costs, informed=informed).seconds for recording in self._recordings)

    def usual(self) -> list[str]:
        """Plain, the best static length of all drafters, and dynamic."""
        static = [f"{origin}={k}" for origin in self._origins for k in STATIC_LENGTHS]
        best = min(static, key=lambda name: self._total(self._maker(name))[1])
        return ["plain", best, *(["dynamic"] if self._head.get("dynamic") else []), "cold"]

    def _maker(self, name: str) -> Callable[[], Policy]:
        from dynx.speculation.policy import Static

        origin, _, length = name.partition("=")
        if name == "plain":
            return _plain
        if name in ("dynamic", "cold"):
            known = self._head.get(name)
            if not known:
                raise UsageError("the recording was made without a profile, so dynamic is --policy cold")
            return lambda: _dynamic(known, self._costs)
        if origin in self._origins and length:
            k = int(_number(name, length, 1))
            return lambda: Static(origin, k)
        if ".py:" in name:
            make = _load(name)
            return lambda: make(copy.deepcopy(self._costs))
        _unknown(name, ["plain", "dynamic", "cold", *(f"{o}=K" for o in self._origins)])

    def score(self, name: str) -> Score:
        """By the time it takes."""
        make = self._maker(name)
        try:
            tokens, seconds, passes = self._total(make)
        except Exception as e:
            if ".py:" not in name:
                raise
            raise UsageError(f"--policy {name}: {type(e).__name__}: {e}") from None
        return Score(name, self._plain[1] / seconds, self._best / seconds, mean=tokens / passes)

    def oracles(self) -> list[Score]:
        """Both."""
        clairvoyant = self._bounds(informed=False)
        return [
            Score(INFORMED, self._plain[1] / self._best, 1.0),
            Score(CLAIRVOYANT, self._plain[1] / clairvoyant, self._best / clairvoyant),
        ]


def _plain() -> Policy:
    from dynx.speculation.policy import Plain

    return Plain()


def _dynamic(known: Mapping[str, Any], costs: Costs) -> Policy:
    from dynx.speculation.acceptance_model import Reliability
    from dynx.speculation.policy import Dynamic

    reliability: dict[Any, Any] = {o: Reliability.from_json(r) for o, r in known["reliability"].items()}
    return Dynamic(copy.deepcopy(costs), reliability, rate=known["rate"], grant=float(known["grant"]))


def _costs(data: Mapping[str, Any]) -> Costs:
    from dynx.runtime.costs import CostCurve
    from dynx.speculation.policy import Costs

    costs = Costs()
    costs.target = CostCurve.from_json(data["target"], costs.drift)
    if data["complete"]:
        costs.complete = CostCurve.from_json(data["complete"], costs.drift)
    for origin, curve in data["draft"].items():
        costs.draft[origin] = CostCurve.from_json(curve, costs.drift)
    costs.overhead.update({origin: float(seconds) for origin, seconds in data["overhead"].items()})
    return costs


class _Exits:
    """Leaving early, of layers or of steps."""

    def __init__(self, head: Mapping[str, Any], lines: Iterable[str]) -> None:
        import numpy as np

        from dynx.runtime.certify import Costs

        rows = [json.loads(line) for line in lines if line.strip()]
        if not rows:
            raise UsageError("the recording is empty")
        self._scores = np.asarray([row["scores"] for row in rows], dtype=np.float64)
        self._right = np.asarray([row["right"] for row in rows], dtype=np.bool_)
        c = head["costs"]
        self._costs: ExitCosts = Costs(tuple(map(float, c["reach"])), float(c["full"]), tuple(map(float, c["check"])))
        self._plain, self._places = float(head["plain"]), [int(p) for p in head["places"]]
        self._thresholds = np.asarray([math.inf if t is None else float(t) for t in head["thresholds"]])
        self.count, exits = len(rows), len(self._costs.reach)
        if self._scores.shape != (self.count, exits) or self._right.shape != (self.count, exits + 1):
            raise UsageError(f"the recording's lines don't have {exits} scores and {exits + 1} answers each")
        if len(self._places) != exits + 1 or self._thresholds.shape != (exits,):
            raise UsageError("the recording's places and thresholds don't fit its costs")
        self._allowed = math.floor((1 - float(head["share"])) * self.count + 1e-9)
        self._provable = float(head["provable"])
        self._informed = self._informed_cost()

    def usual(self) -> list[str]:
        """Full depth, the cheapest place for all that keeps the promise, and dynamic."""
        good = [place for k, place in enumerate(self._places[:-1]) if (~self._right[:, k]).sum() <= self._allowed]
        return ["plain", *([f"at={good[0]}"] if good else []), "dynamic"]

    def score(self, name: str) -> Score:
        """By cost, and by how many it makes wrong."""
        kind, _, value = name.partition("=")
        if name == "dynamic":
            return self._by_rule(name, self._thresholds)
        if kind == "threshold" and value:
            import numpy as np

            return self._by_rule(name, np.full(len(self._thresholds), _number(name, value, 0)))
        if name == "plain":
            return self._scored(name, self._plain * self.count, [len(self._costs.reach)] * self.count)
        if kind == "at" and value:
            place = int(_number(name, value, 1))
            if place not in self._places:
                where = ", ".join(map(str, self._places))
                raise UsageError(f"--policy {name}: recorded are {where}")
            k = self._places.index(place)
            each = (*self._costs.reach, self._costs.full)[k]
            return self._scored(name, each * self.count, [k] * self.count)
        if ".py:" in name:
            return self._by_user(name, _load(name))
        _unknown(name, ["plain", "dynamic", "at=N", "threshold=T"])

    def _by_rule(self, name: str, thresholds: NDArray[np.float64]) -> Score:
        from dynx.runtime.certify import simulate

        found = simulate(thresholds, self._scores, self._right, self._costs)
        return self._scored(name, found.cost * self.count, found.exits.tolist())

    def _by_user(self, name: str, leave: Leave) -> Score:
        exits, cost, last = [], 0.0, len(self._costs.reach)
        for row in self._scores.tolist():
            try:
                said = leave(row)
                k = last if said is None else int(said)
                if not 0 <= k <= last:
                    raise ValueError(f"there is no exit {k}")
            except Exception as e:  # noqa: BLE001 - it is the user's program
                raise UsageError(f"--policy {name}: {type(e).__name__}: {e}") from None
            exits.append(k)
            cost += (*self._costs.reach, self._costs.full)[k] + sum(self._costs.check[: k + 1])
        return self._scored(name, cost, exits)

    def _scored(self, name: str, cost: float, exits: Sequence[int]) -> Score:
        wrong = sum(not self._right[i, k] for i, k in enumerate(exits)) if name != "plain" else 0
        mean = sum(self._places[k] for k in exits) / self.count
        plain = self._plain * self.count
        return Score(name, plain / cost, self._informed * self.count / cost, int(wrong), mean, wrong <= self._allowed)

    def _informed_cost(self) -> float:
        """Mean cost where the inputs of each fold leave by the rule that is best for all others.

        A rule that is the best for the very inputs it is judged on knows which of them it may leave early, and no policy can. Nor
        may a rule be wrong more often where it is judged than a certificate may see, so it is chosen ever more carefully until it
        isn't. Few inputs make no folds: then it is the rule that is best for all, and what it costs is a bound.
        """
        import numpy as np

        from dynx.runtime.certify import simulate

        everything = np.ones(self.count, dtype=np.bool_)
        if self.count < FEWEST_FOR_FOLDS:
            return self._best_rule(everything, self._provable * self.count)[0]
        fold = np.arange(self.count) % FOLDS
        for step in range(STEPS, -1, -1):
            allowed = self._provable * self.count * (FOLDS - 1) / FOLDS * step / STEPS
            total, wrong = 0.0, 0
            for number in range(FOLDS):
                held = fold == number
                _, rule = self._best_rule(~held, allowed)
                if rule is None:
                    total += self._full * int(held.sum())
                    continue
                found = simulate(rule, self._scores[held], self._right[held], self._costs)
                total, wrong = total + found.cost * int(held.sum()), wrong + found.disagreements
            if wrong <= self._provable * self.count + 1e-9:
                return total / self.count
        return self._full

    @property
    def _full(self) -> float:
        """What an input costs that leaves nowhere."""
        return min(self._costs.full, self._plain)

    def _best_rule(self, rows: NDArray[np.bool_], most: float) -> tuple[float, NDArray[np.float64] | None]:
        """Mean cost of the cheapest rule with at most so many wrong in these rows, and it (None: full depth)."""
        import numpy as np

        from dynx.runtime.certify import choose_rules, simulate

        scores, right, count = self._scores[rows], self._right[rows], int(rows.sum())
        allowed = math.floor(most + 1e-9)
        best: tuple[float, NDArray[np.float64] | None] = self._full, None
        for prune in (True, False):
            rules = choose_rules(
                scores,
                right,
                self._costs,
                max(allowed / count, 1e-9),
                0.5,
                MANY,
                levels=LEVELS,
                prune=prune,
                every=True,
            )
            for thresholds in (*rules.thresholds, self._thresholds):
                found = simulate(thresholds, scores, right, self._costs)
                if found.disagreements <= allowed and found.cost < best[0]:
                    best = found.cost, np.asarray(thresholds, dtype=np.float64)

        # Each exit's threshold moved by itself, in turns, for as long as that helps.
        tries = [(*np.unique(np.quantile(column, QUANTILES, method="lower")), math.inf) for column in scores.T]
        moved = True
        while moved:
            moved = False
            for k, thresholds in enumerate(tries):
                for threshold in thresholds:
                    tried = np.full(len(tries), math.inf) if best[1] is None else best[1].copy()
                    tried[k] = threshold
                    found = simulate(tried, scores, right, self._costs)
                    if found.disagreements <= allowed and found.cost < best[0] - 1e-12:
                        best, moved = (found.cost, tried), True
        return best

    def oracles(self) -> list[Score]:
        """The best rule, cross-fitted; and leaving where it is right, with the allowed wrong answers where they save most."""
        import numpy as np

        reach = np.asarray((*self._costs.reach, min(self._costs.full, self._plain)))
        need = np.where(self._right.any(1), self._right.argmax(1), len(reach) - 1)
        costs = reach[need]
        saved = np.sort(costs - reach[0])[::-1][: self._allowed]
        clairvoyant = float(costs.sum() - saved.sum()) / self.count
        return [
            Score(INFORMED, self._plain / self._informed, 1.0),
            Score(CLAIRVOYANT, self._plain / clairvoyant, self._informed / clairvoyant),
        ]
