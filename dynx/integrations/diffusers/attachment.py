"""Gives a loaded pipeline a call that draws in its profile's steps, and its own call where that isn't possible.

Python looks a call up in the class, so the object gets a subclass of its class, with the same name: whoever holds the pipeline
gets the new call, and `isinstance`, saving and moving work as before. The pipeline's own call does the work, with the profile's
schedule in the place of its scheduler; arguments, callbacks and outputs are its own.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import nn

from dynx.diffusion import assemble_over, make_plan
from dynx.diffusion.apply_profile import other_setting
from dynx.diffusion.assembly import LoadedImageGenerator
from dynx.diffusion.pipelines import adapter_for
from dynx.diffusion.plan import ImageGeneratorRequest
from dynx.diffusion.profile_data import StepController
from dynx.diffusion.runs import LONG_RUN
from dynx.diffusion.sampler import Mismatch, Sampler
from dynx.diffusion.types import ImageStats, Request
from dynx.errors import InvalidInput, ModelError, NoProfileError, UnsupportedModelError
from dynx.integrations import origin
from dynx.integrations.diffusers import pictures
from dynx.runtime.decision import Decision
from dynx.runtime.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dynx.diffusion.plan import ImageGeneratorPlan
    from dynx.diffusion.profile_data import Guarantee, StepProfile

OPTIONS = frozenset({"quality", "profile", "require_profile"})
"""Options of an attachment: fields of the request for an image generator."""

HANDLED = frozenset(
    {
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
        "num_images_per_prompt",
        "batch_size",
        "generator",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    }
)
"""Arguments of a pipeline's call that may be given; another one that isn't at its default runs the pipeline's own steps."""


@dataclass(frozen=True)
class PipelineStats:
    """What the latest call of an attached pipeline cost, or the reason why the pipeline's own steps ran."""

    images: tuple[ImageStats, ...] = ()
    """One for each picture."""
    reason: str | None = None

    @property
    def image(self) -> ImageStats | None:
        """The first picture's; None where the pipeline's own steps ran."""
        return self.images[0] if self.images else None

    def __str__(self) -> str:
        if not self.images:
            return f"the pipeline's own steps: {self.reason}"
        several = f"{len(self.images)} pictures in " if len(self.images) > 1 else ""
        steps, calls = sum(one.run for one in self.images), sum(one.calls for one in self.images)
        return f"{several}{steps} steps in {calls} network calls"


class PipelineAttachment:
    """The call of an attached pipeline. Calls from several threads are drawn one after the other."""

    def __init__(self, pipe: Any, options: Mapping[str, Any]) -> None:
        self.pipe, self.options = pipe, dict(options)
        self.own_class: Any = type(pipe)
        self.stats: PipelineStats | None = None
        """The latest call's statistics; None before the first."""
        self.warnings: list[str] = []
        """Messages about the profile."""
        self._lock = threading.RLock()
        self._modules = {n: m for n, m in sorted(pipe.components.items()) if isinstance(m, nn.Module)}
        self._assembly: LoadedImageGenerator | None = None
        self.why_own_steps: str | None = self._set_up()
        """Why no call is drawn in the profile's steps; None where calls are."""
        if self.why_own_steps is not None and self.options.get("require_profile"):
            raise NoProfileError(f"a profile is required: {self.why_own_steps}")
        self._state = origin.State(*self._modules.values())

    @property
    def _profile(self) -> StepProfile | None:
        return None if self._assembly is None else self._assembly.step_profile

    @property
    def guarantee(self) -> Guarantee | None:
        """The promise that pictures are drawn under; None where all are drawn in the pipeline's own steps."""
        return None if self._profile is None else self._profile.guarantee

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the pipeline's own call does; its documentation holds."""
        own = self.own_class.__call__
        bound = inspect.signature(own).bind(self.pipe, *args, **kwargs)
        given = dict(bound.arguments)
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        with self._lock:
            reason = self._reason(given)
            if reason is None:
                states = pictures.states(given.get("generator"))
                try:
                    return self._draw_all(own, given)
                except Mismatch as e:
                    reason = str(e)
                    for generator, state in states:
                        generator.set_state(state)
            self.stats = PipelineStats(reason=reason)
            return own(self.pipe, *args, **kwargs)

    def _draw_all(self, own: Any, given: Mapping[str, Any]) -> Any:
        """Draw the pictures of a call one after the other, each in its own steps."""
        calls = pictures.single_calls(given)
        shares_noise = len(calls) > 1 and not isinstance(given.get("generator"), (list, tuple))
        slot = None if self._assembly is None else self._assembly.engine.adapter.slot
        with pictures.checked_noise(getattr(self.pipe, slot)) if slot and shares_noise else nullcontext():
            drawn = [self._draw(own, each) for each in calls]
        self.stats = PipelineStats(tuple(stats for _, stats in drawn))
        return pictures.together([out for out, _ in drawn])

    def _draw(self, own: Any, given: Mapping[str, Any]) -> tuple[Any, ImageStats]:
        """Draw a picture in the profile's steps. Raises Mismatch where it can't be."""
        assembly, known = self._assembly, self._profile
        if assembly is None or known is None:
            raise RuntimeError("there is no profile")
        began = time.perf_counter()
        pipe, engine = self.pipe, assembly.engine
        controller = StepController(known)
        sampler = Sampler(pipe, engine.adapter, controller.schedule, controller=controller, kernels=engine.kernels)
        bar = dict(getattr(pipe, "_progress_bar_config", None) or {})
        with torch_threads(engine.threads), engine.parts.attached(), sampler:
            pipe._progress_bar_config = bar  # it is the pipeline's own call, and shows its progress as ever
            changed = {**given, "num_inference_steps": len(controller.schedule.grid)}
            if given.get("callback_on_step_end") is not None:
                changed["callback_on_step_end"] = _until_planned(given["callback_on_step_end"], sampler)
            out = own(pipe, **changed)
        return out, ImageStats(
            calls=sampler.calls,
            rows=sampler.rows,
            planned=sampler.planned,
            run=sampler.run,
            skipped=sampler.skipped,
            unguided=sampler.unguided,
            cached=sampler.cached,
            seconds=time.perf_counter() - began,
            solver=controller.schedule.solver,
            schedule=sampler.schedule,
            timesteps=sampler.timesteps,
            finished_early=sampler.finished_early,
            notes=tuple(sampler.notes),
        )

    # Which calls.

    def _reason(self, given: Mapping[str, Any]) -> str | None:
        """Return why a call runs in the pipeline's own steps; None if it needn't."""
        assembly, known = self._assembly, self._profile
        if assembly is None or known is None:
            return self.why_own_steps
        for name, parameter in inspect.signature(self.own_class.__call__).parameters.items():
            value = given.get(name, parameter.default)
            if name not in (*HANDLED, "self", "kwargs") and value is not None and not _equal(value, parameter.default):
                return f"{name} is given"
        declared = inspect.signature(self.own_class.__call__).parameters
        if other := sorted(given.keys() - declared.keys()):
            return f"{other[0]} is given"
        if several := pictures.why_not(given, self.pipe.device):
            return several
        if isinstance(given.get("callback_on_step_end"), (PipelineCallback, MultiPipelineCallbacks)):
            return f"{type(given['callback_on_step_end']).__name__} changes the steps"
        if any(getattr(self.pipe, name, None) is not module for name, module in self._modules.items()):
            return "a part of the pipeline was replaced since it was attached"
        if not self._state.holds:
            return "its weights were changed or moved since it was attached"
        return self._other_settings(assembly, known, given)

    def _other_settings(
        self, assembly: LoadedImageGenerator, known: StepProfile, given: Mapping[str, Any]
    ) -> str | None:
        """Return how the settings of a call differ from those of the profile."""
        plan, profile = assembly.plan, assembly.plan.profile
        adapter = adapter_for(self.pipe)
        assembly.engine.adapter = adapter
        steps = given.get("num_inference_steps", adapter.default_steps)
        if steps != known.full_steps:
            return f"{steps} steps are asked for, and the profile is about {known.full_steps}"
        width, height = given.get("width"), given.get("height")
        if (width is None) != (height is None):
            return "one side of the picture is given alone"
        size = None if width is None or height is None else (int(width), int(height))
        guidance, negative = given.get("guidance_scale", adapter.default_guidance), given.get("negative_prompt")
        if isinstance(negative, (list, tuple)):
            if any(one != negative[0] for one in negative):
                return "the negative prompts differ"
            negative = negative[0]
        asked = replace(plan.request, guidance=guidance, negative=negative, size=size)
        probe = LoadedImageGenerator(replace(plan, request=asked), assembly.engine, None)
        if profile is not None and (other := other_setting(probe, profile.fitted)):
            return other.removesuffix("; drawing plain")
        prompts = ("",) if adapter.prompted else ()
        return assembly.engine.plain_reason(Request(prompts, (0,), negative, guidance, size, steps))

    # Setting up.

    def _set_up(self) -> str | None:
        """Find the profile and put the engine together; return why there is none, where there is none."""
        pipe, name = self.pipe, origin.name_of(self.pipe)
        if name is None:
            return "it wasn't loaded from a folder or the hub"
        dtype = str(pipe.dtype).removeprefix("torch.")
        try:
            plan = make_plan(
                ImageGeneratorRequest(
                    model=name,
                    device=pipe.device.type,
                    dtype="auto" if pipe.device.type == "cpu" else dtype,
                    offline=True,
                    trust_remote_code=origin.runs_own_code(pipe),
                    **self.options,
                ),
                warn=self.warnings.append,
            )
        except (NoProfileError, InvalidInput):
            raise
        except ModelError as e:
            return f"its folder can't be read: {e}"
        if plan.profile is None:
            return f"no profile is used ({(self.warnings or [plan.decisions.profile.reason])[-1]})"
        if dtype != plan.loaded_dtype:
            return f"it is in {dtype}, and the profile is about {plan.loaded_dtype}"
        if reason := self._other_weights(plan):
            return reason
        plan.decisions.threads = Decision(torch.get_num_threads(), "as PyTorch is set")
        fitted = plan.profile.fitted
        size = fitted.get("size")
        plan.request = replace(
            plan.request,
            guidance=fitted.get("guidance"),
            negative=fitted.get("negative"),
            size=None if size is None else (int(size[0]), int(size[1])),
        )
        try:
            assembly = assemble_over(plan, pipe, warn=self.warnings.append, pictures=LONG_RUN)
        except UnsupportedModelError as e:
            return str(e)
        if assembly.step_profile is None:
            return assembly.why_plain
        self._assembly = assembly
        return None

    def _other_weights(self, plan: ImageGeneratorPlan) -> str | None:
        """Return how the pipeline's weights differ from those in its folder."""
        for name, module in self._modules.items():
            folder = plan.source.folder / name
            if not folder.is_dir():
                return f"its {name} doesn't lie in {plan.source.folder}"

            if reason := origin.difference(module, folder, functools.partial(_reload, module, folder)):
                return f"{name}: {reason}"
        return None


def _reload(module: Any, folder: Path) -> nn.Module:
    """Load a part of a pipeline again."""
    again: nn.Module = type(module).from_pretrained(folder, local_files_only=True)
    return again


def _until_planned(callback: Any, sampler: Sampler) -> Any:
    """Return a callback that isn't called for the steps that the pipeline's loop still counts after the last one of the run."""

    def call(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        return callback(pipe, index, timestep, tensors) if index < sampler.planned else tensors

    return call


def _equal(value: Any, default: Any) -> bool:
    """Whether an argument is at its default."""
    return value is default or (isinstance(value, (bool, int, float, str)) and value == default)


def _attached(own: Any) -> type:
    """Return a subclass of a pipeline's class whose call is the attachment's."""

    @functools.wraps(own.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["dynx"].call(*args, **kwargs)

    def reduce(self: Any, _: Any) -> Any:  # copies aren't attached
        return _restored, (own,), {name: value for name, value in vars(self).items() if name != "dynx"}

    names = ("__module__", "__qualname__", "__doc__")
    body = {"__call__": call, "__reduce_ex__": reduce, **{name: getattr(own, name) for name in names}}
    return type(own.__name__, (own,), body)


def _restored(own: Any) -> Any:
    """Make an object of a pipeline's class without calling it, for copies."""
    return own.__new__(own)


def attach(pipe: Any, **options: Any) -> Any:
    """Make a loaded pipeline draw in its profile's steps, and return it; `dynx.attach` documents the options."""
    if unknown := sorted(options.keys() - OPTIONS):
        known = ", ".join(sorted(OPTIONS))
        raise InvalidInput(f"`{unknown[0]}` is no option of an attached pipeline", hint=f"known: {known}")
    current = vars(pipe).get("dynx")
    if isinstance(current, PipelineAttachment):
        options = {**current.options, **options}
        if options == current.options and current.why_own_steps is None:
            return pipe
        detach(pipe)
    attachment = PipelineAttachment(pipe, options)
    pipe.__class__ = _attached(type(pipe))
    vars(pipe)["dynx"] = attachment
    return pipe


def detach(pipe: Any) -> Any:
    """Give an attached pipeline its own call back, and return it."""
    attachment = vars(pipe).pop("dynx", None)
    if isinstance(attachment, PipelineAttachment):
        pipe.__class__ = attachment.own_class
    return pipe
