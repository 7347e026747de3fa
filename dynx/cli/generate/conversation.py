"""`dynx generate --chat` on a terminal: a conversation, one message a line, whose cache is kept between turns.

Ctrl-C stops the answer and keeps what was written of it; at the prompt it clears the line. Ctrl-D ends. The cache of a turn is
handed to the next one, so only the new message is read.
"""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.cli.generate.model import make_request, open_model
from dynx.cli.generate.output import Text, explain
from dynx.cli.generate.verify import check, verify_answer
from dynx.cli.inputs import typed
from dynx.cli.prompts import Prompt
from dynx.errors import UsageError
from dynx.speculation.chat import ASSISTANT, USER, require_template
from dynx.speculation.types import MIN_SAMPLING_TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from dynx.cli.console import Terminal
    from dynx.cli.options.generate import Options
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.chat import Message
    from dynx.speculation.kept_cache import KeptCache
    from dynx.speculation.run import Run

PROMPT = ">>> "
FORGET = "/clear"
"""What is typed to begin a new conversation."""

INTRODUCTION = f"Ctrl-C stops an answer, {FORGET} begins a new conversation, Ctrl-D ends."


def can_converse(options: Options) -> bool:
    """Return whether this is a conversation: a chat without a prompt, typed and read on a terminal."""
    asked = (options.chat or options.system is not None) and not options.prompt
    other = options.lines or options.json or options.jsonl or options.no_stdin or options.messages is not None
    return asked and not other and sys.stdin.isatty() and sys.stdout.isatty()


def converse(options: Options, terminal: Terminal) -> None:
    """Load the model and hold the conversation, until Ctrl-D."""
    assembly = open_model(
        replace(options.request(), chat=True),
        terminal,
        put_off=True,
        sampling=options.temperature >= MIN_SAMPLING_TEMPERATURE,
    )
    require_template(assembly.tokenizer, assembly.plan.source.name)
    conversation = Conversation(options, assembly, terminal)
    terminal.notice(INTRODUCTION)
    for message in messages(terminal):
        if message.strip() == FORGET:
            conversation.forget()
        elif message.strip():
            conversation.say(message)
    if options.explain:
        explain(assembly)
    if options.verify:
        check(conversation.printer.verified)


def messages(terminal: Terminal) -> Iterator[str]:
    """Yield what is typed, line by line, with the line editing of readline where there is one."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() edits with it from now on
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            terminal.write("\n")
            return
        except KeyboardInterrupt:
            terminal.write("\n")


class Conversation:
    """The messages so far, and the cache that holds them."""

    def __init__(self, options: Options, assembly: LoadedGenerator, terminal: Terminal) -> None:
        self._options, self._assembly, self._terminal = options, assembly, terminal
        self._messages: list[Message] = []
        self._kept: KeptCache | None = None
        self._turns = 0
        self.printer = Text(terminal, options)

    def forget(self) -> None:
        """Begin a new conversation."""
        self._messages, self._kept = [], None

    def say(self, message: str) -> None:
        """Answer a message of the user. One that can't be answered is reported and left out of the conversation."""
        try:
            user: Message = {"role": USER, "content": typed(message, "the message")}
            prompt = Prompt(None, (*self._messages, user))
            request = make_request(prompt, self._options, self._assembly)
            run = self._assembly.engine.start(request, kept=self._kept)
        except UsageError as e:
            self._terminal.warn(str(e))
            self._terminal.notice(f"  {e.hint or FORGET + ' begins a new conversation'}")
            return
        self._kept = None  # a pass that is broken off leaves its cache in an unknown state
        index, self._turns = self._turns, self._turns + 1
        text = self._show(index, prompt, run)
        if text or run.receipt().finish_reason != "interrupted":
            self._messages += [user, {"role": ASSISTANT, "content": text}]

    def _show(self, index: int, prompt: Prompt, run: Run) -> str:
        """Print an answer as it is generated, up to Ctrl-C, and return its text."""
        pieces: list[str] = []
        try:
            with stopping() as stopped:
                for token in run:
                    self.printer.first()
                    pieces.append(token.text)
                    self.printer.token(index, token)
                    if stopped():
                        break
            self._kept = run.kept
            if self._options.verify and run.receipt().finish_reason != "interrupted":
                self.printer.verified.append(verify_answer(run, self._assembly))
        except KeyboardInterrupt:
            run.finish_reason = "interrupted"
        self.printer.result(index, prompt, "".join(pieces), run, self._assembly)
        self.printer.aside(run, self._assembly)
        return "".join(pieces)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Return a function that tells whether Ctrl-C was pressed; a second Ctrl-C raises KeyboardInterrupt."""
    pressed = False

    def press(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
