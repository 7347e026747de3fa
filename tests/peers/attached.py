"""Attached models against what they replace: each figure's arms take turns in one process.

    python tests/peers/attached.py cost [--rounds 12]
    python tests/peers/attached.py lookup --folder SMOLLM2 --questions-file FILE [--questions 12]
    python tests/peers/attached.py classifier --texts FILE [--rounds 5]

cost: the model's own `generate` against an attached one where drafts gain nothing: `story`, and a random model of 100 M
parameters, greedy and sampled. lookup: a real model on questions of Spec-Bench with prompt lookup: its own `generate`, attached,
and dynx's `load_generator` on PyTorch, whose figure attaching has to reach. classifier: `mood` in calls of 32 texts: as it is,
attached, in a pipeline, and `load_classifier` at the same batch size, which sees more texts at once.

Every ratio is given twice: of wall time, which other processes disturb, and of processor time, which they disturb less. With
more than one thread, processor time counts threads that wait for each other. With --threads 1 dynx decides by processor time
too, so that other processes don't change what it drafts; that is the steady way on a machine that is shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from questions import choose, prompt_ids, read
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

import dynx
from dynx.shipped import folder as shipped
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PROMPTS = (
    "Once upon a time there was",
    "The king said",
    "A fox went into",
    "The girl and her",
    "In the wood there lived",
)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


class Timings:
    """Seconds of wall and processor time of arms that do the same work in turn, round by round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)

    def round(self, arms: Mapping[str, Callable[[], Any]], *, backwards: bool) -> dict[str, Any]:
        """Run each arm once and return what each returned."""
        out = {}
        for name in reversed(arms) if backwards else arms:
            began, busy = time.perf_counter(), time.process_time()
            out[name] = arms[name]()
            self.processor[name].append(time.process_time() - busy)
            self.wall[name].append(time.perf_counter() - began)
        return out

    def speed(self, arm: str, base: str) -> str:
        """Return how many times as fast as `base` an arm is: of sums, and the median of rounds."""
        said = []
        for title, seconds in (("wall", self.wall), ("processor", self.processor)):
            each = [a / b for a, b in zip(seconds[base], seconds[arm], strict=True)]
            whole = sum(seconds[base]) / sum(seconds[arm])
            said.append(f"{title} {whole:.3f}x (median of rounds {statistics.median(each):.3f}x)")
        return f"{arm} against {base}: {', '.join(said)}"


def take_turns(arms: Mapping[str, Callable[[int], Any]], rounds: Iterable[int]) -> tuple[Timings, list[dict[str, Any]]]:
    """Run all arms on each round's number, in alternating order; the first round warms up and isn't counted."""
    timings, results = Timings(), []
    for number, turn in enumerate((0, *rounds)):
        if number == 1:
            timings = Timings()
        bound = {name: (lambda arm=arm: arm(turn)) for name, arm in arms.items()}  # noqa: B023 - called at once
        results.append(timings.round(bound, backwards=number % 2 == 1))
    return timings, results[1:]


def clock() -> Callable[[], float]:
    """Return what dynx times passes with."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def cost(rounds: int, tokens: int) -> None:
    """What attaching costs where nothing can be gained."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=11,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    random = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in random.parameters():
            if weight.dim() > 1:
                weight.mul_(5)  # texts that don't repeat themselves
    size = sum(weight.numel() for weight in random.parameters()) / 1e6
    tokenizer = AutoTokenizer.from_pretrained(shipped("story"))
    story = AutoModelForCausalLM.from_pretrained(shipped("story"), dtype=torch.float32).eval()
    cases = {
        "story": (story, [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROMPTS]),
        f"random {size:.0f} M": (random, [torch.randint(16000, (1, 40)) for _ in PROMPTS]),
    }
    for name, (model, prompts) in cases.items():
        own, attached = type(model).generate, dynx.attach(model).generate
        attached.engine.clock = clock()
        for sampled in (False, True):

            def ask(generate: Callable[..., Any], turn: int, *, sampled: bool = sampled, prompts: Any = prompts) -> Any:
                torch.manual_seed(turn)
                ids = prompts[turn % len(prompts)]
                options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
                return generate(ids, attention_mask=torch.ones_like(ids), do_sample=sampled, **options)

            arms = {
                "own": lambda turn, own=own, model=model, ask=ask: ask(lambda *a, **k: own(model, *a, **k), turn),
                "attached": lambda turn, ask=ask, attached=attached: ask(attached, turn),
            }
            timings, results = take_turns(arms, range(rounds))
            same = all(torch.equal(each["own"], each["attached"]) for each in results)
            mode = "sampled" if sampled else f"greedy, {'the same text' if same else 'ANOTHER TEXT'}"
            say(f"{name}, {mode}, {model.dynx.stats}: {timings.speed('attached', 'own')}")


def lookup(folder: str, dtype: str, questions: Path, count: int, tokens: int, longest: int) -> None:
    """What prompt lookup gains in place, and by dynx's own generator on PyTorch."""
    generator = dynx.load_generator(
        folder, draft="lookup", backend="torch", dtype=dtype, profile="none", threads=torch.get_num_threads()
    ).assembly
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    own = type(model).generate
    dynx.attach(model, lookup=True, profile="none")
    model.dynx.engine.clock = generator.engine.clock = clock()
    prompts = [prompt_ids(tokenizer, each.text)[-longest:] for each in choose(read(questions), count)]

    def ask(generate: Callable[..., Any], turn: int) -> list[int]:
        ids = torch.tensor([prompts[turn]])
        out = generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
        found: list[int] = out[0, ids.shape[1] :].tolist()
        return found

    def generate(turn: int) -> list[int]:
        request = Request(prompts[turn], tokens, generator.sampling(), generator.end_tokens)
        return [token.id for token in generator.engine.start(request) if token.id >= 0]

    arms = {
        "own": lambda turn: ask(lambda *a, **k: own(model, *a, **k), turn),
        "attached": lambda turn: ask(model.generate, turn),
        "generator": generate,
    }
    timings, results = take_turns(arms, range(len(prompts)))
    equal = sum(each["attached"] == each["own"] for each in results)
    say(f"{len(results)} questions in {dtype}, {equal} answered as by the model's own generate")
    for arm, base in (("attached", "own"), ("generator", "own"), ("attached", "generator")):
        say(timings.speed(arm, base))


def classifier(texts: Path, count: int, rounds: int) -> None:
    """What exits gain in calls of 32 texts, and what `load_classifier` gains at the same batch size."""
    place = shipped("mood")
    tokenizer = AutoTokenizer.from_pretrained(place)
    own = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    attached = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    dynx.attach(attached, tokenizer)
    lines = [line.split("\t")[0] for line in texts.read_text(encoding="utf-8").splitlines()[1:]][:count]
    threads = torch.get_num_threads()
    early = dynx.load_classifier("mood", batch_size=32, threads=threads)
    plain = dynx.load_classifier("mood", batch_size=32, threads=threads, plain=True)
    pipes = {
        model: pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32)
        for model in (own, attached)
    }

    def loop(model: Any) -> list[int]:
        out: list[int] = []
        with torch.inference_mode():
            for at in range(0, len(lines), 32):
                inputs = tokenizer(lines[at : at + 32], padding=True, truncation=True, return_tensors="pt")
                out += model(**inputs).logits.argmax(-1).tolist()
        return out

    arms = {
        "own": lambda _: loop(own),
        "attached": lambda _: loop(attached),
        "own pipeline": lambda _: pipes[own](lines),
        "attached pipeline": lambda _: pipes[attached](lines),
        "classifier": lambda _: list(early.classify(lines)),
        "classifier at full depth": lambda _: list(plain.classify(lines)),
    }
    timings, results = take_turns(arms, range(rounds))
    differing = statistics.mean(a != b for a, b in zip(results[0]["own"], results[0]["attached"], strict=True))
    say(f"{len(lines)} texts, {differing:.1%} of labels differ, {attached.dynx.stats}")
    for arm, base in (
        ("attached", "own"),
        ("attached pipeline", "own pipeline"),
        ("classifier", "own"),
        ("classifier", "classifier at full depth"),
    ):
        say(timings.speed(arm, base))
    for title, seconds in (("wall", timings.wall), ("processor", timings.processor)):
        share = sum(seconds["classifier"]) / sum(seconds["attached"])
        say(f"of the classifier's speed-up the attached model has {share:.1%} ({title} time)")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["cost", "lookup", "classifier"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", help="Hugging Face folder of the model for lookup")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--questions-file", type=Path, help="questions.jsonl of Spec-Bench")
    parser.add_argument("--longest", type=int, default=1000, help="tokens that prompts are cut to")
    parser.add_argument("--texts", type=Path, help="tab-separated file with a header, texts in the first column")
    parser.add_argument("--count", type=int, default=832)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.figure == "cost":
        cost(asked.rounds, asked.tokens)
    elif asked.figure == "lookup":
        lookup(asked.folder, asked.dtype, asked.questions_file, asked.questions, asked.tokens, asked.longest)
    else:
        classifier(asked.texts, asked.count, asked.rounds)


if __name__ == "__main__":
    main()
