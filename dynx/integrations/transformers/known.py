"""What the stored profile of a language model says about a loaded one: costs, acceptance, and the drafters worth having.

Drafts are verified whatever a profile says, so it decides about speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, ModelError, NoProfileError
from dynx.integrations import origin
from dynx.runtime.backends.registry import TITLES, TORCH
from dynx.runtime.decision import Decision
from dynx.speculation import acceptance_profile_of, make_plan
from dynx.speculation.engine import AcceptanceProfile
from dynx.speculation.plan import GeneratorRequest

if TYPE_CHECKING:
    from dynx.speculation.plan import GeneratorPlan


@dataclass(frozen=True)
class Known:
    """An acceptance profile for an engine, and which ways of drafting calibration recommended."""

    profile: Decision[str]
    """The profile's id, or "none", and why."""
    acceptance: AcceptanceProfile
    lookup: bool = True
    """Whether drafts from the prompt may be worth trying."""
    trees: bool = False
    """Whether passes that verify trees of candidates were found to gain on PyTorch."""
    candidates: Any = None
    """The likeliest next tokens after single ones, as the profile stores them: what trees begin with."""


def known_of(model: Any, assistant: Any, wanted: str | None) -> Known:
    """Find the profile of a loaded model; `wanted` is an id, "none", or None for whichever fits.

    Raises InvalidInput or NoProfileError where the one that is asked for can't be used.
    """
    if wanted == "none":
        return Known(Decision("none", "not wanted"), AcceptanceProfile())
    name = origin.name_of(model)
    if name is None:
        return Known(Decision("none", "the model wasn't loaded from a folder or the hub"), AcceptanceProfile())
    helper = None if assistant is None else origin.name_of(assistant)
    said: list[str] = []
    request = GeneratorRequest(
        model=name,
        draft=helper or "auto",
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        profile=wanted,
        offline=True,
        trust_remote_code=origin.runs_own_code(model),
    )
    try:
        plan = make_plan(request, warn=said.append)
    except (InvalidInput, NoProfileError):
        if wanted is not None:
            raise
        return Known(Decision("none", "its folder can't be planned for"), AcceptanceProfile())
    except ModelError as e:
        return Known(Decision("none", f"its folder can't be read: {e}"), AcceptanceProfile())
    return _read(plan, said)


def _read(plan: GeneratorPlan, said: list[str]) -> Known:
    """Read a plan's profile; costs of another backend or machine are a prior."""
    profile = plan.profile
    if profile is None:
        return Known(Decision("none", (said or [plan.decisions.profile.reason])[-1]), AcceptanceProfile())
    other = plan.backend != TORCH and not plan.bundled
    acceptance = acceptance_profile_of(profile, warn=said.append, foreign=other or plan.bundled)
    if not (acceptance.from_profile or acceptance.costs.foreign):
        return Known(Decision("none", said[-1] if said else "its contents can't be used"), AcceptanceProfile())
    if plan.of_other_prompts:
        acceptance.rate = None
    reason = plan.decisions.profile.reason
    if other:
        reason += f"; its times are {TITLES.get(plan.backend, plan.backend)}'s, so they are measured anew here"
    if plan.fitted.get("exit_layers"):
        reason += "; the model doesn't draft with its own first layers, which would change its blocks"
    fitted, same = plan.fitted, plan.backend == TORCH and not plan.bundled
    return Known(
        Decision(profile.key.id, reason),
        acceptance,
        bool(fitted.get("lookup", True)),
        same and fitted.get("trees") is True,
        fitted.get("own_candidates"),
    )
