"""Benchmark arms where several pairs have one result: rankings and candidate labels.

They are those of single inputs (`arms.classification`), with a query or a text as the unit. Results are compared as the promise
is made: by which documents are the first, or which labels hold.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.bench.measurements import Outcome
from dynx.bench.runner import Arm
from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.group_classifier import GroupClassifier
from dynx.early_exit.groups.rows import groups_of, pairs_of
from dynx.early_exit.groups.values import rule_of, values_of
from dynx.early_exit.types import Ranking
from dynx.errors import ModelError
from dynx.runtime.backends.registry import TORCH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.arms.classification import Answer, Case
    from dynx.bench.measurements import JSON
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.plan import ClassifierRequest


def own_arms(assembly: LoadedClassifier, default: LoadedClassifier | None = None) -> list[Arm[Case]]:
    """Build plain (the reference), bucketed, and dynamic; with another model as `default` that one is plain and bucketed."""
    default = default or assembly
    arms = [
        Arm("plain", _one_by_one(default), "plain", reference=True),
        Arm("bucketed", in_batches(replace(default, group_profile=None)), "static"),
    ]
    if default is not assembly:
        blocks = assembly.block_backend
        name = " ".join(["bucketed", blocks.precision, *([blocks.backend] if blocks.backend != TORCH else [])])
        arms.append(Arm(name, in_batches(replace(assembly, group_profile=None)), "static"))
    return [*arms, Arm("dynamic", in_batches(assembly), "dynamic")]


def in_batches(assembly: LoadedClassifier) -> Callable[[Case], Outcome]:
    """Run as `dynx classify` does, with the assembly's exits."""
    request = assembly.plan.request

    def run(case: Case) -> Outcome:
        job = GroupClassifier(assembly)
        answers = [_answer_of(found, request) for found in job.window(case)]
        receipt = job.receipt
        left = {str(layer): receipt.exit_counts[layer] for layer in sorted(receipt.exit_counts)}
        facts: dict[str, JSON] = {"mean_layers": receipt.mean_layers, "repeated": 0, "left_after": left}
        return Outcome(len(case), None, tuple(answers), facts)

    return run


def _answer_of(found: Any, request: ClassifierRequest) -> Answer:
    """Return what two results are compared by."""
    if found.error is not None:
        raise ModelError(f"an input can't be read a second time: {found.error}")
    if isinstance(found, Ranking):
        return frozenset(str(each.index) for each in found.documents)
    label: str = found.label
    return frozenset(filter(None, label.split(","))) if request.multi_label else label


def _by_values(values: Any, request: ClassifierRequest) -> Answer:
    """Return the result of a group's values (D,) at full depth."""
    rule = rule_of(request)
    every = np.ones((1, len(values)), dtype=bool)
    chosen = every[0] if rule is None else rule.chosen(np.asarray(values)[None], every)[0]
    if request.form == "ranking":
        return frozenset(str(i) for i in np.flatnonzero(chosen).tolist())
    names = [name for name, is_chosen in zip(request.candidates, chosen, strict=True) if is_chosen]
    if request.multi_label:
        return frozenset(names)
    return names[0] if names else request.candidates[int(np.argmax(values))]


def _one_by_one(assembly: LoadedClassifier) -> Callable[[Case], Outcome]:
    """Run the model pair by pair, as transformers' pipelines do by default."""
    model, preprocessor, request = assembly.exit_model.model, assembly.preprocessor, assembly.plan.request
    values = values_of(model.config, request)
    uncached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def run(case: Case) -> Outcome:
        answers = []
        for item in case:
            (group,) = groups_of([item], request, preprocessor)
            if group.error is not None:
                raise ModelError(f"an input can't be read a second time: {group.error}")
            found = []
            for row in group.rows:
                with torch.inference_mode():
                    logits = model(**preprocessor.collate([row]), **uncached).logits
                found.append(float(values(logits.float().cpu().numpy())[0]))
            answers.append(_by_values(found, request))
        return Outcome(len(case), None, tuple(answers), {"mean_layers": assembly.exit_model.depth, "repeated": 0})

    return run


def full_answers(assembly: LoadedClassifier, items: Sequence[Any]) -> list[Answer] | None:
    """Return the results of the full float32 model, None where the plain arm is that model."""
    if is_reference(assembly):
        return None
    request = assembly.plan.request
    values, reference = values_of(assembly.exit_model.model.config, request), Reference(assembly)
    return [_by_values(values(reference.logits(pairs_of(item, request))), request) for item in items]


def peer_arms(assembly: LoadedClassifier, *, cutting: bool) -> list[Arm[Case]]:
    """Build arms of transformers' pipeline over the same model: at its defaults, and with the same batch size as dynx."""
    arms = [Arm("hf pipeline", _pipeline(assembly, cutting, {}), "external")]
    if assembly.batch > 1:
        batched = _pipeline(assembly, cutting, {"batch_size": assembly.batch})
        arms.append(Arm(f"hf batch {assembly.batch}", batched, "external"))
    return arms


def _pipeline(assembly: LoadedClassifier, cutting: bool, options: dict[str, Any]) -> Callable[[Case], Outcome]:
    from dynx.runtime import loading

    plan, request = assembly.plan, assembly.plan.request
    model: Any = assembly.exit_model.model
    task = "text-classification" if request.form == "ranking" else "zero-shot-classification"
    with loading.quietly():
        from transformers import pipeline

        make: Any = pipeline
        tokenizer = loading.load_tokenizer(plan.source)
        pipe = make(task, model=model, tokenizer=tokenizer, device=model.device, trust_remote_code=plan.source.trusted)
    limit = getattr(assembly.preprocessor, "limit", None)
    truncation = {"truncation": True, "max_length": limit} if cutting else {}

    def run(case: Case) -> Outcome:
        with loading.quietly():
            return Outcome(len(case), None, tuple(ranked(case) if request.form == "ranking" else labelled(case)))

    def ranked(case: Case) -> list[Answer]:
        groups = [pairs_of(item, request) for item in case]
        flat = [{"text": pair.text, "text_pair": pair.text_pair} for group in groups for pair in group]
        scores = iter(pipe(flat, function_to_apply="none", **truncation, **options))
        return [_by_values([float(next(scores)["score"]) for _ in group], request) for group in groups]

    def labelled(case: Case) -> list[Answer]:
        found = pipe(
            [str(item) for item in case],
            list(request.candidates),
            hypothesis_template=request.hypothesis,
            multi_label=request.multi_label,
            **options,
        )
        if not request.multi_label:
            return [one["labels"][0] for one in found]
        pairs = [zip(one["labels"], one["scores"], strict=True) for one in found]
        return [frozenset(label for label, score in each if score > 0.5) for each in pairs]

    return run


def readable(assembly: LoadedClassifier, items: Sequence[Any]) -> tuple[list[int], int]:
    """Return the positions of inputs that can be read, and how many of them are truncated."""
    groups = groups_of(items, assembly.plan.request, assembly.preprocessor)
    good = [i for i, group in enumerate(groups) if group.error is None]
    return good, sum(groups[i].truncated for i in good)
