"""Builds the model, its drafters and the requests of `dynx generate` from the options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.inputs import typed

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.cli.options.generate import Options
    from dynx.cli.prompts import Prompt
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.plan import GeneratorPlan, GeneratorRequest
    from dynx.speculation.types import Request


def open_model(
    request: GeneratorRequest, terminal: Terminal, *, put_off: bool = False, sampling: bool = False
) -> LoadedGenerator:
    """Plan and load; print the decisions with -v. `put_off`, `sampling`: see `assemble`."""
    from dynx.cli.remedy import telling_the_remedy
    from dynx.speculation import make_plan

    with telling_the_remedy(request):
        plan = make_plan(request, warn=terminal.warn)
        return open_plan(plan, terminal, put_off=put_off, sampling=sampling)


def open_plan(
    plan: GeneratorPlan, terminal: Terminal, *, put_off: bool = False, sampling: bool = False
) -> LoadedGenerator:
    """Load a plan; print the decisions with -v, and once how to calibrate. `put_off`, `sampling`: see `assemble`."""
    from dynx.cli.remedy import calibrate_command
    from dynx.speculation import assemble

    request = plan.request
    loaded = assemble(plan, stages=terminal.status, warn=terminal.warn, put_off=put_off, sampling=sampling)
    terminal.startup.mark("first pass")
    terminal.clear_status()
    for name, decision in loaded.decisions.items():
        terminal.detail(f"{name}: {decision.value} ({decision.reason})")
    if plan.profile is None and plan.kinds and request.profile != "none" and terminal.interactive:
        terminal.notice(
            f"no profile for this model, so drafting is conservative; measure one: {calibrate_command(request)}"
        )
    return loaded


def hint_template(assembly: LoadedGenerator, terminal: Terminal) -> None:
    """Tell a person whose prompts run as plain texts that the model has a chat template."""
    from dynx.speculation.chat import has_template

    plan = assembly.plan
    if terminal.interactive and not plan.request.chat and has_template(assembly.tokenizer):
        terminal.notice(f"{plan.source.name} has a chat template; `chat` applies it")


def make_request(prompt: Prompt, options: Options, assembly: LoadedGenerator) -> Request:
    """Build token ids and settings for the engine. Raises UsageError without chat template, InputError for a rejected prompt."""
    from dynx.speculation.chat import encode
    from dynx.speculation.types import Request

    stop = tuple(typed(text, "--stop") for text in options.stop or ())
    ids, continues = encode(
        assembly.tokenizer,
        prompt.content,
        chat=options.chat,
        system=None if options.system is None else typed(options.system, "--system"),
        model=assembly.plan.source.name,
    )
    given = (options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed)
    return Request(
        prompt=ids,
        max_new_tokens=options.max_new_tokens,
        sampling=assembly.sampling(*given),
        eos=assembly.end_tokens,
        stop=(*stop, *assembly.settings.stop),
        continues=continues,
    )
