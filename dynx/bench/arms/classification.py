"""Benchmark arms for classifiers: input by input, length-bucketed batches, dynamic, and transformers' own pipeline.

All take texts or paths of images and give labels, so preprocessing is part of the time. `plain` is the default of transformers'
pipeline, one input at a time in the order given, and `bucketed` is the fastest way without early exits: batches of inputs of
similar length. Both run the model by default; where another precision or backend is asked for, bucketed is measured with these
too. Labels are compared with those of the full float32 model.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from dynx.bench.measurements import Outcome
from dynx.bench.runner import Arm
from dynx.early_exit.assembly import BlockBackend, Reference, attach_exits, is_reference, load_model
from dynx.early_exit.attach.model import model_inputs
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.engine import Answer as Answered
from dynx.early_exit.entities.labels import entity_set
from dynx.early_exit.items import Pair
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.types import Entities, Prediction
from dynx.errors import ModelError
from dynx.runtime.backends.registry import TORCH
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.bench.measurements import JSON, Measurements
    from dynx.early_exit.agreement import Problem
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.profile_data import ExitProfile

Case: TypeAlias = "Sequence[Any]"
"""Inputs that are labelled together."""

Answer: TypeAlias = "str | frozenset[Any] | tuple[float, ...]"
"""A label, the labels that hold, a text's entities, or a regression's numbers."""

MAX_CASE_INPUTS = 1024
"""Inputs of a case at most, as many as `dynx classify` takes at a time."""

CASE_BATCHES, MIN_CASE_BATCHES = 16, 6
"""Full batches of a case: with 16 it is as fast as a long job, within a few per cent; below 6, lengths get too mixed."""

MIN_CASES, MAX_CASES = 4, 8
"""Cases for an interval that covers inputs to come (see `statistics`): at least 4, and 8 are enough."""

CONFIDENCE = 0.95
"""Confidence of the intervals of shares."""

MAX_REPORTED_LABELS = 3
"""Most labels that are named, of those that exits change most."""


def cut(items: Sequence[Any], batch: int) -> list[Case]:
    """Cut the inputs into cases of nearly the same size, in order.

    There are a few cases, so that intervals can cover inputs to come and arms take turns often, each large enough to be like a
    job of its own. With too few inputs for both there is one case, and intervals cover exactly these inputs.
    """
    count = min(MAX_CASES, len(items) // (CASE_BATCHES * batch))
    if count < MIN_CASES:
        count = MIN_CASES if len(items) >= MIN_CASES * MIN_CASE_BATCHES * batch else 1
    count = max(count, -(-len(items) // max(MAX_CASE_INPUTS, CASE_BATCHES * batch)))
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[low:high] for low, high in pairwise(bounds)]


def own_arms(assembly: LoadedClassifier, default: LoadedClassifier | None = None) -> list[Arm[Case]]:
    """Build plain (the reference), bucketed, and dynamic, which is bucketed once more where there are no exits.

    With another model as `default` (`as_by_default`) that one is plain and bucketed, and bucketed is also built as asked for.
    """
    default = default or assembly
    arms = [
        Arm("plain", _one_by_one(default), "plain", reference=True),
        Arm("bucketed", _in_batches(default, None), "static"),
    ]
    if default is not assembly:
        block_backend = assembly.block_backend
        name = " ".join(
            ["bucketed", block_backend.precision, *([block_backend.backend] if block_backend.backend != TORCH else [])]
        )
        arms.append(Arm(name, _in_batches(assembly, None), "static"))
    return [*arms, Arm("dynamic", _in_batches(assembly, assembly.exit_profile), "dynamic")]


def as_by_default(assembly: LoadedClassifier) -> LoadedClassifier:
    """Return the model in its default precision on the default backend; `assembly` itself where it is that."""
    plan, block_backend = assembly.plan, assembly.block_backend
    dtype = "float32" if plan.device == "cpu" else plan.dtype
    if block_backend.backend == TORCH and not block_backend.quantized and plan.dtype == dtype:
        return assembly
    model, preprocessor = load_model(plan, dtype=dtype, max_length=plan.request.max_length)
    exit_model = attach_exits(model, preprocessor).model
    return replace(
        assembly,
        exit_model=exit_model,
        preprocessor=preprocessor,
        exit_profile=None,
        group_profile=None,
        block_backend=BlockBackend(TORCH, dtype),
        segments=None,
    )


def _one_by_one(assembly: LoadedClassifier) -> Callable[[Case], Outcome]:
    model, preprocessor, labels = assembly.exit_model.model, assembly.preprocessor, assembly.labels
    uncached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def run(case: Case) -> Outcome:
        answers = []
        for item in case:
            (row,) = preprocessor.rows([item])
            if isinstance(row, str):
                raise ModelError(f"an input can't be read a second time: {row}")
            with torch.inference_mode():
                logits = model(**model_inputs(preprocessor.collate([row])), **uncached).logits
            answer = Answered(logits.float().cpu().numpy()[0], None, assembly.exit_model.depth, None)
            answers.append(answer_of(labels.problem, *labels.read([row], [answer], ())))
        return Outcome(len(case), None, tuple(answers), {"mean_layers": assembly.exit_model.depth, "repeated": 0})

    return run


def _in_batches(assembly: LoadedClassifier, exit_profile: ExitProfile | None) -> Callable[[Case], Outcome]:
    """Run batches as `dynx classify` does, with these exits."""
    problem = assembly.labels.problem
    assembly = replace(assembly, exit_profile=exit_profile)

    def run(case: Case) -> Outcome:
        job = Classifier(assembly)
        predictions = job.window(case)
        answers = []
        for prediction in predictions:
            if prediction.error is not None:
                raise ModelError(f"an input can't be read a second time: {prediction.error}")
            answers.append(answer_of(problem, prediction))
        receipt = job.receipt
        left = {str(layer): receipt.exit_counts[layer] for layer in sorted(receipt.exit_counts)}
        facts: dict[str, JSON] = {"mean_layers": receipt.mean_layers, "repeated": receipt.repeated, "left_after": left}
        return Outcome(len(case), None, tuple(answers), facts)

    return run


def answer_of(problem: Problem, found: Prediction | Entities) -> Answer:
    """Return what two answers are compared by; the labels that reach one half are the same in any order."""
    if isinstance(found, Entities):
        return entity_set(found.entities)
    if problem == "single":
        return found.label or ""
    if problem == "multi":
        return frozenset(name for name, score in found.scores if score > 0.5)
    return tuple(score for _, score in found.scores)


def peer_arms(assembly: LoadedClassifier, *, cutting: bool) -> list[Arm[Case]]:
    """Build arms of transformers' pipeline over the same model: at its defaults, and with the same batch size as dynx.

    `cutting`: some text is too long, and the pipeline truncates none by default.
    """
    arms = [Arm("hf pipeline", _pipeline(assembly, cutting, {}), "external")]
    if assembly.batch > 1:
        batched = _pipeline(assembly, cutting, {"batch_size": assembly.batch})
        arms.append(Arm(f"hf batch {assembly.batch}", batched, "external"))
    return arms


def _pipeline(assembly: LoadedClassifier, cutting: bool, options: dict[str, Any]) -> Callable[[Case], Outcome]:
    from dynx.runtime import loading

    plan, names, problem = assembly.plan, assembly.labels.names, assembly.labels.problem
    model: Any = assembly.exit_model.model
    settings = dict(options)
    if problem != "single":  # by default it gives one label only, and makes a probability of a single number
        settings["top_k"] = len(names)
    if problem == "regression":
        settings["function_to_apply"] = "none"
    with loading.quietly():
        from transformers import pipeline

        make: Any = pipeline
        common = {"device": model.device, "trust_remote_code": plan.source.trusted}
        if plan.kind == "image":
            processor = loading.load_image_processor(plan.source)
            pipe = make("image-classification", model=model, image_processor=processor, **common)
        else:
            tokenizer = loading.load_tokenizer(plan.source)
            tokens = plan.kind == "tokens"
            pipe = make(f"{'token' if tokens else 'text'}-classification", model=model, tokenizer=tokenizer, **common)
            if tokens:  # it truncates by itself, and its default isn't dynx's
                settings["aggregation_strategy"] = getattr(assembly.labels, "strategy", None)
            elif cutting:
                settings |= {"truncation": True, "max_length": getattr(assembly.preprocessor, "limit", None)}

    def run(case: Case) -> Outcome:
        with loading.quietly(), warnings.catch_warnings(action="ignore"):
            found = pipe([_as_peers_take(item) for item in case], **settings)
        return Outcome(len(case), None, tuple(answer(one) for one in found))

    def answer(found: Any) -> Answer:
        if plan.kind == "tokens":
            return frozenset((one.get("entity_group", one.get("entity")), one["start"], one["end"]) for one in found)
        ranked = found if isinstance(found, list) else [found]
        scores = [(str(one["label"]), float(one["score"])) for one in ranked]
        by_output = sorted(scores, key=lambda pair: names.index(pair[0])) if problem == "regression" else scores
        return answer_of(problem, Prediction(scores[0][0], scores[0][1], by_output))

    return run


def _as_peers_take(item: Any) -> Any:
    """Return an input as transformers' pipelines take it."""
    return {"text": item.text, "text_pair": item.text_pair} if isinstance(item, Pair) else str(item)


@dataclass(frozen=True)
class Count:
    """A share as counts, `hits` of `of`, with its exact interval (Clopper and Pearson)."""

    hits: int
    of: int

    @property
    def share(self) -> float:
        """The share as a number."""
        return self.hits / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds at 95 % confidence."""
        return two_sided(self.of, self.hits, 1 - CONFIDENCE)

    def json(self) -> dict[str, JSON]:
        """Return the share for the JSON document."""
        low, high = self.interval
        return {
            "value": self.share,
            "low": low,
            "high": high,
            "hits": self.hits,
            "of": self.of,
            "confidence": CONFIDENCE,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.2f} % [{100 * low:.2f}, {100 * high:.2f}] of {self.of:,}"


@dataclass(frozen=True)
class Quality:
    """Quality of one arm's answers, and the layers they took; None for what isn't known."""

    agreement: Count
    """Agreement with the full float32 model."""
    same: Count
    """Agreement with the reference arm."""
    accuracy: Count | None
    mean_layers: float | None
    left_after: Mapping[str, int] = field(default_factory=dict)
    """Answers by the layer they left after, in one round; empty where layers aren't counted."""
    by_label: Mapping[str, Count] = field(default_factory=dict)
    """Agreement by the full model's label; empty where answers aren't one label each."""

    def json(self) -> dict[str, JSON]:
        """Return an arm's facts for the JSON document."""
        return {
            "agreement": self.agreement.json(),
            "accuracy": self.accuracy.json() if self.accuracy else None,
            "mean_layers": self.mean_layers,
            "left_after": self.left_after or None,
            "by_label": {label: count.json() for label, count in self.by_label.items()} or None,
        }


def full_answers(assembly: LoadedClassifier, items: Sequence[Any]) -> list[Answer] | None:
    """Return the answers of the full float32 model, None where the plain arm is that model."""
    if is_reference(assembly):
        return None
    labels = assembly.labels
    return [answer_of(labels.problem, found) for found in labels.read(*Reference(assembly).read(items), ())]


def judge_answers(
    measured: Measurements,
    *,
    full: Sequence[Answer] | None,
    gold: Sequence[str | None] | None,
    tolerance: float,
) -> dict[str, Quality]:
    """Return the quality of each arm that was measured.

    Every input counts once however many rounds there were, and is different or wrong when it is in any of them. `full` is what
    `full_answers` gives, `gold` the true label of each input.
    """
    if not measured.rounds:
        return {}
    plain = _rounds(measured, measured.reference)
    count = len(plain[0])  # fewer than there are inputs, where time ran out in the first round
    truth = [full[:count]] * measured.rounds if full is not None else plain
    found = {}
    for arm, samples in measured.samples.items():
        if not samples:
            continue
        rounds = _rounds(measured, arm)
        own = len(rounds)  # an arm may have fewer rounds than the reference
        accuracy = None
        if gold is not None:
            known = [i for i, label in enumerate(gold[:count]) if label is not None]
            accuracy = Count(sum(all(r[i] == gold[i] for r in rounds) for i in known), len(known)) if known else None
        found[arm] = Quality(
            _equal(rounds, truth[:own], tolerance),
            _equal(rounds, plain[:own], tolerance),
            accuracy,
            _layers(measured, arm),
            _left(measured, arm),
            _by_label(rounds, truth[:own], tolerance),
        )
    return found


def _by_label(
    rounds: Sequence[Sequence[Answer]], truth: Sequence[Sequence[Answer]], tolerance: float
) -> dict[str, Count]:
    """Count agreement by the full model's label; nothing where some answer isn't a single label."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(truth[0]):
        if not isinstance(label, str):
            return {}
        members.setdefault(label, []).append(i)

    def some(numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
        return [[row[i] for i in numbers] for row in answers]

    return {label: _equal(some(n, rounds), some(n, truth), tolerance) for label, n in sorted(members.items())}


def _rounds(measured: Measurements, arm: str) -> list[list[Answer]]:
    """Return the answers to all inputs in order, round by round."""
    samples = measured.samples[arm]
    starts = range(0, len(samples), measured.cases)
    return [[a for sample in samples[s : s + measured.cases] for a in _answers(sample.output)] for s in starts]


def _answers(output: Any) -> tuple[Answer, ...]:
    answers: tuple[Answer, ...] = output
    return answers


def _equal(ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]], tolerance: float) -> Count:
    pairs = [zip(a, b, strict=True) for a, b in zip(ours, theirs, strict=True)]
    agree = [all(_agree(a, b, tolerance) for a, b in of_input) for of_input in zip(*pairs, strict=True)]
    return Count(sum(agree), len(agree))


def _agree(a: Answer, b: Answer, tolerance: float) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))
    return a == b


def _layers(measured: Measurements, arm: str) -> float | None:
    """Return the mean layers of the inputs that were computed, over all cases of one round."""
    total = computed = 0.0
    for sample in measured.samples[arm][: measured.cases]:
        layers, repeated = sample.facts.get("mean_layers"), sample.facts.get("repeated")
        if not isinstance(layers, int | float) or not isinstance(repeated, int):
            return None
        total += layers * (sample.units - repeated)
        computed += sample.units - repeated
    return total / computed if computed else None


def _left(measured: Measurements, arm: str) -> dict[str, int]:
    """Count answers by layer, over all cases of one round."""
    total: Counter[str] = Counter()
    for sample in measured.samples[arm][: measured.cases]:
        left: Any = sample.facts.get("left_after", {})
        total.update(left)
    return {layer: total[layer] for layer in sorted(total, key=int)}


def sentences(quality: Mapping[str, Quality], depth: int, what: str = "labels") -> list[str]:
    """Return sentences about the dynamic arm's answers, and about accuracy where the true labels are known."""
    out = []
    dynamic = quality.get("dynamic")
    if dynamic is not None:
        layers = "" if dynamic.mean_layers is None else f"{dynamic.mean_layers:.2f} of {depth} layers on average, "
        out.append(f"dynamic: {layers}{dynamic.agreement} {what} are the full model's")
        changed = {label: count for label, count in dynamic.by_label.items() if count.hits < count.of}
        worst = sorted(changed, key=lambda label: changed[label].share)[:MAX_REPORTED_LABELS]
        if worst:
            named = (f"{label} {changed[label].of - changed[label].hits} of {changed[label].of}" for label in worst)
            out.append(f"labels that differ, by the full model's: {', '.join(named)}")
    accuracies = [f"{name} {q.accuracy}" for name, q in quality.items() if q.accuracy and name in ("plain", "dynamic")]
    if accuracies:
        out.append(f"accuracy: {', '.join(accuracies)}")
    return out


def readable(assembly: LoadedClassifier, items: Sequence[Any]) -> tuple[list[int], int]:
    """Return the positions of inputs that can be read, and how many of them are truncated."""
    good, truncated = [], 0
    for start in range(0, len(items), MAX_CASE_INPUTS):
        for i, row in enumerate(assembly.preprocessor.rows(items[start : start + MAX_CASE_INPUTS])):
            if isinstance(row, Example):
                good.append(start + i)
                truncated += row.truncated
    return good, truncated
