"""`dynx generate`: continues prompts and prints the text as it is generated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.generate.answers import answer
from dynx.cli.generate.model import open_model
from dynx.cli.generate.output import Document, JsonLines, Printer, Text, explain
from dynx.cli.generate.stats import NAMES
from dynx.cli.generate.verify import check
from dynx.cli.inputs import BadLine, NoInputError, each_line, read_prompt, refuse_dash, typed
from dynx.cli.remedy import telling_the_remedy
from dynx.cli.stdin import Arrivals, rows_asked
from dynx.errors import DynxError, UsageError
from dynx.speculation.types import MIN_SAMPLING_TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.options.generate import Options
    from dynx.runtime.decision import Decision
    from dynx.speculation.plan import GeneratorPlan


def run(options: Options) -> None:
    """Read prompts, load the engine once, write the answers in order."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.exact and options.temperature >= MIN_SAMPLING_TEMPERATURE:
        raise UsageError(
            "--exact is for greedy decoding only",
            hint="sampling already has the distribution of plain decoding; leave out --exact or --temperature",
        )
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
    prompts, arrivals = read_prompts(options, terminal)
    failed = 0
    assembly = open_model(options.request(), terminal, put_off=True)
    mode = JsonLines if options.jsonl else Document if options.json else Text
    printer: Printer = mode(terminal, options)
    try:  # whatever ends it early, Ctrl-C or an error, what was written by then is kept
        if arrivals is not None:
            from dynx.cli.generate.batch_mode import Lines

            failed = Lines(prompts, arrivals, options, assembly, printer, terminal).answer_all()
        else:
            answer(0, str(next(prompts)), options, assembly, printer)
    finally:
        printer.close()
    if options.explain:
        explain(assembly)
    if options.verify:
        check(printer.verified)
    if failed:
        raise DynxError(f"{failed} prompt{' has' if failed == 1 else 's have'} no answer")


def read_prompts(options: Options, terminal: Terminal) -> tuple[Iterator[str | BadLine], Arrivals | None]:
    """Return the prompts, and with --lines which have arrived. Raises UsageError before a model is loaded if there is none."""
    arguments = [typed(text, "PROMPT") for text in options.prompt or []]
    if options.lines:
        if options.no_stdin:
            raise UsageError("--lines reads stdin, which --no-stdin forbids")
        rows_asked(options.batch)
        arrivals = Arrivals(sys.stdin.buffer)
        refuse_dash(arguments)
        return _ahead(_with(each_line(arrivals), " ".join(arguments))), arrivals
    if options.batch != "auto":
        raise UsageError("--batch requires --lines")
    prompt = read_prompt(arguments, sys.stdin.buffer, never=options.no_stdin, say=terminal.notice)
    if prompt is None:
        raise NoInputError("no prompt", hint='for example: dynx generate "Once upon a time"')
    return iter([prompt]), None


def _with(lines: Iterator[str | BadLine], after: str) -> Iterator[str | BadLine]:
    """Yield each line with the argument after it."""
    for line in lines:
        yield line if isinstance(line, BadLine) or not after else f"{line}\n{after}"


def _ahead(prompts: Iterator[str | BadLine]) -> Iterator[str | BadLine]:
    first = next(prompts)

    def all_of_them() -> Iterator[str | BadLine]:
        yield first
        yield from prompts

    return all_of_them()


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
