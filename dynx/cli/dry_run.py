"""`--dry-run`: prints the decisions of a command with value, reason and origin, without loading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.cli.origins import origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.cli.console import Terminal
    from dynx.runtime.decision import Decision
    from dynx.runtime.profile import Profile
    from dynx.schemas.documents.fields import Task


def print_plan(
    command: Task, plan: Any, options: Any, terminal: Terminal, on_loading: Mapping[str, Decision[Any]]
) -> None:
    """Print a line per decision to stdout, or one JSON document; `on_loading` are decisions that depend on loading."""
    decisions: dict[str, Decision[Any]] = {**dict(plan.decisions.items()), **on_loading}
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


def chosen_from_profile(plain: str, options: Any, profile: Profile | None) -> Decision[Any]:
    """Return the decision that a certified profile sets on loading; `plain` is its value without dynamic execution."""
    from dynx.runtime.decision import Decision

    if options.plain:
        return Decision(plain, "plain execution was asked for")
    if profile is None:
        return Decision(plain, "no profile")
    return Decision("as certified", f"profile {profile.key.id}, if it holds what was promised")
