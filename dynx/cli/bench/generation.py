"""`dynx bench` for language models: compares static draft lengths with the dynamic policy; all arms write the same tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.task import Prepared, conditions, settings
from dynx.cli.bench.values import parse_lengths, tolerance_or
from dynx.cli.generate.model import hint_template, open_plan
from dynx.cli.prompts import Prompt, is_chat, read_data
from dynx.errors import UsageError
from dynx.runtime.json_lines import NoFieldError, field_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.arms.generation import Task
    from dynx.bench.measurements import Group, Measurements, Outcome
    from dynx.bench.result import BenchResult, Gate
    from dynx.bench.runner import Arm
    from dynx.cli.console import Terminal
    from dynx.cli.options.bench import Request
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.plan import GeneratorPlan, GeneratorRequest

TASK, MODELS, MODEL_IS = "generate", "language models", "is a language model"

CATEGORY = "category"
"""Key of a prompt's category where none is named."""

DEFAULT_PROMPTS, DEFAULT_PER_CATEGORY = 4, 2
"""Prompts to measure on, and of each category where they have categories."""


@dataclass(frozen=True)
class Settings:
    """Options that only language models have, with their defaults here."""

    adapters: list[str] | None = None
    draft: str = "auto"
    backend: str = "auto"
    quantize: str = "auto"
    max_new_tokens: int = 64
    runs: int = 5
    prompts: int = DEFAULT_PROMPTS
    static: str = "1-10"
    temperature: float = 0.0
    field: str | None = None
    chat: bool = False
    system: str | None = None
    by: str | None = None
    each_category: bool = False


def prepare(request: Request, terminal: Terminal) -> Prepared:
    """Build the arms and their prompts, and the function that builds a result from the measurements."""
    from dynx.bench.arms.generation import Task, own_arms
    from dynx.runtime.hashing import text_hash

    own = settings(request, Settings)
    lengths = parse_lengths(own.static)
    prompts, labels = chosen(read_prompts(request, own, terminal), request.prompts, own.by)
    if own.each_category and (request.min_speedup is None or not labels):
        raise UsageError("--each-category requires --min-speedup, and prompts with categories")
    chat = is_chat(prompts, chat=own.chat, system=own.system)
    request = replace(request, chat=chat)
    assembly = open_plan(make_plan(request, terminal), terminal)
    hint_template(assembly, terminal)
    plan = assembly.plan
    seed = 0 if own.temperature else None
    sampling = assembly.sampling(own.temperature, seed=seed)
    task = Task(own.max_new_tokens, sampling, assembly.end_tokens, assembly.settings.stop)
    cases = [encoded(prompt, request, assembly) for prompt in prompts]
    if request.data is None and (context := assembly.engine.target.context) is not None:
        fits = [len(ids) + own.max_new_tokens <= context for ids in cases]
        if any(fits):  # what the user didn't bring mustn't fail
            prompts, cases = list(compress(prompts, fits)), list(compress(cases, fits))
            labels = list(compress(labels, fits)) if labels else []
    arms: list[Arm[list[int]]] = own_arms(assembly, task, lengths)
    by_case = dict(zip(map(tuple, cases), prompts, strict=True))
    arms += further_arms(request, assembly, task, lengths, by_case, terminal)
    form: dict[str, Any] = {"chat": True, "system": own.system} if chat else {}
    header = conditions(
        plan,
        drafter=plan.drafter.name if plan.drafter else None,
        drafter_hash=plan.key.companion,
        draft=assembly.drafts,
        backend=assembly.decisions.backend.value,
        quantization=plan.key.quantization,
        data_hash=text_hash([prompt.identity for prompt in prompts]),
        tokens_per_answer=own.max_new_tokens,
        temperature=own.temperature,
        **form,
    )

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        return judged(measured, confidence, request, header, assembly, cases, labels)

    return Prepared(TASK, arms, cases, header, own.runs, conclude)


def read_prompts(request: Request, own: Settings, terminal: Terminal) -> list[Prompt]:
    """Return the prompts of `--data`; where none are brought questions for chats, beginnings of texts otherwise."""
    from dynx.bench.builtin_inputs import CHATS, PROMPTS

    if request.data is not None:
        return read_data(request.data, own.field, terminal.warn)
    if own.field is not None:
        raise UsageError("--field requires --data")
    if own.chat or own.system is not None:
        return [Prompt(text, fields={CATEGORY: kind}) for kind, text in CHATS]
    return [Prompt(text) for text in PROMPTS]


def chosen(prompts: list[Prompt], count: int | None, by: str | None) -> tuple[list[Prompt], list[str]]:
    """Return the prompts to measure on and their categories, none where they have none. Raises UsageError."""
    labels = labels_of(prompts, by)
    if not labels:
        return prompts[: count or DEFAULT_PROMPTS], []
    spread = in_turn(labels)[: count or max(DEFAULT_PROMPTS, DEFAULT_PER_CATEGORY * len(set(labels)))]
    return [prompts[i] for i in spread], [labels[i] for i in spread]


def labels_of(prompts: Sequence[Prompt], by: str | None) -> list[str]:
    """Return each prompt's category by a field, by default `category`; none where that is missing. Raises UsageError for `by`."""
    if by == "none":
        return []
    values = [prompt.fields and found_in(prompt.fields, by or CATEGORY) for prompt in prompts]
    if by is not None and not all(values):
        line = next(prompt.line or i + 1 for i, prompt in enumerate(prompts) if not values[i])
        raise UsageError(f"--by {by}: the prompt on line {line} has no such text or number")
    labels = [value for value in values if value]
    return labels if len(labels) == len(prompts) and len(set(labels)) > 1 else []


def found_in(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a field that is text or a number as text."""
    try:
        value = field_of(dict(fields), name)
    except NoFieldError:
        return None
    return str(value) if isinstance(value, str | int | float) and str(value).strip() else None


def in_turn(labels: Sequence[str]) -> list[int]:
    """Return all places in an order that has every category's first, then every one's second, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for at, label in enumerate(labels):
        turns.append((seen.setdefault(label, 0), at))
        seen[label] += 1
    return [at for _, at in sorted(turns)]


def encoded(prompt: Prompt, request: Request, assembly: LoadedGenerator) -> list[int]:
    """Return a prompt's token ids. Raises UsageError for what the model's chat template doesn't take."""
    from dynx.speculation.chat import encode

    name = assembly.plan.source.name
    return encode(assembly.tokenizer, prompt.content, chat=bool(request.chat), system=request.system, model=name)[0]


def make_plan(request: Request, terminal: Terminal) -> GeneratorPlan:
    """Resolve a plan without loading anything. Raises DynxError."""
    from dynx import speculation

    return speculation.make_plan(request_of(request), warn=terminal.warn)


def request_of(request: Request) -> GeneratorRequest:
    """Return the request for the language model, with this task's defaults."""
    from dynx.speculation.plan import GeneratorRequest

    own = settings(request, Settings)
    return GeneratorRequest(
        model=request.model,
        adapters=tuple(own.adapters or ()),
        draft=own.draft,
        backend=str(own.backend),
        quantize=str(own.quantize),
        profile=request.profile,
        chat=own.chat or own.system is not None,
        **request.for_request(),
    )


def judged(
    measured: Measurements,
    confidence: float,
    request: Request,
    header: dict[str, Any],
    assembly: LoadedGenerator,
    cases: Sequence[list[int]],
    labels: Sequence[str],
) -> BenchResult:
    """Summarize the measurements, add where outputs first differ, and decide the gates."""
    from dynx.bench import report
    from dynx.bench.arms.generation import by_position
    from dynx.bench.categories import by_category
    from dynx.bench.mismatch import first_mismatch

    facts: dict[str, dict[str, Any]] = by_position(measured)
    notes, identical = [], {}
    for name in measured.samples:
        identical[name] = measured.identical_rate(name)
        found = first_mismatch(measured, name, cases, assembly)
        facts.setdefault(name, {})["first_mismatch"] = found.json() if found else None
        if found is not None and measured.groups[name] != "external":
            notes.append(str(found))
    result = report.summarize(
        measured,
        task=TASK,
        unit="tokens",
        header=header,
        rng=random.Random(0),  # noqa: S311
        confidence=confidence,
        facts=facts,
        identical=identical,
        notes=notes,
    )
    result = by_category(result, measured, labels, rng=random.Random(0), confidence=confidence)  # noqa: S311
    return result.judged(gates(result, request))


def further_arms(
    request: Request,
    assembly: LoadedGenerator,
    task: Task,
    lengths: Sequence[int],
    prompts: dict[tuple[int, ...], Prompt],
    terminal: Terminal,
) -> list[Arm[list[int]]]:
    """Build the arms of --arm."""
    from dynx.bench.arms.generation import lookup_arm, own_arms, peer_arms

    arms: list[Arm[list[int]]] = []
    for one in arm_options.parse_all(request.arms or []):
        if one.kind == "peer":
            if not task.sampling.greedy:
                raise UsageError("transformers is compared in greedy decoding; leave out --temperature")
            peers = peer_arms(assembly, task, lengths)
            arms += [replace(arm, name=one.name + arm.name.removeprefix("hf")) for arm in peers]
            continue
        if one.kind == "lookup":
            if not assembly.engine.target.can_rollback.value:
                raise UsageError(f"--arm {one.name}: {assembly.engine.target.can_rollback.reason}")
            arms.append(lookup_arm(assembly, task, one.name, *one.lookup))
            continue
        arm_options.check_takes(one, Settings, "language models")
        theirs = one.applied(request)
        fixed = parse_lengths(theirs.static) if "static" in one.differs and theirs.static is not None else []
        if len(fixed) > 1:
            raise UsageError(f"--arm {one.name}: an arm has one draft length, not {theirs.static}")
        other = assembly
        if set(one.differs) - {"static"}:
            other = open_plan(make_plan(theirs, terminal), terminal)
        sampling = replace(task.sampling, own=other.settings, repetition_penalty=other.settings.repetition_penalty)
        made = own_arms(other, replace(task, sampling=sampling, eos=other.end_tokens, stop=other.settings.stop), fixed)
        chosen = next((arm for arm in made if arm.group == "static"), None) if fixed else made[-1]
        if chosen is None:
            raise UsageError(f"--arm {one.name}: no drafter is available")
        group: Group = (
            "external" if other.plan.key.model != assembly.plan.key.model else "static" if fixed else "dynamic"
        )
        run = retokenized(chosen, other, prompts, request) if group == "external" else chosen
        arm = replace(run, name=one.name, group=group, reference=False)
        arms.append(arm_options.side_by_side(arm, other.decisions.threads.value, assembly.decisions.threads.value))
    return arms


def retokenized(
    arm: Arm[list[int]], assembly: LoadedGenerator, prompts: dict[tuple[int, ...], Prompt], request: Request
) -> Arm[list[int]]:
    """Return an arm of another model that gets the same prompts, by its own tokenizer and chat template."""

    def run(case: list[int]) -> Outcome:
        return arm.run(encoded(prompts[tuple(case)], request, assembly))

    return replace(arm, run=run)


def gates(result: BenchResult, request: Request) -> list[Gate]:
    """Decide the gates that the command line sets: speed against plain, and equal tokens."""
    from dynx.bench.categories import min_speedup_of_each
    from dynx.bench.gates import min_speedup, require_identical

    try:
        arm = result.arm("dynamic")
    except KeyError:  # a model that can't roll back has no dynamic arm: plain is what it runs
        arm = result.reference
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if request.min_speedup is not None:
        tolerance = tolerance_or(request.tolerance, 0.0)
        judged.append(min_speedup(arm.ratio, request.min_speedup, failure=failure, tolerance=tolerance))
        if request.each_category:
            judged += min_speedup_of_each(result, arm.name, request.min_speedup, tolerance=tolerance)
    if request.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    return judged
