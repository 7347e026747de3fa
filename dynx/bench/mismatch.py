"""Finds where an answer first differs from plain's, and the gap between plain's two best logits there.

Two ways of computing the same sum round differently, which decides where plain's two best tokens are nearly tied. The gap at the
first token that differs distinguishes rounding (a few hundredths at most in half precision) from a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dynx.speculation.detokenizer import token_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.bench.measurements import JSON, Measurements
    from dynx.speculation.assembly import LoadedGenerator


@dataclass(frozen=True)
class Mismatch:
    """The first answer of an arm that isn't plain's. A token is None where that answer had already ended."""

    arm: str
    case: int
    position: int
    expected: str | None
    got: str | None
    gap: float
    """Difference between plain's two highest logits there."""

    def json(self) -> dict[str, JSON]:
        """Return an arm's fact for the JSON document."""
        return {
            "case": self.case,
            "position": self.position,
            "expected": self.expected,
            "got": self.got,
            "logit_gap": self.gap,
        }

    def __str__(self) -> str:
        def quoted(token: str | None) -> str:
            return "its end" if token is None else repr(token)

        return (
            f"{self.arm} first differs in input {self.case + 1}, token {self.position + 1}: {quoted(self.got)} where plain has "
            f"{quoted(self.expected)}; plain's two best logits are {self.gap:.3g} apart there"
        )


def first_mismatch(
    measured: Measurements, arm: str, prompts: Sequence[Sequence[int]], assembly: LoadedGenerator
) -> Mismatch | None:
    """Return the first mismatch of an arm that writes token ids, None where all answers are plain's.

    Runs plain once over the answer up to there.
    """
    for sample in measured.mismatches(arm):
        plain = _tokens(measured.samples[measured.reference][sample.round * measured.cases + sample.case].output)
        ours = _tokens(sample.output)
        at = next((i for i, (a, b) in enumerate(zip(ours, plain, strict=False)) if a != b), min(len(ours), len(plain)))
        before = [*prompts[sample.case], *plain[:at]]
        text = partial(token_text, assembly.tokenizer, before)
        return Mismatch(
            arm,
            sample.case,
            at,
            text(plain[at]) if at < len(plain) else None,
            text(ours[at]) if at < len(ours) else None,
            gap_after(assembly, before),
        )
    return None


def gap_after(assembly: LoadedGenerator, tokens: Sequence[int]) -> float:
    """Return the difference between the two highest logits of the next token."""
    target = assembly.engine.target
    row = target.open().forward(list(tokens), keep=1)[-1, : target.vocab].float()
    best = row.topk(2).values
    return float(best[0] - best[1])


def _tokens(output: Any) -> tuple[int, ...]:
    tokens: tuple[int, ...] = output
    return tokens
