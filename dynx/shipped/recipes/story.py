"""Train the shipped `story` pair from nothing: a small fairy-tale Llama with useful exits, and its drafter.

    python -m dynx.shipped.recipes.story --data ../shared/data/tales --work build/story

Stages run in order and each resumes where it stopped: *tokenizer* (byte-level BPE), *target* (next-token loss plus
the same loss at one random earlier layer, read through the model's own norm and head, as in LayerSkip,
arXiv 2404.16710), *pool* (text the target samples by itself), *drafter* (distilled from the target on corpus and
pool, since a drafter is asked about the target's text rather than the corpus), *export* (bfloat16 safetensors, a
model card with the figures measured on `val`). Everything a run needs lives in `--work`: tokens, checkpoints, log.

It knows nothing of dynx's engine: the result is two ordinary Hugging Face folders.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

END = "<|endoftext|>"

PENALTY = 1.2
"""The pair's own repetition penalty: without it greedy text of a model this small ends in a loop after a few sentences."""


@dataclass(frozen=True)
class Plan:
    """One network's training run; `tokens` is how many it sees, over as many passes as that takes."""

    vocab: int = 4096
    hidden: int = 256
    mlp: int = 704
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    window: int = 512  # tokens per row, and the context the model claims
    batch: int = 4
    tokens: int = 26_000_000
    lr: float = 4e-3
    warmup: int = 30
    decay: float = 0.4  # share of the run over which the rate falls linearly to zero
    weight_decay: float = 0.1
    exit_weight: float = 0.4  # of the early-layer loss

    @property
    def steps(self) -> int:
        """Optimizer steps of `batch` × `window` tokens."""
        return max(1, self.tokens // (self.batch * self.window))

    def rate(self, step: int) -> float:
        """Learning rate of `step`: warm-up, flat, linear decay."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / (self.decay * self.steps))
        return self.lr * min(rise, fall)


TARGET = Plan()
DRAFTER = Plan(hidden=128, mlp=336, layers=2, heads=2, kv_heads=1, tokens=10_000_000, batch=8)


def build(plan: Plan) -> LlamaForCausalLM:
    """Return an untrained Llama of the plan's shape; embedding and head are one matrix."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=plan.vocab,
            hidden_size=plan.hidden,
            intermediate_size=plan.mlp,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.heads,
            num_key_value_heads=plan.kv_heads,
            max_position_embeddings=plan.window,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def read_books(path: Path) -> list[str]:
    """Return the books of one `.txt.xz`: one paragraph per line, a blank line between books."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    return [book.strip() for book in text.split("\n\n") if book.strip()]


def train_tokenizer(books: list[str], vocab: int, folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every UTF-8 text round-trips, and nothing is ever unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((line for book in books for line in book.splitlines(keepends=True)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, books: list[str]) -> np.ndarray:
    """All books as one array of token ids, an end token after each."""
    end = tokenizer.eos_token_id
    ids = [i for book in books for i in [*tokenizer(book)["input_ids"], end]]
    return np.asarray(ids, dtype=np.uint16)


def windows(ids: np.ndarray, plan: Plan, step: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return the batch of `step`, a pure function of its arguments so that a resumed run sees what it would have seen."""
    rng = np.random.default_rng((seed, step))
    starts = rng.integers(0, len(ids) - plan.window - 1, plan.batch)
    rows = np.stack([ids[s : s + plan.window + 1] for s in starts]).astype(np.int64)
    return torch.from_numpy(rows).to(device)  # (B, T + 1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats per token of logits (B, T, V) against labels (B, T)."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def exit_logits(model: LlamaForCausalLM, hidden: Tensor) -> Tensor:
    """Return the logits that the model would give if a layer's output (B, T, D) were its last."""
    return model.lm_head(model.model.norm(hidden))  # type: ignore[no-any-return]


def target_loss(model: LlamaForCausalLM, rows: Tensor, exit_layer: Tensor, weight: float) -> Tensor:
    """Next-token loss, plus `weight` times the same at the output of layer `exit_layer` (counted from 1)."""
    out = model.model(rows[:, :-1], output_hidden_states=True, use_cache=False)
    early = torch.stack(out.hidden_states[1:-1]).index_select(0, exit_layer - 1)[0]
    last = cross_entropy(model.lm_head(out.last_hidden_state), rows[:, 1:])
    return last + weight * cross_entropy(exit_logits(model, early), rows[:, 1:])


def distil_loss(student: LlamaForCausalLM, teacher: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats per token, plus a cross-entropy on the teacher's first choice.

    The first term serves sampling (acceptance is one minus the total variation), the second serves greedy decoding.
    """
    with torch.no_grad():
        goal = teacher(rows[:, :-1], use_cache=False).logits.float()  # (B, T, V)
    guess = student(rows[:, :-1], use_cache=False).logits.float()
    kl = nn.functional.kl_div(
        guess.log_softmax(-1).flatten(0, 1), goal.log_softmax(-1).flatten(0, 1), log_target=True, reduction="batchmean"
    )
    return kl + 0.3 * cross_entropy(guess, goal.argmax(-1))


def optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embedding and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=plan.lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def run(
    name: str,
    model: LlamaForCausalLM,
    plan: Plan,
    loss_of: Callable[[int], Tensor],
    validate: Callable[[], float],
    work: Path,
    *,
    every: int = 500,
) -> None:
    """Train `model` for `plan.steps`, checkpointing in `work` every `every` steps; picks up a checkpoint it finds."""
    device = next(model.parameters()).device
    steppers = optimizers(model, plan)
    file, step = work / f"{name}.ckpt", 0
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        if state["plan"] != asdict(plan):
            raise SystemExit(f"{file} was made with another plan; remove it to start over")
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)
        step = state["step"]
    started, first, recent = time.monotonic(), step, []
    while step < plan.steps:
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = plan.rate(step)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        recent.append(loss.item())
        step += 1
        if step % every == 0 or step == plan.steps:
            line: dict[str, Any] = {
                "run": name,
                "step": step,
                "of": plan.steps,
                "loss": round(sum(recent) / len(recent), 4),
                "val": round(validate(), 4),
                "tokens_per_s": round((step - first) * plan.batch * plan.window / (time.monotonic() - started)),
            }
            recent.clear()
            print(json.dumps(line), flush=True)
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            scratch = file.with_suffix(".tmp")
            torch.save(
                {
                    "plan": asdict(plan),
                    "step": step,
                    "model": model.state_dict(),
                    "steppers": [s.state_dict() for s in steppers],
                },
                scratch,
            )
            scratch.replace(file)


@torch.no_grad()
def held_out(model: LlamaForCausalLM, ids: np.ndarray, *, window: int = 512, most: int = 60_000) -> float:
    """Cross-entropy in nats per token over consecutive windows of `ids` (at most `most` tokens)."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    for rows in _consecutive(ids[:most], window, device):
        logits = model(rows[:, :-1], use_cache=False).logits
        total += cross_entropy(logits, rows[:, 1:]).item() * rows[:, 1:].numel()
        count += rows[:, 1:].numel()
    return total / count


@torch.no_grad()
def exit_agreement(model: LlamaForCausalLM, ids: np.ndarray, *, window: int = 512, most: int = 60_000) -> list[float]:
    """For each layer but the last: how often its exit names the token that the last layer names."""
    device = next(model.parameters()).device
    hits, count = np.zeros(model.config.num_hidden_layers - 1), 0
    for rows in _consecutive(ids[:most], window, device):
        out = model.model(rows[:, :-1], output_hidden_states=True, use_cache=False)
        last = model.lm_head(out.last_hidden_state).argmax(-1)
        for i, hidden in enumerate(out.hidden_states[1:-1]):
            hits[i] += (exit_logits(model, hidden).argmax(-1) == last).sum().item()
        count += last.numel()
    return [float(h) / count for h in hits]


@torch.no_grad()
def drafter_agreement(
    model: LlamaForCausalLM, drafter: LlamaForCausalLM, ids: np.ndarray, *, window: int = 512, most: int = 60_000
) -> float:
    """How often the drafter's first choice is the target's, given the corpus so far."""
    device, hits, count = next(model.parameters()).device, 0, 0
    for rows in _consecutive(ids[:most], window, device):
        a = model(rows[:, :-1], use_cache=False).logits.argmax(-1)
        b = drafter(rows[:, :-1], use_cache=False).logits.argmax(-1)
        hits, count = hits + int((a == b).sum()), count + a.numel()
    return hits / count


def _consecutive(ids: np.ndarray, window: int, device: torch.device, batch: int = 16) -> Iterator[Tensor]:
    whole = len(ids) // (window + 1) * (window + 1)
    rows = torch.from_numpy(ids[:whole].astype(np.int64)).view(-1, window + 1).to(device)
    yield from torch.split(rows, batch)


@torch.no_grad()
def sample_pool(
    model: LlamaForCausalLM, ids: np.ndarray, *, rows: int, length: int, prompt: int = 16, batch: int = 256
) -> np.ndarray:
    """Text the model writes after random openings of the corpus: rows of `length` tokens, (rows, length) uint16.

    Each batch has its own temperature, 0 to 1, because users decode at all of them.
    """
    device, out = next(model.parameters()).device, []
    rng = np.random.default_rng(7)
    for n, _ in enumerate(range(0, rows, batch)):
        starts = rng.integers(0, len(ids) - prompt, batch)
        seeds = np.stack([ids[s : s + prompt] for s in starts]).astype(np.int64)
        torch.manual_seed(n)
        heat = (n % 5) / 4
        options: dict[str, Any] = {"do_sample": True, "temperature": heat, "top_k": 0} if heat else {"do_sample": False}
        with torch.autocast(device.type, torch.bfloat16):
            prompts = torch.from_numpy(seeds).to(device)
            limits: dict[str, Any] = {"max_length": length, "min_length": length, "pad_token_id": 0}
            text = model.generate(prompts, attention_mask=torch.ones_like(prompts), **limits, **options)
        out.append(text.cpu().numpy().astype(np.uint16))
    return np.concatenate(out)[:rows]


def save_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face folder with bfloat16 weights."""
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.generation_config.do_sample = False
    half.generation_config.repetition_penalty = PENALTY
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"  # a third smaller without the indentation
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")), "utf-8")


def card(figures: dict[str, Any], target: Plan, drafter: Plan) -> str:
    """Return the model card, from the figures measured at export."""
    exits = "\n".join(f"| {i + 1} of {target.layers} | {a:.1%} |" for i, a in enumerate(figures["exit_agreement"]))
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# story

A {figures["target_parameters"] / 1e6:.1f} M-parameter Llama that continues English fairy tales, and in `drafter/` a
{figures["drafter_parameters"] / 1e6:.2f} M-parameter Llama with the same tokenizer that drafts for it. Both exist to
show speculative decoding at a size that installs with the tool; neither knows anything about the world.

| | target | drafter |
| --- | --- | --- |
| layers × hidden × MLP | {target.layers} × {target.hidden} × {target.mlp} | {drafter.layers} × {drafter.hidden} × {drafter.mlp} |
| tokens seen in training | {target.tokens / 1e6:.0f} M | {drafter.tokens / 1e6:.0f} M |
| steps of {target.batch} × {target.window} / {drafter.batch} × {drafter.window} tokens | {target.steps} | {drafter.steps} |
| held-out loss (nats per token, `val`) | {figures["target_loss"]:.3f} | {figures["drafter_loss"]:.3f} |

**Data.** 49 books of fairy tales and children's novels from Project Gutenberg, in the public domain in the USA;
`val` is the last 2 % of each book. The tokenizer is a byte-level BPE of {target.vocab} entries trained on the same text.

**Recipe.** `python -m dynx.shipped.recipes.story`. Target: Muon on matrices, AdamW elsewhere, next-token loss plus
{target.exit_weight} × the same loss at one random earlier layer. Drafter: distilled from the target's distribution, half on
the corpus and half on text that the target sampled.

**Early exits.** Share of held-out tokens on which a layer, read through the model's own norm and head, names the
token that the last layer names:

| exit after layer | agrees |
| --- | --- |
{exits}

The drafter's first choice is the target's on {figures["drafter_agreement"]:.1%} of held-out tokens.

`drafts.json`, where it lies beside the weights, is what `dynx calibrate -m story` learned of the drafters on another machine:
which of them are worth having, and what their passes cost in proportion. dynx corrects those figures on the first passes it runs.

**Limits.** Old-fashioned English only; the tales carry the attitudes of their time; plots wander after a paragraph.
"""


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: list[str] | None = None) -> None:
    """Run the stages that have not run yet."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with train.txt.xz and val.txt.xz")
    p.add_argument("--work", type=Path, default=Path("build/story"), help="checkpoints, log, result")
    p.add_argument("--until", choices=["tokenizer", "target", "pool", "drafter", "export"], default="export")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = PyTorch's choice")
    p.add_argument("--compile", action="store_true", help="compile the training step (needs a C++ compiler)")
    p.add_argument("--tiny", action="store_true", help="a few steps of a minute model, to test the recipe")
    o = p.parse_args(argv)
    if o.threads:
        torch.set_num_threads(o.threads)
    target_plan, drafter_plan, pool_rows, books_used = TARGET, DRAFTER, 1_024, None
    if o.tiny:
        small = {"vocab": 512, "hidden": 32, "mlp": 64, "heads": 2, "kv_heads": 1, "batch": 2, "window": 32}
        target_plan = replace(TARGET, **small, layers=3, tokens=2 * 32 * 6)
        drafter_plan = replace(DRAFTER, **small, layers=1, tokens=2 * 32 * 4)
        pool_rows, books_used = 4, 1
    o.work.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    torch.manual_seed(0)

    books = {split: read_books(o.data / f"{split}.txt.xz")[:books_used] for split in ("train", "val")}
    if (o.work / "tokenizer" / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(o.work / "tokenizer")
    else:
        tokenizer = train_tokenizer(books["train"], target_plan.vocab, o.work / "tokenizer")
    for split, texts in books.items():
        if not (o.work / f"{split}.npy").exists():
            np.save(o.work / f"{split}.npy", encode(tokenizer, texts))
    train, val = (np.load(o.work / f"{s}.npy") for s in ("train", "val"))
    print(json.dumps({"train_tokens": len(train), "val_tokens": len(val), "device": str(device)}), flush=True)
    if o.until == "tokenizer":
        return

    target = build(target_plan).to(device)
    compiled = torch.compile(target_loss) if o.compile else target_loss

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((1, step))
        layer = torch.tensor([int(rng.integers(1, target_plan.layers))], device=device)
        return compiled(target, windows(train, target_plan, step, device), layer, target_plan.exit_weight)

    run("target", target, target_plan, loss_at, lambda: held_out(target, val, most=20_000), o.work)
    if o.until == "target":
        return

    target.eval().requires_grad_(False)
    pool_file = o.work / "pool.npy"
    if not pool_file.exists():
        # Two texts to a row: sampling costs grow with the square of the length, and a drafter looks back little.
        length = drafter_plan.window // 2 + 1
        half_rows = sample_pool(target, train, rows=2 * pool_rows, length=length, batch=min(256, pool_rows))
        np.save(pool_file, half_rows.reshape(pool_rows, 2 * length)[:, : drafter_plan.window + 1])
    pool = np.load(pool_file)
    if o.until == "pool":
        return

    drafter = build(drafter_plan).to(device)
    distil = torch.compile(distil_loss) if o.compile else distil_loss

    def drafter_loss(step: int) -> Tensor:
        half = drafter_plan.batch // 2
        rows = windows(train, replace(drafter_plan, batch=drafter_plan.batch - half), step, device, seed=2)
        picks = np.random.default_rng((3, step)).integers(0, len(pool), half)
        own = torch.from_numpy(pool[picks].astype(np.int64)).to(device)
        return distil(drafter, target, torch.cat([rows, own]))

    run("drafter", drafter, drafter_plan, drafter_loss, lambda: held_out(drafter, val, most=20_000), o.work)
    drafter.eval()
    if o.until == "drafter":
        return

    export(target, drafter, tokenizer, val, o.work / "story", (target_plan, drafter_plan))


def export(
    target: LlamaForCausalLM,
    drafter: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    val: np.ndarray,
    folder: Path,
    plans: tuple[Plan, Plan],
) -> None:
    """Write both folders, then measure what was written (bfloat16-rounded weights) for the card."""
    save_folder(target, tokenizer, folder)
    save_folder(drafter, tokenizer, folder / "drafter")
    a, b = (LlamaForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (folder, folder / "drafter"))
    figures = {
        "target_parameters": sum(p.numel() for p in a.parameters()),
        "drafter_parameters": sum(p.numel() for p in b.parameters()),
        "target_loss": held_out(a, val),
        "drafter_loss": held_out(b, val),
        "exit_agreement": exit_agreement(a, val),
        "drafter_agreement": drafter_agreement(a, b, val),
    }
    if any(not math.isfinite(f) for f in (figures["target_loss"], figures["drafter_loss"])):
        raise SystemExit("training diverged: the loss is not finite")
    (folder / "README.md").write_text(card(figures, *plans), encoding="utf-8")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
