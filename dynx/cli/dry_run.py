"""`--dry-run`: prints the decisions of a command with value, reason and origin, without loading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.cli.origins import origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.console import Terminal
    from dynx.runtime.decision import Decision
    from dynx.schemas.documents.fields import Task


def print_plan(command: Task, plan: Any, options: Any, terminal: Terminal) -> None:
    """Print a line per decision to stdout, or one JSON document."""
    decisions: dict[str, Decision[Any]] = {**dict(plan.decisions.items()), **dict(_dynamic(command, plan, options))}
    where = {knob: origin(knob) for knob in decisions}
    if options.json or options.jsonl:
        from dynx.schemas.documents.fields import as_document
        from dynx.schemas.documents.plan import Plan, PlannedDecision

        document = Plan(
            command=command,
            model=plan.source.name,
            profile=plan.profile_id,
            decisions={
                knob: PlannedDecision(value=d.value, reason=d.reason, origin=where[knob])
                for knob, d in decisions.items()
            },
        )
        terminal.document(as_document(document))
        return
    label = max(len(knob) for knob in decisions)
    rows = []
    for knob, d in decisions.items():
        said = f"; {where[knob]}" if where[knob] not in ("decided", "default") else ""
        rows.append(f"{knob:<{label}}  {d.value} ({d.reason}{said})\n")
    terminal.write("".join(rows))


def _dynamic(command: str, plan: Any, options: Any) -> Iterator[tuple[str, Decision[Any]]]:
    """Yield the decisions that depend on loading, as far as they are known."""
    from dynx.cli.generate.stats import NAMES
    from dynx.runtime.decision import Decision

    if command == "generate":
        wanted = [NAMES[kind] for kind in ("draft", "self", "lookup") if kind in plan.kinds]
        why = "asked for" if not plan.auto else "weighed each round"
        yield "draft", Decision(", ".join(wanted) or "none", why if wanted else "plain decoding was asked for")
        if options.exact:
            known = plan.profile is not None and plan.profile.measured.get("noise")
            how = "known from the profile" if known else "measured on loading"
            yield "exact", Decision("yes", f"rounding is {how}")
        return
    knob = "exits" if command == "classify" else "steps"
    if getattr(plan.decisions, knob) is not None:
        return
    if options.plain:
        yield knob, Decision("none" if knob == "exits" else "plain", "plain execution was asked for")
    elif command == "draw" and options.steps != "auto":
        yield knob, Decision(options.steps, "asked for")
    elif plan.profile is None:
        yield knob, Decision("none" if knob == "exits" else "plain", "no profile")
    else:
        yield knob, Decision("as certified", f"profile {plan.profile.key.id}, if it holds what was promised")
