"""Checks of the backends on a real accelerator: the texts are those of plain decoding, and what a captured pass saves.

`check.sh` runs it. The models are random with sharp logits, so drafts are right some of the time, and nothing is downloaded.
On a processor (`--device cpu --small`) graphs are left out; that shows that the script itself works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from support.models import ROLLING, perturbed, tiny

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import cuda_graphs
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain, Static
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynx.runtime.backends.interface import Backend

ROOT = Path(__file__).resolve().parents[2]

NEW_TOKENS = 60
"""Tokens of each text compared."""

PASS_TOKENS = (1, 2, 4, 6, 8, 16, 32)
"""Tokens of the passes that are timed."""

TIMING_ROUNDS = 30
"""Passes of each number of tokens and backend, in turns."""

TIMING_CONTEXT_TOKENS = 256
"""Positions in the cache before a timed pass."""

SIZES: dict[str, dict[str, int]] = {
    "full": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    "small": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
}
"""Shapes of the model that is timed; the full one has 1.1 G parameters, those of TinyLlama."""

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("generate", "Once upon a time", "-n", "64", "--dtype", "float32", "--verify"),
    (
        "generate",
        "Once upon a time",
        "-n",
        "64",
        "--temperature",
        "0.8",
        "--seed",
        "1",
        "--dtype",
        "float32",
        "--verify",
    ),
    ("classify", "what a fine film", "--stats"),
    ("draw", "red apple", "--seed", "3", "--stats", "-o", "-"),
)
"""Commands that must end with exit code 0 on the device."""


@dataclass
class Checks:
    """Results so far, printed as they come."""

    deadline: float
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, passed: bool, detail: str = "", **figures: Any) -> None:
        """Record one check."""
        self.results.append({"check": name, "passed": passed, "detail": detail, **figures})
        print(f"{'pass' if passed else 'FAIL'}  {name}  {detail}".rstrip(), flush=True)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return not all(result["passed"] for result in self.results)


def backends(model: Any, device: torch.device) -> Iterator[tuple[str, Backend]]:
    """Yield the backends that can run `model` on the device. Both use the model itself."""
    yield "eager", EagerBackend(model)
    if device.type == "cuda":
        yield "graphs", cuda_graphs.load(model)


@torch.inference_mode()
def transformers_text(model: Any, prompt: Sequence[int]) -> list[int]:
    """Greedy tokens of transformers' own generate."""
    ids = torch.tensor([list(prompt)], device=model.device)
    out = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    return [int(token) for token in out[0, len(prompt) :]]


def written(target: Backend, drafters: Drafters, request: Request, policy: Any) -> list[int]:
    """Tokens of one text."""
    return [token.id for token in Engine(target, drafters, entropy=lambda: 7).start(request, policy)]


def check_architectures(checks: Checks, device: torch.device, kinds: Sequence[str]) -> None:
    """Greedy texts in float32 are transformers'; seeded texts don't depend on backend or drafts."""
    for kind in kinds:
        if checks.late:
            return
        model = tiny(kind).to(device)
        drafter = EagerBackend(perturbed(tiny(kind), 0.3).to(device))
        prompt = [(11 * i * i + 5 * i + 3) % 64 for i in range(20)]
        want = transformers_text(model, prompt)
        seeded: set[tuple[int, ...]] = set()
        try:
            for name, target in backends(model, device):
                for label, policy in (("plain", Plain()), ("static 4", Static("draft", 4)), ("dynamic", None)):
                    same = written(target, Drafters(drafter, lookup=True), Request(prompt, NEW_TOKENS), policy) == want
                    checks.add(f"{kind}, {name}, {label}, float32 greedy", same)
                request = Request(prompt, NEW_TOKENS, Sampling(0.9, seed=5))
                seeded.add(tuple(written(target, Drafters(), request, Plain())))
                seeded.add(tuple(written(target, Drafters(drafter), request, Static("draft", 4))))
        except UnsupportedModelError as e:
            checks.add(f"{kind}, graphs", kind == "opt", f"refused: {e}")
        checks.add(f"{kind}, seeded texts", len(seeded) == 1, f"{len(seeded)} different")


def large_model(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A random Llama whose logits are sharp."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=False)).to(dtype).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id = None
    return model


def timed_passes(targets: dict[str, Backend], clock: Callable[[], float]) -> dict[str, dict[int, float]]:
    """Median milliseconds of a pass by backend and number of tokens, argmax included, backends in turns."""
    seconds: dict[tuple[str, int], list[float]] = {}
    sessions = {name: target.open() for name, target in targets.items()}
    for session in sessions.values():
        session.forward(list(range(1, TIMING_CONTEXT_TOKENS + 1)), keep=1)
    for number in range(-3, TIMING_ROUNDS):
        for width in PASS_TOKENS:
            for name, session in sessions.items():
                began = clock()
                session.forward(list(range(1, width + 1))).argmax(-1).tolist()
                if number >= 0:
                    seconds.setdefault((name, width), []).append(clock() - began)
                session.rollback(TIMING_CONTEXT_TOKENS)
    return {name: {width: 1e3 * median(seconds[name, width]) for width in PASS_TOKENS} for name in targets}


def check_large(checks: Checks, device: torch.device, size: str, dtype: torch.dtype) -> None:
    """Pass times, and the text of plain decoding from every backend and policy; tokens a second of each."""
    if checks.late:
        return
    label = str(dtype).removeprefix("torch.")
    model = large_model(size, device, dtype)
    targets = dict(backends(model, device))
    passes = timed_passes(targets, time.perf_counter)
    for name, by_width in passes.items():
        times = ", ".join(f"{width}: {ms:.2f}" for width, ms in by_width.items())
        checks.add(f"{size} model, {label}, {name}: ms a pass by tokens", True, times, milliseconds=by_width)
    if "graphs" in passes:
        ratio = passes["eager"][1] / passes["graphs"][1]
        checks.add(
            f"{size} model, {label}: a captured pass of 1 token is faster", ratio > 1, f"{ratio:.2f}x", ratio=ratio
        )
    prompt = list(range(1, 40)) * 3
    texts: dict[str, list[int]] = {}
    for name, target in targets.items():
        for policy_name, policy in (("plain", Plain()), ("lookup 5", Static("lookup", 5)), ("dynamic", None)):
            engine = Engine(target, Drafters(lookup=True))
            for _ in engine.start(Request(prompt, 8), policy):
                pass  # captures
            began = time.perf_counter()
            texts[f"{name}, {policy_name}"] = [token.id for token in engine.start(Request(prompt, 192), policy)]
            rate = 192 / (time.perf_counter() - began)
            checks.add(f"{size} model, {label}, {name}, {policy_name}: tokens/s", True, f"{rate:.1f}", rate=rate)
    same = sum(text == texts["eager, plain"] for text in texts.values())
    exact = same == len(texts) or dtype != torch.float32  # in 16 bits, near ties may fall otherwise
    checks.add(f"{size} model, {label}: texts equal to eager, plain", exact, f"{same} of {len(texts)}", equal=same)


def check_commands(checks: Checks, device: torch.device) -> None:
    """The commands run on the device with the included models."""
    for arguments in COMMANDS:
        if checks.late:
            return
        command = [sys.executable, "-m", "dynx", *arguments, "--device", device.type]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, check=False)
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        checks.add(f"dynx {' '.join(arguments)}", done.returncode == 0, f"exit {done.returncode}; {last}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; 0 if they passed, 1 if one failed, 2 without the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, xpu or cpu")
    parser.add_argument("--minutes", type=float, default=8, help="checks that would begin later are left out")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--small", action="store_true", help="time a tiny model, and two architectures only")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    module = getattr(torch, device.type)
    if device.type != "cpu" and not module.is_available():
        print(f"no {device.type} device is there")
        return 2
    name = module.get_device_name() if device.type != "cpu" else "processor"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    checks = Checks(time.monotonic() + 60 * options.minutes)
    size = "small" if options.small else "full"
    check_large(checks, device, size, torch.bfloat16)
    check_architectures(checks, device, sorted(ROLLING)[:2] if options.small else sorted(ROLLING))
    check_large(checks, device, size, torch.float32)
    check_commands(checks, device)
    if checks.late:
        checks.add("all checks ran in time", False, f"{options.minutes} minutes were not enough")
    if options.json:
        options.json.write_text(
            json.dumps({"device": name, "torch": torch.__version__, "checks": checks.results}, indent=1)
        )
    print(f"{sum(result['passed'] for result in checks.results)} of {len(checks.results)} checks passed")
    return int(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
