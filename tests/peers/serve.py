"""One peer of `compare.py`: reads {"arm", "prompt"} lines, writes {"seconds", "tokens"} lines.

python serve.py PEER MODEL TOKENS TEMPERATURE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STATIC = (3, 4, 5, 6, 7, 8, 10)
"""Draft lengths at which a peer's static speculation is tuned."""


def transformers(model: Path, count: int, temperature: float) -> dict[str, Callable[[str], list[int]]]:
    """Eager, bf16: plain, assisted with its static lengths and its dynamic default, prompt lookup."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    target, small = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        for folder in (model, model / "drafter")
    )
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}

    def arm(**options: Any) -> Callable[[str], list[int]]:
        def answer(prompt: str) -> list[int]:
            ids = tokenizer(prompt, return_tensors="pt")
            with torch.inference_mode():
                out = target.generate(
                    **ids, max_new_tokens=count, min_new_tokens=count, **(sampling or {"do_sample": False}), **options
                )
            return list(out[0, ids["input_ids"].shape[1] :].tolist())

        return answer

    def static(k: int) -> Callable[[str], list[int]]:
        run = arm(assistant_model=small)

        def answer(prompt: str) -> list[int]:
            small.generation_config.num_assistant_tokens = k
            small.generation_config.num_assistant_tokens_schedule = "constant"
            small.generation_config.assistant_confidence_threshold = 0.0
            return run(prompt)

        return answer

    def dynamic(prompt: str) -> list[int]:
        small.generation_config.num_assistant_tokens = 20
        small.generation_config.num_assistant_tokens_schedule = "constant"
        small.generation_config.assistant_confidence_threshold = 0.4
        return arm(assistant_model=small)(prompt)

    return {
        "plain": arm(),
        **{f"draft k={k}": static(k) for k in STATIC},
        "draft, own dynamic": dynamic,
        "lookup k=8": arm(prompt_lookup_num_tokens=8),
    }


def genai(
    model: Path, count: int, temperature: float, precision: str = "fp16"
) -> dict[str, Callable[[str], list[int]]]:
    """OpenVINO GenAI on Optimum's export of the weights."""
    import openvino_genai as ov

    target, small = model / f"openvino-{precision}", model / "drafter" / "openvino-fp16"
    tokenizer = ov.Tokenizer(str(target))
    options: dict[str, Any] = {
        "max_new_tokens": count,
        "min_new_tokens": count,
        "ignore_eos": True,
        "apply_chat_template": False,
    }
    if temperature:
        options |= {"do_sample": True, "temperature": temperature}
    scheduler = ov.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # every arm gets the same prompt, and must read it
    scheduler.max_num_batched_tokens = 1 << 30
    alone = {"scheduler_config": scheduler}
    plain = ov.LLMPipeline(str(target), "CPU", **alone)
    drafting = ov.LLMPipeline(str(target), "CPU", draft_model=ov.draft_model(str(small), "CPU"), **alone)
    looking = ov.LLMPipeline(str(target), "CPU", prompt_lookup=True, **alone)

    def arm(pipe: Any, **more: Any) -> Callable[[str], list[int]]:
        config = ov.GenerationConfig(**options, **more)

        def answer(prompt: str) -> list[int]:
            out = pipe.generate(tokenizer.encode(prompt), config)
            return list(out.tokens[0])

        return answer

    return {
        "plain": arm(plain),
        **{f"draft k={k}": arm(drafting, num_assistant_tokens=k) for k in STATIC},
        "draft, own dynamic": arm(drafting, assistant_confidence_threshold=0.4),
        "lookup k=5": arm(looking, num_assistant_tokens=5, max_ngram_size=3),
    }


def llama(
    model: Path, count: int, temperature: float, precision: str = "bf16"
) -> dict[str, Callable[[str], list[int]]]:
    """llama.cpp through llama-cpp-python, which has prompt lookup but no draft model."""
    import os

    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    path = str(model / f"{precision}.gguf")
    threads = os.cpu_count()

    def arm(draft: Any = None) -> Callable[[str], list[int]]:
        run = Llama(path, n_ctx=512, n_threads=threads, verbose=False, logits_all=draft is not None, draft_model=draft)

        def answer(prompt: str) -> list[int]:
            out: list[int] = []
            run.reset()
            for token in run.generate(tokenizer.encode(prompt).ids, temp=temperature, top_k=0, top_p=1.0, min_p=0.0):
                out.append(token)
                if len(out) == count:
                    break
            return out

        return answer

    return {"plain": arm(), **{f"lookup k={k}": arm(LlamaPromptLookupDecoding(num_pred_tokens=k)) for k in (2, 5, 10)}}


def dynx(model: Path, count: int, temperature: float, quantize: str = "none") -> dict[str, Callable[[str], list[int]]]:
    """dynx as `dynx generate` would run it with the profile that is stored."""
    from dynx.speculation import assemble, make_plan
    from dynx.speculation.plan import GeneratorRequest
    from dynx.speculation.policy import Plain, Static
    from dynx.speculation.types import Request

    plan = make_plan(GeneratorRequest(str(model), quantize=quantize, require_profile=True), warn=tell)
    assembly = assemble(plan)
    for knob in ("backend", "draft"):
        tell(f"dynx: {knob}: {plan.decisions[knob].value} ({plan.decisions[knob].reason})")

    def arm(policy: Callable[[], Any]) -> Callable[[str], list[int]]:
        def answer(prompt: str) -> list[int]:
            ids = assembly.tokenizer(prompt)["input_ids"]
            run = assembly.engine.start(Request(ids, count, assembly.sampling(temperature)), policy())
            return [token.id for token in run if token.id >= 0]

        return answer

    def static(k: int) -> Callable[[], Any]:
        return lambda: Static("draft", k)

    return {"plain": arm(Plain), "dynamic": arm(lambda: None), **{f"draft k={k}": arm(static(k)) for k in (4, 6, 8)}}


MAKERS: dict[str, Any] = {
    "transformers": transformers,
    "genai": genai,
    "genai-int8": lambda *given: genai(*given, precision="int8"),
    "llama": llama,
    "llama-q8_0": lambda *given: llama(*given, precision="q8_0"),
    "dynx": dynx,
    "dynx-int8": lambda *given: dynx(*given, quantize="int8"),
}


def tell(said: str) -> None:
    """On stderr; stdout is the driver's."""
    sys.stderr.write(f"{said}\n")


def send(document: dict[str, Any]) -> None:
    """To the driver."""
    sys.stdout.write(f"{json.dumps(document)}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until stdin ends."""
    name, model, count, temperature = sys.argv[1:]
    arms = MAKERS[name](Path(model), int(count), float(temperature))
    send({"arms": list(arms)})
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        try:
            tokens = arms[asked["arm"]](asked["prompt"])
        except Exception as e:  # noqa: BLE001 - a peer's own failure is a finding too
            send({"error": str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__})
            continue
        send({"seconds": time.perf_counter() - began, "tokens": tokens})


if __name__ == "__main__":
    main()
