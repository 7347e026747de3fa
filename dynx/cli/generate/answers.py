"""Continues one prompt of `dynx generate`: starts it, prints the text as it is generated, and verifies it with --verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.generate.model import make_request
from dynx.cli.generate.verify import verify_answer

if TYPE_CHECKING:
    from dynx.cli.generate.output import Printer
    from dynx.cli.options.generate import Options
    from dynx.cli.prompts import Prompt
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.run import Run


def answer(index: int, prompt: Prompt, options: Options, assembly: LoadedGenerator, printer: Printer) -> Run:
    """Continue one prompt. Raises InputError where it can't be."""
    run_ = assembly.engine.start(make_request(prompt, options, assembly))
    show(index, prompt, run_, options, assembly, printer)
    return run_


def show(index: int, prompt: Prompt, run_: Run, options: Options, assembly: LoadedGenerator, printer: Printer) -> None:
    """Print an answer as it is generated."""
    pieces: list[str] = []
    try:
        for token in run_:
            printer.first()
            pieces.append(token.text)
            printer.token(index, token)
        if options.verify:
            printer.verified.append(verify_answer(run_, assembly))
    finally:
        printer.result(index, prompt, "".join(pieces), run_, assembly)
        printer.aside(run_, assembly)
