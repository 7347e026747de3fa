"""Records what a chat model answers to Spec-Bench's questions, and what its passes cost, for tests of the draft policy.

    python tests/support/record_traces.py MODEL QUESTIONS OUT --dtype float32 --each 8
    python tests/support/record_traces.py MODEL QUESTIONS OUT --dtype bfloat16 --costs

Texts are greedy answers of at most 128 tokens under the model's chat template. Costs are medians of single passes, by tokens and
context, measured while each pass's logits are read as decoding reads them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import statistics
import time
from pathlib import Path
from typing import Any

KINDS = ("translation", "summarization", "qa", "math_reasoning", "rag", "mt_bench")
ANSWER_TOKENS = 128
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 21, 25)
CONTEXTS = (64, 512, 1200)
SAMPLES = 9


def questions(path: Path, each: int) -> list[tuple[str, str]]:
    """(kind, question): the first `each` of every kind; MT-bench's eight categories are one kind, taken in turns."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    turns: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["category"] in by_kind:
            by_kind[row["category"]].append(row["turns"][0])
        else:
            turns.setdefault(row["category"], []).append(row["turns"][0])
    for i in range(max(map(len, turns.values()))):
        by_kind["mt_bench"] += [asked[i] for asked in turns.values() if i < len(asked)]
    return [(kind, text) for kind, texts in by_kind.items() for text in texts[:each]]


def loaded(args: argparse.Namespace) -> Any:
    """The model, as `dynx generate` runs it."""
    from dynx.speculation import assemble, make_plan
    from dynx.speculation.plan import GeneratorRequest

    plan = make_plan(
        GeneratorRequest(
            args.model, backend=args.backend, dtype=args.dtype, quantize=args.quantize, draft="lookup", profile="none"
        )
    )
    return assemble(plan)


def answers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every question's token ids and those of its answer."""
    from dynx.speculation.policy import Static
    from dynx.speculation.types import Request

    assembly, out = loaded(args), []
    for kind, text in questions(args.questions, args.each):
        ids = assembly.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        request = Request(ids, ANSWER_TOKENS, assembly.sampling(), assembly.end_tokens)
        run = assembly.engine.start(request, Static("lookup", 5))
        for _ in run:
            pass
        out.append({"kind": kind, "prompt": ids, "answer": run.tokens})
    return out


def costs(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass by context and number of tokens."""
    from dynx.speculation.timing import _filled, _pass

    target = loaded(args).engine.target
    jobs = {
        (context, n): _pass(session, context, n)
        for context in CONTEXTS
        for session in [_filled(target, context)]
        for n in WIDTHS
    }
    cells: dict[tuple[int, int], list[float]] = {cell: [] for cell in jobs}
    rng = random.Random(0)
    for job in jobs.values():
        job()
    for _ in range(SAMPLES):
        order = list(jobs)
        rng.shuffle(order)
        for cell in order:
            began = time.perf_counter()
            jobs[cell]()
            cells[cell].append(time.perf_counter() - began)
    return {str(c): {str(n): round(1e3 * statistics.median(cells[c, n]), 2) for n in WIDTHS} for c in CONTEXTS}


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--costs", action="store_true")
    args = parser.parse_args()
    if args.costs:
        args.out.write_text(json.dumps(costs(args)), encoding="utf-8")
    else:
        args.out.write_bytes(lzma.compress(json.dumps(answers(args)).encode()))


if __name__ == "__main__":
    main()
