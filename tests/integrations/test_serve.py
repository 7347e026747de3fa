"""`transformers serve` on a folder that brings dynx along: an OpenAI-compatible endpoint whose answers are the plain one's.

Needs the packages of `transformers[serving]` and the `openai` client: `tests/environments/integrations.py FOLDER serve`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CHAT, ROOT

from dynx.errors import ModelError
from dynx.integrations.folder import FILES, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.commands import Result

pytestmark = pytest.mark.slow

SERVE = """
import sys
import transformers
sys.argv = ["transformers", "serve", *sys.argv[1:]]
from transformers.cli.transformers import main
main()
"""


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that brings dynx along."""
    made = tmp_path_factory.mktemp("served") / "fox"
    shutil.copytree(tiny_folder, made, ignore=shutil.ignore_patterns("drafter"))
    (made / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    write(made)
    return made


def test_calibrate_export_makes_the_folder_bring_dynx_along(
    cli: Callable[..., Result], changed: Callable[..., Path], tmp_path: Path
) -> None:
    """What `dynx calibrate --export FOLDER` writes is written again, never over anything else, and into models alone."""
    made = changed()
    for _ in range(2):
        result = cli("calibrate", "--export", made)
        assert result.code == 0
        assert all((made / name).read_text(encoding="utf-8") == text for name, text in FILES.items())
    (made / "custom_generate" / "generate.py").write_text("mine", encoding="utf-8")
    assert cli("calibrate", "--export", made).code == 1
    (tmp_path / "empty").mkdir()
    result = cli("calibrate", "--export", tmp_path / "empty")
    assert result.code == 1
    assert "has no config.json" in result.err
    assert cli("calibrate", "--export", made, "-o", tmp_path / "file").code == 2
    with pytest.raises(ModelError, match="isn't dynx's"):
        write(made)


def test_a_trusted_folder_loads_with_dynx(folder: Path) -> None:
    """`from_pretrained(trust_remote_code=True)` attaches at the first call, inputs by position included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)("The fox said", return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    want = plain.generate(ids, max_new_tokens=20, do_sample=False)

    assert not hasattr(plain, "dynx")
    for _ in range(2):
        assert model.generate(ids, max_new_tokens=20, do_sample=False).tolist() == want.tolist()
        assert model.dynx.stats.reason is None


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Callable[[bool], Any]]:
    """Clients of two servers on loopback, with and without dynx."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    started: dict[bool, tuple[subprocess.Popen[bytes], int]] = {}
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }

    def get(trusted: bool) -> Any:
        if trusted not in started:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
            options += ["--trust-remote-code"] if trusted else []
            command = [sys.executable, "-c", SERVE, *options, str(folder)]
            started[trusted] = subprocess.Popen(command, env=environment), port
            _wait(*started[trusted])
        url = f"http://127.0.0.1:{started[trusted][1]}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)

    yield get
    for process, _ in started.values():
        process.terminate()
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError


def ask(client: Any, folder: Path, text: str, *, stream: bool, tokens: int = 24) -> str:
    """One answer's text."""
    answer = client.chat.completions.create(
        model=str(folder),
        messages=[{"role": "user", "content": text}],
        max_tokens=tokens,
        temperature=0,
        stream=stream,
    )
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(piece.choices[0].delta.content or "" for piece in answer if piece.choices)


def test_answers_are_those_of_plain_transformers(client: Callable[[bool], Any], folder: Path) -> None:
    """Streamed and not."""
    for text in ("Once upon a time", "What will you give me?"):
        texts = {
            ask(client(trusted), folder, text, stream=stream) for trusted in (False, True) for stream in (False, True)
        }

        assert len(texts) == 1
        assert texts != {""}


def test_twelve_at_once_and_one_cancelled(client: Callable[[bool], Any], folder: Path) -> None:
    """Each gets its own answer; one that goes away in the middle stops nobody else."""
    texts = [f"Tell me about fox number {n}" for n in range(12)]
    served = client(True)
    alone = [ask(served, folder, text, stream=False) for text in texts]
    gone = threading.Event()

    def cancelled() -> None:
        answer = served.chat.completions.create(
            model=str(folder),
            messages=[{"role": "user", "content": "Go on"}],
            max_tokens=100,
            temperature=0,
            stream=True,
        )
        next(iter(answer))
        answer.close()
        gone.set()

    with ThreadPoolExecutor(13) as pool:
        leaving = pool.submit(cancelled)
        together = list(pool.map(lambda at: ask(served, folder, texts[at], stream=bool(at % 2)), range(12)))
        leaving.result(60)

    assert gone.is_set()
    assert together == alone
    assert ask(served, folder, texts[0], stream=True) == alone[0]
