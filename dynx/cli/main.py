"""Turns errors into messages and exit codes, in this one place.

Commands raise; this prints and exits. A closed pipe ends quietly with 0, Ctrl-C ends by the signal itself (so that a
shell's loop stops too), and a traceback appears only with DYNX_DEBUG=1. Under --json an error is a document too; it goes to
stderr, as stdout may hold a result already (a gate that failed, the answers before a bad line).
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import io
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType


def main() -> NoReturn:
    """Run `dynx` with the arguments of this process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    try:
        from dynx.runtime import lazy_imports

        lazy_imports.install()
        if not debugging():
            logging.disable(logging.WARNING)  # what libraries say of each other while they are imported
        open_missing_streams()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before or after `run` looks for it
        code = die_of(signal.SIGINT)
    leave(code)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: raise KeyboardInterrupt, but end at once during an import, since torch's imports swallow exceptions."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            die_of(number)
        frame = frame.f_back
    raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Exit; at once where torch is loaded, because Python's cleanup takes half a second."""
    if "torch" not in sys.modules or sys.gettrace() or sys.getprofile():
        sys.exit(code)
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        sys.exit(code)  # Python reports the failed flush
    atexit._run_exitfuncs()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run `dynx` and return its exit code."""
    from dynx.errors import DeviceError, DynxError, InvalidInput

    debug = debugging()
    try:
        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except DynxError as e:
        if debug:
            raise
        from dynx.cli.flags import in_flags

        known = (c for c in type(e).__mro__ if c.__module__ == DynxError.__module__ and c is not InvalidInput)
        hint = None if e.hint is None else in_flags(e.hint)
        return complain(arguments, in_flags(str(e)), hint, next(known).__name__, e.exit_code)
    except BrokenPipeError:
        discard_output()
        return 0
    except KeyboardInterrupt:
        return die_of(signal.SIGINT)
    except Exception as e:
        if hasattr(e, "format_message"):
            return explain_usage(arguments, e)
        if debug:
            raise
        from dynx.runtime.memory import is_out_of_memory

        if is_out_of_memory(e):
            hint = "try a shorter prompt, --dtype bfloat16 or a smaller model"
            return complain(arguments, "out of memory", hint, DeviceError.__name__, DeviceError.exit_code)
        said = f"{type(e).__name__}: {e}".splitlines()[0]
        return complain(arguments, said, "DYNX_DEBUG=1 shows where", DynxError.__name__, DynxError.exit_code)


def debugging() -> bool:
    """Whether DYNX_DEBUG turns on tracebacks and all logging."""
    return os.environ.get("DYNX_DEBUG", "") not in ("", "0")


def invoke(arguments: list[str]) -> int:
    """Parse and run. Typer's own entry point would give Ctrl-C an exit code, and report a closed pipe as a failure."""
    import typer

    from dynx.cli.app import app
    from dynx.cli.configuration import DefaultMap

    command: Any = typer.main.get_command(app)
    try:
        with command.make_context("dynx", arguments, default_map=DefaultMap()) as context:
            command.invoke(context)
    except typer.Exit as e:  # --help and --version
        return int(e.exit_code)
    return 0


def explain_usage(arguments: list[str], error: Exception) -> int:
    """Print the parser's error like all others; for `dynx` alone print its help. Returns the exit code."""
    parser: Any = error
    code = int(parser.exit_code)
    context = getattr(parser, "ctx", None)
    if type(parser).__name__ == "NoArgsIsHelpError":
        parser.show()
        return code
    from dynx.cli.configuration import origin_of
    from dynx.errors import UsageError

    origin = origin_of(context, getattr(getattr(parser, "param", None), "name", None)) if context else None
    if origin is not None:
        return complain(arguments, f"{origin}: {parser.message}", None, UsageError.__name__, code)
    hint = f"{context.command_path} --help lists the options" if context else None
    return complain(arguments, parser.format_message(), hint, UsageError.__name__, code)


def complain(arguments: list[str], message: str, hint: str | None, kind: str, code: int) -> int:
    """Print an error to stderr: a line and a hint, or a JSON line. Returns the exit code."""
    if told_to_a_program(arguments):
        import json

        from dynx.schemas.documents.error import Error
        from dynx.schemas.documents.fields import as_document

        body = as_document(Error(kind=kind, message=message, hint=hint or None, exit_code=code))
        unicode = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
        lines = [json.dumps(body, ensure_ascii=not unicode)]
    else:
        lines = [f"dynx: {message}", *([f"  {hint}"] if hint else [])]
    with contextlib.suppress(BrokenPipeError):
        for line in lines:
            print(line, file=sys.stderr)  # noqa: T201
    return code


def told_to_a_program(arguments: list[str]) -> bool:
    """Whether JSON is set by the command line or the settings, and stderr isn't a terminal."""
    if sys.stderr.isatty():
        return False
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not {"--json", "--jsonl"}.isdisjoint(options):
        return True
    if "dynx.cli.app" not in sys.modules:  # it can't even be imported
        return False
    from dynx.cli.configuration import Settings
    from dynx.cli.settings import by_command

    command = next((word for word in options if not word.startswith("-")), "")
    if command not in by_command():
        return False
    known = Settings(command)
    return bool(known.get("json") or known.get("jsonl"))


def open_missing_streams() -> None:
    """Open standard streams that the caller closed, which Python leaves as None.

    Where stdout takes another encoding than UTF-8, what it lacks becomes ? rather than an error in mid-sentence; the bytes
    of a file name that weren't text come out as they were, so that a script finds the file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - lives as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("dynx.lenient", lenient)
        sys.stdout.reconfigure(errors="dynx.lenient")


def lenient(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that an encoding lacks: the byte that a surrogate stands for, else a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return b"".join(bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else b"?" for c in lacking), error.end


def discard_output() -> None:
    """Redirect both streams after the reader closed them, since Python flushes them once more on exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


def die_of(number: int) -> int:
    """End as an unhandled signal would, which shells report as 128 + its number."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
