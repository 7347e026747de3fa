"""The model, its drafters and the requests of `dynx generate`, from what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.inputs import typed
from dynx.errors import UsageError

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.speculation.setup import Assembly, Wish
    from dynx.speculation.types import Request


def wish_of(options: Any, *, plain: bool | None = None) -> Wish:
    """The command line as the model's side takes it; for any command that has the common model options."""
    from dynx.speculation.setup import Wish

    lookup = getattr(options, "lookup", None)
    return Wish(
        model=options.model,
        draft=options.draft,
        lookup=Path(lookup) if lookup else None,
        device=options.device,
        dtype=str(options.dtype),
        threads=options.threads,
        backend=str(options.backend),
        quantize=str(options.quantize),
        profile=getattr(options, "profile", None),
        require_profile=getattr(options, "require_profile", False),
        allow_pickle=options.allow_pickle,
        offline=options.offline,
        plain=getattr(options, "plain", False) if plain is None else plain,
        exact=getattr(options, "exact", False),
    )


def open_assembly(options: Any, terminal: Terminal, *, plain: bool | None = None) -> Assembly:
    """Plan and load for any command that has the common model options; says the choices with -v and hints once."""
    from dynx.speculation.setup import assemble, calibrate_command, make_plan

    wish = wish_of(options, plain=plain)
    plan = make_plan(wish, warn=terminal.warn)
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn)
    terminal.startup.mark("first pass")
    terminal.clear_status()
    for knob, decision in assembly.decisions.items():
        terminal.detail(f"{knob}: {decision.value} ({decision.reason})")
    if plan.profile is None and plan.kinds and wish.profile != "none" and terminal.interactive:
        terminal.notice(
            f"no profile for this model, so drafting is conservative; measure one: {calibrate_command(wish)}"
        )
    return assembly


def make_request(prompt: str, options: Any, assembly: Assembly) -> Request:
    """Token ids and settings for the engine. Raises UsageError for a chat without template."""
    from dynx.speculation.types import Request, Sampling

    tokenizer = assembly.tokenizer
    stop = tuple(typed(text, "--stop") for text in options.stop or ())
    system = None if options.system is None else typed(options.system, "--system")
    if options.chat or system is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(f"{assembly.plan.source.name} has no chat template", hint="leave out --chat and --system")
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        try:
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except Exception as e:  # noqa: BLE001 - a template is a program of the model's author
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise UsageError(f"{assembly.plan.source.name}'s chat template rejects this prompt: {reason}") from None
        ids = list(encoded["input_ids"])
    else:
        ids = list(tokenizer(prompt)["input_ids"])
    penalty = assembly.repetition_penalty if options.repetition_penalty is None else options.repetition_penalty
    return Request(
        prompt=ids,
        max_new_tokens=options.max_new_tokens,
        sampling=Sampling(options.temperature, options.top_k, options.top_p, penalty, options.seed),
        eos=assembly.end_tokens,
        stop=stop,
    )
