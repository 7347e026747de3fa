"""`dynx generate`: prompts in, text out as it is written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dynx.cli.console import Terminal
from dynx.cli.generate.answers import answer
from dynx.cli.generate.model import open_assembly, wish_of
from dynx.cli.generate.output import Document, JsonLines, Printer, Text, explain
from dynx.cli.generate.verify import check
from dynx.cli.inputs import NoInputError, read_lines, read_prompt, typed
from dynx.cli.stdin import Arrivals, rows_asked
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.generate.options import Options


def run(options: Options) -> None:
    """Read prompts, open the engine once, write the answers in order."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.exact and options.temperature > 0:
        raise UsageError(
            "--exact is for greedy decoding only",
            hint="sampling already has the distribution of plain decoding; leave out --exact or --temperature",
        )
    terminal = Terminal(
        quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json or options.jsonl
    )
    if options.dry_run:
        from dynx.cli.dry_run import print_plan
        from dynx.speculation.setup import make_plan

        print_plan("generate", make_plan(wish_of(options), warn=terminal.warn), options, terminal)
        return
    prompts, arrivals = read_prompts(options, terminal)
    assembly = open_assembly(options, terminal)
    mode = JsonLines if options.jsonl else Document if options.json else Text
    printer: Printer = mode(terminal, options)
    try:  # whatever ends it early, Ctrl-C or an error, what was written by then is kept
        if arrivals is not None:
            from dynx.cli.generate.batch_mode import Lines

            Lines(prompts, arrivals, options, assembly, printer, terminal).answer_all()
        else:
            answer(0, next(prompts), options, assembly, printer)
    finally:
        printer.close()
    if options.explain:
        explain(assembly)
    if options.verify:
        check(printer.verified)


def read_prompts(options: Options, terminal: Terminal) -> tuple[Iterator[str], Arrivals | None]:
    """The prompts to continue, and with --lines which are there. Raises UsageError before any model is loaded if none is."""
    arguments = [typed(text, "PROMPT") for text in options.prompt or []]
    if options.lines:
        if options.no_stdin:
            raise UsageError("--lines reads stdin, which --no-stdin forbids")
        rows_asked(options.batch)
        arrivals = Arrivals(sys.stdin.buffer)
        return _ahead(read_lines(arguments, arrivals)), arrivals
    if options.batch != "auto":
        raise UsageError("--batch requires --lines")
    prompt = read_prompt(arguments, sys.stdin.buffer, never=options.no_stdin, say=terminal.notice)
    if prompt is None:
        raise NoInputError("no prompt", hint='for example: dynx generate "Once upon a time"')
    return iter([prompt]), None


def _ahead(prompts: Iterator[str]) -> Iterator[str]:
    first = next(prompts)

    def all_of_them() -> Iterator[str]:
        yield first
        yield from prompts

    return all_of_them()
