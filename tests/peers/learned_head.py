"""Whether a draft head made on this machine would pay: a one-layer head, trained on what a small model writes itself.

    python tests/peers/learned_head.py write MODEL QUESTIONS WORK    # the model answers; states are kept in WORK
    nice -n 19 python tests/peers/learned_head.py train MODEL WORK --minutes 60
    python tests/peers/learned_head.py train MODEL WORK --form eagle3 --minutes 60

MODEL is a Hugging Face folder of a Llama-like chat model, QUESTIONS Spec-Bench's file. Each step goes on where it was
interrupted. Minutes are the process's own on the processors, so that what else the machine does doesn't count; two idle cores
spend two of them a minute. Of each kind some questions are held out with all their variants, and so are the 24 that the
benchmark asks; both sets are answered greedily. After some minutes each `train` writes a line: by depth, of the drafts whose
chain was right so far, how many were the target's own token, and how many were among the head's first two and four.

The head is EAGLE-3's (`eagle3`), or begins as the closed-form answer (`ridge`): least squares from the states of four layers and
the next token's embedding to the next last state, to which the layer adds what it learns. The output head is the target's.

Letters in shapes: B texts, T tokens, Q places where a chain of drafts begins, H hidden size, L layers whose states are read.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from questions import KINDS, Question, choose, prompt_ids, read
from torch import Tensor, nn
from torch.nn import functional as F

BENCHMARK, HELD_OF_A_KIND, ANSWERS_OF_A_QUESTION = 24, 5, 12
"""Questions of the benchmark, questions of each kind held out, and answers to each variant's question to learn from."""

TEMPERATURES = (0.0, 0.8, 0.7, 1.0)
"""Temperatures of the answers to learn from, in turn."""

ANSWER_TOKENS, LINES, BATCH = 144, 160, 48
"""Longest answer, and prompts of a file and of a batch."""

CONTEXT = 192
"""Tokens of a prompt, its last, that a head reads."""

STEPS, MEASURED_STEPS, LATER_WEIGHT = 3, 4, 0.8
"""Drafts of a chain in training and in measuring, and the weight of each in the loss by that of the one before."""

NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?![\d,]|\.\d|%)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

RIDGE = 0.02
"""Strength of the regularisation of least squares, by the features' mean square."""


def variants(question: Question, count: int, draw: random.Random) -> list[str]:
    """Return `count` prompts of a question's kind: itself, with other numbers, or with a part of its text."""
    out = [question.text]
    sentences = SENTENCE_END.split(question.text)
    while len(out) < count:
        if question.kind == "math_reasoning":
            out.append(NUMBER.sub(lambda m: str(max(2, int(int(m[0]) * draw.uniform(0.5, 2) + 1))), question.text))
        elif question.kind in ("summarization", "rag") and len(sentences) > 8:
            start, size = draw.randrange(1, len(sentences) - 6), draw.randint(3, 6)
            out.append(" ".join([sentences[0], *sentences[start : start + size], sentences[-1]]))
        elif question.kind == "translation":
            order, _, text = question.text.partition(": ")
            words = text.split()
            out.append(f"{order}: {' '.join(words[draw.randrange(max(1, len(words) // 2)) :])}")
        else:
            out.append(question.text)
    return out


def write_prompts(questions: Path, work: Path) -> list[str]:
    """Write the files of prompts, if they aren't there, and return their names; the first one's answers are for measuring."""
    draw, found = random.Random(11), read(questions)
    benchmark = choose(found, BENCHMARK)
    rest = [q for q in found if q not in benchmark]
    held = [q for kind in KINDS for q in draw.sample([r for r in rest if r.kind == kind], HELD_OF_A_KIND)]
    rows = [
        {"set": name, "kind": q.kind, "text": q.text}
        for name, part in (("benchmark", benchmark), ("held", held))
        for q in part
    ]
    texts = [
        {"set": "train", "kind": q.kind, "text": text}
        for q in rest
        if q not in held
        for text in variants(q, ANSWERS_OF_A_QUESTION, draw)
    ]
    draw.shuffle(texts)
    names = []
    for i, part in enumerate([rows, *(texts[i : i + LINES] for i in range(0, len(texts), LINES))]):
        names.append(f"{i:02d}")
        if not (work / f"{names[-1]}.prompts").exists():
            (work / f"{names[-1]}.prompts").write_text(
                "".join(json.dumps(row) + "\n" for row in part), encoding="utf-8"
            )
    return names


def write_answers(model: Path, work: Path, name: str) -> None:
    """Have the model answer a file of prompts, if it hasn't."""
    done, begun = work / f"{name}.answers", work / f"{name}.begun"
    if done.exists():
        return
    heat = TEMPERATURES[(int(name) - 1) % len(TEMPERATURES)] if int(name) else 0.0
    command = [
        sys.executable,
        "-m",
        "dynx",
        "generate",
        "-m",
        str(model),
        "--chat",
        "--lines",
        "--field",
        "text",
        "--jsonl",
    ]
    command += ["--backend", "openvino", "--dtype", "bfloat16", "--plain", "--batch", str(BATCH)]
    command += ["-n", str(ANSWER_TOKENS), "--temperature", str(heat)]
    with (work / f"{name}.prompts").open() as asked, begun.open("w") as answered:
        subprocess.run(command, stdin=asked, stdout=answered, check=True)
    begun.rename(done)


@dataclass
class Sample:
    """The end of a prompt and its answer: `ids` (T,), of which the first `prompt` are the prompt's, and states (T, L, H).

    The last of the L states is the one that enters the output head; `whole_prompt` are the ids of the prompt, none left out.
    """

    set: str
    kind: str
    ids: Tensor
    prompt: int
    states: Tensor
    whole_prompt: Tensor

    @property
    def drafts(self) -> int:
        """Places where a chain of drafts begins: behind each token of the answer that isn't the last."""
        return len(self.ids) - 1 - self.prompt


@torch.inference_mode()
def write_states(model: Any, tokenizer: Any, work: Path, name: str) -> None:
    """Keep the states of prompts and answers of a file, read in one pass each, if they aren't there."""
    done = work / f"{name}.states"
    if done.exists():
        return
    answers: dict[int, list[int]] = {}
    for line in (work / f"{name}.answers").open():
        event = json.loads(line)
        if event.get("event") == "token":
            answers.setdefault(event["index"], []).append(event["id"])
    rows = [json.loads(line) for line in (work / f"{name}.prompts").open()]
    texts = [(row, prompt_ids(tokenizer, row["text"]), answers.get(i, [])) for i, row in enumerate(rows)]
    texts = sorted((text for text in texts if len(text[2]) > STEPS), key=lambda text: len(text[1]) + len(text[2]))
    blocks, out = int(model.config.num_hidden_layers), []
    layers = [blocks // 10, blocks // 2, blocks - 3, blocks]
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        longest = max(len(prompt) + len(answer) for _, prompt, answer in part)
        ids = torch.tensor(
            [[*prompt, *answer, *[0] * (longest - len(prompt) - len(answer))] for _, prompt, answer in part]
        )
        found = model(input_ids=ids, output_hidden_states=True, logits_to_keep=1).hidden_states
        states = torch.stack([found[layer] for layer in layers], 2)
        for at, (row, prompt, answer) in enumerate(part):
            first, end = max(0, len(prompt) - CONTEXT), len(prompt) + len(answer)
            kept = states[at, first:end].clone()
            out.append(
                (
                    row["set"],
                    row["kind"],
                    ids[at, first:end].clone(),
                    len(prompt) - first,
                    kept,
                    ids[at, : len(prompt)].clone(),
                )
            )
    torch.save(out, done.with_suffix(".begun"))
    done.with_suffix(".begun").rename(done)


def normed(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return x over its root mean square, times `weight` (H,)."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, 1e-5).to(torch.bfloat16)


class Layer(nn.Module):
    """A decoder layer of the target's sizes whose attention reads `inputs` features; its output begins as its input."""

    def __init__(self, config: Any, inputs: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self.base = float(config.rope_parameters["rope_theta"])
        sizes = {"q": (inputs, self.heads), "k": (inputs, self.groups), "v": (inputs, self.groups)}
        self.read = nn.ModuleDict({name: nn.Linear(i, n * self.size, bias=False) for name, (i, n) in sizes.items()})
        self.write = nn.Linear(self.heads * self.size, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)
        self.norm = nn.Parameter(torch.ones(hidden))
        for linear in (*self.read.values(), self.gate, self.up):
            nn.init.normal_(linear.weight, std=0.03)
        for linear in (self.write, self.down):
            nn.init.normal_(linear.weight, std=0.01)

    def split(self, name: str, x: Tensor, places: Tensor | None) -> Tensor:
        """Return queries, keys or values (B, heads, T, size) of inputs (B, T, inputs), turned by their places (B, T)."""
        out = self.read[name](x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        if places is None:
            return out
        angle = places[:, None, :, None] * self.base ** (-torch.arange(0, self.size, 2) / self.size)
        angle = torch.cat([angle, angle], -1)
        turned = torch.cat([-out[..., self.size // 2 :], out[..., : self.size // 2]], -1)
        return out * angle.cos().to(out.dtype) + turned * angle.sin().to(out.dtype)

    def forward(
        self, rest: Tensor, x: Tensor, places: Tensor, text: list[Tensor], hidden: Tensor, chain: list[list[Tensor]]
    ) -> Tensor:
        """Return states (B, Q, H); `text` are keys and values (B, groups, T, size), `chain` those of the chains' own drafts."""
        queries = self.split("q", x, places).unflatten(1, (self.groups, -1)) / math.sqrt(self.size)
        scores = torch.einsum("bgrqd,bgtd->bgrqt", queries, text[0]).float().masked_fill(hidden[:, None, None], -1e9)
        own = [(queries * keys[:, :, None]).sum(-1, keepdim=True).float() for keys, _ in chain]
        weights = torch.cat([scores, *own], -1).softmax(-1).to(torch.bfloat16)
        length = scores.shape[-1]
        mixed = torch.einsum("bgrqt,bgtd->bgrqd", weights[..., :length], text[1])
        for i, (_, values) in enumerate(chain):
            mixed = mixed + weights[..., length + i, None] * values[:, :, None]
        rest = rest + self.write(mixed.flatten(1, 2).transpose(1, 2).flatten(2))
        inner = normed(rest, self.norm)
        out: Tensor = rest + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return out


class Learned(nn.Module):
    """A head of one layer over the target's embeddings and output head, which stay as they are."""

    def __init__(self, model: Any, form: str, scale: Tensor) -> None:
        """`scale` (L, H) are the root mean squares of the states."""
        super().__init__()
        config, self.form = model.config, form
        hidden = config.hidden_size
        self.used = list(range(len(scale))) if form == "ridge" else list(range(len(scale) - 1))
        self.embeddings = model.get_input_embeddings().weight.detach()
        self.inverse = (1 / scale[self.used]).flatten().to(torch.bfloat16)
        self.fuse = nn.Linear(len(self.used) * hidden, hidden, bias=False)
        nn.init.normal_(self.fuse.weight, std=0.02)
        self.layer = Layer(config, hidden if form == "ridge" else 2 * hidden)
        self.norm_state, self.norm_embedding = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        last = scale[-1].pow(2).mean().sqrt()
        self.norm_out = nn.Parameter(torch.full((hidden,), float(last) * (0.8 if form == "ridge" else 0.25)))
        # Of least squares: from the first token's embedding, from later ones', and from the head's own states.
        self.first, self.later, self.own = (nn.Linear(hidden, hidden, bias=False) for _ in range(3))

    def joined(self, embeddings: Tensor, states: Tensor, *, own: bool) -> tuple[Tensor, Tensor]:
        """Return what the layer adds to and what it reads, of embeddings and states (B, T, H); `own` states are the head's."""
        if self.form == "ridge":
            plain = normed(embeddings)
            states = self.later(plain) + self.own(states) if own else self.first(plain) + states
            return states, normed(states, self.norm_state)
        return states, torch.cat([normed(embeddings, self.norm_embedding), normed(states, self.norm_state)], -1)

    def forward(self, ids: Tensor, states: Tensor, begins: Tensor, steps: int) -> list[Tensor]:
        """Return the states (B, Q, H) of each step's drafts, after texts `ids` (B, T) with `states` (B, T, L, H).

        The chain of place t knows the text up to token t + 1 and the states up to t; its drafts read the text's own tokens.
        """
        places = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
        fused = self.fuse(states[:, :-1, self.used].flatten(2) * self.inverse)
        rest, read_in = self.joined(self.embeddings[ids[:, 1:]], fused, own=False)
        text = [self.layer.split("k", read_in, places), self.layer.split("v", read_in, None)]
        hidden = places[:, None] > begins[..., None]

        def at(x: Tensor, where: Tensor) -> Tensor:
            return x.gather(1, where[..., None].expand(*where.shape, x.shape[-1]))

        rest, read_in = at(rest, begins), at(read_in, begins)
        out: list[Tensor] = []
        chain: list[list[Tensor]] = []
        for step in range(steps):
            if step:
                embeddings = self.embeddings[ids.gather(1, (begins + 1 + step).clamp(max=ids.shape[1] - 1))]
                rest, read_in = self.joined(embeddings, out[-1], own=True)
                chain.append([self.layer.split("k", read_in, begins + step), self.layer.split("v", read_in, None)])
            out.append(self.layer(rest, read_in, begins + step, text, hidden, chain))
        return out

    @torch.no_grad()
    def solve(self, samples: list[Sample]) -> None:
        """Begin as the closed-form answer: least squares from what a draft's step reads to the target's next last state."""
        hidden = self.embeddings.shape[1]
        sums: dict[bool, list[Tensor]] = {}
        for sample in samples:
            t = torch.arange(max(0, sample.prompt - 1), len(sample.ids) - 1)
            embedding = normed(self.embeddings[sample.ids[t + 1]]).float()
            wanted = sample.states[t + 1, -1].float()
            for own, read_in in (
                (False, sample.states[t][:, self.used].flatten(1) * self.inverse),
                (True, sample.states[t, -1]),
            ):
                x = torch.cat([read_in.float(), embedding], -1)
                held = sums.setdefault(own, [torch.zeros(x.shape[1], x.shape[1]), torch.zeros(x.shape[1], hidden)])
                held[0] += x.T @ x
                held[1] += x.T @ wanted
        for own, (square, product) in sums.items():
            weights = torch.linalg.solve(square + torch.eye(len(square)) * square.diagonal().mean() * RIDGE, product).T
            (self.own if own else self.fuse).weight.copy_(weights[:, :-hidden])
            (self.later if own else self.first).weight.copy_(weights[:, -hidden:])


def batch_of(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids (B, T), states (B, T, L, H), begins (B, Q) of chains, and how many drafts (B, Q) of each the text can judge."""
    longest, most = max(len(s.ids) for s in samples), max(s.drafts for s in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    states = torch.zeros(len(samples), longest, *samples[0].states.shape[1:], dtype=torch.bfloat16)
    begins, known = torch.zeros(len(samples), most, dtype=torch.long), torch.zeros(len(samples), most, dtype=torch.long)
    for i, sample in enumerate(samples):
        length = len(sample.ids)
        ids[i, :length], states[i, :length] = sample.ids, sample.states
        begins[i, : sample.drafts] = torch.arange(sample.prompt - 1, length - 2)
        known[i, : sample.drafts] = torch.arange(sample.drafts, 0, -1)
    return ids, states, begins, known


def loss_of(head: Learned, samples: list[Sample], vocabulary: Tensor) -> Tensor:
    """Return the cross-entropy to the target's own distributions over `vocabulary` (K,), summed over the steps."""
    ids, states, begins, known = batch_of(samples)
    rows = head.embeddings[vocabulary].to(torch.bfloat16)
    out = torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16):
        for step, found in enumerate(head(ids, states, begins, STEPS)):
            text, chain = (known > step).nonzero(as_tuple=True)
            with torch.no_grad():
                wanted = (states[text, begins[text, chain] + 1 + step, -1] @ rows.T).float().softmax(-1)
            logits = (normed(found[text, chain], head.norm_out) @ rows.T).float()
            out = out - (wanted * logits.log_softmax(-1)).sum(-1).mean() * LATER_WEIGHT**step
    return out


@torch.no_grad()
def measure(head: Learned, samples: list[Sample], vocabulary: Tensor) -> dict[str, list[list[float]]]:
    """Return by kind and depth: drafts whose chain was right so far, and how many held the target's token first, in 2 and in 4.

    Drafts are of `vocabulary` and the prompt's own tokens.
    """
    counts: dict[str, Tensor] = {}
    rows = head.embeddings.to(torch.bfloat16)
    for sample in samples:
        ids, states, begins, known = batch_of([sample])
        left_out = torch.full((len(rows),), -1e9)
        left_out[vocabulary] = left_out[sample.whole_prompt] = 0
        alive = known[0] > 0
        with torch.autocast("cpu", torch.bfloat16):
            chains = head(ids, states, begins, MEASURED_STEPS)
        for step, found in enumerate(chains):
            alive = alive & (known[0] > step)
            drafts = ((normed(found[0], head.norm_out) @ rows.T).float() + left_out).topk(4).indices
            right = drafts == ids[0, (begins[0] + 2 + step).clamp(max=ids.shape[1] - 1), None]
            for name in (sample.kind, "all"):
                held = counts.setdefault(name, torch.zeros(MEASURED_STEPS, 4))
                held[step] += torch.stack([alive.sum(), *(right[alive, :n].any(-1).sum() for n in (1, 2, 4))])
            alive = alive & right[:, 0]
    return {
        name: [[int(row[0]), *(row[1:] / row[0].clamp(min=1)).tolist()] for row in held]
        for name, held in counts.items()
    }


def batches(samples: list[Sample], tokens: int, draw: random.Random) -> list[list[Sample]]:
    """Return all samples in batches of about `tokens` drafts, of texts about as long."""
    mixed = draw.sample(samples, len(samples))
    out: list[list[Sample]] = []
    for start in range(0, len(mixed), 256):
        part: list[Sample] = []
        for sample in sorted(mixed[start : start + 256], key=lambda s: len(s.ids)):
            part.append(sample)
            if sum(s.drafts for s in part) >= tokens:
                out.append(part)
                part = []
        out += [part] if part else []
    draw.shuffle(out)
    return out


def train(given: argparse.Namespace, model: Any, samples: list[Sample]) -> None:
    """Train a head for so many minutes of the processors, and write what it reaches on the way."""
    learn = [s for s in samples if s.set == "train"]
    written = torch.zeros(model.config.vocab_size)
    for sample in learn:
        written += torch.bincount(sample.ids[sample.prompt :], minlength=len(written))
    # Low ids are frequent in any text, as byte-pair encoding learned them first.
    order = written + 10_000 / (1_000 + torch.arange(len(written)))
    vocabulary = order.topk(given.vocabulary).indices.sort().values
    scale = torch.cat([s.states[s.prompt :] for s in learn[:200]]).float().pow(2).mean(0).sqrt().clamp(min=1e-3)
    head = Learned(model, given.form, scale)
    place, begun = given.work / f"{given.form}.head", time.process_time()
    # What least squares found moves slowly.
    share = {True: 0.2 if given.form == "ridge" else 1.0, False: 1.0}
    named = [(name.startswith(("fuse", "first", "later", "own")), p) for name, p in head.named_parameters()]
    groups = [{"params": [p for linear, p in named if linear == kind], "share": share[kind]} for kind in share]
    optimizer = torch.optim.AdamW(groups, lr=given.rate, betas=(0.9, 0.95), weight_decay=0.01)
    spent, step, total = 0.0, 0, given.minutes * 60
    kept = torch.load(place) if place.exists() else None
    if kept:
        head.load_state_dict(kept["head"])
        optimizer.load_state_dict(kept["optimizer"])
        spent, step = kept["spent"], kept["step"]
    elif given.form == "ridge":
        head.solve(learn)
        spent = time.process_time() - begun
        report(head, samples, vocabulary, spent)
    average = kept["average"] if kept else {name: value.clone() for name, value in head.state_dict().items()}
    marks = [m * 60 for m in given.marks if spent < m * 60 < total] + [total]
    draw, waiting, begun = random.Random(step), list[list[Sample]](), time.process_time()
    while spent < total:
        waiting = waiting or batches(learn, given.tokens, draw)
        for group in optimizer.param_groups:
            group["lr"] = given.rate * group["share"] * min(1.0, (step + 1) / 40, max(0.02, 4 * (1 - spent / total)))
        loss_of(head, waiting.pop(), vocabulary).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        for name, value in head.state_dict().items():
            average[name].lerp_(value, 1 - min(0.995, (step + 1) / (step + 10)))
        spent, begun = spent + time.process_time() - begun, time.process_time()
        if step % 50 == 0 or spent >= marks[0]:
            state = {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            state.update(spent=spent, step=step)
            torch.save(state, place.with_suffix(".begun"))
            place.with_suffix(".begun").rename(place)
        if spent >= marks[0]:
            marks = [m for m in marks if m > spent] or [total]
            now = {name: value.clone() for name, value in head.state_dict().items()}
            head.load_state_dict(average)
            report(head, samples, vocabulary, spent)
            head.load_state_dict(now)
        begun = time.process_time()


def report(head: Learned, samples: list[Sample], vocabulary: Tensor, spent: float) -> None:
    """Write one line about what a head reaches after `spent` seconds of the processors."""
    found = {name: measure(head, [s for s in samples if s.set == name], vocabulary) for name in ("held", "benchmark")}
    line = {"form": head.form, "minutes": round(spent / 60, 2), **found}
    sys.stdout.write(json.dumps(json.loads(json.dumps(line), parse_float=lambda x: round(float(x), 3))) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Write the data, or train on it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Whether a draft head made on this machine would pay.")
    tasks = parser.add_subparsers(dest="task", required=True)
    write = tasks.add_parser("write", help="have the model write what a head learns from")
    for name in ("model", "questions", "work"):
        write.add_argument(name, type=Path)
    write.add_argument("--files", type=int, default=14, help=f"files of {LINES} answers to learn from")
    learn = tasks.add_parser("train", help="train a head")
    for name in ("model", "work"):
        learn.add_argument(name, type=Path)
    learn.add_argument("--form", choices=("ridge", "eagle3"), default="ridge")
    learn.add_argument("--minutes", type=float, default=60, help="minutes of the processors")
    learn.add_argument("--marks", type=float, nargs="*", default=[1, 3, 10, 30, 60, 120], help="minutes to measure at")
    learn.add_argument(
        "--vocabulary", type=int, default=6144, help="tokens that the head can draft beside the prompt's"
    )
    learn.add_argument("--tokens", type=int, default=768, help="drafts of a batch")
    learn.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16).eval().requires_grad_(False)
    if given.task == "train":
        files = sorted(given.work.glob("*.states"))
        train(given, model, [Sample(*row) for file in files for row in torch.load(file)])
        return
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    for name in write_prompts(given.questions, given.work)[: given.files + 1]:
        write_answers(given.model, given.work, name)
        write_states(model, tokenizer, given.work, name)


if __name__ == "__main__":
    main()
