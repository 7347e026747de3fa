"""Train a small transformer that draws emoji, a pipeline of Flux's shape on which feature caches can be judged.

    python tests/recipes/small_flux.py FOLDER [--minutes 10] [--threads 1]
    dynx calibrate -m FOLDER --size 64 --guidance 1 --budget 1200

The pictures that it learns from are drawn by the shipped `emoji`, whose text encoder and autoencoder it takes over; the
T5 beside it is random. It learns flow matching (Lipman et al. 2023). In ten minutes of one core pictures get the right
colours and shapes, and little detail: enough for a trajectory that bends as those of trained models do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

EMOJI = Path(__file__).parents[2] / "dynx" / "shipped" / "emoji"
SIDE = 16
"""Side of the latents."""

WIDTH, HEADS, DOUBLE, SINGLE = 128, 4, 4, 4
WORDS = [
    "alien",
    "anchor",
    "ant",
    "avocado",
    "balloon",
    "banana",
    "basketball",
    "bat",
    "bear",
    "bed",
    "bell",
    "bicycle",
    "bomb",
    "books",
    "bread",
    "broccoli",
    "bug",
    "butterfly",
    "cactus",
    "camera",
    "candle",
    "candy",
    "carrot",
    "castle",
    "cherries",
    "chicken",
    "cookie",
    "crab",
    "crown",
    "dolphin",
    "door",
    "doughnut",
    "duck",
    "egg",
    "elephant",
    "envelope",
    "eyes",
    "fire",
    "fish",
    "fox",
    "frog",
    "ghost",
    "glasses",
    "grapes",
    "guitar",
    "hamburger",
    "hammer",
    "house",
    "key",
    "lemon",
    "lion",
    "mushroom",
    "octopus",
    "owl",
    "panda",
    "peach",
    "pear",
    "pencil",
    "penguin",
    "pizza",
    "robot",
    "rocket",
    "rose",
    "sailboat",
    "scissors",
    "shark",
    "skull",
    "snail",
    "snake",
    "spider",
    "star",
    "strawberry",
    "sun",
    "tent",
    "tomato",
    "trophy",
    "turtle",
    "umbrella",
    "unicorn",
    "watermelon",
    "whale",
    "automobile",
    "bus",
    "airplane",
]


def teacher() -> Any:
    """The shipped pipeline."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMOJI, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


def drawn(pipe: Any, seeds: int) -> Tensor:
    """Latents (words × seeds, 4, 16, 16), of variance about one."""
    made = []
    for seed in range(seeds):
        for start in range(0, len(WORDS), 16):
            generator = torch.Generator().manual_seed(1000 * seed + start)
            some = WORDS[start : start + 16]
            found = pipe(some, num_inference_steps=10, guidance_scale=2.5, generator=generator, output_type="latent")
            made.append(found.images)
    return torch.cat(made).view(seeds, len(WORDS), 4, SIDE, SIDE)


def student(pipe: Any) -> Any:
    """The untrained pipeline."""
    torch.manual_seed(0)
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    t5 = T5Config(
        vocab_size=tokenizer.vocab_size, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0
    )
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, model_max_length=16)
    words.pad_token = tokenizer.pad_token
    config = dict(pipe.vae.config) | {"shift_factor": 0.0}
    vae = diffusers.AutoencoderKL.from_config(config)
    vae.load_state_dict(pipe.vae.state_dict())
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=encoder.config.hidden_size,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=False,
    )
    made = diffusers.FluxPipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=words,
    )
    made.set_progress_bar_config(disable=True)
    return made


def packed(latents: Tensor) -> Tensor:
    """As Flux packs them: (B, 64, 16)."""
    return diffusers.FluxPipeline._pack_latents(latents, len(latents), 4, SIDE, SIDE)


def train(pipe: Any, latents: Tensor, seconds: float) -> float:
    """Learn until the time is over; return the last losses' mean."""
    with torch.no_grad():
        texts, pooled, text_ids = pipe.encode_prompt(WORDS, None, max_sequence_length=16)
    places = pipe._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, "cpu", torch.float32)
    optimizer = torch.optim.AdamW(pipe.transformer.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99))
    mean: dict[str, Tensor] = {k: v.detach().clone() for k, v in pipe.transformer.state_dict().items()}
    began, step, loss_mean = time.monotonic(), 0, 1.0
    rng = torch.Generator().manual_seed(0)
    while (spent := time.monotonic() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 50) * min(1.0, 3 * (1 - spent / seconds) + 0.02)
        which = torch.randint(len(WORDS), (32,), generator=rng)
        x = packed(latents[torch.randint(len(latents), (32,), generator=rng), which])
        noise = torch.randn(x.shape, generator=rng)
        level = torch.sigmoid(torch.randn(32, generator=rng))
        noisy = (1 - level[:, None, None]) * x + level[:, None, None] * noise
        found = pipe.transformer(
            hidden_states=noisy,
            timestep=level,
            pooled_projections=pooled[which],
            encoder_hidden_states=texts[which],
            txt_ids=text_ids,
            img_ids=places,
            return_dict=False,
        )[0]
        loss = (found - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pipe.transformer.parameters(), 1.0)
        optimizer.step()
        keep = min(0.995, step / (step + 10))
        for name, value in pipe.transformer.state_dict().items():
            mean[name].lerp_(value, 1 - keep)
        step, loss_mean = step + 1, 0.98 * loss_mean + 0.02 * float(loss)
        if step % 50 == 0:
            sys.stdout.write(f"{spent:.0f} s, step {step}, loss {loss_mean:.3f}\n")
            sys.stdout.flush()
    pipe.transformer.load_state_dict(mean)
    return loss_mean


def main() -> None:
    """Draw, learn, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe = teacher()
    latents = drawn(pipe, 3)
    made = student(pipe)
    sys.stdout.write(f"{sum(p.numel() for p in made.transformer.parameters()):,} weights\n")
    train(made, latents, 60 * given.minutes)
    made.transformer.eval()
    made.save_pretrained(given.folder)


if __name__ == "__main__":
    main()
