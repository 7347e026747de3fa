"""Formats what an answer cost and saved: as a line, as rows and as JSON; names and shades of the draft sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.speculation.types import Receipt, RedecodeStats

SHADES: dict[str, str] = {
    "target": "",
    "draft": "\x1b[38;5;37m",  # cyan: the draft model
    "self": "\x1b[38;5;170m",  # magenta: the model's own first layers
    "lookup": "\x1b[38;5;142m",  # olive: copied
    "table": "\x1b[38;5;68m",  # blue: what the model thought likely after the token before
}
NAMES: dict[str, str] = {
    "target": "target model",
    "draft": "draft model",
    "self": "early exit",
    "lookup": "lookup",
    "table": "own candidates",
}


def receipt_line(receipt: Receipt) -> str:
    """Format what a run saved as one line."""
    parts = [f"{receipt.tokens} tokens"]
    if receipt.reused_tokens:
        parts.append(f"{receipt.prompt_tokens - receipt.reused_tokens} of {receipt.prompt_tokens} prompt tokens read")
    if receipt.tokens_per_second:
        parts[0] += f" at {receipt.tokens_per_second:.0f}/s"
    if receipt.tokens_per_forward and receipt.drafters:
        parts.append(f"{receipt.tokens_per_forward:.2f} tokens per forward pass")
    if receipt.speedup and receipt.drafters and receipt.plain_measured:
        parts.append(f"{receipt.speedup:.2f}x of plain decoding")
    parts.append(receipt.guarantee)
    return " · ".join(parts)


def receipt_rows(receipt: Receipt, profile: str) -> list[tuple[str, str]]:
    """Return all statistics, for --stats."""
    speed, first = _number(receipt.tokens_per_second, ".1f"), _number(receipt.first_token_seconds, ".3f")
    each = _number(receipt.tokens_per_forward, ".2f")
    rows = [
        (
            "tokens",
            f"{receipt.tokens} generated after {_prompt(receipt)}; finish reason: {receipt.finish_reason}",
        ),
        ("speed", f"{speed} tokens/s, first token after {first} s"),
        ("passes", f"{receipt.target_forwards} forward passes of the model, {each} tokens each"),
    ]
    for origin, t in receipt.drafters.items():
        share = _number(t.acceptance, ".0%")
        counts = f"{t.drafted} drafted, {t.submitted} verified, {t.accepted} accepted ({share}), {t.seconds:.3f} s"
        rows.append((NAMES[origin], counts if t.accepted or origin != "draft" else f"{counts}: nothing useful"))
    if receipt.tree_forwards:
        nodes, tokens = receipt.tree_candidates / receipt.tree_forwards, receipt.tree_tokens / receipt.tree_forwards
        rows.append(
            (
                "trees",
                f"{receipt.tree_forwards} passes verified a tree of {nodes:.1f} candidates, {tokens:.2f} tokens each",
            )
        )
    if receipt.idle:
        rows.append((NAMES["draft"], "not used: at the costs measured so far it wouldn't have saved time"))
    if not receipt.drafters and receipt.sequences <= 1:
        rows.append(("saved", "nothing: no token was drafted, so this is plain decoding"))
    elif receipt.plain_seconds is not None and receipt.plain_measured:
        saved = round(receipt.plain_seconds - (receipt.seconds - receipt.prefill_seconds), 2) + 0.0  # no -0.00
        against = f"plain decoding's {receipt.plain_seconds:.2f} s ({_number(receipt.speedup, '.2f')}x)"
        rows.append(("saved", f"{saved:+.2f} s against {against}, as measured by {receipt.plain_measured}"))
    if receipt.sequences > 1:
        rows.append(
            ("batch", f"{receipt.sequences:.1f} sequences per forward pass on average; times are this sequence's share")
        )
    if receipt.exact is not None:
        rows.append(("exact", _recheck(receipt.exact)))
    return [*rows, ("guarantee", receipt.guarantee), ("profile", profile)]


def _prompt(receipt: Receipt) -> str:
    read = receipt.prompt_tokens - receipt.reused_tokens
    kept = f" ({receipt.reused_tokens} kept from earlier turns, {read} read)" if receipt.reused_tokens else ""
    return f"{receipt.prompt_tokens} of prompt{kept}"


def _recheck(found: RedecodeStats) -> str:
    if not found.bound:
        return "nothing to check: passes over several tokens are bitwise equal"
    times = f"{found.redecoded} plain passes, {found.seconds:.3f} s"
    return f"{found.near_ties} near-ties (closer than {found.bound:.2g} logits) decoded again: {times}"


def _recheck_json(found: RedecodeStats) -> dict[str, Any]:
    return {
        "bound_logits": found.bound,
        "near_ties": found.near_ties,
        "reread_tokens": found.redecoded,
        "seconds": found.seconds,
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def receipt_json(receipt: Receipt, profile: str | None) -> dict[str, Any]:
    """Return the statistics as JSON: seconds, tokens, null for what is unknown."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "reused_tokens": receipt.reused_tokens,
        "tokens": receipt.tokens,
        "seconds": receipt.seconds,
        "prefill_seconds": receipt.prefill_seconds,
        "first_token_seconds": receipt.first_token_seconds,
        "tokens_per_second": receipt.tokens_per_second,
        "target_forwards": receipt.target_forwards,
        "tokens_per_forward": receipt.tokens_per_forward,
        "drafters": {
            origin: {
                "rounds": t.rounds,
                "drafted": t.drafted,
                "submitted": t.submitted,
                "accepted": t.accepted,
                "acceptance": t.acceptance,
                "submitted_by_position": t.submitted_by_position,
                "accepted_by_position": t.accepted_by_position,
                "seconds": t.seconds,
            }
            for origin, t in receipt.drafters.items()
        },
        "trees": {
            "target_forwards": receipt.tree_forwards,
            "candidates": receipt.tree_candidates,
            "tokens": receipt.tree_tokens,
        },
        "draft_model_idle": receipt.idle,
        "guarantee": receipt.guarantee,
        "plain_seconds": receipt.plain_seconds,
        "plain_measured": receipt.plain_measured,
        "speedup": receipt.speedup,
        "exact": None if receipt.exact is None else _recheck_json(receipt.exact),
        "rows": receipt.sequences,
        "profile": profile,
    }
