"""`dynx bench --self-test`: what dynx says of its streams, exit codes, documents and signals, tried on this installation.

Each check is a real process with the shipped models, no network and an empty cache, and says in a sentence what it found wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import GateFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.cli.console import Terminal

SCHEMA = "dynx.self-test/1"

AT_ONCE = 2
PATIENCE = 120.0
"""Seconds after which a process hangs."""

UNWANTED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "DYNX_DEBUG", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS")
"""Variables of the caller that change output."""

PNG = b"\x89PNG\r\n\x1a\n"
PROMPT = "Once upon a time"


class Broken(Exception):  # noqa: N818 - a finding, not a mistake
    """What a check found wrong."""


@dataclass(frozen=True)
class Ended:
    """What a process left behind; a negative code is a signal's."""

    code: int
    out: bytes
    err: bytes

    def expect(self, code: int = 0, *, out: bool | None = None, err: bool | None = None) -> Ended:
        """Itself, where the exit code is this and streams hold something or nothing as said. Raises Broken."""
        if self.code != code:
            lines = self.err.decode(errors="replace").splitlines()
            said = [line for line in lines if line.startswith(("dynx: ", '{"schema": "dynx.error/1"'))]
            raise Broken(f"exit code {self.code} and not {code}{': ' + said[0] if said else ''}")
        for name, stream, wanted in (("stdout", self.out, out), ("stderr", self.err, err)):
            if wanted is not None and bool(stream) != wanted:
                raise Broken(f"{name} is {'empty' if wanted else f'not empty: {stream[:80]!r}'}")
            if b"\x1b[" in stream and not stream.startswith(PNG):
                raise Broken(f"{name} has escape sequences and is no terminal")
        if b"Traceback" in self.err:
            raise Broken("a traceback on stderr")
        return self

    def documents(self, schema: str) -> list[dict[str, Any]]:
        """The JSON lines on stdout, each of them by its schema. Raises Broken."""
        try:
            found = [json.loads(line, parse_constant=_refuse) for line in self.out.decode().splitlines()]
        except ValueError as e:
            raise Broken(f"stdout is no JSON: {e}") from None
        for document in found:
            if not isinstance(document, dict) or document.get("schema") != schema:
                raise Broken(f"a line of stdout isn't of the schema {schema}")
            if (why := _complaint(document)) is not None:
                raise Broken(f"not as {schema} says: {why}")
        return found

    def document(self, schema: str) -> dict[str, Any]:
        """The only one on stdout, over as many lines as it likes."""
        try:
            whole = json.loads(self.out, parse_constant=_refuse)
        except ValueError as e:
            raise Broken(f"stdout is not one JSON document: {e}") from None
        return Ended(self.code, json.dumps(whole).encode(), self.err).documents(schema)[0]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _complaint(document: dict[str, Any]) -> str | None:
    from dynx import schemas

    try:
        return schemas.complaint(document)
    except ImportError:  # the package isn't needed for anything else
        missing = [key for key in schemas.load(document["schema"]).get("required", ()) if key not in document]
        return f"{missing[0]!r} is missing" if missing else None


class Bench:
    """Runs `dynx ARGUMENTS…` as processes, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        self.environment = {
            "OMP_NUM_THREADS": "1",  # checks run side by side, and threads that wait for each other's cores take minutes
            **kept,
            "DYNX_CACHE_DIR": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "XDG_CONFIG_HOME": str(folder / "config"),
        }

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """With pipes on stdout and stderr, and nothing on stdin."""
        words = [sys.executable, "-m", "dynx", *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, env=self.environment, cwd=self.folder, **streams)  # type: ignore[call-overload,no-any-return]  # noqa: S603

    def run(self, *arguments: object, stdin: str | None = None) -> Ended:
        """To its end. Raises Broken where it hangs."""
        words = [sys.executable, "-m", "dynx", *map(str, arguments)]
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin.encode()}
        try:
            done = subprocess.run(  # noqa: S603
                words,
                env=self.environment,
                cwd=self.folder,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
                **given,
            )
        except subprocess.TimeoutExpired:
            raise Broken(f"it hangs: no end after {PATIENCE:.0f} s") from None
        return Ended(done.returncode, done.stdout, done.stderr)


def help_and_version(dynx: Bench) -> None:
    """Help and version go to stdout"""
    dynx.run("--help").expect(out=True, err=False)
    dynx.run("--version").expect(out=True, err=False)


def usage(dynx: Bench) -> None:
    """A wrong option is exit code 2, told on stderr"""
    dynx.run("generate", "--no-such-option").expect(2, out=False, err=True)


def nothing_to_do(dynx: Bench) -> None:
    """Without a prompt there is help on stderr, and exit code 2"""
    dynx.run("generate").expect(2, out=False, err=True)


def no_model(dynx: Bench) -> None:
    """A model that isn't there is exit code 1"""
    if b"nowhere" not in dynx.run("classify", "-m", "./nowhere", "fine").expect(1, out=False, err=True).err:
        raise Broken("stderr doesn't name it")


def error_json(dynx: Bench) -> None:
    """An error under --json is a JSON line on stderr, by its schema"""
    ended = dynx.run("draw", "a fox", "-m", "./nowhere", "--json").expect(1, out=False, err=True)
    found = Ended(ended.code, ended.err, b"").document("dynx.error/1")
    if (found["kind"], found["exit_code"]) != ("ModelError", 1):
        raise Broken(f"it is said to be a {found['kind']} with exit code {found['exit_code']}")


def no_profile(dynx: Bench) -> None:
    """--require-profile without one is exit code 4"""
    dynx.run("generate", PROMPT, "--require-profile").expect(4, out=False, err=True)


def no_device(dynx: Bench) -> None:
    """A device that isn't there is exit code 5"""
    dynx.run("generate", PROMPT, "--device", "cuda:77").expect(5, out=False, err=True)


def text(dynx: Bench) -> None:
    """generate: text alone on stdout, the same as --plain"""
    dynamic = dynx.run("generate", PROMPT, "-n", 24).expect(out=True, err=False)
    plain = dynx.run("generate", PROMPT, "-n", 24, "--plain").expect(out=True, err=False)
    if dynamic.out != plain.out:
        raise Broken("dynamic and plain decoding write different texts")
    if not dynamic.out.endswith(b"\n"):
        raise Broken("the text doesn't end with a line end")


def text_json(dynx: Bench) -> None:
    """generate --json: one document by its schema"""
    found = dynx.run("generate", PROMPT, "-n", 8, "--json").expect(err=False).document("dynx.generate/1")
    if found["receipt"]["tokens"] != 8:
        raise Broken(f"{found['receipt']['tokens']} tokens, and 8 were asked for")


def text_lines(dynx: Bench) -> None:
    """generate --lines --jsonl: events in order, an answer for each line of stdin"""
    ended = dynx.run("generate", "--lines", "--jsonl", "-n", 4, stdin="The fox\nThe king\n").expect(err=False)
    results = [d for d in ended.documents("dynx.generate/1") if d["event"] == "result"]
    if [d["index"] for d in results] != [0, 1]:
        raise Broken(f"{len(results)} results for 2 lines")


def labels(dynx: Bench) -> None:
    """classify: a line for each line of stdin"""
    ended = dynx.run("classify", stdin="a fine day\na dull, endless film\n").expect(out=True, err=False)
    if len(ended.out.splitlines()) != 2:
        raise Broken(f"{len(ended.out.splitlines())} lines for 2 inputs")


def labels_json(dynx: Bench) -> None:
    """classify --jsonl: objects by their schema, in the order of the input"""
    ended = dynx.run("classify", "--jsonl", stdin="a fine day\na dull film\n").expect(err=False)
    if [d["index"] for d in ended.documents("dynx.classify/1")] != [0, 1]:
        raise Broken("the results aren't those of the two inputs in order")


def picture(dynx: Bench) -> None:
    """draw --json: a PNG that is whole, and its path"""
    ended = dynx.run("draw", "a red apple", "--seed", 1, "--steps", 4, "-o", "apple.png", "--json").expect(err=False)
    path = ended.document("dynx.draw/1")["path"]
    if not path or (dynx.folder / path).read_bytes()[:8] != PNG:
        raise Broken(f"{path} is no PNG file")


def picture_to_stdout(dynx: Bench) -> None:
    """draw -o -: the PNG's bytes and nothing else on stdout"""
    if not dynx.run("draw", "a red apple", "--steps", 2, "-o", "-").expect(out=True, err=False).out.startswith(PNG):
        raise Broken("stdout doesn't begin like a PNG file")


def housekeeping(dynx: Bench) -> None:
    """calibrate: the plan, the profiles and the device as documents"""
    dynx.run("calibrate", "--dry-run", "--json").expect(err=False).document("dynx.calibrate/1")
    dynx.run("calibrate", "--list", "--json").expect(err=False).document("dynx.profiles/1")
    dynx.run("calibrate", "--device-info", "--json").expect(err=False).document("dynx.device/1")


def gate(dynx: Bench) -> None:
    """bench: a gate that fails is exit code 3, its result still on stdout"""
    words = ("-m", "story", "--static", "none", "--runs", 3, "--prompts", 1, "-n", 8, "--min-speedup", 1000, "--json")
    found = dynx.run("bench", *words).expect(3, err=True).document("dynx.bench/1")
    if found["verdict"] != "fail":
        raise Broken(f"the verdict is {found['verdict']}")


def closed_pipe(dynx: Bench) -> None:
    """A reader that leaves, like head, ends it quietly with 0"""
    process = dynx.start("generate", PROMPT, "-n", 200, "--jsonl")
    with _ending(process) as (out, err):
        out.read(5)
        out.close()
        said = err.read()
        code = process.wait(PATIENCE)
    Ended(code, b"", said).expect(0, err=False)


def ctrl_c(dynx: Bench) -> None:
    """Ctrl-C ends by the signal, keeps what was written, and says no traceback"""
    process = dynx.start("generate", PROMPT, "-n", 400)
    with _ending(process) as (out, err):
        first = out.read(5)
        process.send_signal(signal.SIGINT)
        rest, said = out.read(), err.read()
        code = process.wait(PATIENCE)
    Ended(code, first + rest, said).expect(-signal.SIGINT, out=True)


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Any:
    """A process's stdout and stderr; it is over afterwards, whatever happens. Raises Broken where it hangs."""
    if process.stdout is None or process.stderr is None:
        raise Broken("a process without streams")
    try:
        yield process.stdout, process.stderr
    except subprocess.TimeoutExpired:
        raise Broken(f"it hangs: no end after {PATIENCE:.0f} s") from None
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


CHECKS: tuple[Callable[[Bench], None], ...] = (
    help_and_version,
    usage,
    nothing_to_do,
    no_model,
    error_json,
    no_profile,
    no_device,
    text,
    text_json,
    text_lines,
    labels,
    labels_json,
    picture,
    picture_to_stdout,
    housekeeping,
    gate,
    closed_pipe,
    ctrl_c,
)


@dataclass(frozen=True)
class Finding:
    """How one check ended; `problem` is None where all was well."""

    name: str
    problem: str | None
    seconds: float


def check(one: Callable[[Bench], None], dynx: Bench) -> Finding:
    """Run one. Whatever goes wrong is its finding."""
    began = time.perf_counter()
    problem = None
    try:
        one(dynx)
    except Broken as e:
        problem = str(e)
    except Exception as e:  # noqa: BLE001 - a check that breaks is a finding, and the others go on
        problem = f"{type(e).__name__}: {e}"
    return Finding((one.__doc__ or one.__name__).strip(), problem, time.perf_counter() - began)


def run(terminal: Terminal, *, json: bool, checks: Sequence[Callable[[Bench], None]] = CHECKS) -> None:
    """All checks, two at a time, as a table or one document. Raises GateFailed where one fails."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="dynx-self-test-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = []
        for number, one in enumerate(checks):
            own = Path(folder) / str(number)
            own.mkdir()
            jobs.append(pool.submit(check, one, Bench(own)))
        findings = []
        mark = {True: "✓", False: "✗"} if terminal.unicode else {True: "ok", False: "FAILED"}
        with terminal.progress("trying") as move:
            for done, job in enumerate(jobs, start=1):
                findings.append(job.result())
                move(done, len(jobs), findings[-1].name[:40])
                if not json:
                    _show(findings[-1], mark, terminal)
    failed = [f for f in findings if f.problem is not None]
    if json:
        rows = [
            {"name": f.name, "passed": f.problem is None, "problem": f.problem, "seconds": f.seconds} for f in findings
        ]
        terminal.document({"schema": SCHEMA, "passed": not failed, "checks": rows})
    if failed:
        raise GateFailed(f"{len(failed)} of {len(findings)} checks failed")
    terminal.notice(f"all {len(findings)} checks passed")


def _show(finding: Finding, mark: dict[bool, str], terminal: Terminal) -> None:
    good = finding.problem is None
    ink = ("\x1b[32m" if good else "\x1b[31m", "\x1b[0m") if terminal.out_color else ("", "")
    terminal.write(f"{ink[0]}{mark[good]}{ink[1]}  {finding.seconds:5.1f} s  {finding.name}\n")
    if finding.problem is not None:
        terminal.write(f"            {finding.problem}\n")
