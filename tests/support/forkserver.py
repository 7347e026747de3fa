"""Many runs of `dynx` for the price of one import: a process that has everything loaded, and forks for each command line.

    python forkserver.py SOCKET             serve
    python forkserver.py SOCKET NAME …      what a shell runs as `dynx`: its streams, folder and variables go to the server, the
                                            exit code comes back

For tests that run whole shell lines. Nothing that depends on how an interpreter starts (locale, signals while importing) can be
tested so; for that there is `commands.spawn`.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys

STREAMS = 3
LENGTH = 8
"""Bytes in which a message's length is written."""


def ask(address: str, arguments: list[str]) -> int:
    """Have the server run `dynx` with these arguments on this process's streams; returns its exit code."""
    message = json.dumps({"arguments": arguments, "folder": os.getcwd(), "variables": dict(os.environ)}).encode()  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        link.sendmsg(
            [len(message).to_bytes(LENGTH, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", range(STREAMS)))],
        )
        link.sendall(message)
        for stream in range(STREAMS):  # or a reader down the pipe would wait for this process too
            os.close(stream)
        answer = link.recv(1)
    return answer[0] if answer else 1


def serve(address: str) -> None:
    """Load what commands load, then fork for each that asks, until killed."""
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        while True:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(link)
            link.close()


def import_everything() -> None:
    """What the commands import on demand."""
    import diffusers
    import rich.progress
    import torch
    import transformers

    import dynx.cli.app

    torch.set_num_threads(1)
    for module, names in (
        (
            diffusers,
            ("StableDiffusionPipeline", "UNet2DConditionModel", "DDIMScheduler", "DPMSolverMultistepScheduler"),
        ),
        (transformers, ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "BertModel")),
        (transformers, ("LlamaForCausalLM", "AutoModelForImageClassification", "AutoImageProcessor")),
        (rich.progress, ("Progress",)),
        (dynx.cli.app, ("app",)),
    ):
        for name in names:
            getattr(module, name)


def attend(link: socket.socket) -> None:
    """One command line, in a process of its own; says how it ended. Doesn't return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(link, LENGTH, STREAMS)
    length, message = int.from_bytes(head, "big"), b""
    while len(message) < length:
        message += link.recv(length - len(message))
    asked = json.loads(message)
    child = os.fork()
    if child == 0:
        link.close()
        run(asked, streams)
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    link.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def run(asked: dict[str, object], streams: list[int]) -> None:
    """Be `dynx`. Doesn't return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["variables"])  # type: ignore[call-overload]
    os.chdir(str(asked["folder"]))
    sys.argv = ["dynx", *asked["arguments"]]  # type: ignore[misc]
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False, buffering=1 if number == 2 else -1)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )
    import torch

    from dynx.cli.main import main

    torch.set_num_threads(1)  # makes a forked process its pool of threads while it has one thread
    code = 1
    try:
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 0
        os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(ask(sys.argv[1], sys.argv[3:]))
    serve(sys.argv[1])
