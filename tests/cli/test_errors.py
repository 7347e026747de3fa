"""Bad input to `dynx generate`: one clear line (and a hint), the right exit code, and nothing lost that was written."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import CONTEXT, PROMPT, train_tokenizer
from transformers import LlamaForCausalLM

from dynx import shipped
from dynx.runtime.backends import eager
from dynx.runtime.costs import CostCurve
from dynx.runtime.profile import Profile
from dynx.runtime.profile_store import ProfileStore
from dynx.runtime.weights import weights_hash
from dynx.speculation import assemble, make_plan
from dynx.speculation.plan import GeneratorRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Result

    Cli = Callable[..., Result]
    Copy = Callable[..., Path]


def refused(result: Result, code: int, words: str, hint: str | None = None) -> None:
    """Check that nothing but one line saying `words`, and a hint if there is one, came out."""
    first, *others = result.err.splitlines()

    assert (result.code, result.out) == (code, "")
    assert re.search(words, first), first
    assert first.startswith("dynx: ")
    assert len(first) < 400
    if hint is None:
        assert others == []
    else:
        assert [bool(re.search(f"^  .*{hint}", line)) for line in others] == [True], others


def edit(path: Path, **changes: Any) -> None:
    """Change members of a JSON file; None removes one."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), encoding="utf-8")


def test_an_unknown_model_gets_the_closest_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped shipped model is suggested; a name unlike any gets the list."""
    monkeypatch.setattr(shipped, "names", lambda _task=None: ["emoji", "mood", "story"])

    refused(cli("generate", "-m", "stroy", PROMPT), 1, "no model stroy", r"did you mean story\?")
    refused(cli("generate", "-m", "org/gpt", PROMPT), 1, "no model org/gpt", "shipped models: emoji, mood, story")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "name is empty"),
        ("./nowhere", "no folder ./nowhere"),
        ("two words", "no folder two words"),
        ("~nobody-of-that-name/x", "no folder ~nobody"),
        ("x" * 300, "no folder x+ .*too long"),
    ],
    ids=["empty", "path", "spaces", "home", "long"],
)
def test_what_can_be_no_model_is_told_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    """A name that is neither a folder nor a possible hub id isn't looked for on the network."""
    monkeypatch.setattr(shipped, "names", lambda _task=None: [])
    refused(cli("generate", "-m", name, PROMPT), 1, words)


def test_a_file_is_no_model(cli: Cli, tiny_folder: Path) -> None:
    """Somebody who names the weights is told to name their folder."""
    refused(cli("generate", "-m", tiny_folder / "model.safetensors", PROMPT), 1, "is a file", "try -m .*tiny$")


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        (None, "has no config.json", "config.json, tokenizer.json"),
        ("{", "config.json can't be read", None),
        ("[]", "config.json is not a JSON object", None),
    ],
)
def test_a_folder_needs_a_config(cli: Cli, changed: Copy, content: str | None, words: str, hint: str | None) -> None:
    """A folder without a readable config.json is named, with what belongs into it."""
    config = changed() / "config.json"
    if content is None:
        config.unlink()
    else:
        config.write_text(content, encoding="utf-8")

    refused(cli("generate", "-m", config.parent, PROMPT), 1, words, hint)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-100], r"is truncated: \d+ bytes, \d+ expected"),
        (lambda data: data[:50], "is truncated or not a safetensors file"),
        (lambda data: b"", "is truncated or not a safetensors file"),
        (lambda data: b"<!DOCTYPE html>" * 20, "is truncated or not a safetensors file"),
        (lambda data: data + b"\0", r"is damaged: \d+ bytes, \d+ expected"),
    ],
    ids=["tail cut off", "header cut off", "empty", "a web page", "too long"],
)
def test_damaged_weights_are_seen_before_they_are_loaded(
    cli: Cli, changed: Copy, damage: Callable[[bytes], bytes], words: str
) -> None:
    """A download that broke off is told by name, with what to do."""
    weights = changed() / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))

    refused(cli("generate", "-m", weights.parent, PROMPT), 1, f"model.safetensors {words}", "again")


def test_a_missing_shard_is_named(cli: Cli, changed: Copy) -> None:
    """Weights in parts are counted against their index."""
    folder, parts = changed(), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / "model.safetensors").rename(folder / parts[0])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", parts, strict=True))}), encoding="utf-8")
    refused(cli("generate", "-m", folder, PROMPT), 1, rf"lacks {parts[1]} \(1 of 2 parts missing\)")

    index.write_text("{}", encoding="utf-8")
    refused(cli("generate", "-m", folder, PROMPT), 1, "index.json can't be read")


def test_no_weights_at_all(cli: Cli, changed: Copy) -> None:
    """A folder with a config alone is no model yet."""
    folder = changed()
    (folder / "model.safetensors").unlink()

    refused(cli("generate", "-m", folder, PROMPT), 1, r"has no weights \(\*.safetensors\)")


def test_missing_tensors_are_not_made_up(cli: Cli, changed: Copy) -> None:
    """Where transformers would fill gaps with random numbers and go on, dynx doesn't."""
    weights = changed() / "model.safetensors"
    tensors = load_file(weights)
    gone = [name for name in tensors if "layers.1.mlp" in name]
    save_file({k: v for k, v in tensors.items() if k not in gone}, weights, metadata={"format": "pt"})

    refused(
        cli("generate", "-m", weights.parent, PROMPT), 1, rf"lacks {len(gone)} of its weights, among them {gone[0]}"
    )


def test_weights_of_another_shape(cli: Cli, changed: Copy) -> None:
    """A config that describes another model is told in words, not by a report of shapes."""
    config = changed() / "config.json"
    edit(config, hidden_size=16)

    refused(cli("generate", "-m", config.parent, PROMPT), 1, "other shapes than its config.json says")


def test_pickles_are_refused_unless_allowed(cli: Cli, changed: Copy, tiny_folder: Path) -> None:
    """A pickle can run any code, so it takes --allow-pickle; then it answers like the safetensors it was made from."""
    folder = changed()
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()

    refused(cli("generate", "-m", folder, PROMPT), 1, "pickled weights only", "--allow-pickle")
    allowed = cli("generate", "-m", folder, PROMPT, "-n", 16, "--allow-pickle")
    assert (allowed.code, allowed.err) == (0, "")
    assert allowed.out == cli("generate", "-m", tiny_folder, PROMPT, "-n", 16).out

    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4 torn")
    refused(cli("generate", "-m", folder, PROMPT, "--allow-pickle"), 1, "doesn't load")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "t5", "is_encoder_decoder": True},
        {"model_type": "t5"},
        {"model_type": "tomorrow"},
        {"model_type": None},
    ],
    ids=str,
)
def test_other_kinds_of_model(cli: Cli, changed: Copy, changes: dict[str, Any]) -> None:
    """Encoder-decoders, and what this transformers doesn't know, are refused by naming what is supported."""
    config = changed("kind") / "config.json"
    edit(config, **changes)

    refused(cli("generate", "-m", config.parent, PROMPT), 1, "kind", "decoder-only models: Llama")


@pytest.mark.parametrize("content", [None, "{"], ids=["missing", "damaged"])
def test_a_model_without_tokenizer(cli: Cli, changed: Copy, content: str | None) -> None:
    """Without tokenizer there is no reading a prompt; the folder is named."""
    folder = changed()
    (folder / "tokenizer.json").unlink()
    if content is None:
        refused(cli("generate", "-m", folder, PROMPT), 1, "has no tokenizer", "tokenizer.json")
    else:
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        refused(cli("generate", "-m", folder, PROMPT), 1, "tokenizer doesn't load: ")


@pytest.mark.parametrize("size", [400, 300], ids=["same size", "smaller"])
def test_a_drafter_of_another_vocabulary(cli: Cli, changed: Copy, tiny_folder: Path, size: int) -> None:
    """Vocabularies are compared by content, not by size; where ids mean other words, drafts pass as text."""
    folder = changed("stranger")
    train_tokenizer(size, ["zig zag zebra"] * 9).save_pretrained(folder)
    plain = cli("generate", "-m", tiny_folder, PROMPT, "--draft", "none")
    result = cli("generate", "-m", tiny_folder, PROMPT, "--draft", folder, "--stats")

    assert result.code == 0
    assert result.out == plain.out
    assert "another tokenizer" in cli("generate", "-m", tiny_folder, PROMPT, "--draft", folder, "--explain").err


def test_a_drafter_whose_tokens_have_no_text(cli: Cli, changed: Copy, tiny_folder: Path) -> None:
    """A tokenizer of a kind that can't be compared is refused by name, with what needs none."""
    folder = changed("stranger")
    train_tokenizer(300, ["zig zag zebra"] * 9).save_pretrained(folder)
    edit(folder / "tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": False})
    result = cli("generate", "-m", tiny_folder, PROMPT, "--draft", folder)

    refused(
        result,
        1,
        "stranger can't draft for tiny: another vocabulary, and its tokenizer decodes by WordPiece",
        "--draft",
    )


def test_a_missing_drafter_is_not_done_without(cli: Cli, tiny_folder: Path) -> None:
    """A drafter asked for by name has to be there."""
    refused(cli("generate", "-m", tiny_folder, PROMPT, "--draft", "./nowhere"), 1, "no folder ./nowhere")


def test_a_prompt_longer_than_the_context(cli: Cli, tiny_folder: Path) -> None:
    """Both lengths are told."""
    result = cli("generate", "-m", tiny_folder, "the fox " * CONTEXT)

    refused(result, 2, rf"the prompt has \d+ tokens and the model's context is {CONTEXT}", "shorten the prompt")


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"the fox " * CONTEXT, "the prompt has"),
        (b"caf\xe9", "stdin is not UTF-8: byte 0xe9 at offset 13"),
        (b"x" * (17 << 20), "the line at offset 10 is longer than 16 MiB"),
    ],
    ids=["too long for the model", "not UTF-8", "too long for a line"],
)
def test_a_bad_line_has_its_error_in_its_place(cli: Cli, tiny_folder: Path, batch: int, bad: bytes, words: str) -> None:
    """The lines around it have the answers that they have alone; exit code and, in text, an empty line say that it has none."""
    command = ["generate", "-m", tiny_folder, "--lines", "-n", 6, "--batch", batch]
    want = cli(*command, stdin=b"Once upon\nThe fox\nmore\n").out.splitlines()
    stdin = b"Once upon\n" + bad + b"\nThe fox\n\n" + bad + b"\nmore\n"
    text = cli(*command, stdin=stdin)
    document = cli(*command, "--json", stdin=stdin)
    events = cli(*command, "--jsonl", stdin=stdin).documents

    assert (text.code, text.out.splitlines()) == (1, [want[0], "", want[1], "", want[2]])
    said = text.err.splitlines()
    assert [line.split(":")[1].strip() for line in said[:2]] == ["prompt 2", "prompt 4"]
    assert words in said[0]
    assert said[2:] == ["dynx: 2 prompts have no answer"]
    assert (document.code, document.error["message"]) == (1, "2 prompts have no answer")
    results = document.document["results"]
    assert [r.get("text") for r in results] == [want[0], None, want[1], None, want[2]]
    assert [list(results[i]) for i in (1, 3)] == [["index", "model", "prompt", "error"]] * 2
    assert [r["index"] for r in results] == list(range(5))
    assert words in results[1]["error"]
    assert all(len(r["prompt"]) < 8 * CONTEXT + 1 for r in results)
    assert [(e["event"], e["index"]) for e in events if e["event"] != "token"] == [
        ("result", 0),
        ("error", 1),
        ("result", 2),
        ("error", 3),
        ("result", 4),
    ]


def test_what_is_wrong_for_every_line_ends_it(cli: Cli, tiny_folder: Path) -> None:
    """A model without chat template is told once."""
    result = cli("generate", "-m", tiny_folder, "--lines", "--chat", stdin=b"one\ntwo\n")

    refused(result, 2, "has no chat template", "leave out --chat")


@pytest.mark.parametrize("stdin", [b"", b"\n"], ids=repr)
@pytest.mark.parametrize("options", [[], ["-"], ["--lines"]], ids=str)
def test_empty_stdin(cli: Cli, tiny_folder: Path, options: list[str], stdin: bytes) -> None:
    """Nothing on stdin is told before any model is loaded."""
    refused(cli("generate", "-m", tiny_folder, *options, stdin=stdin), 2, "stdin is empty", "prompt")


@pytest.mark.parametrize(
    "option", [["caf\udce9"], [PROMPT, "--stop", "caf\udce9"], [PROMPT, "--system", "caf\udce9", "--chat"]]
)
def test_arguments_that_are_no_text(cli: Cli, changed: Copy, option: list[str]) -> None:
    """Bytes of an argument that aren't UTF-8 are told by offset, like stdin's."""
    refused(cli("generate", "-m", changed(), *option), 2, "is not UTF-8: byte 0xe9 at offset 3", "iconv")


@pytest.mark.parametrize(
    "option",
    [
        ["-n", -1],
        ["-n", "many"],
        ["-n", "1e3"],
        ["--temperature", -1],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--top-k", -1],
        ["--top-p", 1.5],
        ["--top-p", "nan"],
        ["--repetition-penalty", 0],
        ["--seed", -1],
        ["--threads", 0],
        ["--threads", 10**9],
        ["--dtype", "float8"],
        ["--color", "green"],
        ["--nope"],
    ],
    ids=lambda option: " ".join(map(str, option)),
)
def test_absurd_values_are_refused_by_option(cli: Cli, option: list[object]) -> None:
    """A number out of range names its option and where the options are listed."""
    refused(cli("generate", PROMPT, *option), 2, str(option[0]), "dynx generate --help")


@pytest.mark.parametrize(
    "option",
    [
        ["-n", 10**30, "--stop", "e"],
        ["--top-k", 10**30, "--temperature", 1],
        ["--top-p", 0, "--temperature", 1],
        ["--temperature", 1e-300],
        ["--temperature", 1e-300, "--seed", 1],
        ["--temperature", 100, "--repetition-penalty", 0.01, "--seed", 10**30],
    ],
    ids=lambda option: " ".join(map(str, option)),
)
def test_extreme_values_work(cli: Cli, tiny_folder: Path, option: list[object]) -> None:
    """What is extreme and still means something is done."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 4, *option)

    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "--jsonl"], "--json and --jsonl exclude"),
        (["--lines", "--no-stdin"], "--lines reads stdin"),
        (["--lines", "-"], "leave out -"),
        (["-", "--no-stdin"], "forbids"),
        (["--draft", ""], "--draft is empty"),
        (["--draft", "none,self"], "stand alone"),
        (["--draft", "./a,./b"], "one draft model at a time"),
        (["--require-profile", "--plain"], "--require-profile and --plain contradict"),
        (["--require-profile", "--profile", "none"], "--require-profile and --profile none contradict"),
        (["--lookup", "/nowhere.txt"], "--lookup /nowhere.txt can't be read: No such file"),
        (["--lookup", "/"], "--lookup / can't be read: Is a directory"),
        (["--device", "12"], "'12' is not a device"),
        (["--profile", "0123"], "no profile '0123'"),
    ],
    ids=str,
)
def test_what_excludes_each_other(cli: Cli, tiny_folder: Path, options: list[str], words: str) -> None:
    """Contradictions, and files and names that aren't there, are wrong usage."""
    result = cli("generate", "-m", tiny_folder, PROMPT, *options, stdin=b"x\n")

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here(cli: Cli, tiny_folder: Path) -> None:
    """Exit code 5 tells a script that this machine can't, and the hint what it has."""
    refused(cli("generate", "-m", tiny_folder, PROMPT, "--device", "cuda"), 5, "no device 'cuda'", "Here: cpu")


def test_a_required_profile_that_is_not_there(cli: Cli, tiny_folder: Path) -> None:
    """Exit code 4, and the command that would make one."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "--require-profile", "--dtype", "bfloat16")

    refused(result, 4, "no profile fits", r"dynx calibrate -m \S+tiny --dtype bfloat16 measures one")


def stored(folder: Path, **changes: Any) -> Path:
    """A profile of the tiny model in the cache, with `changes` to its fields; returns its file."""
    key = make_plan(GeneratorRequest(str(folder), profile="none")).key
    curve = CostCurve.fit([(n, c, 0.001 * n) for n in (1, 2, 8) for c in (16, 64)]).to_json()
    profile = Profile(
        key=key,
        model_name=folder.name,
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": torch.__version__},
        device={"name": "a test"},
        measured={"target": curve, "draft": {"draft": curve}, "overhead": {"draft": 1e-4}},
        fitted={"reliability": {}, "exit_layers": 1, "tokens_per_second": 900.0},
        evidence={},
        decision={"summary": "made up"},
        weights=weights_hash(folder, ["drafter"]),
    )
    return ProfileStore(Path(os.environ["DYNX_CACHE_DIR"]) / "profiles", pytest.fail).save(replace(profile, **changes))


def test_a_profile_that_fits_is_used(cli: Cli, tiny_folder: Path) -> None:
    """The baseline of the next tests: a sound profile goes into the receipt without a word."""
    file = stored(tiny_folder)
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 8, "--json", "--require-profile")

    assert (result.code, result.err) == (0, "")
    assert result.document["receipt"]["profile"] == file.stem[-12:]
    assert result.document["receipt"]["plain_measured"] == "profile"


def test_lookup_that_calibration_put_aside_is_used_when_asked_for(alone: None, tiny_folder: Path) -> None:
    """A profile that says it loses leaves it out; `--draft lookup` and profiles that don't say have it."""

    def looks(**wish: Any) -> bool:
        return assemble(make_plan(GeneratorRequest(str(tiny_folder), **wish))).engine.drafters.lookup

    known = {"reliability": {}, "exit_layers": 1, "tokens_per_second": 900.0, "origins": ["self"]}
    stored(tiny_folder, fitted=known)
    assert looks()
    stored(tiny_folder, fitted=known | {"lookup": False})
    assert not looks()
    assert looks(draft="lookup")


@pytest.mark.parametrize("damage", ["torn", "garbage", "contents", "older torch", "another device"])
def test_a_profile_that_cannot_be_trusted_is_ignored(cli: Cli, tiny_folder: Path, damage: str) -> None:
    """A torn, foreign or stale profile costs one warning; the answer is what it is without any."""
    plain = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--profile", "none")
    key = make_plan(GeneratorRequest(str(tiny_folder), profile="none")).key
    changes: dict[str, dict[str, Any]] = {
        "contents": {"measured": {"target": {"seconds_by_width": "fast"}}},
        "older torch": {"versions": {"torch": "1.0.0"}},
        "another device": {"key": replace(key, device="elsewhere-cpu-1t")},
    }
    file = stored(tiny_folder, **changes.get(damage, {}))
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "garbage":
        file.write_bytes(b"\xff\x00")
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24)
    required = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--require-profile")

    assert (result.code, result.out) == (0, plain.out)
    assert re.fullmatch(r"dynx: .*profile .*(ignored: .+|isn't used)\n", result.err)
    assert (required.code, required.out) == (4, "")


def test_a_profile_asked_for_by_name_must_belong_here(cli: Cli, tiny_folder: Path, changed: Copy) -> None:
    """--profile with another model's profile is refused, and so is one of this model from elsewhere, with the difference."""
    key = make_plan(GeneratorRequest(str(tiny_folder), profile="none")).key
    foreign = stored(tiny_folder, key=replace(key, device="elsewhere-cpu-1t")).stem[-12:]
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 8, "--profile", foreign)
    refused(
        result,
        2,
        rf"profile {foreign} of .* doesn't fit: it was measured on another device \(a test\)",
        "without --profile dynx takes one that fits",
    )

    other = changed("other")
    edit(other / "config.json", rope_theta=5000.0)
    result = cli("generate", "-m", other, PROMPT, "--profile", foreign)
    refused(
        result,
        2,
        rf"profile {foreign} of tiny doesn't fit: it was measured with other weights",
        "without --profile dynx takes one that fits",
    )


def exhausted(monkeypatch: pytest.MonkeyPatch, module: type, passes: int, error: Exception) -> None:
    """Let `module` run out of memory after some passes, counted anew at each call."""
    forward, count = getattr(module.forward, "whole", module.forward), iter(range(10**6))

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(count) >= passes:
            raise error
        return forward(self, *args, **kwargs)

    limited.whole = forward  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "forward", limited)


MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_out_of_memory_keeps_what_was_written(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """In the middle of an answer: the text so far stays, in JSON too, then one line and exit code 5."""
    whole = cli("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--plain").out
    exhausted(monkeypatch, LlamaForCausalLM, 20, error)
    text = cli("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--plain")
    exhausted(monkeypatch, LlamaForCausalLM, 20, error)
    nothing = cli("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--plain", "--json")

    assert text.code == 5
    assert text.out.endswith("\n")
    assert len(text.out) > 10
    assert whole.startswith(text.out[:-1])
    assert re.match(r"dynx: out of memory.*\n  try .*\n\Z", text.err)
    assert nothing.code == 5
    assert nothing.document["finish_reason"] == "interrupted"


def test_out_of_memory_while_reading_a_long_prompt(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes over a prompt's first parts, which skip the head, fail in the same words."""

    def full(*args: Any) -> None:
        raise MEMORY["cuda"]

    monkeypatch.setattr(eager, "PREFILL_CHUNK_TOKENS", 4)
    monkeypatch.setattr(eager.EagerBackend, "run_body", full)
    result = cli("generate", "-m", tiny_folder, "the fox and the king " * 4, "-n", 8, "--plain")

    assert (result.code, result.out) == (5, "\n")
    assert re.match(r"dynx: out of memory.*\n  try .*\n\Z", result.err)


def test_a_model_that_does_not_fit(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that memory can't hold are told before anything is written."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise MEMORY["cpu"]

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    result = cli("generate", "-m", tiny_folder, PROMPT)

    refused(result, 5, "tiny doesn't fit into the memory of cpu", "--dtype bfloat16")


def test_a_bug_is_a_line_too_unless_debugging(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw ends in one line that says how to see more; DYNX_DEBUG=1 shows the traceback."""
    exhausted(monkeypatch, LlamaForCausalLM, 20, ZeroDivisionError("by zero"))  # past the check on loading
    result = cli("generate", "-m", tiny_folder, PROMPT, "--plain")
    exhausted(monkeypatch, LlamaForCausalLM, 20, ZeroDivisionError("by zero"))
    monkeypatch.setenv("DYNX_DEBUG", "1")

    assert result.code == 1
    assert result.err == "dynx: ZeroDivisionError: by zero\n  DYNX_DEBUG=1 shows where\n"
    with pytest.raises(ZeroDivisionError):
        cli("generate", "-m", tiny_folder, PROMPT, "--plain")
