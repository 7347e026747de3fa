"""Train two small image classifiers for tests and figures: an ordinary ViT and an ordinary ResNet on CIFAR-10.

    python -m tests.recipes.cifar --data ../shared/data/cifar10 --work build/cifar --model vit

`--data` has train.npz and test.npz (`images` uint8 N×32×32×3, `labels`, `names`). The work folder gets the model as an
ordinary folder (`vit`, `resnet`), and for calibration and measuring the pictures of `held_out` and `test`, with
`test.tsv` of path<TAB>name. The held-out ones are 2,000 of the training file that no step sees: pictures a model was trained
on aren't exchangeable with new ones. Their labels only make the log's figures; the test file's only the last one.

Both resume where they stopped and end as if they never had. One free processor core takes about 16 minutes for the ViT and
10 for the ResNet. A step computes on a bfloat16 copy of float32 weights.
The ViT's matrices are trained by Muon, the rest by AdamW; half of its patches are left out at first (PatchDropout,
arXiv 2208.07220), which is most of its speed. The ResNet is trained by SGD on pictures enlarged to 64 pixels, because its
stem shrinks them fourfold.

Earlier blocks are asked to answer too, at a modest weight, so that exits have something to find: a ViT's through the
model's own norm and classifier, a ResNet's through linear heads that are thrown away (deeply-supervised nets,
arXiv 1409.5185). `--exits 0` leaves that out. The recipe knows nothing of dynx's engine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

HELD_OUT = 2_000
"""Pictures of the training file that training never sees, or a fifth of a smaller file."""

SHIFT = 4
"""Pixels a training picture may be moved by, in each direction."""


@dataclass(frozen=True)
class Plan:
    """One network's training run."""

    shape: dict[str, Any]  # of its config
    side: int = 32  # pixels that the network is given
    batch: int = 128
    steps: int = 2_000
    lr: float = 2e-3
    matrix_lr: float = 0.0  # of Muon; 0 where there is none
    warmup: int = 100
    clip: float = 1.0  # longest gradient
    weight_decay: float = 0.05
    smoothing: float = 0.1
    mix: float = 0.3  # share of batches with a patch of another picture in each (CutMix)
    exit_weight: float = 0.3  # of the earlier blocks' mean loss
    keep: tuple[tuple[float, float], ...] = ()  # from this share of the run on, this share of a ViT's patches

    def rate(self, step: int) -> float:
        """What learning rates are multiplied by: warm-up, then half a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))

    def kept(self, step: int) -> float:
        """Share of a ViT's patches that `step` sees."""
        return next((share for start, share in reversed(self.keep) if step >= start * self.steps), 1.0)


VIT = Plan(
    shape={
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        "image_size": 32,
        "patch_size": 4,
    },
    matrix_lr=4e-3,
    keep=((0.0, 0.5), (0.7, 0.75), (0.9, 1.0)),
)
RESNET = Plan(
    shape={"embedding_size": 64, "hidden_sizes": [64, 128, 256], "depths": [3, 3, 3], "layer_type": "basic"},
    side=64,
    steps=1_600,
    lr=0.1,
    weight_decay=5e-4,
    clip=5.0,
)
PLANS = {"vit": VIT, "resnet": RESNET}

_FEW: dict[str, Any] = {"batch": 8, "steps": 6, "warmup": 2}
TINY = {
    "vit": replace(
        VIT, **_FEW, shape={**VIT.shape, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    ),
    "resnet": replace(
        RESNET, **_FEW, shape={**RESNET.shape, "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 1]}
    ),
}
"""To test the recipe."""


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """`images` (N, 32, 32, 3) uint8, their `labels` (N,), and what the classes are called."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> Pictures:
        """These alone."""
        return Pictures(self.images[rows], self.labels[rows], self.names)


def read(file: Path) -> Pictures:
    """The pictures of one .npz file."""
    with np.load(file) as parts:
        return Pictures(parts["images"], parts["labels"].astype(np.int64), [str(name) for name in parts["names"]])


def divide(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """Those to train on, and those held out; the same for the same number of pictures."""
    order = np.random.default_rng(0).permutation(len(pictures))
    cut = len(order) - min(HELD_OUT, len(order) // 5)
    return pictures.select(order[:cut]), pictures.select(order[cut:])


def write_pictures(held: Pictures, test: Pictures, work: Path) -> None:
    """`held_out` and `test` as PNG files, and `test.tsv`, which is written last and tells that all is there."""
    if (work / "test.tsv").exists():
        return
    for name, pictures in (("held_out", held), ("test", test)):
        (work / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pictures.images):
            Image.fromarray(image).save(work / name / f"{i:04d}.png")
    lines = [f"{work / 'test' / f'{i:04d}.png'}\t{test.names[label]}\n" for i, label in enumerate(test.labels)]
    (work / "test.tsv").write_text("".join(lines), encoding="utf-8")


def augmented(pictures: Pictures, plan: Plan, step: int) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, side, side) and wanted shares (B, classes) of `step`, a function of its arguments alone.

    Pictures are mirrored, moved, made brighter or darker, stronger or weaker in contrast and colour, and often given a
    patch of another.
    """
    rng = np.random.default_rng((1, step))
    per_pass = max(1, len(pictures) // plan.batch)
    order = np.random.default_rng((2, step // per_pass)).permutation(len(pictures))
    place = step % per_pass * plan.batch
    picks = order[place : place + plan.batch]
    rows, side = len(picks), pictures.images.shape[1]
    padded = np.pad(pictures.images[picks], ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    down, right = (rng.integers(0, 2 * SHIFT + 1, (rows, 1)) + np.arange(side) for _ in range(2))
    right = np.where(rng.random((rows, 1)) < 0.5, right[:, ::-1], right)
    moved = padded[np.arange(rows)[:, None, None], down[:, :, None], right[:, None, :]]

    pixels = torch.from_numpy(moved.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    light, contrast, colour = (
        torch.from_numpy(rng.uniform(low, high, (rows, 1, 1, 1)).astype(np.float32))
        for low, high in ((-0.3, 0.3), (0.7, 1.3), (0.6, 1.4))
    )
    grey = pixels.mean(1, keepdim=True)
    pixels = (grey + (pixels - grey) * colour) * contrast + light

    classes = len(pictures.names)
    wanted = nn.functional.one_hot(torch.from_numpy(pictures.labels[picks]), classes).float()
    wanted = wanted * (1 - plan.smoothing) + plan.smoothing / classes
    if rng.random() < plan.mix:
        size = round(side * math.sqrt(rng.random()))
        top, left = rng.integers(0, side - size + 1, 2)
        patch = (..., slice(top, top + size), slice(left, left + size))
        pixels[patch] = pixels.roll(1, 0)[patch]
        share = (size / side) ** 2
        wanted = wanted * (1 - share) + wanted.roll(1, 0) * share
    return enlarged(pixels, plan.side), wanted


def enlarged(pixels: Tensor, side: int) -> Tensor:
    """As the saved processor enlarges pictures."""
    if pixels.shape[-1] == side:
        return pixels
    return nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)


# --- networks ---------------------------------------------------------------------------------------------------------


def make(kind: str, plan: Plan, names: list[str]) -> nn.Module:
    """A fresh network, for training; the same each time."""
    torch.manual_seed(0)
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if kind == "resnet":
        net = ResNetForImageClassification(ResNetConfig(**plan.shape, **labels))
        for block in blocks(net):
            nn.init.zeros_(block.layer[-1].normalization.weight)
    else:
        net = ViTForImageClassification(ViTConfig(**plan.shape, **labels, attn_implementation="eager"))
        orient(net)
    # The heads that are thrown away in the end are no part of the network, but are trained and kept with it.
    widths = [block.layer[-1].convolution.out_channels for block in blocks(net)[:-1]] if kind == "resnet" else []
    return nn.ModuleDict({"net": net, "heads": nn.ModuleList(nn.Linear(width, len(names)) for width in widths)})


@torch.no_grad()
def orient(net: ViTForImageClassification) -> None:
    """Attention that begins as that of trained networks: to like places and away from itself (arXiv 2305.09828).

    Positions are waves in two directions; per head W_q·W_k' ≈ 0.7 (noise + 1), and W_v·W_o ≈ 0.4 (noise - 1).
    """
    config, generator = net.config, torch.Generator().manual_seed(1)
    width, side = config.hidden_size, config.image_size // config.patch_size
    rates = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    waves = torch.arange(side)[:, None] * rates
    axis = torch.cat([waves.sin(), waves.cos()], 1)
    both = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], 2)
    net.vit.embeddings.position_embeddings[0, 1:, : both.shape[-1]] = 0.2 * both.flatten(0, 1)
    for layer in net.vit.layers:
        attention = layer.attention
        size = attention.head_dim
        for head in range(config.num_attention_heads):
            rows = slice(head * size, (head + 1) * size)
            noise = torch.randn(width, width, generator=generator) / math.sqrt(width)
            left, values, right = torch.linalg.svd(0.7 * (noise + torch.eye(width)))
            root = values[:size].sqrt()
            attention.q_proj.weight[rows] = (left[:, :size] * root).T
            attention.k_proj.weight[rows] = root[:, None] * right[:size]
        noise = torch.randn(width, width, generator=generator) / math.sqrt(width)
        left, values, right = torch.linalg.svd(0.4 * (noise - torch.eye(width)))
        attention.v_proj.weight.copy_(values.sqrt()[:, None] * right)
        attention.o_proj.weight.copy_(left * values.sqrt())


def blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks an exit could come after, in order."""
    if isinstance(net, ResNetForImageClassification):
        return [block for stage in net.resnet.encoder.stages for block in stage.layers]
    return list(net.vit.layers)


def answers(trained: nn.Module, pixels: Tensor, share: float = 1.0) -> list[Tensor]:
    """Logits (B, classes) after every block that can answer, the network's own last; of a `share` of a ViT's patches."""
    net = trained.net
    said = []
    if isinstance(net, ResNetForImageClassification):
        hidden = net.resnet.embedder(pixels)
        for block, head in zip(blocks(net), [*trained.heads, net.classifier], strict=True):
            hidden = block(hidden)
            said.append(head(hidden.mean((2, 3))))
        return said
    hidden = net.vit.embeddings(pixels)
    if share < 1:
        rows, patches = hidden.shape[0], hidden.shape[1] - 1
        chosen = torch.rand(rows, patches).argsort(1)[:, : round(share * patches)] + 1
        hidden = hidden.gather(1, nn.functional.pad(chosen, (1, 0))[..., None].expand(-1, -1, hidden.shape[-1]))
    for layer in net.vit.layers:
        hidden = layer(hidden)
        said.append(net.classifier(net.vit.layernorm(hidden[:, 0])))
    return said


def steppers(kind: str, trained: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """What trains which weights; norms, biases and embeddings don't decay."""
    named = list(trained.named_parameters())
    plain = [p for n, p in named if p.ndim == 1 or "embeddings" in n]
    if kind == "resnet":
        groups = [{"params": [p for _, p in named if p.ndim > 1]}, {"params": plain, "weight_decay": 0.0}]
        return [torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True, weight_decay=plan.weight_decay)]
    matrices = [p for n, p in named if p.ndim == 2 and ".layers." in n]
    head = [p for n, p in named if p.ndim > 1 and ".layers." not in n and "embeddings" not in n]
    groups = [{"params": head}, {"params": plain, "weight_decay": 0.0}]
    muon = torch.optim.Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), weight_decay=plan.weight_decay)]


# --- running ----------------------------------------------------------------------------------------------------------


def halved(trained: nn.Module) -> nn.Module:
    """A bfloat16 copy to compute with; norms stay float32, running means would otherwise stand still."""
    half = copy.deepcopy(trained).to(torch.bfloat16)
    for module in half.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            module.float()
    mirror(trained, half)
    return half.to(memory_format=torch.channels_last)


@torch.no_grad()
def mirror(source: nn.Module, target: nn.Module) -> None:
    """All weights of the one, in the other's precision; the running means of norms too."""
    for p, q in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        q.copy_(p)


def loss_of(half: nn.Module, pictures: Pictures, plan: Plan, step: int) -> Tensor:
    """Cross-entropy of the last answer, plus the mean of the earlier ones' at their weight."""
    pixels, wanted = augmented(pictures, plan, step)
    torch.manual_seed(step)  # which patches are seen is then the same in a resumed run
    losses = [nn.functional.cross_entropy(z.float(), wanted) for z in answers(half, pixels.bfloat16(), plan.kept(step))]
    return losses[-1] + plan.exit_weight * torch.stack(losses[:-1]).mean()


def train(kind: str, pictures: Pictures, held: Pictures, plan: Plan, work: Path, *, every: int = 250) -> nn.Module:
    """Train, checkpointing in `work` every `every` steps; picks up a checkpoint it finds.

    SystemExit if that was made with another plan.
    """
    trained = make(kind, plan, pictures.names)
    optimisers = steppers(kind, trained, plan)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    file, step = work / f"{kind}.ckpt", 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        if state["plan"] != repr(plan):
            raise SystemExit(f"{file} was made with another plan; remove it to start over")
        trained.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["steppers"], strict=True):
            optimiser.load_state_dict(saved)
        step = state["step"]
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]  # loading made new ones
    half = halved(trained)
    weights, copies = list(trained.parameters()), list(half.parameters())
    started, first, recent = time.monotonic(), step, []
    while step < plan.steps:
        loss = loss_of(half.train(), pictures, plan, step)
        loss.backward()
        for p, q in zip(weights, copies, strict=True):
            p.grad, q.grad = None if q.grad is None else q.grad.float(), None
        nn.utils.clip_grad_norm_(weights, plan.clip)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * plan.rate(step)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            for p, q in zip(weights, copies, strict=True):
                q.copy_(p)
        recent.append(loss.item())
        step += 1
        if step % every == 0 or step == plan.steps:
            for p, q in zip(trained.buffers(), half.buffers(), strict=True):
                p.copy_(q)
            line = {
                "model": kind,
                "step": step,
                "of": plan.steps,
                "loss": round(sum(recent) / len(recent), 4),
                "right": accuracies(half, held, plan),
                "steps_per_s": round((step - first) / (time.monotonic() - started), 2),
            }
            recent.clear()
            say(line, work)
            kept = {
                "plan": repr(plan),
                "step": step,
                "model": trained.state_dict(),
                "steppers": [optimiser.state_dict() for optimiser in optimisers],
            }
            scratch = file.with_suffix(".tmp")
            torch.save(kept, scratch)
            scratch.replace(file)
    return trained.eval()


@torch.no_grad()
def accuracies(trained: nn.Module, pictures: Pictures, plan: Plan) -> list[float]:
    """Share right after every block that can answer."""
    trained.eval()
    kind, said = next(trained.net.classifier.parameters()).dtype, []
    for start in range(0, len(pictures), 100):
        images = torch.from_numpy(pictures.images[start : start + 100].astype(np.float32)).permute(0, 3, 1, 2)
        pixels = enlarged(images / 127.5 - 1, plan.side).to(kind)
        said.append(torch.stack([z.argmax(-1) for z in answers(trained, pixels)]))
    right = (torch.cat(said, 1) == torch.from_numpy(pictures.labels)).float().mean(1)
    return [round(share, 3) for share in right.tolist()]


def say(line: dict[str, Any], work: Path) -> None:
    """A line of JSON, here and in the log."""
    text = json.dumps(line) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()
    with (work / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(text)


@torch.no_grad()
def export(kind: str, trained: nn.Module, test: Pictures, plan: Plan, work: Path) -> None:
    """Write `work`/`kind`, then measure what was written as anybody would use it."""
    folder = work / kind
    trained.net.save_pretrained(folder)
    ViTImageProcessor(size={"height": plan.side, "width": plan.side}).save_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    right = 0
    for start in range(0, len(test), 100):
        pixels = processor(images=list(test.images[start : start + 100]), return_tensors="pt")["pixel_values"]
        answer = model(pixel_values=pixels).logits.argmax(-1).numpy()
        right += int((answer == test.labels[start : start + 100]).sum())
    parameters = sum(p.numel() for p in model.parameters())
    say({"model": kind, "parameters": parameters, "test_accuracy": round(right / len(test), 4)}, work)


def main(argv: list[str] | None = None) -> None:
    """Train one model, or go on."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with train.npz and test.npz")
    p.add_argument("--work", type=Path, default=Path("build/cifar"), help="checkpoints, log, pictures, result")
    p.add_argument("--model", choices=list(PLANS), required=True)
    p.add_argument("--exits", type=float, help="weight of the earlier blocks' loss (default: the plan's)")
    p.add_argument("--steps", type=int, help="how long to train (default: the plan's)")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = PyTorch's choice")
    p.add_argument("--tiny", action="store_true", help="a few steps of a minute model, to test the recipe")
    o = p.parse_args(argv)
    if o.threads:
        torch.set_num_threads(o.threads)
    plan = TINY[o.model] if o.tiny else PLANS[o.model]
    if o.exits is not None:
        plan = replace(plan, exit_weight=o.exits)
    if o.steps is not None:
        plan = replace(plan, steps=o.steps)
    o.work.mkdir(parents=True, exist_ok=True)
    pictures, held = divide(read(o.data / "train.npz"))
    test = read(o.data / "test.npz")
    write_pictures(held, test, o.work)
    export(o.model, train(o.model, pictures, held, plan, o.work), test, plan, o.work)


if __name__ == "__main__":
    main()
