"""`--verify`: compares an answer with the plain model's, in words and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dynx.errors import GateFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.equivalence import Verification
    from dynx.speculation.run import Run


def verify_answer(run: Run, assembly: LoadedGenerator) -> Verification:
    """Score a run's tokens again with the plain model."""
    from dynx.runtime.loading import quietly
    from dynx.speculation.equivalence import verify

    with quietly():
        return verify(assembly.verifier, run.request, run.tokens)


def words(found: Verification, assembly: LoadedGenerator, run: Run) -> str:
    """Format the result as a line for stderr."""
    n, first = found.tokens, found.first
    name = f"{assembly.plan.source.name} in {assembly.engine.target.precision}"
    if not n:
        return "verified: no token to verify"
    if found.rule == "chance":
        if first is not None:
            return f"verify: token {first.position + 1} has no probability under plain {name}"
        likely = f"mean log-likelihood {found.log_likelihood:.3f}, {found.deviation or 0.0:+.1f} standard deviations"
        said = (
            "as likely as its own samples are"
            if found.verdict == "plausible"
            else "less or more likely than its samples"
        )
        return f"{'verified' if found.verdict == 'plausible' else 'verify'}: {n} tokens, under plain {name} {said} ({likely})"
    how = "takes" if found.rule == "greedy" else "takes with this seed"
    if first is None:
        close = (
            f"; its closest decision by {found.smallest_margin:.2g} logits" if found.smallest_margin is not None else ""
        )
        return f"verified: identical, plain {name} {how} each of the {n} tokens itself{close}"
    shown = _reader(assembly, run, first.position)
    others = f", and {found.differences - 1} later tokens" if found.differences > 1 else ""
    return (
        f"verify: differs at token {first.position + 1} of {n}{others}: {shown(first.written)!r} was written, "
        f"and plain {name} {how} {shown(first.preferred)!r} {_by(first.margin)}"
        + (" (a tie: rounding alone moves a logit as far)" if first.tie else "")
    )


def verification_json(found: Verification, assembly: LoadedGenerator, run: Run) -> dict[str, Any]:
    """Return the result with its numbers, for JSON; null for what doesn't apply."""
    first = found.first
    shown = _reader(assembly, run, first.position if first else 0)
    return {
        "verdict": found.verdict,
        "rule": found.rule,
        "tokens": found.tokens,
        "differences": found.differences,
        "first_difference": None
        if first is None
        else {
            "position": first.position,
            "token_id": first.written,
            "plain_token_id": first.preferred,
            "token": shown(first.written),
            "plain_token": shown(first.preferred),
            "margin_logits": first.margin if math.isfinite(first.margin) else None,
            "within_rounding": first.tie,
        },
        "smallest_margin_logits": found.smallest_margin,
        "mean_log_likelihood": found.log_likelihood if math.isfinite(found.log_likelihood) else None,
        "deviation": found.deviation,
    }


def check(found: list[Verification]) -> None:
    """Raise GateFailed where an answer isn't that of plain decoding."""
    failed = sum(v.verdict in ("different", "implausible") for v in found)
    if failed:
        which = "the answer isn't" if len(found) == 1 else f"{failed} of {len(found)} answers aren't"
        raise GateFailed(f"--verify: {which} plain decoding's")


def _by(margin: float) -> str:
    return f"by {margin:.2g} logits" if math.isfinite(margin) else "(the generated token has no probability)"


def _reader(assembly: LoadedGenerator, run: Run, position: int) -> Callable[[int], str]:
    """Return a function that decodes a token at a position of the answer."""
    from dynx.speculation.detokenizer import token_text

    before = [*run.request.prompt, *run.tokens[:position]]
    return lambda token: token_text(assembly.tokenizer, before, token)
