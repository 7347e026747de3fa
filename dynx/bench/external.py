"""Other programs as arms: a command line, the case on its stdin or in its arguments, and what it says on stdout.

Each run is a whole process, loading included, so such arms are compared with whole processes of dynx.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass

from dynx.bench.limits import HungError
from dynx.errors import DynxError, UsageError

INPUT = "{input}"
LAST_WORDS = 200
"""Letters of stderr that a failure quotes."""


@dataclass(frozen=True)
class Command:
    """A program and its arguments; `{input}` in them stands for the case, which else comes on stdin."""

    words: tuple[str, ...]
    timeout: float

    def __call__(self, text: str) -> str:
        """Its stdout for one case. Raises DynxError where it can't be started, ends badly or doesn't end (HungError)."""
        inline = any(INPUT in word for word in self.words)
        words = [word.replace(INPUT, text) for word in self.words]
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                words,
                stdin=subprocess.DEVNULL if inline else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that what it starts ends with it
            )
        except OSError as e:
            raise DynxError(f"{self.words[0]} can't be started: {e.strerror or e}") from None
        try:
            out, err = process.communicate(None if inline else text.encode(), timeout=self.timeout)
        except subprocess.TimeoutExpired:
            end(process)
            raise HungError(self.timeout) from None
        except BaseException:
            end(process)
            raise
        if process.returncode:
            code = process.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            said = err.decode("utf-8", "replace").strip().splitlines()
            raise DynxError(f"{self.words[0]} ended with {how}" + (f": {said[-1][:LAST_WORDS]}" if said else ""))
        return out.decode("utf-8", "replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started, at once."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(ValueError, subprocess.SubprocessError):
        process.communicate(timeout=5)


def parse(name: str, line: str) -> tuple[str, ...]:
    """The words of a command line, as a shell would cut them. Raises UsageError for none, or a program that isn't there."""
    try:
        words = tuple(shlex.split(line))
    except ValueError as e:
        raise UsageError(f"--arm {name}: {e}") from None
    if not words:
        raise UsageError(f"--arm {name}: the command line is empty", hint=f"--arm '{name}=!program {INPUT}'")
    if shutil.which(words[0]) is None:
        raise UsageError(f"--arm {name}: there is no program {words[0]!r}")
    return words
