"""The one place where errors become words and exit codes.

Commands raise; this prints and exits. A closed pipe ends quietly with 0, Ctrl-C ends by the signal itself (so that a
shell's loop stops too), and a traceback appears only with DYNX_DEBUG=1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the command has kept and shown what it had."""


def main() -> NoReturn:
    """Run `dynx` with the arguments of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run `dynx`; returns its exit code."""
    from dynx.errors import DynxError

    debug = os.environ.get("DYNX_DEBUG", "") not in ("", "0")
    try:
        from dynx.cli.app import app

        code = app(arguments, prog_name="dynx", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except DynxError as e:
        if debug:
            raise
        complain(str(e), e.hint)
        return e.exit_code
    except BrokenPipeError:
        # Python flushes stdout once more on exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return die_of(signal.SIGINT)
    except Exception as e:
        show = getattr(e, "show", None)  # the parser's own errors know how to print themselves
        if show is not None:
            show()
            return int(getattr(e, "exit_code", 2))
        if debug:
            raise
        complain(f"{type(e).__name__}: {e}".splitlines()[0], "DYNX_DEBUG=1 shows where")
        return 1


def complain(message: str, hint: str | None = None) -> None:
    """One line on stderr for what went wrong, one for what to do."""
    print(f"dynx: {message}", file=sys.stderr)  # noqa: T201
    if hint:
        print(f"  {hint}", file=sys.stderr)  # noqa: T201


def die_of(number: int) -> int:
    """End as an unhandled signal would, which shells report as 128 + its number."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
