"""Describe a loaded diffusers pipeline, and decide whether another schedule than its own can be used.

Pipelines are recognised by their parts rather than by name: one network, a supported scheduler, a loop that draws from a prompt
or unconditionally. `sampler` verifies the loop while it runs.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynx.diffusion.control import control_argument
from dynx.diffusion.schedule import Noise
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction", "negative_v"]

NETWORK_ATTRIBUTES = ("unet", "transformer", "unet_2", "transformer_2", "prior", "decoder")

VARIANCE_PRESERVING_SCHEDULERS = frozenset(
    {
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
        "LCMScheduler",
        "TCDScheduler",
    }
)
"""Schedulers whose latents keep the variance of the noise, α² + σ² = 1, and enter the network unscaled."""

SIGMA_SPACE_SCHEDULERS = frozenset(
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverSDEScheduler",
    }
)
"""Schedulers whose latents are x0 + σ·ε and are scaled before they enter the network."""

EDM_SCHEDULERS = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
"""Schedulers of Karras et al. (2022), whose latents have the variance of the data and whose timesteps are ln(σ)/4."""

FLOW_SCHEDULERS = frozenset(
    {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
)

STOCHASTIC_SCHEDULERS = frozenset(
    {
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "SASolverScheduler",
    }
)
"""Schedulers that draw new noise at every step."""

DISTILLED_SCHEDULERS = frozenset(
    {
        "LCMScheduler",
        "TCDScheduler",
        "FlowMatchLCMScheduler",
        "CMStochasticIterativeScheduler",
        "FlowMapEulerDiscreteScheduler",
        "SCMScheduler",
        "PiflowScheduler",
    }
)
"""Schedulers that are made for few-step models only."""

MAX_FEW_STEPS = 8
"""Largest number of planned steps that counts as a few-step model, where each step is a large part of the picture."""

FEW_STEP_NAME = re.compile(
    r"turbo|lightning|hyper-?sd|schnell|lcm|tcd|distill|(?<!\d)[1248]-?steps?(?![a-z])", re.IGNORECASE
)
"""Words in the name of a model that mark it as a few-step model."""


@dataclass(frozen=True)
class PipelineAdapter:
    """Describe a pipeline to the engine: its network, scheduler, noise, guidance and defaults."""

    name: str  # of the pipeline's class
    slots: tuple[str, ...]
    """Attributes that hold its networks; exactly one, such as "unet" or "transformer", where schedules can be used."""
    scheduler: str  # class of its own scheduler
    noise: Noise | None
    """Noise levels of its timesteps; None for an unknown scheduler."""
    unit: bool
    """Whether its own scheduler passes latents to the network unscaled, up to rounding."""
    prediction: Prediction | None
    """What the network predicts; None for an unsupported kind."""
    guidance: Literal["batched", "embedded", "none"]
    """Kind of guidance, judged by the pipeline's signature: a batch of two halves, an embedded scale, or none."""
    prompted: bool
    latent: bool
    """Whether a decoder makes the pixels."""
    multiple: int
    """Number of pixels of which width and height must be multiples."""
    default_steps: int
    default_guidance: float | None
    starts: bool
    """Whether it starts from a picture, to which a strength adds noise."""
    control: str | None
    """The argument for the picture that controls it; None without a ControlNet."""
    random: bool
    """Whether its own scheduler draws noise at every step, so that no deterministic run draws the same picture for a seed."""
    adaptive: Decision[bool]

    @property
    def slot(self) -> str | None:
        """The attribute of its one network; None if it has none or several."""
        return self.slots[0] if len(self.slots) == 1 else None


def adapter_for(pipe: Any) -> PipelineAdapter:
    """Make the adapter of a loaded pipeline."""
    scheduler = getattr(pipe, "scheduler", None)
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    call = inspect.signature(pipe.__call__).parameters
    slots = tuple(name for name in NETWORK_ATTRIBUTES if getattr(pipe, name, None) is not None)
    slot = slots[0] if len(slots) == 1 else None
    noise = noise_of(scheduler)
    flow = noise is not None and noise.flow
    kind_predicted: Any = "flow_prediction" if flow else config.get("prediction_type", "epsilon")
    if kind in EDM_SCHEDULERS:  # whose epsilon is the velocity with the other sign
        kind_predicted = {"epsilon": "negative_v", "v_prediction": "v_prediction"}.get(kind_predicted)
    prompted = "prompt" in call
    found = PipelineAdapter(
        name=type(pipe).__name__,
        slots=slots,
        scheduler=kind,
        noise=noise,
        unit=kind not in SIGMA_SPACE_SCHEDULERS | EDM_SCHEDULERS,
        prediction=kind_predicted if kind_predicted in get_args(Prediction) else None,
        guidance=_guidance(pipe, slot, call, prompted),
        prompted=prompted,
        latent=getattr(pipe, "vae", None) is not None,
        multiple=_multiple(pipe, slot),
        default_steps=int(_default(call, "num_inference_steps") or 50),
        default_guidance=_default(call, "guidance_scale"),
        starts="image" in call and "strength" in call,
        control=control_argument(pipe),
        random=kind in STOCHASTIC_SCHEDULERS
        or str(config.get("algorithm_type", "")).startswith("sde")
        or bool(config.get("stochastic_sampling")),
        adaptive=Decision(True, "it draws in one loop with a known kind of noise"),
    )
    continuous = config.get("timestep_type") == "continuous" and noise is None
    reason = _obstacle(found, call, continuous=continuous) or few_step(pipe)
    return found if reason is None else PipelineAdapter(**{**vars(found), "adaptive": Decision(False, reason)})


def noise_of(scheduler: Any) -> Noise | None:
    """Return the noise levels of a scheduler's timesteps, or None for an unknown scheduler."""
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    steps = int(config.get("num_train_timesteps", 1000))
    if kind in FLOW_SCHEDULERS or (kind in VARIANCE_PRESERVING_SCHEDULERS and config.get("use_flow_sigmas")):
        return None if config.get("invert_sigmas") else Noise(None, steps)
    if kind in EDM_SCHEDULERS:
        return Noise(None, steps, float(config.get("sigma_data", 0.5)))
    logarithmic = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if kind == "EulerDiscreteScheduler" and logarithmic:
        return Noise(None, steps, 1.0)
    if (
        kind not in VARIANCE_PRESERVING_SCHEDULERS | SIGMA_SPACE_SCHEDULERS
        or config.get("timestep_type") == "continuous"
    ):
        return None
    kept = np.asarray(scheduler.alphas_cumprod.detach().cpu().double().numpy())
    kept = np.maximum(kept, 2.0**-24)  # a schedule down to pure noise (Lin et al. 2024) ends at 0; diffusers' floor
    return Noise(np.sqrt((1 - kept) / kept), steps)


def few_step(pipe: Any, *, steps: int | None = None, guidance: float | None = None) -> str | None:
    """Return why a pipeline counts as a few-step model, which is drawn plain, or None.

    `steps` and `guidance` are those of a request, None where it sets none.
    """
    scheduler = getattr(pipe, "scheduler", None)
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    networks = [getattr(pipe, slot) for slot in NETWORK_ATTRIBUTES if getattr(pipe, slot, None) is not None]
    configs = [pipe.config, *(network.config for network in networks)]
    if kind in DISTILLED_SCHEDULERS:
        return f"a few-step model: {kind} is for those only"
    if any(c.get("time_cond_proj_dim") is not None for c in configs):
        return "a few-step model: its network takes the guidance scale as an input, like consistency models"
    if any(c.get("is_distilled") for c in configs):
        return "a few-step model: its config says that it's distilled"
    if said := next((m for c in configs if (m := FEW_STEP_NAME.search(_last_name(c)))), None):
        return f"a few-step model: its name says {said[0]}"
    planned = (
        steps if steps is not None else _default(inspect.signature(pipe.__call__).parameters, "num_inference_steps")
    )
    if planned is not None and planned <= MAX_FEW_STEPS:
        return f"{planned} steps are few: each is a large part of the picture"
    if config.get("timestep_spacing") == "trailing" and guidance is not None and guidance <= 1:
        return "a few-step model, by its trailing timesteps without guidance"
    return None


def required_arguments(call: Mapping[str, inspect.Parameter]) -> list[str]:
    """List the required arguments of a pipeline's call other than the prompt."""
    given = [n for n, p in call.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in given if name != "prompt"]


def picture_arguments(call: Mapping[str, inspect.Parameter]) -> list[str]:
    """List the arguments for initial pictures of a pipeline's call; only a call shows whether they are required."""
    return [n for n in call if (n == "image" or n.endswith("_image")) and "ip_adapter" not in n and n[:4] != "num_"]


def _obstacle(adapter: PipelineAdapter, call: Any, *, continuous: bool) -> str | None:
    """Return why only the pipeline's own schedule can be used, or None.

    `continuous`: the timesteps of its scheduler, which dynx knows otherwise, are functions of sigma.
    """
    if len(adapter.slots) > 1:
        return f"it runs {len(adapter.slots)} networks ({', '.join(adapter.slots)}), and dynx knows schedules of one"
    if adapter.slot is None:
        return "it has no network that dynx knows"
    if adapter.noise is None and continuous:
        return f"{adapter.scheduler} gives its network continuous noise levels, and dynx knows grids of timesteps"
    if adapter.noise is None:
        return f"{adapter.scheduler} is not a scheduler that dynx knows"
    if "num_inference_steps" not in call:
        return "it can't be told a number of steps"
    if needed := [name for name in required_arguments(call) if name != adapter.control]:
        return f"it needs {' and '.join(needed)}, and dynx draws from prompts"
    if "image" in call and not adapter.starts and adapter.control != "image":
        return "it can start from an image, and dynx knows loops that start from noise"
    if adapter.prediction is None:
        return "its network predicts something that dynx doesn't know"
    return None


def _guidance(pipe: Any, slot: str | None, call: Any, prompted: bool) -> Literal["batched", "embedded", "none"]:
    config = getattr(getattr(pipe, slot or "", None), "config", {})
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
        return "embedded"
    return "batched" if prompted and "guidance_scale" in call and "guidance_embeds" not in config else "none"


def _multiple(pipe: Any, slot: str | None) -> int:
    config = getattr(getattr(pipe, slot or "", None), "config", {})
    patch = config.get("patch_size") or 1
    packed = 2 if "Flux" in type(pipe).__name__ or hasattr(pipe, "_pack_latents") else 1
    return int(getattr(pipe, "vae_scale_factor", 1)) * (int(patch) if packed == 1 else packed)


def _default(call: Any, name: str) -> Any:
    return call[name].default if name in call and call[name].default is not inspect.Parameter.empty else None


def _last_name(config: Any) -> str:
    """Return the last part of the folder or hub id in a config."""
    return str(config.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
