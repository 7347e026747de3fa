"""Tiny random pipelines of the families that `dynx draw` knows, in diffusers' own classes, and requests for them.

Nothing is downloaded: a tokenizer of a dozen words, networks of a few thousand weights. The last layer of each network is made
strong enough that pictures depend on the prompt, the seed and every step.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import logging
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dynx.diffusion import backends, schedule_search
from dynx.diffusion import calibrate as learning
from dynx.diffusion.assembly import LoadedImageGenerator
from dynx.diffusion.engine import Engine
from dynx.diffusion.plan import ImageGeneratorDecisions, ImageGeneratorPlan, ImageGeneratorRequest
from dynx.diffusion.types import Request
from dynx.runtime.decision import Decision
from dynx.runtime.device import Device
from dynx.runtime.loading import Source
from dynx.runtime.profile import ProfileKey

if TYPE_CHECKING:
    import pytest

    from dynx.diffusion.types import Picture

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
logging.set_verbosity_error()

WORDS = ("a", "red", "blue", "cat", "moon", "apple", "and", "of", "the")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TOKENS = 8
WIDTH = 16

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Stable Diffusion's noise."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Of whole words, with a beginning and an end."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - not that kind of token
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=TOKENS, **names)


def _clip(*, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5() -> Any:
    config = T5Config(
        vocab_size=len(SPECIAL + WORDS), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, pad_token_id=0
    )
    return T5EncoderModel(config).eval()


def _vae(channels: int, **others: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=16,
        **others,
    ).eval()


def _unet(**others: Any) -> Any:
    return _strong(
        diffusers.UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (8, 16),
                "norm_num_groups": 4,
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 8,
                **others,
            }
        ),
        "conv_out",
    )


def _strong(network: Any, last: str, gain: float = 3.0) -> Any:
    """The network with its last layer's weights times `gain`: its answers are as large as noise."""
    layer: nn.Module = network.get_submodule(last)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(gain)
    return network.eval()


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(scheduler: Any = None, *, seed: int = 0, **unet: Any) -> Any:
    """Stable Diffusion with DDIM unless told otherwise."""
    torch.manual_seed(seed)
    scheduler = scheduler or diffusers.DDIMScheduler(
        **SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return _quiet(
        diffusers.StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=_clip(),
            tokenizer=tokenizer(),
            unet=_unet(**unet),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_xl(scheduler: Any = None) -> Any:
    """SDXL: two text encoders, size embeddings."""
    torch.manual_seed(1)
    unet = _unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )
    return _quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=_vae(4),
            text_encoder=_clip(),
            text_encoder_2=_clip(projected=True),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=scheduler
            or diffusers.EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    )


def controlled(name: str, *, several: bool = False) -> Any:
    """Stable Diffusion or SDXL with a ControlNet whose outputs count, or with two of them."""
    base = pipeline(name)
    nets = []
    for seed in range(2 if several else 1):
        torch.manual_seed(20 + seed)
        net = diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8)).eval()
        with torch.no_grad():
            for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
                layer.weight.normal_(std=0.5)
            net.controlnet_cond_embedding.conv_out.weight.normal_(std=0.5)
        nets.append(net)
    kinds = {
        "stable-diffusion": diffusers.StableDiffusionControlNetPipeline,
        "stable-diffusion-xl": diffusers.StableDiffusionXLControlNetPipeline,
    }
    parts = {key: part for key, part in base.components.items() if key not in ("image_encoder",)}
    return _quiet(kinds[name](**parts, controlnet=nets if several else nets[0]))


def stable_diffusion_3() -> Any:
    """SD3 without its third text encoder, as its authors allow."""
    torch.manual_seed(2)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return _quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=_strong(transformer, "proj_out"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=_clip(projected=True),
            tokenizer=tokenizer(),
            text_encoder_2=_clip(projected=True),
            tokenizer_2=tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def pixart() -> Any:
    """PixArt-α: a transformer that predicts a variance besides."""
    torch.manual_seed(3)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return _quiet(
        diffusers.PixArtAlphaPipeline(
            transformer=_strong(transformer, "proj_out"),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
            vae=_vae(4),
            text_encoder=_t5(),
            tokenizer=tokenizer(),
        )
    )


def flux(*, guidance_embeds: bool = True, dynamic: bool = True) -> Any:
    """Flux: packed latents, embedded guidance, sigmas shifted by the picture's size."""
    torch.manual_seed(4)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guidance_embeds,
    )
    pipe = _quiet(
        diffusers.FluxPipeline(
            transformer=_strong(transformer, "proj_out"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
            vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=_clip(),
            tokenizer=tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=tokenizer(),
        )
    )
    pipe.default_sample_size = 8
    return pipe


def _pixels(seed: int) -> Any:
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return _strong(unet, "conv_out")


def ddpm() -> Any:
    """Pixels, no prompt, noise at every step."""
    return _quiet(diffusers.DDPMPipeline(unet=_pixels(5), scheduler=diffusers.DDPMScheduler()))


def ddim() -> Any:
    """Pixels, no prompt, no noise on the way, predictions clipped."""
    return _quiet(diffusers.DDIMPipeline(unet=_pixels(6), scheduler=diffusers.DDIMScheduler()))


def consistency() -> Any:
    """A latent consistency model: four steps, guidance built in."""
    torch.manual_seed(7)
    return _quiet(
        diffusers.LatentConsistencyModelPipeline(
            vae=_vae(4),
            text_encoder=_clip(),
            tokenizer=tokenizer(),
            unet=_unet(time_cond_proj_dim=8),
            scheduler=diffusers.LCMScheduler(**SCALED),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def turbo() -> Any:
    """Distilled as SD-Turbo is: trailing steps, made to run without guidance."""
    return stable_diffusion(
        diffusers.EulerDiscreteScheduler(**SCALED, timestep_spacing="trailing", steps_offset=1), seed=8
    )


class Exact(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """The perfect denoiser of pictures that are a few smooth ones and a little noise, in any parametrisation.

    Trajectories through it are as bent as real ones: straight at first, a decision in the middle, straight again.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, kind: str = "epsilon", sample_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        far = torch.fft.fftfreq(sample_size).square()
        far = (far[:, None] + far[None]).sqrt().clamp(min=1 / sample_size)
        white = torch.randn(12, in_channels, sample_size, sample_size, generator=torch.Generator().manual_seed(0))
        smooth = torch.fft.ifft2(torch.fft.fft2(white) / far).real
        self.pictures = nn.Parameter((smooth / smooth.std() / 2).flatten(1))
        self.kept = diffusers.DDIMScheduler(**SCALED).alphas_cumprod
        self.spread = 0.15

    def forward(self, sample: Tensor, timestep: Any) -> UNet2DOutput:
        """What is predicted at a whole timestep for (B, C, H, W)."""
        alpha, sigma = self.kept[int(timestep)].sqrt(), (1 - self.kept[int(timestep)]).sqrt()
        x, variance = sample.flatten(1), (alpha * self.spread) ** 2 + sigma**2
        off = x[:, None] - alpha * self.pictures
        weight = torch.softmax(-off.square().sum(-1) / (2 * variance), -1)
        each = self.pictures + alpha * self.spread**2 / variance * off
        clean = (weight[..., None] * each).sum(1)
        noise = (x - alpha * clean) / sigma
        made = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[self.config.kind]
        return UNet2DOutput(sample=made.reshape(sample.shape))


def exact(kind: str = "epsilon") -> Any:
    """Pixels by the perfect denoiser and DDIM."""
    scheduler = diffusers.DDIMScheduler(**SCALED, clip_sample=False, prediction_type=kind, timestep_spacing="trailing")
    return _quiet(diffusers.DDIMPipeline(unet=Exact(kind), scheduler=scheduler))


EXTRA: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": TOKENS},
    "flux": {"max_sequence_length": TOKENS},
    "stable-diffusion-3": {"max_sequence_length": TOKENS},
}
"""What the tiny ones must be called with besides."""

ADAPTIVE = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-3": stable_diffusion_3,
    "pixart": pixart,
    "flux": flux,
    "ddpm": ddpm,
    "ddim": ddim,
}
UNPROMPTED = ("ddpm", "ddim")
GUIDED = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "pixart")
"""With guidance as a batch of two halves."""

FEW_STEP = {"consistency": consistency, "turbo": turbo}


@functools.cache
def pipeline(name: str) -> Any:
    """One of the families, made once; tests leave it as they found it."""
    return {**ADAPTIVE, **FEW_STEP}[name]()


def request(name: str, seeds: tuple[int, ...] = (1, 2), *, steps: int | None = 12, **others: Any) -> Request:
    """Pictures of that family."""
    prompts = (
        () if name in UNPROMPTED else tuple(("a red cat", "blue moon", "the apple")[i % 3] for i in range(len(seeds)))
    )
    options = {**EXTRA.get(name, {}), **others.pop("options", {})}
    return Request(prompts, seeds, steps=steps, options=options, **others)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Calibrate with few numbers of steps and pictures, on PyTorch; what so few can show is tested elsewhere."""
    patched = {
        "STEP_COUNTS": (6, 12),
        "TRIED_SOLVERS": ("dpm++2m",),
        "TRIED_GAMMAS": (1.0,),
        "TRIED_GUIDED_SHARES": (),
        "TRIED_SKIP_THRESHOLDS": (),
    }
    for name, value in patched.items():
        patch.setattr(schedule_search, name, value)
    patch.setattr(backends, "candidate_specs", lambda *_: [])
    for name, number in {"MIN_PICTURES": 104, "MAX_PICTURES": 104, "TIMED_PICTURES": 1, "TRIAL_PICTURES": 8}.items():
        patch.setattr(learning, name, number)


def directly(name: str, asked: Request, pipe: Any = None, **others: Any) -> Any:
    """The same by the pipeline itself, without dynx: (B, H, W, 3)."""
    arguments: dict[str, Any] = {**asked.options, **others}
    if asked.prompts:
        arguments["prompt"] = list(asked.prompts)
    else:
        arguments["batch_size"] = len(asked)
    if asked.steps is not None:
        arguments["num_inference_steps"] = asked.steps
    if asked.guidance is not None:
        arguments["guidance_scale"] = asked.guidance
    generator = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    return (pipe or pipeline(name))(generator=generator, output_type="np", **arguments).images


def pixels(pictures: list[Picture]) -> np.ndarray:
    """(B, H, W, 3), all there."""
    assert all(p.error is None for p in pictures)
    return np.stack([p.pixels for p in pictures if p.pixels is not None])


def grid(engine: Engine, name: str, steps: int) -> Any:
    """So many steps of the family's own course."""
    return engine.initial_call(request(name, steps=steps)).grid


def own_state(pipe: Any) -> tuple[Any, ...]:
    """What a run must leave as it was."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    return (
        "forward" in network.__dict__,
        "step" in pipe.scheduler.__dict__,
        id(pipe.scheduler),
        dict(pipe.config),
        dict(pipe._progress_bar_config),
    )


MACHINE = Device(cpu="test", usable_cores=1, isa=("avx512_bf16",))

FOLDER = tempfile.TemporaryDirectory()  # of a model that is made in memory: there are no weights in it


def smooth(size: int = 16) -> Any:
    """Pixels by the perfect denoiser: the more steps, the nearer to the full run."""
    scheduler = diffusers.DDIMScheduler(**SCALED, clip_sample=False, timestep_spacing="trailing")
    pipe = diffusers.DDIMPipeline(unet=Exact("epsilon", sample_size=size), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assembly_of(pipe: Any, **wish: Any) -> LoadedImageGenerator:
    """As if it had been loaded from a folder to be calibrated."""
    key = ProfileKey(task="draw", model="0" * 64, companion=None, device="here", dtype="float32")
    decisions = ImageGeneratorDecisions(
        model=Decision("tiny", ""),
        device=Decision("cpu", ""),
        dtype=Decision("float32", ""),
        threads=Decision(1, ""),
        profile=Decision("none", ""),
        backend=Decision("torch-eager", ""),
    )
    source = Source("tiny", Path(FOLDER.name), "folder")
    plan = ImageGeneratorPlan(
        ImageGeneratorRequest(model="tiny", **wish), source, MACHINE, key, None, {}, bundled=False, decisions=decisions
    )
    return LoadedImageGenerator(plan, Engine(pipe), None, racing=True)


def profile_of(schedule: Any, **others: Any) -> Any:
    """As if a profile drew every picture by one schedule."""
    schedules = SimpleNamespace(alone=False, rest=lambda _: None)
    steps = len(schedule.grid)
    return SimpleNamespace(
        longest=schedule,
        fitted=SimpleNamespace(schedules=schedules),
        steps_of_each=lambda features, _: (steps,) * len(features),
        **others,
    )


def write_lora(path: Path, layer: str = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k") -> None:
    """Write an adapter of rank 2 for a layer of `stable_diffusion`."""
    made = torch.Generator().manual_seed(0)
    out, width = pipeline("stable-diffusion").unet.get_submodule(layer.removeprefix("unet.")).weight.shape
    first, second = torch.randn(2, width, generator=made), torch.randn(out, 2, generator=made)
    save_file({f"{layer}.lora_A.weight": first, f"{layer}.lora_B.weight": second}, path)
