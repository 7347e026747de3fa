"""Many prompts at once: GenAI's ContinuousBatchingPipeline against `dynx generate --lines`, on the questions of `real.py`.

    python tests/peers/real_batch.py --model smollm2 --precision bf16 [--rounds 3] [--prefix 1000] --data questions.jsonl

64 questions of 64 tokens each; with --prefix all of them begin with the same so many tokens of text. Each arm runs in a process
of its own, warmed up, in a new random order each round, and is stopped while another one works. dynx is the command itself: the
prompts go to its stdin when it has answered a first one. Tokens per second are of all answers, from the first prompt sent to the
last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from real_arms import Setup, genai_config, genai_model

ARMS = ("genai plain", "genai lookup k=3 n=3", "genai lookup k=5 n=3", "dynx plain", "dynx auto")
PRECISIONS = {
    "bf16": ["--dtype", "bfloat16"],
    "float32": ["--dtype", "float32"],
    "int8": ["--quantize", "int8"],
    "file": ["--quantize", "file"],
}


def serve(setup: Setup, arm: str, *, shared: bool) -> None:
    """Answer lists of prompts with GenAI: read {"prompts": [ids, …]}, write {"count", "tokens", "first"}."""
    import numpy as np
    import openvino as ov
    import openvino_genai

    place, properties = genai_model(setup)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = shared  # for prompts that share a beginning; otherwise rounds would share them
    lookup = re.search(r"k=(\d+) n=(\d+)", arm)
    settings = {"num_assistant_tokens": int(lookup[1]), "max_ngram_size": int(lookup[2])} if lookup else {}
    if lookup:
        properties["prompt_lookup"] = True
    pipe = openvino_genai.ContinuousBatchingPipeline(place, scheduler, "CPU", properties)
    config = genai_config(setup, **settings)
    for line in sys.stdin:
        prompts = json.loads(line)["prompts"]
        done = pipe.generate([ov.Tensor(np.array([ids])) for ids in prompts], [config] * len(prompts))
        answers = [list(each.m_generation_ids[0]) for each in done]
        kept = [[t for t in answer if t not in setup.end] for answer in answers]
        sys.stdout.write(json.dumps({"count": sum(map(len, kept)), "tokens": kept}) + "\n")
        sys.stdout.flush()


class Worker:
    """One arm's process."""

    def __init__(self, arm: str, command: list[str]) -> None:
        self.arm = arm
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, lines: list[str]) -> None:
        """Write lines to it."""
        if self.process.stdin is None:
            raise RuntimeError("no pipe")
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return the next JSON line. Raises RuntimeError at its end."""
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.arm} ended with {self.process.wait()}")

    def memory(self) -> int:
        """Return its peak resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0


def answer(worker: Worker, texts: list[str], ids: list[list[int]]) -> dict[str, Any]:
    """Return tokens written, seconds, and seconds to the first answer where answers come one by one."""
    began, first, tokens = time.perf_counter(), None, []
    if worker.arm.startswith("genai"):
        worker.send([json.dumps({"prompts": ids})])
        tokens = worker.receive()["tokens"]
        return {"seconds": time.perf_counter() - began, "first": None, "count": sum(map(len, tokens))}
    worker.send([json.dumps({"text": text}) for text in texts])
    count = 0
    for _ in texts:
        while (document := worker.receive())["event"] == "token":
            pass
        first = time.perf_counter() - began if first is None else first
        count += len(document["token_ids"]) - (document["finish_reason"] == "eos")
    return {"seconds": time.perf_counter() - began, "first": first, "count": count}


def command_of(arm: str, given: argparse.Namespace, setup: Setup) -> list[str]:
    """Return the command of an arm's process."""
    if arm.startswith("genai"):
        shared = ["--shared"] if given.prefix else []
        return [given.python, __file__, "--serve", json.dumps(asdict(setup)), "--arm", arm, *shared]
    model = setup.gguf if given.precision == "file" else setup.folder
    plain = ["--plain"] if arm == "dynx plain" else []
    options = ["--chat", "--lines", "--field", "text", "--jsonl", "-n", str(given.tokens), *PRECISIONS[given.precision]]
    return [sys.executable, "-m", "dynx", "generate", "-m", model, *options, *plain]


def main() -> None:
    """Measure, append to --out, and report."""
    if "--serve" in sys.argv:
        at = sys.argv.index("--serve") + 1
        serve(Setup(**json.loads(sys.argv[at])), sys.argv[at + 2], shared="--shared" in sys.argv)
        return
    from questions import choose, prompt_ids, read
    from real import facts, prepared, tokenizer_of
    from real_models import find
    from real_report import report

    parser = argparse.ArgumentParser(description="Compare batches of dynx and OpenVINO GenAI.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--models", type=Path, default=None)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prefix", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    setup, questions, _ = prepared(given, find(given.model, given.models))
    tokenizer = tokenizer_of(setup)
    texts = [q.text for q in questions]
    if given.prefix:
        stories = "\n\n".join(q.text for q in read(given.data) if q.kind == "summarization")
        shared = tokenizer.decode(tokenizer(stories, add_special_tokens=False)["input_ids"][: given.prefix])
        short = [q for q in choose(read(given.data), 240) if q.kind in ("qa", "translation")]
        texts = [f"{shared}\n\n{q.text}" for q in short[: given.questions]]
    ids = [prompt_ids(tokenizer, text) for text in texts]
    workers = []
    for arm in given.arms:
        worker = Worker(arm, command_of(arm, given, setup))
        answer(worker, ["Hello"], [prompt_ids(tokenizer, "Hello")])
        worker.process.send_signal(signal.SIGSTOP)
        workers.append(worker)
    name = f"{len(texts)} × {given.tokens}" + (f", {given.prefix} shared" if given.prefix else "")
    entries = []
    for number in range(given.rounds):
        for worker in random.Random(number).sample(workers, len(workers)):
            worker.process.send_signal(signal.SIGCONT)
            peer, _, arm = worker.arm.partition(" ")
            measured = answer(worker, texts, ids) | {"memory": worker.memory(), "batch": name, "peer": peer, "arm": arm}
            worker.process.send_signal(signal.SIGSTOP)
            entries.append({**facts(given, setup), "round": number, "question": "", **measured})
            with given.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entries[-1]) + "\n")
    for worker in workers:
        os.kill(worker.process.pid, signal.SIGCONT)
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        worker.process.wait()
    report(entries, given.json)


if __name__ == "__main__":
    main()
