"""`dynx generate`: continues prompts and prints the text as it is generated."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.generate.answers import answer
from dynx.cli.generate.conversation import can_converse, converse
from dynx.cli.generate.model import hint_template, open_model
from dynx.cli.generate.output import Document, JsonLines, Printer, Text, explain
from dynx.cli.generate.stats import NAMES
from dynx.cli.generate.verify import check
from dynx.cli.inputs import NoInputError, read_prompt, refuse_dash, typed
from dynx.cli.jobs import is_job, run_job
from dynx.cli.prompts import Prompt, each_prompt, is_chat, read_conversation
from dynx.cli.remedy import telling_the_remedy
from dynx.cli.stdin import Arrivals, rows_asked
from dynx.errors import DynxError, UsageError
from dynx.speculation.types import MIN_SAMPLING_TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.options.generate import Options
    from dynx.cli.prompts import BadPrompt
    from dynx.runtime.decision import Decision
    from dynx.speculation.plan import GeneratorPlan


NOT_IN_JOBS = ("prompt", "messages", "lines", "json", "stats", "explain", "verify")
"""Options that don't go with --input."""


def run(options: Options) -> None:
    """Read prompts, load the engine once, write the answers in order."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.exact and options.temperature >= MIN_SAMPLING_TEMPERATURE:
        raise UsageError(
            "--exact is for greedy decoding only",
            hint="sampling already has the distribution of plain decoding; leave out --exact or --temperature",
        )
    if is_job(options, only=("output", "column"), never=NOT_IN_JOBS) and not options.dry_run:
        work_off(options)
        return
    terminal = Terminal(
        quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json or options.jsonl
    )
    if options.dry_run:
        from dynx.cli.dry_run import print_plan
        from dynx.speculation import make_plan

        request = options.request()
        with telling_the_remedy(request):
            plan = make_plan(request, warn=terminal.warn)
        print_plan("generate", plan, options, terminal, _on_loading(plan, options))
        return
    if can_converse(options):
        converse(options, terminal)
        return
    prompts, arrivals = read_prompts(options, terminal)
    first = next(prompts)
    request = replace(options.request(), chat=is_chat([first], chat=options.chat, system=options.system))
    failed = 0
    assembly = open_model(request, terminal, put_off=True, sampling=options.temperature >= MIN_SAMPLING_TEMPERATURE)
    hint_template(assembly, terminal)
    mode = JsonLines if options.jsonl else Document if options.json else Text
    printer: Printer = mode(terminal, options)
    try:  # whatever ends it early, Ctrl-C or an error, what was written by then is kept
        if arrivals is not None:
            from dynx.cli.generate.batch_mode import Lines

            failed = Lines(chain([first], prompts), arrivals, options, assembly, printer, terminal).answer_all()
        else:
            if not isinstance(first, Prompt):
                raise first.error
            answer(0, first, options, assembly, printer)
    finally:
        printer.close()
    if options.explain:
        explain(assembly)
    if options.verify:
        check(printer.verified)
    if failed:
        raise DynxError(f"{failed} prompt{' has' if failed == 1 else 's have'} no answer")


def work_off(options: Options) -> None:
    """Answer the rows of files as a job. Raises DynxError."""
    from dynx.jobs.functions import Generate

    decoding = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "repetition_penalty": options.repetition_penalty,
        "stop": [typed(text, "--stop") for text in options.stop or ()],
        "chat": options.chat,
        "system": None if options.system is None else typed(options.system, "--system"),
    }
    request = options.request()
    function = Generate(**vars(request), batch=rows_asked(options.batch), seed=options.seed, decoding=decoding)
    run_job(options, function, request, {**decoding, "chat": request.chat, "seed": options.seed})


def read_prompts(options: Options, terminal: Terminal) -> tuple[Iterator[Prompt | BadPrompt], Arrivals | None]:
    """Return the prompts, and with --lines which have arrived. Raises UsageError before a model is loaded if there is none."""
    arguments = [typed(text, "PROMPT") for text in options.prompt or []]
    if options.lines:
        if options.no_stdin:
            raise UsageError("--lines reads stdin, which --no-stdin forbids")
        if options.messages is not None:
            raise UsageError(
                "--lines and --messages exclude each other", hint="a conversation per line: --lines --field messages"
            )
        rows_asked(options.batch)
        arrivals = Arrivals(sys.stdin.buffer)
        refuse_dash(arguments)
        return _with(each_prompt(arrivals, options.field), " ".join(arguments)), arrivals
    if options.batch != "auto":
        raise UsageError("--batch requires --lines")
    if options.field is not None:
        raise UsageError("--field requires --lines")
    if options.messages is not None:
        return iter([_conversation(options, arguments, terminal)]), None
    prompt = read_prompt(arguments, sys.stdin.buffer, never=options.no_stdin, say=terminal.notice)
    if prompt is None:
        raise NoInputError("no prompt", hint='for example: dynx generate "Once upon a time"')
    return iter([Prompt(prompt)]), None


def _conversation(options: Options, arguments: list[str], terminal: Terminal) -> Prompt:
    """Return the conversation of --messages, with PROMPT as the user's next message. Raises UsageError."""
    path = options.messages or "-"
    if path == "-" and options.no_stdin:
        raise UsageError("--messages - reads stdin, which --no-stdin forbids")
    if path == "-" and "-" in arguments:
        raise UsageError("- can be given only once")
    found = read_conversation(path, sys.stdin.buffer)
    if not arguments:
        return found
    never = options.no_stdin or path == "-"
    return found.followed_by(read_prompt(arguments, sys.stdin.buffer, never=never, say=terminal.notice) or "")


def _with(prompts: Iterator[Prompt | BadPrompt], after: str) -> Iterator[Prompt | BadPrompt]:
    """Yield each prompt with the argument after it."""
    for prompt in prompts:
        yield prompt.followed_by(after) if isinstance(prompt, Prompt) else prompt


def _on_loading(plan: GeneratorPlan, options: Options) -> dict[str, Decision[Any]]:
    """Say what is known beforehand of drafting, which loading settles."""
    from dynx.runtime.decision import Decision

    wanted = [NAMES[kind] for kind in ("draft", "self", "lookup") if kind in plan.kinds]
    why = "asked for" if not plan.auto else "weighed each round"
    known = {"draft": Decision[Any](", ".join(wanted) or "none", why if wanted else "plain decoding was asked for")}
    if options.exact:
        noise = plan.profile is not None and plan.profile.measured.get("noise")
        known["exact"] = Decision("yes", f"rounding is {'known from the profile' if noise else 'measured on loading'}")
    return known
