"""A microbenchmark of draft models: dynx against transformers, OpenVINO GenAI and llama.cpp on an inflated pair.

The pair is a small model with layers added that change nothing, and its draft model: a large model's costs, a small one's
text. Same weights, prompts and machine, in one interleaved run. `real.py` has real models and real questions.

    python tests/peers/compare.py MODEL --prompts FILE [-n 128] [--temperature T] [--only NAME…] [--python NAME=PATH…]

MODEL is a folder with a Llama and, in `drafter/`, its draft model. Each peer runs in a process of its own, with its own Python
where it needs other packages (`--python genai=…`), so that thread pools and versions don't meet; only one works at a time, and
the order changes with every prompt. What a peer needs of the weights in its own format is made by `prepare.py`. dynx uses the
profiles that `dynx calibrate` stored. Times are of whole answers, prompt included; ratios are of times summed over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = ("transformers", "genai", "genai-int8", "llama", "llama-q8_0", "dynx", "dynx-int8")
SERVER = Path(__file__).with_name("serve.py")


class Peer:
    """A process that answers one prompt at a time."""

    def __init__(self, name: str, python: str, given: argparse.Namespace) -> None:
        command = [python, str(SERVER), name, given.model, str(given.tokens), str(given.temperature)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.arms: list[str] = self._read()["arms"]

    def ask(self, arm: str, prompt: str) -> dict[str, Any]:
        """{"seconds": …, "tokens": [ids]}, or {"error": …}."""
        if self.process.stdin is None:
            raise RuntimeError("no pipe")
        self.process.stdin.write(json.dumps({"arm": arm, "prompt": prompt}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        for line in self.process.stdout:
            if line.startswith("{"):  # peers print what they like
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")


def main() -> None:
    """Run all arms over all prompts and print a table of tokens per second and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("-n", "--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--only", nargs="*", default=PEERS)
    parser.add_argument("--python", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in given.python)
    prompts = given.prompts.read_text(encoding="utf-8").splitlines()
    peers = {name: Peer(name, pythons.get(name.partition("-")[0], sys.executable), given) for name in given.only}
    arms = [(name, arm) for name, peer in peers.items() for arm in peer.arms]
    for name, arm in list(arms):
        peers[name].ask(arm, prompts[0])  # caches, kernels, a policy's first rounds
    rng = random.Random(0)
    seconds: dict[tuple[str, str], list[float]] = {each: [] for each in arms}
    tokens: dict[tuple[str, str], list[list[int]]] = {each: [] for each in arms}
    for prompt in prompts:
        rng.shuffle(arms)
        for name, arm in list(arms):
            done = peers[name].ask(arm, prompt)
            if "error" in done:
                sys.stderr.write(f"{name} {arm} fails: {done['error']}\n")
                arms.remove((name, arm))
                continue
            seconds[name, arm].append(done["seconds"])
            tokens[name, arm].append(done["tokens"])
    rates = {each: sum(map(len, tokens[each])) / sum(seconds[each]) for each in arms}
    base = rates.get(("transformers", "plain"), max(rates.values()))
    for each in sorted(arms, key=lambda a: (a[0], -rates[a])):
        sys.stdout.write(f"{each[0]:14} {each[1]:22} {rates[each]:7.1f} tokens/s  {rates[each] / base:5.2f}x\n")
    if given.json:
        rows = [
            {"peer": a, "arm": b, "seconds": seconds[a, b], "tokens": list(map(len, tokens[a, b])), "rate": rates[a, b]}
            for a, b in arms
        ]
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
