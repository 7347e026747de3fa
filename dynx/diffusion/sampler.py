"""One run of a pipeline's own loop, with dynx at its two doors: the network's `forward` and the scheduler's `step`.

Every diffusers loop goes through these two, whatever else it offers: callbacks, custom timesteps and interruption are missing
here and there, and say neither the prediction nor the clean picture. So a schedule is followed by putting a `Solver` in the
scheduler's place, a call is left out by answering it in front of the network, and a run lands by letting `step` return the clean
picture, after which the rest of the loop turns idly: a noisy picture is never decoded. In a plain run both doors only
watch. All is put back at the end of the `with`.

That the loop is what it looks like is checked at its first step: the network must have been given the latents as they are.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dynx.diffusion.caching import BlockCache, why_not
from dynx.diffusion.denoiser import Denoiser, Order, conditional_half
from dynx.diffusion.skipping import Skipping
from dynx.diffusion.solver import Carry, as_step, clean_picture, solver_for
from dynx.diffusion.types import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from dynx.diffusion.pipelines import Family
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.solver import Solver
    from dynx.runtime.backends.network import NetworkBackend

IDLE = Order("idle")

KEPT = "guidance kept: the pipeline doesn't combine two halves of a batch by the usual formula"


class Mismatch(Exception):  # noqa: N818 - a verdict, not a mistake
    """Why a pipeline's loop can't be held; the engine runs it plain instead."""


@dataclass(frozen=True)
class Look:
    """A step is about to be made: what a pilot may judge by. Latents and picture are (B, …), as the network takes them."""

    index: int  # from 0
    timestep: float
    sigma: float
    sigma_next: float
    latents: Tensor
    clean: Tensor
    computed: bool


class Tail(NamedTuple):
    """Other levels for after this step: timesteps (m,), sigmas (m+1,), no more than were left."""

    timesteps: Sequence[float]
    sigmas: Sequence[float]
    guided: int | None = None
    """Steps of the whole run with classifier-free guidance from now on; None leaves that as it is."""


if TYPE_CHECKING:
    Pilot = Callable[[Look], Tail | None]


class Sampler:
    """Holds a pipeline for one call of it, inside a `with`. `schedule` None is plain."""

    def __init__(
        self,
        pipe: Any,
        family: Family,
        schedule: Schedule | None = None,
        *,
        watch: Callable[[Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
        pilot: Pilot | None = None,
        kernels: NetworkBackend | None = None,
    ) -> None:
        """`kernels` compute the pipeline's one network where it is not to run as it is."""
        self.pipe, self.family, self.schedule = pipe, family, schedule
        self.run = self.skipped = self.unguided = self.cached = 0
        self.landed = False
        self.notes: list[str] = []
        self._watch, self._stop, self._pilot = watch, stop, pilot
        carry = Carry(family.prediction, family.noise) if family.noise and family.prediction else None
        self.denoisers = [Denoiser(getattr(pipe, slot), carry, kernels) for slot in family.slots]
        self._own: Any = getattr(pipe, "scheduler", None)
        self._solver: Solver | None = None
        if schedule is not None:
            self._prepare(schedule)
        self._half: int | None = None
        self._answer: Any = None
        """What `step` returns once the run is over."""
        self._over = False

    @property
    def calls(self) -> int:
        """Times a network ran."""
        return sum(d.calls for d in self.denoisers)

    @property
    def rows(self) -> int:
        """Batch rows that it ran for."""
        return sum(d.rows for d in self.denoisers)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """That the networks were told, in the order of calls."""
        return tuple(t for d in self.denoisers for t in d.timesteps)

    @property
    def planned(self) -> int:
        """Steps of the loop's grid."""
        return len(self._sigmas) - 1 if self._solver is not None else len(getattr(self._own, "timesteps", ()))

    def __enter__(self) -> Self:
        self._bar = getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.set_progress_bar_config(**{**(self._bar or {}), "disable": True})
        for denoiser in self.denoisers:
            denoiser.attach()
        if self._solver is not None:
            self.pipe.__dict__["scheduler"] = self._solver  # its setter would rewrite the pipeline's config
            self._order(Order(), self._sigmas[0])
        elif hasattr(self._own, "step"):
            self._before = self._own.__dict__.get("step")
            own_step = self._own.step
            self._own.step = functools.wraps(own_step)(functools.partial(self._plain_step, own_step))
        return self

    def __exit__(self, *_: object) -> None:
        for denoiser in self.denoisers:
            denoiser.detach()
        if self._solver is not None:
            self.pipe.__dict__["scheduler"] = self._own
        elif hasattr(self._own, "step"):
            if self._before is None:
                del self._own.step
            else:
                self._own.step = self._before
        if self._bar is None:
            del self.pipe._progress_bar_config
        else:
            self.pipe._progress_bar_config = self._bar

    def _order(self, order: Order, level: float = 0.0) -> None:
        for denoiser in self.denoisers:
            denoiser.next(order, level)

    def _end(self, answer: Any) -> None:
        self._over, self._answer = True, answer

    def _tell(
        self,
        index: int,
        of: int,
        clean: Tensor | None,
        *,
        computed: bool = True,
        guided: bool = True,
        cached: bool = False,
    ) -> None:
        if self._watch is not None:
            self._watch(Step(index, of, computed, guided, self.calls, clean, cached))

    # Plain: only watch, and land if told to stop.

    def _plain_step(self, own_step: Any, *args: Any, **kwargs: Any) -> Any:
        if self._over:
            self._order(IDLE)
            return self._answer
        answer = own_step(*args, **kwargs)
        self.run += 1
        stopped = self._stop is not None and self._stop() and self.run < self.planned
        clean = None
        if stopped or self._watch is not None:
            clean = self._own_clean(inspect.signature(own_step).bind(*args, **kwargs).arguments)
        if stopped and clean is not None:
            self._end(_ending_in(clean, answer))
            self.landed = True
        elif stopped and not self.notes:
            self.notes.append(f"not stopped: what {self.family.scheduler} is heading for can't be told")
        self._order(IDLE if self._over else Order())
        self._tell(self.run, self.planned, clean)
        return self._answer if self._over else answer

    def _own_clean(self, given: dict[str, Any]) -> Tensor | None:
        """The clean picture in the latents of the author's scheduler."""
        noise, kind = self.family.noise, self.family.prediction
        output, x, timestep = given.get("model_output"), given.get("sample"), given.get("timestep")
        if (
            noise is None
            or kind is None
            or not isinstance(output, Tensor)
            or not isinstance(x, Tensor)
            or timestep is None
        ):
            return None
        sigma = float(noise.sigmas([float(timestep)])[0])
        unit = x if self.family.unit else x / (1 + sigma**2) ** 0.5
        return clean_picture(kind, noise, output, unit, sigma)

    # Dynamic: follow the schedule.

    def _prepare(self, schedule: Schedule) -> None:
        if self.family.noise is None or self.family.prediction is None or self.family.slot is None:
            raise Mismatch(self.family.adaptive.reason)
        self._solver = solver_for(schedule.solver, schedule.grid, self.family, self._own)
        self._solver_step = self._solver.step
        self._solver.step = self._step  # type: ignore[method-assign]
        self._skipping = Skipping(schedule, self.family.noise)
        self._sigmas = list(schedule.grid.sigmas)
        self._index = 0
        if schedule.cache:
            network = self.denoisers[0].module
            reason = why_not(network) if self.denoisers[0].kernels is None else "it runs on other kernels"
            if reason:
                self.notes.append(f"not cached: {reason}")
            else:
                self.denoisers[0].cache = BlockCache(network, schedule.cache)
        self._cached_before = 0
        if self.family.random:
            self.notes.append(f"{self.family.scheduler} draws noise at every step: its own picture is another one")

    def _step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        if self._over:
            self._order(IDLE)
            return as_step(self._answer, self._answer, return_dict)
        denoiser, index = self.denoisers[0], self._index
        order = denoiser.order
        answered = denoiser.cached > self._cached_before
        self._cached_before = denoiser.cached
        computed, guided = order.kind == "compute" and not answered, order.half is None
        if index == 0:
            self._check(denoiser, sample)
            self._half = _guidance_half(denoiser, model_output)
            self._guidance_is_dear = denoiser.rows > sample.shape[0]
        elif denoiser.calls_in_step != 1:  # some pipelines guide by further calls, and not at every step
            self._half = None
        if self._pilot is not None:
            self._consult(self._pilot, model_output, sample, computed)
        after, clean = self._solver_step(model_output, timestep, sample, return_dict=False)
        self._index += 1
        self.run += computed
        self.skipped += order.kind == "reuse"
        self.cached += answered
        self.unguided += computed and not guided
        self._conclude(sample, after, clean)
        self._tell(self._index, self.planned, clean, computed=computed, guided=guided, cached=answered)
        return as_step(self._answer if self._over else after, clean, return_dict)

    def _conclude(self, before: Tensor, after: Tensor, clean: Tensor) -> None:
        """Decide about the next step."""
        schedule, done, of = self.schedule, self._index, self.planned
        if schedule is None:
            raise RuntimeError("a plain run has no schedule")
        if done == of:
            self._end(after)
        elif done == schedule.land_after or (self._stop is not None and self._stop()):
            self._end(clean)
            self.landed = True
        if self._over:
            self._order(IDLE)
            return
        self._skipping.note(before, after, self._sigmas[done - 1], self._sigmas[done])
        sigma = self._sigmas[done]
        if self._skipping.next_is_skipped(last=done == of - 1):
            self._order(Order("reuse"), sigma)
        else:
            self._order(Order(half=self._dropped(schedule, done), rows=2 * before.shape[0]), sigma)

    def _dropped(self, schedule: Schedule, done: int) -> int | None:
        """The half to compute alone, None for both."""
        if schedule.guided is None or done < schedule.guided:
            return None
        if self._half is None and self._guidance_is_dear and KEPT not in self.notes:
            self.notes.append(KEPT)
        return self._half

    def _check(self, denoiser: Denoiser, sample: Tensor) -> None:
        """Raise Mismatch unless the network was given the latents, once for each part of its batch."""
        call = denoiser.last
        if call is None:
            raise Mismatch(f"{self.family.name} steps before it calls its network")
        if call.noisy.shape[1:] != sample.shape[1:] or call.noisy.shape[0] % sample.shape[0]:
            raise Mismatch(f"{self.family.name} gives its network other latents than its scheduler")
        copies = call.noisy.shape[0] // sample.shape[0]
        if not torch.equal(call.noisy, torch.cat([sample.to(call.noisy.dtype)] * copies)):
            raise Mismatch(f"{self.family.name} changes its latents before its network sees them")

    def _consult(self, pilot: Pilot, model_output: Tensor, sample: Tensor, computed: bool) -> None:
        """Let the pilot look, and follow it if it plans anew."""
        index, noise, kind = self._index, self.family.noise, self.family.prediction
        if self._solver is None or noise is None or kind is None:
            raise RuntimeError("no schedule to change")
        sigma = self._sigmas[index]
        clean = clean_picture(kind, noise, model_output, sample, sigma)
        told = float(self._solver.timesteps[index])
        tail = pilot(Look(index, told, sigma, self._sigmas[index + 1], sample, clean, computed))
        if tail is None:
            return
        timesteps, sigmas = list(tail.timesteps), list(tail.sigmas)
        levels = [sigma, *sigmas]
        falls = all(a > b for a, b in pairwise(levels)) and sigmas[-1] >= 0
        if len(sigmas) != len(timesteps) + 1 or len(timesteps) > self.planned - index - 1 or not falls:
            raise ValueError(f"no plan for after step {index + 1} of {self.planned}: {tail}")
        self._sigmas[index + 1 :] = sigmas
        self._solver.replan(timesteps, sigmas)
        if tail.guided is not None and self.schedule is not None:
            self.schedule = replace(self.schedule, guided=tail.guided)


def _guidance_half(denoiser: Denoiser, guided: Tensor) -> int | None:
    call = denoiser.last
    return None if call is None or denoiser.calls_in_step != 1 else conditional_half(call.raw, guided)


def _ending_in(clean: Tensor, answer: Any) -> Any:
    """A step's answer with the clean picture for every tensor of its shape in it."""

    def ended(value: Any) -> Any:
        return clean.to(value.dtype) if isinstance(value, Tensor) and value.shape == clean.shape else value

    if isinstance(answer, tuple):
        return tuple(ended(value) for value in answer)
    return type(answer)(**{name: ended(value) for name, value in answer.items()})
