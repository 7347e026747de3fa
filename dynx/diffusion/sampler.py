"""Control one run of a pipeline's own loop by intercepting the network's `forward` and the scheduler's `step`.

Every diffusers loop calls these two; its callbacks, custom timesteps and interruption vary between pipelines and expose neither
the prediction nor the clean picture. A schedule is followed by replacing the scheduler with a `Solver`; a network call is
skipped by answering it before the network; and a run finishes early by returning the clean picture from `step`, after which the
rest of the loop computes nothing, so a noisy picture is never decoded. In a plain run both are only observed. Everything is
restored at the end of the `with`.

The first step verifies the loop: the network's input must equal the scheduler's latents.
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
from dynx.diffusion.control import Companion
from dynx.diffusion.denoiser import Denoiser, Order, conditional_half
from dynx.diffusion.skipping import Skipping
from dynx.diffusion.solver import Carry, as_step, clean_picture, latents_of, solver_for
from dynx.diffusion.types import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from dynx.diffusion.pipelines import PipelineAdapter
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.solver import Solver
    from dynx.runtime.backends.network import NetworkBackend

IDLE_ORDER = Order("idle")
"""Order for the rest of the loop once the run is over."""

GUIDANCE_KEPT_NOTE = "guidance kept: the pipeline doesn't combine two halves of a batch by the usual formula"
"""Note of a run whose guidance interval can't be applied."""


class Mismatch(Exception):  # noqa: N818 - a verdict, not a mistake
    """Signal that a pipeline's loop can't be controlled; the engine then runs it plain."""


@dataclass(frozen=True)
class StepState:
    """Hold the state before a step, for a controller. Latents and clean picture are (B, …), as the network takes them."""

    index: int  # from 0
    timestep: float
    sigma: float
    sigma_next: float
    latents: Tensor
    clean: Tensor
    computed: bool
    embedding: Tensor | None = None
    """(R, …) the text embedding of the network's calls; None for a network without one."""


class RestOfSchedule(NamedTuple):
    """Replace the levels after this step: timesteps (m,), sigmas (m+1,); m is at most the number of steps left."""

    timesteps: Sequence[float]
    sigmas: Sequence[float]
    guided_steps: int | None = None
    """New number of steps of the whole run with classifier-free guidance; None leaves it unchanged."""
    magnitude_ratios: tuple[float, ...] = ()
    """For the magnitude cache, the expected changes at all steps of the new run."""


if TYPE_CHECKING:
    StepController = Callable[[StepState], RestOfSchedule | None]


class Sampler:
    """Control one call of a pipeline, inside a `with`. A `schedule` of None means plain execution."""

    def __init__(
        self,
        pipe: Any,
        adapter: PipelineAdapter,
        schedule: Schedule | None = None,
        *,
        callback: Callable[[Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
        controller: StepController | None = None,
        kernels: NetworkBackend | None = None,
        skipped: tuple[int, int] = (0, 0),
    ) -> None:
        """Prepare a run; `kernels` compute the pipeline's one network, None runs it as it was loaded.

        `skipped` as in `solver_for`.
        """
        self._skipped = skipped
        self.pipe, self.adapter, self.schedule = pipe, adapter, schedule
        self.run = self.skipped = self.unguided = self.cached = 0
        self.finished_early = False
        self.notes: list[str] = []
        self._callback, self._stop, self._controller = callback, stop, controller
        carry = Carry(adapter.prediction, adapter.noise) if adapter.noise and adapter.prediction else None
        self.denoisers = [Denoiser(getattr(pipe, slot), carry, kernels) for slot in adapter.slots]
        self._intercepted: list[Denoiser | Companion] = [*self.denoisers, *Companion.all_of(pipe, self.denoisers)]
        self._own: Any = getattr(pipe, "scheduler", None)
        self._solver: Solver | None = None
        if schedule is not None:
            self._prepare(schedule)
        self._half: int | None = None
        self._answer: Any = None
        """The value that `step` returns once the run is over."""
        self._over = False

    @property
    def calls(self) -> int:
        """Number of times a network ran."""
        return sum(d.calls for d in self.denoisers)

    @property
    def rows(self) -> int:
        """Number of batch rows that a network ran for."""
        return sum(d.rows for d in self.denoisers)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps passed to the networks, in the order of calls."""
        return tuple(t for d in self.denoisers for t in d.timesteps)

    @property
    def planned(self) -> int:
        """Number of steps of the loop's grid."""
        if self._solver is not None:
            return len(self._sigmas) - 1
        steps = len(getattr(self._own, "timesteps", ()))
        known = getattr(self.pipe, "_num_timesteps", None) if self.adapter.starts else None
        return steps if known is None else min(steps, int(known))

    def __enter__(self) -> Self:
        self._bar = getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.set_progress_bar_config(**{**(self._bar or {}), "disable": True})
        for module in self._intercepted:
            module.attach()
        if self._solver is not None:
            self.pipe.__dict__["scheduler"] = self._solver  # its setter would rewrite the pipeline's config
            self._order(Order(), self._sigmas[0])
        elif hasattr(self._own, "step"):
            self._before = self._own.__dict__.get("step")
            own_step = self._own.step
            self._own.step = functools.wraps(own_step)(functools.partial(self._plain_step, own_step))
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._intercepted:
            module.detach()
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

    def _report_step(
        self,
        index: int,
        total: int,
        clean: Tensor | None,
        *,
        computed: bool = True,
        guided: bool = True,
        cached: bool = False,
    ) -> None:
        if self._callback is not None:
            self._callback(Step(index, total, computed, guided, self.calls, clean, cached))

    # Plain execution: observe, and finish early when `stop` returns True.

    def _plain_step(self, own_step: Any, *args: Any, **kwargs: Any) -> Any:
        if self._over:
            self._order(IDLE_ORDER)
            return self._answer
        answer = own_step(*args, **kwargs)
        self.run += 1
        stopped = self._stop is not None and self._stop() and self.run < self.planned
        clean = None
        if stopped or self._callback is not None:
            clean = self._own_clean(inspect.signature(own_step).bind(*args, **kwargs).arguments)
        if stopped and clean is not None:
            self._end(_ending_in(clean, answer))
            self.finished_early = True
        elif stopped and not self.notes:
            self.notes.append(f"not stopped: what {self.adapter.scheduler} is heading for can't be told")
        self._order(IDLE_ORDER if self._over else Order())
        self._report_step(self.run, self.planned, clean)
        return self._answer if self._over else answer

    def _own_clean(self, given: dict[str, Any]) -> Tensor | None:
        """Return the clean picture predicted in a step of the pipeline's own scheduler, or None where it is unknown."""
        noise, kind = self.adapter.noise, self.adapter.prediction
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
        unit = x if self.adapter.unit else x / ((noise.data or 1.0) * (1 + sigma**2) ** 0.5)
        return clean_picture(kind, noise, output, unit, sigma) * (noise.data or 1.0)

    # Dynamic execution: follow the schedule.

    def _prepare(self, schedule: Schedule) -> None:
        if self.adapter.noise is None or self.adapter.prediction is None or self.adapter.slot is None:
            raise Mismatch(self.adapter.adaptive.reason)
        self._solver = solver_for(schedule.solver, schedule.grid, self.adapter, self._own, self._skipped)
        self._solver_step = self._solver.step
        self._solver.step = self._step  # type: ignore[method-assign]
        self._skipping = Skipping(schedule, self.adapter.noise)
        self._sigmas = list(schedule.grid.sigmas)
        self._index = 0
        if schedule.cache:
            network = self.denoisers[0].module
            kind = schedule.cache_kind
            reason = why_not(network, kind) if self.denoisers[0].kernels is None else "it runs on other kernels"
            if reason:
                self.notes.append(f"not cached: {reason}")
            else:
                self.denoisers[0].cache = BlockCache(network, schedule)
        self._cached_before = 0
        if self.adapter.random:
            self.notes.append(f"{self.adapter.scheduler} draws noise at every step: its own picture is another one")

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
            self._order(IDLE_ORDER)
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
        if self._controller is not None:
            self._ask_controller(self._controller, model_output, sample, computed)
        after, clean = self._solver_step(model_output, timestep, sample, return_dict=False)
        self._index += 1
        self.run += computed
        self.skipped += order.kind == "reuse"
        self.cached += answered
        self.unguided += computed and not guided
        self._conclude(sample, after, clean)
        self._report_step(self._index, self.planned, clean, computed=computed, guided=guided, cached=answered)
        return as_step(self._answer if self._over else after, clean, return_dict)

    def _conclude(self, before: Tensor, after: Tensor, clean: Tensor) -> None:
        """Decide what happens in the next step."""
        schedule, done, total = self.schedule, self._index, self.planned
        if schedule is None:
            raise RuntimeError("a plain run has no schedule")
        data = (
            self.adapter.noise.data if self.adapter.noise else None
        ) or 1.0  # the pipeline goes on with its own scale
        if done == total:
            self._end(after * data)
        elif done == schedule.finish_after_steps or (self._stop is not None and self._stop()):
            self._end(clean * data)
            self.finished_early = True
        if self._over:
            self._order(IDLE_ORDER)
            return
        self._skipping.note(before, after, self._sigmas[done - 1], self._sigmas[done])
        sigma = self._sigmas[done]
        if self._skipping.next_is_skipped(last=done == total - 1):
            self._order(Order("reuse"), sigma)
        else:
            self._order(Order(half=self._dropped(schedule, done), rows=2 * before.shape[0]), sigma)

    def _dropped(self, schedule: Schedule, done: int) -> int | None:
        """Return the half of the batch to compute in the next step; None for both."""
        if schedule.guided_steps is None or done < schedule.guided_steps:
            return None
        if self._half is None and self._guidance_is_dear and GUIDANCE_KEPT_NOTE not in self.notes:
            self.notes.append(GUIDANCE_KEPT_NOTE)
        return self._half

    def _check(self, denoiser: Denoiser, sample: Tensor) -> None:
        """Raise Mismatch unless the network was given the latents, once for each part of its batch."""
        call = denoiser.last
        if call is None:
            raise Mismatch(f"{self.adapter.name} steps before it calls its network")
        noisy = latents_of(call.noisy, sample) if self.adapter.starts else call.noisy
        if noisy.shape[1:] != sample.shape[1:] or noisy.shape[0] % sample.shape[0]:
            raise Mismatch(f"{self.adapter.name} gives its network other latents than its scheduler")
        copies = noisy.shape[0] // sample.shape[0]
        if not torch.equal(noisy, torch.cat([sample.to(noisy.dtype)] * copies)):
            raise Mismatch(f"{self.adapter.name} changes its latents before its network sees them")

    def _ask_controller(self, controller: StepController, model_output: Tensor, sample: Tensor, computed: bool) -> None:
        """Call the controller, and follow the rest of the schedule that it returns."""
        index, noise, kind = self._index, self.adapter.noise, self.adapter.prediction
        if self._solver is None or noise is None or kind is None:
            raise RuntimeError("no schedule to change")
        sigma = self._sigmas[index]
        clean = clean_picture(kind, noise, model_output, sample, sigma)
        timestep = float(self._solver.timesteps[index])
        level_after, embedding = self._sigmas[index + 1], self.denoisers[0].embedding
        rest = controller(StepState(index, timestep, sigma, level_after, sample, clean, computed, embedding))
        if rest is None:
            return
        timesteps, sigmas = list(rest.timesteps), list(rest.sigmas)
        levels = [sigma, *sigmas]
        falls = all(a > b for a, b in pairwise(levels)) and sigmas[-1] >= 0
        if len(sigmas) != len(timesteps) + 1 or len(timesteps) > self.planned - index - 1 or not falls:
            raise ValueError(f"no plan for after step {index + 1} of {self.planned}: {rest}")
        self._sigmas[index + 1 :] = sigmas
        self._solver.replan(timesteps, sigmas)
        if rest.guided_steps is not None and self.schedule is not None:
            self.schedule = replace(self.schedule, guided_steps=rest.guided_steps)
        cache = self.denoisers[0].cache
        if cache is not None and self.schedule is not None and rest.magnitude_ratios:
            times = (*self.schedule.grid.timesteps[: index + 1], *timesteps)
            grid = replace(self.schedule.grid, timesteps=times, sigmas=tuple(self._sigmas))
            cache.replan(replace(self.schedule, grid=grid, magnitude_ratios=rest.magnitude_ratios))


def _guidance_half(denoiser: Denoiser, guided: Tensor) -> int | None:
    call = denoiser.last
    return None if call is None or denoiser.calls_in_step != 1 else conditional_half(call.raw, guided)


def _ending_in(clean: Tensor, answer: Any) -> Any:
    """Return a step's output with every tensor of the clean picture's shape replaced by it."""

    def ended(value: Any) -> Any:
        return clean.to(value.dtype) if isinstance(value, Tensor) and value.shape == clean.shape else value

    if isinstance(answer, tuple):
        return tuple(ended(value) for value in answer)
    return type(answer)(**{name: ended(value) for name, value in answer.items()})
