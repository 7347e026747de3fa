"""The model, its drafters and the requests of `dynx generate`, from what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.inputs import typed
from dynx.errors import UsageError
from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.speculation.setup import Assembly, Plan, Wish
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
        trust_remote_code=options.trust_remote_code,
        offline=options.offline,
        plain=getattr(options, "plain", False) if plain is None else plain,
        exact=getattr(options, "exact", False),
    )


def open_assembly(options: Any, terminal: Terminal, *, plain: bool | None = None, put_off: bool = False) -> Assembly:
    """Plan and load for any command that has the common model options.

    `put_off`: see `assemble`.
    """
    from dynx.speculation.setup import make_plan

    return open_plan(make_plan(wish_of(options, plain=plain), warn=terminal.warn), terminal, put_off=put_off)


def open_plan(plan: Plan, terminal: Terminal, *, put_off: bool = False) -> Assembly:
    """Load the model; says the choices with -v and hints once at calibration.

    `put_off`: see `assemble`.
    """
    from dynx.speculation.setup import assemble, calibrate_command

    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, put_off=put_off)
    terminal.startup.mark("first pass")
    terminal.clear_status()
    for knob, decision in assembly.decisions.items():
        terminal.detail(f"{knob}: {decision.value} ({decision.reason})")
    if plan.profile_id is None and plan.kinds and plan.wish.profile != "none" and terminal.interactive:
        terminal.notice(
            f"no profile yet, so guesses are tried with small stakes; measure one: {calibrate_command(plan.wish)}"
        )
    return assembly


def make_request(prompt: str, options: Any, assembly: Assembly) -> Request:
    """Token ids and settings for the engine. Raises UsageError for a chat without template, InputError where it refuses."""
    from dynx.speculation.types import Request

    tokenizer = assembly.tokenizer
    stop = tuple(typed(text, "--stop") for text in options.stop or ())
    system = None if options.system is None else typed(options.system, "--system")
    chat = options.chat or system is not None
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(f"{assembly.plan.source.name} has no chat template", hint="leave out --chat and --system")
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        try:
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except Exception as e:  # noqa: BLE001 - a template is a program of the model's author
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise InputError(f"{assembly.plan.source.name}'s chat template refuses this: {reason}") from None
        ids = list(encoded["input_ids"])
    else:
        ids = list(tokenizer(prompt)["input_ids"])
    given = (options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed)
    return Request(
        prompt=ids,
        max_new_tokens=options.max_new_tokens,
        sampling=assembly.sampling(*given),
        eos=assembly.end_tokens,
        stop=(*stop, *assembly.own.stop),
        continues=not chat,
    )
