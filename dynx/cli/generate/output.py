"""Prints the answers of `dynx generate`: as text, one JSON document, or JSON lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dynx.cli.flags import in_flags
from dynx.cli.generate.stats import NAMES, SHADES, receipt_json, receipt_line, receipt_rows
from dynx.cli.generate.verify import verification_json, words
from dynx.cli.prompts import Prompt

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.cli.options.generate import Options
    from dynx.cli.prompts import BadPrompt
    from dynx.errors import DynxError
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.equivalence import Verification
    from dynx.speculation.run import Run
    from dynx.speculation.types import DraftSource, Token


SCHEMA = "dynx.generate/1"


class Printer:
    """Prints one command's events; the subclasses are its output modes."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        self._terminal, self._options = terminal, options
        self.verified: list[Verification] = []
        """Result of --verify for each answer so far."""

    def first(self) -> None:
        """Mark that output is about to begin."""
        self._terminal.first("first token")

    def token(self, index: int, token: Token) -> None:
        """Print a piece of answer `index`."""

    def result(self, index: int, prompt: Prompt, text: str, run: Run, assembly: LoadedGenerator) -> None:
        """Print the end of answer `index`, complete or cut short."""

    def failure(self, index: int, prompt: Prompt | BadPrompt, error: DynxError, assembly: LoadedGenerator) -> None:
        """Print the failure of prompt `index` of --lines."""

    def verification(self, run: Run, assembly: LoadedGenerator) -> dict[str, Any]:
        """Return the result of --verify for the latest answer, for JSON; null for one cut short."""
        if not self._options.verify:
            return {}
        done = run.receipt().finish_reason != "interrupted"
        return {"verification": verification_json(self.verified[-1], assembly, run) if done else None}

    def aside(self, run: Run, assembly: LoadedGenerator) -> None:
        """Print to stderr in every mode: why an answer ended early, and with --stats what it cost."""
        terminal, receipt = self._terminal, run.receipt()
        if receipt.finish_reason == "context":
            limit = assembly.engine.target.context
            terminal.warn(f"the model's context of {limit} tokens is full; the text ends there")
        if self._options.stats:
            rows = receipt_rows(receipt, assembly.plan.profile_id or "none")
            width = max(len(label) for label, _ in rows)
            sys.stderr.write("".join(f"{label:<{width}}  {value}\n" for label, value in rows))
        elif terminal.interactive and sys.stdout.isatty():
            terminal.notice(receipt_line(receipt))
        if self._options.verify and receipt.finish_reason != "interrupted":
            terminal.notice(words(self.verified[-1], assembly, run))

    def close(self) -> None:
        """Finish the output."""


class Text(Printer):
    """Prints only the answer; with --lines one line each, line breaks inside written as \\n."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        super().__init__(terminal, options)
        self._shade = options.explain and terminal.out_color
        self._last = ""
        self._origins: set[DraftSource] = set()

    def token(self, index: int, token: Token) -> None:
        """Print its text, shaded by draft source with --explain."""
        if not token.text:
            return
        self._origins.add(token.origin)
        text = token.text.replace("\\", "\\\\").replace("\n", "\\n") if self._options.lines else token.text
        self._last = text[-1]
        self._terminal.write(f"{SHADES[token.origin]}{text}\x1b[0m" if self._shade and SHADES[token.origin] else text)

    def result(self, index: int, prompt: Prompt, text: str, run: Run, assembly: LoadedGenerator) -> None:
        """End the line; with --explain, print the share of each draft source."""
        if self._last != "\n":
            self._terminal.write("\n")
        self._last = ""
        if self._shade and self._origins:
            seen = [o for o in SHADES if o in self._origins]
            legend = [
                f"{SHADES[o]}{NAMES[o]}\x1b[0m" if SHADES[o] and self._terminal.err_color else NAMES[o] for o in seen
            ]
            sys.stderr.write(f"draft source: {', '.join(legend)}\n")

    def failure(self, index: int, prompt: Prompt | BadPrompt, error: DynxError, assembly: LoadedGenerator) -> None:
        """Print an empty line in its place, so that lines can be counted; the reason goes to stderr."""
        self._terminal.write("\n")
        where = f"prompt {index + 1}" if prompt.line is None else f"line {prompt.line}"
        self._terminal.warn(f"{where}: {error}")


class Document(Printer):
    """Prints one JSON document at the end: the result, or with --lines a list of them."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        super().__init__(terminal, options)
        self._results: list[dict[str, Any]] = []

    def result(self, index: int, prompt: Prompt, text: str, run: Run, assembly: LoadedGenerator) -> None:
        """Keep the result."""
        body = result_json(index, prompt, text, run, assembly)
        self._results.append(body | self.verification(run, assembly))

    def failure(self, index: int, prompt: Prompt | BadPrompt, error: DynxError, assembly: LoadedGenerator) -> None:
        """Keep the error."""
        self._results.append(failure_json(index, prompt, error, assembly))

    def close(self) -> None:
        """Print the document."""
        if self._results:
            body: dict[str, Any] = {"results": self._results} if self._options.lines else self._results[0]
            self._terminal.document({"schema": SCHEMA, **body})


class JsonLines(Printer):
    """Prints one JSON line per event."""

    def _write(self, event: str, body: dict[str, Any]) -> None:
        self._terminal.document({"schema": SCHEMA, "event": event, **body})

    def token(self, index: int, token: Token) -> None:
        """Print an event; its id is null for text that was only held back."""
        self._write(
            "token",
            {"index": index, "id": token.id if token.id >= 0 else None, "text": token.text, "origin": token.origin},
        )

    def result(self, index: int, prompt: Prompt, text: str, run: Run, assembly: LoadedGenerator) -> None:
        """Print the whole answer."""
        self._write("result", result_json(index, prompt, text, run, assembly) | self.verification(run, assembly))

    def failure(self, index: int, prompt: Prompt | BadPrompt, error: DynxError, assembly: LoadedGenerator) -> None:
        """Print the error as an event."""
        self._write("error", failure_json(index, prompt, error, assembly))


def failure_json(index: int, prompt: Prompt | BadPrompt, error: DynxError, assembly: LoadedGenerator) -> dict[str, Any]:
    """Return the JSON that takes the place of an answer."""
    line = {} if prompt.line is None else {"line": prompt.line}
    body = {"index": index, "model": assembly.plan.source.name, **prompt_json(prompt)}
    return {**body, **line, "error": in_flags(str(error))}


def prompt_json(prompt: Prompt | BadPrompt) -> dict[str, Any]:
    """Return a prompt for JSON: its text or messages, and the caller's object as `original`, beside dynx's own keys."""
    body: dict[str, Any] = {"prompt": prompt.text}
    if isinstance(prompt, Prompt) and prompt.messages is not None:
        body["messages"] = list(prompt.messages)
    if prompt.fields is not None:
        body["original"] = prompt.fields
    return body


def result_json(index: int, prompt: Prompt, text: str, run: Run, assembly: LoadedGenerator) -> dict[str, Any]:
    """Return one answer with everything known about it, for JSON."""
    receipt, plan = run.receipt(), assembly.plan
    return {
        "index": index,
        "model": plan.source.name,
        **prompt_json(prompt),
        "text": text,
        "token_ids": run.tokens,
        "finish_reason": receipt.finish_reason,
        "seed": run.request.sampling.seed,
        "receipt": receipt_json(receipt, plan.profile_id),
        "decisions": assembly.decisions.to_json(),
    }


def explain(assembly: LoadedGenerator) -> None:
    """Print the reason of each decision."""
    rows = list(assembly.decisions.items())
    width = max(len(knob) for knob, _ in rows)
    sys.stderr.write("".join(f"{knob:<{width}}  {d.value} ({d.reason})\n" for knob, d in rows))
