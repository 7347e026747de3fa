"""`dynx generate`: prompts in, text out as it is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.generate.stats import NAMES, SHADES, receipt_json, receipt_line, receipt_rows
from dynx.cli.inputs import read_lines, read_prompt, typed
from dynx.cli.stdin import Arrivals, rows_asked
from dynx.cli.verify import check, verification_json, verify_answer, words
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynx.cli.options import Backend, Color, Dtype, Quantize
    from dynx.speculation.engine import Run
    from dynx.speculation.equivalence import Verification
    from dynx.speculation.setup import Assembly, Wish
    from dynx.speculation.types import Origin, Request, Token

SCHEMA = "dynx.generate/1"


@dataclass(frozen=True)
class Options:
    """The command line of `dynx generate`, by parameter name."""

    prompt: list[str] | None
    model: str
    draft: str
    lookup: str | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float | None
    seed: int | None
    stop: list[str] | None
    chat: bool
    system: str | None
    lines: bool
    batch: str
    no_stdin: bool
    json: bool
    jsonl: bool
    stats: bool
    explain: bool
    plain: bool
    verify: bool
    exact: bool
    dry_run: bool
    device: str
    dtype: Dtype
    threads: int | None
    backend: Backend
    quantize: Quantize
    profile: str | None
    require_profile: bool
    allow_pickle: bool
    offline: bool
    quiet: int
    verbose: int
    color: Color


def run(options: Options) -> None:
    """Read prompts, open the engine once, write the answers in order."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.exact and options.temperature > 0:
        raise UsageError(
            "--exact is for greedy decoding: there rounding can decide a token",
            hint="a sampled text has plain decoding's distribution as it is; leave out --exact or --temperature",
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
    assembly = open_assembly(options, terminal, put_off=True)
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


def answer(index: int, prompt: str, options: Options, assembly: Assembly, printer: Printer) -> Run:
    """Continue one prompt."""
    try:
        run_ = assembly.engine.start(make_request(prompt, options, assembly))
    except UsageError as e:
        if not options.lines:
            raise
        raise UsageError(f"prompt {index + 1}: {e}", hint=e.hint) from None
    show(index, prompt, run_, options, assembly, printer)
    return run_


def show(index: int, prompt: str, run_: Run, options: Options, assembly: Assembly, printer: Printer) -> None:
    """Print an answer as it is written."""
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


def read_prompts(options: Options, terminal: Terminal) -> tuple[Iterator[str], Arrivals | None]:
    """The prompts to continue, and with --lines which are there. Raises UsageError before any model is loaded if none is."""
    arguments = [typed(text, "PROMPT") for text in options.prompt or []]
    if options.lines:
        if options.no_stdin:
            raise UsageError("--lines reads stdin and --no-stdin forbids it")
        rows_asked(options.batch)
        arrivals = Arrivals(sys.stdin.buffer)
        return _ahead(read_lines(arguments, arrivals)), arrivals
    if options.batch != "auto":
        raise UsageError("--batch goes with --lines")
    prompt = read_prompt(arguments, sys.stdin.buffer, never=options.no_stdin, say=terminal.notice)
    if prompt is None:
        _help()
        raise UsageError("no prompt", hint='for example: dynx generate "Once upon a time"')
    return iter([prompt]), None


def _ahead(prompts: Iterator[str]) -> Iterator[str]:
    first = next(prompts)

    def all_of_them() -> Iterator[str]:
        yield first
        yield from prompts

    return all_of_them()


def _help() -> None:
    """The command's help, on stderr."""
    import typer

    from dynx.cli.app import app

    group: Any = typer.main.get_command(app)
    with group.make_context("dynx", [], resilient_parsing=True) as outer:
        command = group.commands["generate"]
        with command.make_context("generate", [], parent=outer, resilient_parsing=True) as inner:
            sys.stderr.write(command.get_help(inner) + "\n\n")


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


def open_assembly(options: Any, terminal: Terminal, *, plain: bool | None = None, put_off: bool = False) -> Assembly:
    """Plan and load for any command that has the common model options; says the choices with -v and hints once.

    `put_off`: see `assemble`.
    """
    from dynx.speculation.setup import assemble, calibrate_command, make_plan

    wish = wish_of(options, plain=plain)
    plan = make_plan(wish, warn=terminal.warn)
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, put_off=put_off)
    terminal.startup.mark("first pass")
    terminal.clear_status()
    for knob, decision in assembly.decisions.items():
        terminal.detail(f"{knob}: {decision.value} ({decision.reason})")
    if plan.profile_id is None and plan.kinds and wish.profile != "none" and terminal.interactive:
        terminal.notice(
            f"no profile yet, so guesses are tried with small stakes; measure one: {calibrate_command(wish)}"
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
            raise UsageError(f"{assembly.plan.source.name}'s chat template refuses this: {reason}") from None
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


class Printer:
    """Renders one command's events; the subclasses are its output modes."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        self._terminal, self._options = terminal, options
        self.verified: list[Verification] = []
        """What the plain model says of each answer so far, under --verify."""

    def first(self) -> None:
        """Something is about to come."""
        self._terminal.first("first token")

    def token(self, index: int, token: Token) -> None:
        """A piece of answer `index`."""

    def result(self, index: int, prompt: str, text: str, run: Run, assembly: Assembly) -> None:
        """Answer `index` is complete, or cut short."""

    def verification(self, run: Run, assembly: Assembly) -> dict[str, Any]:
        """What JSON says of the latest answer under --verify; null for one cut short."""
        if not self._options.verify:
            return {}
        done = run.receipt().finish_reason != "interrupted"
        return {"verification": verification_json(self.verified[-1], assembly) if done else None}

    def aside(self, run: Run, assembly: Assembly) -> None:
        """On stderr in every mode: why it ended before its time, and what it cost if that was asked for."""
        terminal, receipt = self._terminal, run.receipt()
        if receipt.finish_reason == "context":
            limit = assembly.engine.target.context
            terminal.warn(f"the model's context of {limit} tokens is full; the text is complete up to there")
        if self._options.stats:
            rows = receipt_rows(receipt, assembly.plan.profile_id or "none")
            width = max(len(label) for label, _ in rows)
            sys.stderr.write("".join(f"{label:<{width}}  {value}\n" for label, value in rows))
        elif terminal.interactive and sys.stdout.isatty():
            terminal.notice(receipt_line(receipt))
        if self._options.verify and receipt.finish_reason != "interrupted":
            terminal.notice(words(self.verified[-1], assembly))

    def close(self) -> None:
        """No more answers."""


class Text(Printer):
    """The answer and nothing else; with --lines one line each, line breaks inside written as \\n."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        super().__init__(terminal, options)
        self._shade = options.explain and terminal.out_color
        self._last = ""
        self._origins: set[Origin] = set()

    def token(self, index: int, token: Token) -> None:
        """Write its text, shaded by origin under --explain."""
        if not token.text:
            return
        self._origins.add(token.origin)
        text = token.text.replace("\\", "\\\\").replace("\n", "\\n") if self._options.lines else token.text
        self._last = text[-1]
        self._terminal.write(f"{SHADES[token.origin]}{text}\x1b[0m" if self._shade and SHADES[token.origin] else text)

    def result(self, index: int, prompt: str, text: str, run: Run, assembly: Assembly) -> None:
        """End the line; say who wrote what."""
        if self._last != "\n":
            self._terminal.write("\n")
        self._last = ""
        if self._shade and self._origins:
            seen = [o for o in SHADES if o in self._origins]
            legend = [
                f"{SHADES[o]}{NAMES[o]}\x1b[0m" if SHADES[o] and self._terminal.err_color else NAMES[o] for o in seen
            ]
            sys.stderr.write(f"written by: {', '.join(legend)}\n")


class Document(Printer):
    """One JSON document at the end: the result, or with --lines a list of them."""

    def __init__(self, terminal: Terminal, options: Options) -> None:
        super().__init__(terminal, options)
        self._results: list[dict[str, Any]] = []

    def result(self, index: int, prompt: str, text: str, run: Run, assembly: Assembly) -> None:
        """Keep it."""
        body = result_json(index, prompt, text, run, assembly)
        self._results.append(body | self.verification(run, assembly))

    def close(self) -> None:
        """Write what there is."""
        if self._results:
            body: dict[str, Any] = {"results": self._results} if self._options.lines else self._results[0]
            self._terminal.document({"schema": SCHEMA, **body})


class JsonLines(Printer):
    """One JSON line per event."""

    def _write(self, event: str, body: dict[str, Any]) -> None:
        self._terminal.document({"schema": SCHEMA, "event": event, **body})

    def token(self, index: int, token: Token) -> None:
        """An event of its own; id null for text that was only held back."""
        self._write(
            "token",
            {"index": index, "id": token.id if token.id >= 0 else None, "text": token.text, "origin": token.origin},
        )

    def result(self, index: int, prompt: str, text: str, run: Run, assembly: Assembly) -> None:
        """The answer whole."""
        self._write("result", result_json(index, prompt, text, run, assembly) | self.verification(run, assembly))


def result_json(index: int, prompt: str, text: str, run: Run, assembly: Assembly) -> dict[str, Any]:
    """One answer with everything known about it."""
    receipt, plan = run.receipt(), assembly.plan
    return {
        "index": index,
        "model": plan.source.name,
        "prompt": prompt,
        "text": text,
        "token_ids": run.tokens,
        "finish_reason": receipt.finish_reason,
        "seed": run.request.sampling.seed,
        "receipt": receipt_json(receipt, plan.profile_id),
        "decisions": {k: {"value": d.value, "reason": d.reason} for k, d in assembly.decisions.items()},
    }


def explain(assembly: Assembly) -> None:
    """Why each knob has its value."""
    rows: Iterable[tuple[str, Any]] = assembly.decisions.items()
    width = max(len(knob) for knob in assembly.decisions)
    sys.stderr.write("".join(f"{knob:<{width}}  {d.value} ({d.reason})\n" for knob, d in rows))
