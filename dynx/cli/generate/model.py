"""Builds the model, its drafters and the requests of `dynx generate` from the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.cli.inputs import typed
from dynx.errors import UsageError
from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.plan import GeneratorPlan, GeneratorRequest
    from dynx.speculation.types import Request


def open_model(request: GeneratorRequest, terminal: Terminal, *, put_off: bool = False) -> LoadedGenerator:
    """Plan and load; print the decisions with -v. `put_off`: see `assemble`."""
    from dynx.cli.remedy import telling_the_remedy
    from dynx.speculation import make_plan

    with telling_the_remedy(request):
        plan = make_plan(request, warn=terminal.warn)
        return open_plan(plan, terminal, put_off=put_off)


def open_plan(plan: GeneratorPlan, terminal: Terminal, *, put_off: bool = False) -> LoadedGenerator:
    """Load a plan; print the decisions with -v, and once how to calibrate. `put_off`: see `assemble`."""
    from dynx.cli.remedy import calibrate_command
    from dynx.speculation import assemble

    request = plan.request
    loaded = assemble(plan, stages=terminal.status, warn=terminal.warn, put_off=put_off)
    terminal.startup.mark("first pass")
    terminal.clear_status()
    for name, decision in loaded.decisions.items():
        terminal.detail(f"{name}: {decision.value} ({decision.reason})")
    if plan.profile is None and plan.kinds and request.profile != "none" and terminal.interactive:
        terminal.notice(
            f"no profile for this model, so drafting is conservative; measure one: {calibrate_command(request)}"
        )
    return loaded


def make_request(prompt: str, options: Any, assembly: LoadedGenerator) -> Request:
    """Build token ids and settings for the engine. Raises UsageError without chat template, InputError for a rejected prompt."""
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
            raise InputError(f"{assembly.plan.source.name}'s chat template rejects this prompt: {reason}") from None
        ids = list(encoded["input_ids"])
    else:
        ids = list(tokenizer(prompt)["input_ids"])
    given = (options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed)
    return Request(
        prompt=ids,
        max_new_tokens=options.max_new_tokens,
        sampling=assembly.sampling(*given),
        eos=assembly.end_tokens,
        stop=(*stop, *assembly.settings.stop),
        continues=not chat,
    )
