"""Times the target's passes inside generation and the same passes in a bare loop: what else a round does must not slow them.

    python -m tests.support.pass_times MODEL openvino:bfloat16 openvino:float32 openvino:int8 torch-eager:float32

A text is written with a constant draft length. Then a session that does nothing else repeats its passes, the same number of
tokens at the same position in the same order. Writing and repeating take turns, so that a busy moment hits both.
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from dynx.speculation.policy import Static
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.engine import Engine

DRAFT_TOKENS = 5
NEW_TOKENS = 96
ROUNDS = 3
WARMUP_PASSES = 4
"""Passes of each run that don't count: memory is allocated, and what ran before may still spin."""


def pass_times(engine: Engine, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> tuple[float, float, int]:
    """Return the median milliseconds of a pass in generation and in a loop, and the number of passes."""
    written: list[float] = []
    repeated: list[float] = []
    for _ in range(ROUNDS):
        run = engine.start(Request(list(prompt), new_tokens, Sampling()), Static("lookup", DRAFT_TOKENS))
        for _token in run:
            pass
        text = [*prompt, *run.tokens]
        written += [each.verify_seconds for each in run.rounds[WARMUP_PASSES:]]
        session = engine.target.open()
        with engine.computing():
            session.set_padded_length(1)
            session.pick(text[: len(prompt)], keep=1)
            session.set_padded_length(1)
            for number, each in enumerate(run.rounds):
                tokens = (text[each.context :] + text[:DRAFT_TOKENS])[: each.submitted + 1]
                began = perf_counter()
                session.pick(tokens)
                seconds = perf_counter() - began
                # Rejected draft tokens aren't known any more; what is read in their place is rolled back like them.
                session.rollback(each.context + each.kept + 1)
                if number >= WARMUP_PASSES:
                    repeated.append(seconds)
    return 1e3 * median(written), 1e3 * median(repeated), len(written)


def main(model: str, specs: Sequence[str]) -> None:
    """Print a line for each backend and precision."""
    import dynx

    prompt = "The keeper lit the lamp. " * 8 + "Explain in a few sentences why the keeper lit the lamp."
    for spec in specs:
        backend, _, precision = spec.partition(":")
        quantized = precision in ("int8", "int4")
        generator = dynx.load_generator(
            model,
            backend=backend,
            dtype="auto" if quantized else precision,
            quantize=precision if quantized else "none",
            profile="none",
        )
        loaded = generator._assembly
        inside, alone, count = pass_times(loaded.engine, list(loaded.tokenizer(prompt)["input_ids"]))
        said = f"{spec}: {inside:.2f} ms in generation, {alone:.2f} in a loop, {inside / alone:.3f}x, {count} passes"
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
