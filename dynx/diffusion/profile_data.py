"""Read and write the calibrated steps of a pipeline, and certify them for a requested quality.

All numbers of steps share their first grid nodes, so a run begins before its number of steps is chosen: after `OBSERVED_STEPS`
network calls the predictor gives the probability that each number reaches the quality, and a certified rule takes the first
that is probable enough. The profile keeps the SSIM of every certifying picture at every number of steps, so any quality can be
certified without new pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynx.diffusion.caching import FIRST_BLOCK, KINDS, MAGNITUDE, ratios
from dynx.diffusion.predictor import Predictor, prediction_features, text_features
from dynx.diffusion.sampler import RestOfSchedule
from dynx.diffusion.schedule import Grid, Schedule
from dynx.errors import InvalidInput
from dynx.runtime.binomial import percent
from dynx.runtime.certify import Certificate, Costs, certify, choose_rules, leaves_at
from dynx.runtime.plan import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.diffusion.sampler import StepState
    from dynx.runtime.decision import Decision

    Array = NDArray[np.float64]

OBSERVED_STEPS = 2
"""Network calls before the number of steps is chosen."""

CANDIDATE_RULES = 200
"""Number of candidate rules, from strict (every picture on the whole grid) to loose (every picture in the fewest steps)."""

MIN_SPEEDUP = 1.05
"""Least expected speed-up at which fewer steps are used."""


@dataclass(frozen=True)
class Guarantee:
    """State the guarantee of pictures: SSIM to the full run of the same seed, for a share of them.

    The full run is the pipeline's own in the same precision, and the pictures are of prompts like those calibrated with.
    """

    quality: float
    share: float
    delta: float
    n: int
    """Number of certifying pictures."""
    failures: int
    """Number of certifying pictures below the quality."""
    p5: float
    worst: float
    bundled: bool

    def __str__(self) -> str:
        return (
            f"SSIM to the full run at least {self.quality:g} for {percent(self.share)} of pictures "
            f"({percent(1 - self.delta)} confidence)"
        )

    def json(self) -> dict[str, Any]:
        """Return the JSON form for a document."""
        return {
            "ssim": self.quality,
            "share": self.share,
            "confidence": 1 - self.delta,
            "certified_on": self.n,
            "below": self.failures,
            "p5": self.p5,
            "worst": self.worst,
            "basis": "model" if self.bundled else "profile",
        }


@dataclass(frozen=True)
class StepSchedules:
    """Hold a schedule for each number of steps, as nodes on a fine grid; all share the first `OBSERVED_STEPS` nodes."""

    fine: Grid
    nodes: Mapping[int, tuple[int, ...]]
    solver: str
    guided_share: float | None = None
    """Guidance interval: share of the steps, from the first, with classifier-free guidance; None for all."""
    skip: float = 0.0
    cache: float = 0.0
    cache_kind: str = FIRST_BLOCK
    magnitudes: tuple[float, ...] = ()
    """By how much the network's blocks change their input at each node of the fine grid, for the magnitude cache."""

    @property
    def alone(self) -> bool:
        """Whether pictures must be drawn one by one to be measured, because skipping and caching act on whole batches."""
        return bool(self.skip or self.cache)

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of steps, rising."""
        return tuple(sorted(self.nodes))

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps and, last, that of the whole grid; a picture takes the one at the index of its exit."""
        return (*self.levels, len(self.longest.grid))

    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of `steps` steps."""
        return self._over(self.nodes[steps])

    @property
    def longest(self) -> Schedule:
        """The schedule over the whole fine grid after the shared first nodes."""
        first = self.nodes[self.levels[0]][:OBSERVED_STEPS]
        return self._over((*first, *range(first[-1] + 1, len(self.fine) + 1)))

    def _over(self, nodes: tuple[int, ...]) -> Schedule:
        # The steps before the choice are guided whatever is chosen.
        guided_steps = (
            None if self.guided_share is None else max(OBSERVED_STEPS, math.ceil(self.guided_share * (len(nodes) - 1)))
        )
        expected = ratios([self.magnitudes[i] for i in nodes[:-1]]) if self.cache and self.magnitudes else ()
        return Schedule(
            self.solver,
            self.fine.pick(nodes),
            self.skip,
            self.cache,
            self.cache_kind,
            expected,
            guided_steps=guided_steps,
        )

    def rest(self, steps: int) -> RestOfSchedule:
        """Return what a controller returns at step `OBSERVED_STEPS` to take `steps` steps in all."""
        schedule = self.schedule(steps) if steps in self.nodes else self.longest
        return RestOfSchedule(
            schedule.grid.timesteps[OBSERVED_STEPS:],
            schedule.grid.sigmas[OBSERVED_STEPS:],
            schedule.guided_steps,
            schedule.magnitude_ratios,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form for a profile."""
        return {
            "fine": self.fine.to_json(),
            "nodes": {str(k): list(v) for k, v in sorted(self.nodes.items())},
            "solver": self.solver,
            "guided": self.guided_share,
            "skip": self.skip,
            "cache": self.cache,
            **({"cache_kind": self.cache_kind} if self.cache else {}),
            **({"magnitudes": list(self.magnitudes)} if self.magnitudes else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepSchedules:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        nodes = {int(k): tuple(int(i) for i in v) for k, v in data["nodes"].items()}
        fine = Grid.from_json(data["fine"])
        if not nodes or any(
            len(v) != k + 1 or v[0] != 0 or v[-1] != len(fine) or list(v) != sorted(set(v)) or k <= OBSERVED_STEPS
            for k, v in nodes.items()
        ):
            raise ValueError("its grids don't fit each other")
        if len({v[:OBSERVED_STEPS] for v in nodes.values()}) != 1:
            raise ValueError("its grids begin differently")
        guided_share = None if data["guided"] is None else float(data["guided"])
        magnitudes = tuple(float(each) for each in data.get("magnitudes", ()))
        kind, cache = str(data.get("cache_kind", FIRST_BLOCK)), float(data.get("cache", 0.0))
        if (
            kind not in KINDS
            or len(magnitudes) not in (0, len(fine))
            or (cache and kind == MAGNITUDE and not magnitudes)
        ):
            raise ValueError("its cache can't be used")
        made = cls(fine, nodes, str(data["solver"]), guided_share, float(data["skip"]), cache, kind, magnitudes)
        try:
            made.longest  # noqa: B018 - a schedule refuses what can't be run
        except InvalidInput as e:
            raise ValueError(str(e)) from None
        return made


@dataclass(frozen=True)
class Evidence:
    """Hold the SSIM to the plain run (n, L+1) of pictures at every number of steps, and its predictions (n, L).

    The last column is the schedule over the whole fine grid, whose pictures may differ slightly from the plain run's.
    """

    likeness: Array
    predicted: Array

    def __len__(self) -> int:
        return len(self.likeness)


@dataclass(frozen=True)
class Fitted:
    """Hold step schedules ready for certification; one set of evidence proposes rules, the other certifies them.

    The predictions for the choosing pictures must come from other pictures (`predictor.cross_fit`).
    """

    schedules: StepSchedules
    predictor: Predictor
    costs: Costs
    """Seconds of a picture at each number of steps; `full` is that of the whole grid."""
    plain: float
    """Seconds of a plain picture."""
    choosing: Evidence
    certifying: Evidence

    def scores(self, evidence: Evidence, quality: float) -> Array:
        """Return P(SSIM ≥ quality) (n, L) for the pictures of `evidence`."""
        return self.predictor.chances(evidence.predicted, quality)

    def certify(self, quality: float, share: float, delta: float) -> Certificate:
        """Certify the rule with the fewest steps that reaches `quality` in `share` of pictures with confidence 1 - `delta`."""
        eps = round(1 - share, 12)
        rules = choose_rules(
            self.scores(self.choosing, quality),
            self.choosing.likeness >= quality,
            self.costs,
            eps,
            delta,
            len(self.certifying),
            levels=CANDIDATE_RULES,
            prune=False,
            every=True,
        )
        good = self.certifying.likeness >= quality
        return certify(rules, self.scores(self.certifying, quality), good, self.costs, eps, delta)

    def speedup(self, certificate: Certificate) -> float:
        """Return the expected speed-up over the plain run."""
        return self.plain / certificate.cost

    def pays(self, certificate: Certificate) -> bool:
        """Return whether the certificate allows fewer steps with a worthwhile speed-up."""
        return certificate.active and self.speedup(certificate) >= MIN_SPEEDUP

    def reached(self, certificate: Certificate, quality: float) -> Array:
        """Return the SSIM (n,) of the certifying pictures under a certificate's rule."""
        at = leaves_at(np.asarray(certificate.thresholds), self.scores(self.certifying, quality))
        found: Array = self.certifying.likeness[np.arange(len(at)), at]
        return found


class StepController:
    """Choose the number of steps of one run at prediction `OBSERVED_STEPS`; the run starts with `schedule`.

    The run of several pictures takes as many as pays for all of them; a picture that needs more has to be drawn again.
    """

    def __init__(self, step_profile: StepProfile, *, redrawn: bool = False) -> None:
        """Choose for all pictures of a run together, or, where those that need more are `redrawn`, for most of them."""
        self._profile, self._redrawn = step_profile, redrawn
        self._clean: list[Tensor] = []
        self.schedule = step_profile.longest
        self.steps: int | None = None
        """The chosen number of steps; None before the choice."""
        self.needed: tuple[int, ...] = ()
        """The number of steps that each picture needs under the rule."""

    def __call__(self, state: StepState) -> RestOfSchedule | None:
        """Return the rest of the schedule at the step of the choice, None at all others."""
        if state.index >= OBSERVED_STEPS:
            return None
        self._clean.append(state.clean)
        if state.index < OBSERVED_STEPS - 1:
            return None
        pictures = state.clean.shape[0]
        features = prediction_features(self._clean), text_features(state.embedding, pictures)
        self.needed = self._profile.steps_of_each(*features)
        self.steps = fewest_for_most(self.needed) if self._redrawn else max(self.needed)
        return self._profile.fitted.schedules.rest(self.steps)


@dataclass(frozen=True)
class StepProfile:
    """Hold step schedules with the certificate for the requested quality."""

    fitted: Fitted
    certificate: Certificate
    guarantee: Guarantee
    full_steps: int
    """Steps of the plain run."""
    colours: NDArray[np.float64] | None
    """(C + 1, 3): linear map from the channels of a clean latent to red, green and blue; the last row is the offset."""

    @property
    def longest(self) -> Schedule:
        """The schedule with which a run starts."""
        return self.fitted.schedules.longest

    @property
    def draft(self) -> Schedule:
        """The schedule with the fewest steps."""
        return self.fitted.schedules.schedule(self.fitted.schedules.levels[0])

    @property
    def mean_steps(self) -> float:
        """The number of steps of a picture under the rule, on average over those that certified it."""
        return float(np.repeat(self.fitted.schedules.steps, self.certificate.exits).mean())

    def steps_for(self, looks: Array, texts: Array) -> int:
        """Return the number of steps that the rule allows for all of these pictures together."""
        return max(self.steps_of_each(looks, texts))

    def steps_of_each(self, looks: Array, texts: Array) -> tuple[int, ...]:
        """Return the number of steps that the rule allows for each picture."""
        predictor = self.fitted.predictor
        chances = predictor.chances(predictor(looks, texts), self.guarantee.quality)
        at = leaves_at(np.asarray(self.certificate.thresholds), chances)
        return tuple(self.fitted.schedules.steps[int(i)] for i in at)


class CertifiedSteps(NamedTuple):
    """The certified steps of one backend, with the decision in words."""

    profile: StepProfile
    decision: Decision[str]


def fewest_for_most(needed: tuple[int, ...]) -> int:
    """Return the steps of a run of several pictures with the fewest in all, where those that need more are drawn again alone."""

    def total(steps: int) -> int:
        return steps * len(needed) + sum(each for each in needed if each > steps)

    return min(sorted(set(needed), reverse=True), key=total)


def to_arrays(
    fitted: Fitted, colours: NDArray[np.float64] | None, further: Mapping[BackendSpec, Fitted] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the arrays for a profile's safetensors file; `further` is what was measured in further precisions."""
    out = _arrays(fitted)
    for spec, other in (further or {}).items():
        out |= {f"{further_name(spec)}.{name}": values for name, values in _arrays(other).items()}
    return out if colours is None else {**out, "colours": colours}


def _arrays(fitted: Fitted) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = dict(fitted.predictor.to_arrays())
    for name, evidence in (("choosing", fitted.choosing), ("certifying", fitted.certifying)):
        out[f"{name}.likeness"], out[f"{name}.predicted"] = evidence.likeness, evidence.predicted
    return out


def further_name(spec: BackendSpec) -> str:
    """Return the name in profiles of what was measured in a further precision, on the backend that computed it."""
    return f"{spec.backend}.{spec.dtype}"


def further_specs(fitted: Mapping[str, Any]) -> list[BackendSpec]:
    """List the backends in reduced precision of which a profile holds evidence too. Raises as `from_profile`."""
    return [BackendSpec(str(each["backend"]), str(each["precision"])) for each in fitted.get("further", ())]


def from_profile(
    fitted: Mapping[str, Any],
    measured: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    further: BackendSpec | None = None,
) -> Fitted:
    """Read what calibration stored, of the profile's own backend or of a `further` one.

    Raises KeyError, TypeError, ValueError or InvalidInput on anything else.
    """
    schedules = StepSchedules.from_json(fitted["ladder"])
    c = measured["seconds"]
    if further is not None:
        c = measured.get("further", {}).get(further_name(further), c)
        start = f"{further_name(further)}."
        arrays = {name.removeprefix(start): each for name, each in arrays.items() if name.startswith(start)}
    predictor = Predictor.from_arrays(arrays)
    costs = Costs(tuple(map(float, c["reach"])), float(c["full"]), tuple(map(float, c["check"])))
    plain = float(c["plain"])

    def evidence(name: str) -> Evidence:
        found = Evidence(
            *(np.asarray(arrays[f"{name}.{part}"], dtype=np.float64) for part in ("likeness", "predicted"))
        )
        n, levels = len(found.predicted), len(schedules.levels)
        if found.likeness.shape != (n, levels + 1) or found.predicted.shape != (n, levels) or not n:
            raise ValueError("its evidence doesn't fit its grids")
        if np.isnan(found.likeness).any() or np.isnan(found.predicted).any():
            raise ValueError("its evidence has numbers missing")
        return found

    if len(costs.reach) != len(schedules.levels) or len(predictor.sigma) != len(schedules.levels):
        raise ValueError("its parts don't fit each other")
    if not plain > 0:
        raise ValueError("a plain picture takes no time")
    return Fitted(schedules, predictor, costs, plain, evidence("choosing"), evidence("certifying"))
