"""From a name to a folder: shipped models, folders, the hub's local cache, and a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from support.commands import Result, environment, finish, spawn

from dynx import shipped
from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime.loading import (
    Source,
    check,
    check_causal_lm,
    check_classifier,
    check_pipeline,
    find,
    load_classifier,
    load_image_processor,
    same_vocabulary,
    task_of,
)
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("alone")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_found_by_its_path(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute or relative path, or one from home; the model is called by the folder's name."""
    monkeypatch.chdir(tiny_folder.parent)
    monkeypatch.setenv("HOME", str(tiny_folder.parent))

    assert [find(name).name for name in (str(tiny_folder), "tiny", "./tiny", "tiny/", "~/tiny")] == ["tiny"] * 5
    assert find("tiny") == Source("tiny", Path("tiny"), "folder")
    monkeypatch.chdir(tiny_folder)
    assert find(".").name == "tiny"


def test_a_bundled_drafter_is_a_source_of_its_own(tiny_folder: Path, changed: Callable[..., Path]) -> None:
    """A model folder may hold its drafter; one without has none."""
    drafter = find(str(tiny_folder)).bundled_drafter

    assert drafter == Source("tiny/drafter", tiny_folder / "drafter", "folder")
    assert find(str(changed())).bundled_drafter is None


def test_shipped_models_come_first(
    changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped name means the shipped model even where a folder is called so; a path reaches the folder."""
    changed("tale", drafter=True)
    (tmp_path / "work" / "tale").mkdir(parents=True)
    monkeypatch.setattr(shipped, "HERE", tmp_path)
    monkeypatch.chdir(tmp_path / "work")

    assert shipped.names() == ["tale"]
    assert find("tale") == Source("tale", tmp_path / "tale", "shipped")
    assert find("tale/drafter") == Source("tale/drafter", tmp_path / "tale" / "drafter", "shipped")
    assert find("./tale").kind == "folder"
    assert shipped.folder("..") is None


@pytest.mark.skipif(not shipped.names(), reason="no shipped model is there yet")
def test_every_shipped_model_is_whole() -> None:
    """What dynx brings is found offline, by name, with sound weights."""
    for name in shipped.names():
        source = find(name, offline=True)
        assert source.kind == "shipped"
        (check_pipeline if task_of(source) == "draw" else check)(source)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub's client."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, model: Path, name: str, keep: Callable[[Path], bool] = lambda _: True) -> Path:
    """Put a model into the cache as the hub's client would; returns the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    snapshot = repository / "snapshots" / COMMIT
    for file in filter(keep, (f for f in model.rglob("*") if f.is_file())):
        path = snapshot / file.relative_to(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)
    return snapshot


@pytest.mark.parametrize("offline", [True, False])
def test_a_cached_hub_model_needs_no_network(
    cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    """What was downloaded once is found without asking again, with its drafter; hub ids keep their owner."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    snapshot = cached(cache, tiny_folder, "some-one/tiny")
    source = find("some-one/tiny", offline=offline)

    assert source == Source("some-one/tiny", snapshot, "hub")
    assert source.bundled_drafter is not None
    check(source)


def test_a_cached_model_generates(cli: Callable[..., Result], cache: Path, tiny_folder: Path) -> None:
    """A hub id works like a folder all the way."""
    cached(cache, tiny_folder, "some-one/tiny")
    by_id = cli("generate", "-m", "some-one/tiny", "Once upon", "-n", 8, "--offline", "--json")
    by_path = cli("generate", "-m", tiny_folder, "Once upon", "-n", 8, "--json")

    assert (by_id.code, by_id.err) == (0, "")
    assert by_id.document["model"] == "some-one/tiny"
    assert by_id.document["text"] == by_path.document["text"]


def test_half_a_download_is_told_offline(cache: Path, tiny_folder: Path) -> None:
    """A cache that holds a config and no weights, as after a look at the tokenizer, is not a model."""
    cached(cache, tiny_folder, "some-one/half", keep=lambda f: f.suffix == ".json")

    with pytest.raises(ModelError, match="without weights in the hub's local cache"):
        find("some-one/half", offline=True)


@pytest.mark.parametrize("name", ["some-one/else", "one/two/three", "a..b", "-x", "ünïcode"])
def test_what_is_nowhere_is_told_without_the_network(cache: Path, name: str) -> None:
    """Offline, an unknown or impossible name is one error at once."""
    with pytest.raises(ModelError, match=name):
        find(name, offline=True)


class Mirror(BaseHTTPRequestHandler):
    """As much of the hub's protocol as downloading a snapshot takes: a commit, its files, each file."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        """Answer."""
        path = unquote(urlsplit(self.path).path)
        files = sorted(f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if f.is_file())
        if path == "/api/models/some-one/tiny/revision/main":
            siblings = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": "some-one/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"/api/models/some-one/tiny/tree/{COMMIT}":
            entries = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in files]
            self.reply(json.dumps(entries).encode())
        elif path.startswith(f"/some-one/tiny/resolve/{COMMIT}/"):
            name = path.split("/", 5)[5]
            self.asked.append(name)
            self.reply((self.folder / name).read_bytes())
        elif path.startswith("/api/models/some-one/locked/"):
            self.reply(b"", 403, "GatedRepo")
        else:
            self.reply(b"", 404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def reply(self, body: bytes, status: int = 200, problem: str | None = None) -> None:
        """Send a body with the headers that the client looks for."""
        self.send_response(status)
        headers = {
            "Content-Length": len(body),
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
        }
        for header, value in (headers | ({"X-Error-Code": problem} if problem else {})).items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr."""


@contextmanager
def mirror(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine that has `folder` as some-one/tiny; its address, and the files asked for."""
    handler = type("Handler", (Mirror,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


FIND = """
import sys
import time
from dynx.errors import ModelError
from dynx.runtime.loading import check, find
for name in sys.argv[1:]:
    try:
        source = find(name)
        check(source)
        print(source.kind, source.folder)
    except ModelError as e:
        print(e, "|", e.hint)
"""


FIND_CODE = """
from dynx.runtime.loading import find
for trusted in (False, True, True):
    source = find("some-one/tiny", trust_remote_code=trusted)
    print(source.trusted, (source.folder / "own.py").is_file())
"""


def test_code_comes_from_the_hub_where_it_is_trusted(changed: Callable[..., Path], tmp_path: Path) -> None:
    """Python files are downloaded with the option alone, also where the rest of the model is in the cache already."""
    folder = changed("source")
    (folder / "own.py").write_text("", encoding="utf-8")
    rewrite(folder, auto_map={"AutoConfig": "own.Config"})
    with mirror(folder) as (address, asked):
        settings = environment(HF_ENDPOINT=address, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE=None)
        result = finish(spawn(code=FIND_CODE, env={**settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}))

    assert result.out.splitlines() == ["False False", "True True", "True True"]
    assert asked.count("own.py") <= 2  # the client asks for a file's head before the file


def test_a_hub_on_this_machine(changed: Callable[..., Path], tmp_path: Path) -> None:
    """A hub id is downloaded once, from the mirror that HF_ENDPOINT names: weights and texts, no pickles and no doubles."""
    folder = changed("source", drafter=True)
    for spare in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "picture.png"):
        (folder / spare).parent.mkdir(exist_ok=True)
        (folder / spare).write_bytes(b"not wanted")
    with mirror(folder) as (address, asked):
        settings = environment(HF_ENDPOINT=address, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE=None)
        names = ["some-one/tiny", "some-one/tiny", "some-one/nobody", "some-one/locked"]
        result = finish(spawn(*names, code=FIND, env={**settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}))
    first, second, nobody, locked = result.out.splitlines()
    snapshot = tmp_path / "hub" / "models--some-one--tiny" / "snapshots" / COMMIT
    wanted = {f"{at}{f}" for at in ("", "drafter/") for f in ("config.json", "model.safetensors", "tokenizer.json")}

    assert first == second == f"hub {snapshot}"
    assert wanted <= set(asked)
    assert {f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file()} >= wanted
    assert not [name for name in asked if name.endswith((".bin", ".png")) or "consolidated" in name or "onnx" in name]
    assert nobody.startswith("no model some-one/nobody: not shipped, no such folder, not on the hub")
    assert (
        locked
        == "some-one/locked is gated: its owner decides who may load it | ask on its page, then run: hf auth login"
    )


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    """Without network the reason is told in one line, at once: the hub's own library would ask again for 23 seconds."""
    settings = environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE=None)
    before = time.monotonic()
    result = finish(spawn("some-one/tiny", code=FIND, env=settings))

    assert time.monotonic() - before < 20
    assert result.code == 0
    assert result.out.startswith("no model some-one/tiny: not shipped, no such folder, and the hub can't be reached (")
    assert result.out.count("\n") == 1


def test_vocabularies_are_compared_by_content() -> None:
    """Equal sizes prove nothing; the count of differences, or of tokens more, is told."""

    class Words:
        def __init__(self, *words: str) -> None:
            self._ids = {word: i for i, word in enumerate(words)}

        def get_vocab(self) -> dict[str, int]:
            return self._ids

    assert same_vocabulary(Words("a", "b"), Words("a", "b")) is None
    assert same_vocabulary(Words("a", "b"), Words("b", "a")) == "2 of 2 tokens have other ids"
    assert same_vocabulary(Words("a", "b"), Words("a", "b", "c")) == "1 tokens more"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_every_way_to_run_out_of_memory(error: Exception, expected: bool) -> None:
    """Each allocator has its own error; only some have a type of their own."""
    assert is_out_of_memory(error) is expected


def test_a_classifier_is_not_taken_for_a_language_model(changed: Callable[..., Path]) -> None:
    """BERT's causal class would load its weights, all but the head, and write nonsense."""
    folder = changed("judge")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))

    with pytest.raises(UnsupportedModelError, match="classifier"):
        check_causal_lm(find(str(folder)))


@pytest.mark.skipif({"story", "mood"} - set(shipped.names()) != set(), reason="they aren't there yet")
def test_shipped_models_are_known_by_their_task() -> None:
    """`-m` offers only what the command can run."""
    assert shipped.names("generate") == ["story"]
    assert shipped.names("classify") == ["mood"]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("BertForSequenceClassification", "text"),
        ("LlamaForSequenceClassification", "text"),
        ("ViTForImageClassification", "image"),
        ("DeiTForImageClassificationWithTeacher", "image"),
    ],
)
def test_what_a_classifier_takes(changed: Callable[..., Path], architecture: str, kind: str) -> None:
    """Texts or images, by the architecture that its config names."""
    folder = changed()
    rewrite(folder, architectures=[architecture])

    assert check_classifier(find(str(folder))) == kind
    assert task_of(find(str(folder))) == "classify"


@pytest.mark.parametrize(
    ("architectures", "words", "hint"),
    [
        (["LlamaForCausalLM"], "writes text", "dynx generate runs it"),
        (["GPT2LMHeadModel"], "writes text", "dynx generate runs it"),
        (["Wav2Vec2ForAudioFrameClassification"], "something else than whole texts", "sequence classification"),
        (["BertModel"], "no classification head", "sequence classification"),
        ([], "names no architecture", "sequence classification"),
    ],
)
def test_what_is_no_classifier(changed: Callable[..., Path], architectures: list[str], words: str, hint: str) -> None:
    """Refused before anything heavy is imported, with the command that fits where there is one."""
    folder = changed()
    rewrite(folder, architectures=architectures)
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        check_classifier(find(str(folder)))

    assert hint in str(caught.value.hint)


def test_a_pipeline_is_told_apart(tmp_path: Path) -> None:
    """A diffusers folder draws, and has no config.json."""
    folder, empty = tmp_path / "pipeline", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "model_index.json").write_text("{}", encoding="utf-8")

    assert task_of(find(str(folder))) == "draw"
    with pytest.raises(UnsupportedModelError, match="a pipeline that draws"):
        check_classifier(find(str(folder)))
    with pytest.raises(ModelError, match=r"no config\.json"):
        task_of(find(str(empty)))


def test_a_head_that_was_never_trained(tiny_folder: Path, changed: Callable[..., Path]) -> None:
    """transformers would make its weights up, and every label would be a guess."""
    folder = changed()
    rewrite(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, among them score\.weight"):
        load_classifier(find(str(folder)), "text", device="cpu", dtype="float32")


def test_a_type_that_transformers_lacks(changed: Callable[..., Path]) -> None:
    """A text model can't take images."""
    folder = changed()
    rewrite(folder, architectures=["LlamaForImageClassification"])
    with pytest.raises(UnsupportedModelError, match="no image classifier of type llama"):
        load_classifier(find(str(folder)), "image", device="cpu", dtype="float32")


def test_image_processors(changed: Callable[..., Path]) -> None:
    """None there, and one that can't be read."""
    folder = changed()
    with pytest.raises(ModelError, match="has no image processor"):
        load_image_processor(find(str(folder)))
    (folder / "preprocessor_config.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(ModelError, match="image processor doesn't load"):
        load_image_processor(find(str(folder)))


def rewrite(folder: Path, **fields: object) -> None:
    """Change fields of a model's config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
