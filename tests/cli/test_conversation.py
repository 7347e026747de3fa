"""A conversation on a terminal: turns, Ctrl-C, a new beginning, and what each turn reads."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.commands import CHAT, environment, spawn

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROMPT = ">>> "
KEPT = re.compile(r"after (\d+) of prompt(?: \((\d+) kept from earlier turns, (\d+) read\))?; finish reason: (\w+)")


CTRL_C_IN_AN_ANSWER = """
import os, signal
from dynx.runtime.backends.eager import EagerBackend
passes, run = [], EagerBackend.run
def counted(self, *arguments, **options):
    passes.append(1)
    if len(passes) == 12:
        os.kill(os.getpid(), signal.SIGINT)
    return run(self, *arguments, **options)
EagerBackend.run = counted
from dynx.cli.main import main
main()
"""
"""dynx, with a Ctrl-C while the model computes its twelfth pass."""


class Screen:
    """A terminal in which `dynx generate --chat` runs."""

    def __init__(self, *arguments: object, **options: str) -> None:
        self.fd, theirs = pty.openpty()
        self.process: subprocess.Popen[bytes] = spawn(
            "generate", *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"), **options
        )
        os.close(theirs)

    def until(self, end: str, seconds: float = 100) -> str:
        """Return what is shown up to `end`."""
        seen, limit = "", time.monotonic() + seconds
        while end not in seen:
            assert time.monotonic() < limit, seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    piece = os.read(self.fd, 4096)
                except OSError:
                    piece = b""
                assert piece, seen
                seen += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", piece.decode()).replace("\r\n", "\n")
        return seen

    def say(self, text: str) -> str:
        """Type a line, and return what is shown up to the next prompt."""
        os.write(self.fd, f"{text}\n".encode())
        return self.until(PROMPT)


@pytest.fixture
def screen(changed: Callable[..., Path]) -> Iterator[Callable[..., Screen]]:
    """Begin a conversation with the tiny model."""
    folder = changed("chatty")
    opened: list[Screen] = []

    def begin(*arguments: object, template: str = CHAT, **options: str) -> Screen:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        opened.append(Screen("-m", folder, "--chat", *arguments, **options))
        assert "Ctrl-C stops an answer" in opened[-1].until(PROMPT)
        return opened[-1]

    yield begin
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.fd)


def facts(shown: str) -> tuple[int, int, str]:
    """Return the prompt's tokens, how many of them were kept, and the finish reason."""
    found = KEPT.search(shown)
    assert found, shown
    return int(found[1]), int(found[2] or 0), found[4]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_second_turn_reads_only_what_is_new(screen: Callable[..., Screen], backend: str) -> None:
    """The first turn stays in the cache; a new conversation begins without it; Ctrl-D ends well."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    chat = screen("-n", 6, "--stats", "--backend", backend)
    first = facts(chat.say("Once upon"))
    second = facts(chat.say("a time"))
    assert first[1] == 0
    assert second[0] > first[0]
    assert second[1] >= first[0] - 1
    chat.say("/clear")
    assert facts(chat.say("Once upon")) == first
    os.write(chat.fd, b"\x04")
    assert chat.process.wait(timeout=60) == 0


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_answer_that_the_template_changes_costs_the_answer_alone(
    screen: Callable[..., Screen], backend: str
) -> None:
    """Where earlier answers are written otherwise than they were generated, all that stands before them is kept."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    template = CHAT.replace("{{ m.content }}", "{{ '(left out)' if m.role == 'assistant' else m.content }}")
    assert template != CHAT
    chat = screen("-n", 6, "--stats", "--backend", backend, template=template)
    first = facts(chat.say("Once upon a time there was a fox"))
    second = facts(chat.say("a time"))
    assert first[0] - 2 <= second[1] <= first[0] + 1


def test_ctrl_c_stops_the_answer_and_not_the_program(screen: Callable[..., Screen]) -> None:
    """What was written stays in the conversation; at the prompt Ctrl-C clears the line."""
    chat = screen("-n", 60, "--stats", "--plain", "--backend", "torch", code=CTRL_C_IN_AN_ANSWER)
    first = facts(chat.say("Once upon"))
    assert first[2] == "interrupted"
    second = facts(chat.say("a time"))
    assert second[1] > first[0]
    os.write(chat.fd, b"half a line")
    chat.until("half a line")
    time.sleep(0.5)  # a signal between two keys waits for the next one
    chat.process.send_signal(signal.SIGINT)
    chat.until(PROMPT)
    assert chat.process.poll() is None
