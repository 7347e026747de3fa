"""The peers of `real.py`, each with its ways of decoding: plain, and lookup or drafts with its tuned settings.

A peer's function takes a `Setup` and the names of the arms wanted ([]: all), and returns them as functions from prompt ids to
an `Answer`. Times are of whole answers, prompt included. Every peer honours the end tokens; `Answer.tokens` is without them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LENGTHS = (3, 5, 8)
"""Numbers of draft tokens at which static lookup is tuned."""

NGRAMS = (2, 3)
"""Longest n-grams at which GenAI's lookup is tuned."""


@dataclass(frozen=True)
class Setup:
    """What is measured: the model in each peer's format, the precision, and the answers wanted."""

    folder: str
    """Hugging Face folder of the weights in 16 bits."""
    gguf: str
    """The file as it was published."""
    openvino: str
    """Folder with GenAI's exports, by width of weights."""
    precision: str
    """bf16, float32, int8, or file: the 4 bits of the GGUF file itself."""
    tokens: int
    end: tuple[int, ...]
    chat: bool = False
    """Whether prompts are chats, which is what dynx's profile must be of."""
    drafter: str = ""
    """Hugging Face folder of a draft model; empty: none."""
    drafter_openvino: str = ""


@dataclass
class Answer:
    """One answer: its tokens without the end token, and what it took."""

    tokens: list[int]
    seconds: float = 0.0
    first: float | None = None
    """Seconds to the first token."""
    passes: int | None = None
    """Passes of the model after the prompt's, where the peer tells."""
    facts: dict[str, Any] = field(default_factory=dict)


Arms: TypeAlias = "dict[str, Callable[[Sequence[int]], Answer]]"


def timed(run: Callable[[Sequence[int]], Answer], end: Sequence[int]) -> Callable[[Sequence[int]], Answer]:
    """Return an arm that is timed as a whole, and whose tokens stop before an end token."""

    def answer(ids: Sequence[int]) -> Answer:
        began = time.perf_counter()
        done = run(ids)
        done.seconds = time.perf_counter() - began
        at = next((i for i, token in enumerate(done.tokens) if token in end), len(done.tokens))
        done.facts["ended"] = at < len(done.tokens)
        del done.tokens[at:]
        return done

    return answer


def wanted(arm: str, names: Sequence[str]) -> bool:
    """Whether an arm is wanted."""
    return not names or arm in names


def transformers(setup: Setup, names: Sequence[str]) -> Arms:
    """Transformers in PyTorch's eager mode: plain, prompt lookup, and a draft model with its own dynamic length."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[setup.precision]
    model = AutoModelForCausalLM.from_pretrained(setup.folder, dtype=dtype).eval()
    small = AutoModelForCausalLM.from_pretrained(setup.drafter, dtype=dtype).eval() if setup.drafter else None
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_pre_hook(count)

    class First(BaseStreamer):  # type: ignore[misc]
        """Notes when the first token came; what comes before it is the prompt."""

        def __init__(self) -> None:
            self.calls, self.at = 0, 0.0

        def put(self, value: Any) -> None:
            self.calls += 1
            if self.calls == 2:
                self.at = time.perf_counter()

        def end(self) -> None:
            pass

    def arm(**options: Any) -> Callable[[Sequence[int]], Answer]:
        def run(ids: Sequence[int]) -> Answer:
            nonlocal passes
            passes, first, began = 0, First(), time.perf_counter()
            tensor = torch.tensor([list(ids)])
            with torch.inference_mode():
                out = model.generate(
                    tensor,
                    attention_mask=torch.ones_like(tensor),
                    max_new_tokens=setup.tokens,
                    do_sample=False,
                    eos_token_id=list(setup.end),
                    pad_token_id=setup.end[0],
                    streamer=first,
                    **options,
                )
            return Answer(out[0, len(ids) :].tolist(), first=first.at - began, passes=passes - 1)

        return run

    arms = {"plain": arm(), **{f"lookup k={k}": arm(prompt_lookup_num_tokens=k) for k in LENGTHS}}
    if small is not None:
        arms["draft"] = arm(assistant_model=small)
    return {name: run for name, run in arms.items() if wanted(name, names)}


GENAI_LOOKUP = {f"lookup k={k} n={n}": (k, n) for n in NGRAMS for k in LENGTHS}


def genai(setup: Setup, names: Sequence[str]) -> Arms:
    """OpenVINO GenAI as it comes: plain, prompt lookup over its two settings, its draft models where there is a pair."""
    import openvino_genai as ov

    place, properties = genai_model(setup)
    arms: Arms = {}

    def arm(pipe: Any, **settings: Any) -> Callable[[Sequence[int]], Answer]:
        config = genai_config(setup, **settings)

        def run(ids: Sequence[int]) -> Answer:
            done = pipe.generate(tokenized(ids), config)
            metrics = done.perf_metrics
            passes = len(metrics.raw_metrics.m_batch_sizes) - 1
            return Answer(list(done.tokens[0]), first=metrics.get_ttft().mean / 1e3, passes=passes)

        return run

    properties["scheduler_config"] = no_prefix_cache()
    if wanted("plain", names):
        arms["plain"] = arm(ov.LLMPipeline(place, "CPU", **properties))
    if any(wanted(name, names) for name in GENAI_LOOKUP):
        looking = ov.LLMPipeline(place, "CPU", prompt_lookup=True, **properties)
        for name, (k, n) in GENAI_LOOKUP.items():
            if wanted(name, names):
                arms[name] = arm(looking, num_assistant_tokens=k, max_ngram_size=n)
    if setup.drafter_openvino:
        small = ov.draft_model(setup.drafter_openvino, "CPU", **properties)
        drafting = ov.LLMPipeline(place, "CPU", draft_model=small, **properties)
        arms |= {f"draft k={k}": arm(drafting, num_assistant_tokens=k) for k in LENGTHS}
    return arms


def genai_model(setup: Setup) -> tuple[str, dict[str, Any]]:
    """Return the folder or file that GenAI loads, and the device's properties; where they say nothing, its defaults hold."""
    if setup.precision == "file":
        return setup.gguf, {}
    if setup.precision == "4":
        return str(Path(setup.openvino) / "4"), {}
    width = "8" if setup.precision == "int8" else "16"
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return str(Path(setup.openvino) / width), exact if setup.precision == "float32" else {}


def no_prefix_cache() -> Any:
    """Return GenAI's own settings for one text at a time, without its cache of prompts: the next arm has the same prompt."""
    import openvino_genai as ov

    scheduler = ov.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 1 << 30  # a prompt in one piece
    return scheduler


def genai_config(setup: Setup, **settings: Any) -> Any:
    """Return GenAI's settings of one arm."""
    import openvino_genai as ov

    return ov.GenerationConfig(
        max_new_tokens=setup.tokens,
        do_sample=False,
        eos_token_id=setup.end[0],
        stop_token_ids=set(setup.end),
        apply_chat_template=False,
        **settings,
    )


def tokenized(ids: Sequence[int]) -> Any:
    """Return ids as GenAI takes them."""
    import numpy as np
    import openvino as ov
    import openvino_genai

    row = np.array([list(ids)])
    return openvino_genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))


def llama(setup: Setup, names: Sequence[str]) -> Arms:
    """llama.cpp through llama-cpp-python on the very file, whatever the precision asked for: plain and prompt lookup."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    def arm(draft: Any = None) -> Callable[[Sequence[int]], Answer]:
        model = Llama(
            setup.gguf,
            n_ctx=2048,
            n_threads=os.cpu_count(),
            n_threads_batch=os.cpu_count(),
            verbose=False,
            logits_all=draft is not None,  # its way to verify drafts
            draft_model=draft,
        )
        passes = 0
        evaluate = model.eval

        def counted(tokens: Sequence[int]) -> None:
            nonlocal passes
            passes += 1
            evaluate(tokens)

        model.eval = counted

        def run(ids: Sequence[int]) -> Answer:
            nonlocal passes
            passes, first, out, began = 0, None, [], time.perf_counter()
            model.reset()
            for token in model.generate(list(ids), temp=0.0, top_k=1, top_p=1.0, min_p=0.0, reset=True):
                first = time.perf_counter() - began if first is None else first
                out.append(token)
                if len(out) == setup.tokens or token in setup.end:
                    break
            return Answer(out, first=first, passes=passes - 1)

        return run

    arms: Arms = {}
    if wanted("plain", names):
        arms["plain"] = arm()
    for k in LENGTHS:
        if wanted(f"lookup k={k}", names):
            arms[f"lookup k={k}"] = arm(LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=k))
    return arms


def dynx(setup: Setup, names: Sequence[str]) -> Arms:
    """dynx with the plan that `dynx generate` makes and the profile that is stored; each answer starts as a new process would."""
    from dynx.bench.arms.generation import Task, lookup_arm, own_arms
    from dynx.speculation import assemble, make_plan
    from dynx.speculation.plan import GeneratorRequest

    options: dict[str, Any] = {
        "bf16": {"dtype": "bfloat16"},
        "float32": {"dtype": "float32"},
        "int8": {"quantize": "int8"},
        "4": {"quantize": "int4"},
        "file": {"quantize": "file"},
    }[setup.precision]
    model = setup.gguf if setup.precision == "file" else setup.folder
    assembly = assemble(
        make_plan(GeneratorRequest(model, draft=setup.drafter or "auto", chat=setup.chat, **options), warn=tell)
    )
    for name, decision in assembly.decisions.items():
        tell(f"dynx: {name}: {decision.value} ({decision.reason})")
    task = Task(setup.tokens, assembly.sampling(), assembly.end_tokens, assembly.settings.stop)

    def arm(run: Callable[[list[int]], Any]) -> Callable[[Sequence[int]], Answer]:
        def answer(ids: Sequence[int]) -> Answer:
            done = run(list(ids))
            facts = dict(done.facts)
            return Answer(list(done.output), first=facts.get("first_token_seconds"), passes=facts.get("passes"))

        return answer

    looking = [lookup_arm(assembly, task, f"lookup k={k}", k) for k in LENGTHS]
    found: Arms = {}
    for each in (*own_arms(assembly, task, LENGTHS), *looking):
        name = "auto" if each.name == "dynamic" else each.name
        if wanted(name, names):
            found[name] = arm(each.run)
    return found


def tell(said: str) -> None:
    """Write to stderr; stdout is the driver's."""
    import sys

    sys.stderr.write(f"{said}\n")


PEERS: dict[str, Callable[[Setup, Sequence[str]], Arms]] = {
    "transformers": transformers,
    "genai": genai,
    "llama": llama,
    "dynx": dynx,
}
