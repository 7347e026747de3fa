"""`dynx generate` as a shell sees it: what goes to stdout, what to stderr, and the exit code, apart from each other."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CHAT, CONTEXT, PROMPT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dynx import shipped
from dynx.cli import console
from dynx.speculation.plan import GeneratorRequest
from dynx.speculation.setup import _library

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

MODES = [[], ["--json"], ["--jsonl"], ["--stats"], ["--explain"], ["-q"], ["-qq"], ["-v"], ["-vv"], ["--plain"]]
DRAFTS = ["auto", "none", "self", "lookup", "drafter", "drafter,self,lookup"]


@pytest.fixture
def chatty(changed: Callable[..., Path]) -> Path:
    """The tiny model with a chat template."""
    folder = changed("chatty")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


@pytest.fixture
def answer(cli: Cli, tiny_folder: Path) -> str:
    """What the tiny model says to PROMPT in 24 tokens."""
    return cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--plain").out.removesuffix("\n")


def decided(err: str) -> list[str]:
    """The knobs that stderr gives values and reasons for, with -v or --explain."""
    return re.findall(r"^(\w+):? +\S.* \(.+\)$", err, re.MULTILINE)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: " ".join(mode) or "text")
def test_each_mode_side_by_side(cli: Cli, tiny_folder: Path, answer: str, mode: list[str]) -> None:
    """In every mode stdout is the answer and nothing else, and stderr says just what was asked for."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, *mode)

    assert result.code == 0
    if mode == ["--json"]:
        assert result.document["text"] == answer
    elif mode == ["--jsonl"]:
        assert result.documents[-1]["text"] == answer
    else:
        assert result.out == answer + "\n"
    knobs = {"model", "device", "dtype", "threads", "profile", "backend", "draft"}
    expected = {"--explain": knobs, "-v": knobs, "-vv": knobs}.get(" ".join(mode), set())
    assert expected <= set(decided(result.err))
    if mode == ["--stats"]:
        labels = [line.split("  ")[0].strip() for line in result.err.splitlines()]
        assert labels[:3] == ["tokens", "speed", "passes"]
        assert labels[-2:] == ["guarantee", "profile"]
    elif not expected:
        assert result.err == ""


def test_the_json_document_says_all(cli: Cli, tiny_folder: Path, answer: str) -> None:
    """--json is one document, schema first, with the answer, its ids, the receipt and every decision with its reason."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--json", "--temperature", 0.5, "--seed", 3)
    document = result.document

    assert result.out.startswith('{"schema": "dynx.generate/1", ')
    assert result.out.count("\n") == 1
    assert list(document) == [
        "schema",
        "index",
        "model",
        "prompt",
        "text",
        "token_ids",
        "finish_reason",
        "seed",
        "receipt",
        "decisions",
    ]
    assert (document["model"], document["prompt"]) == ("tiny", PROMPT)
    assert (document["finish_reason"], document["seed"], len(document["token_ids"])) == ("length", 3, 24)
    receipt = document["receipt"]
    assert (receipt["tokens"], receipt["profile"]) == (24, None)
    assert receipt["guarantee"] == "identical to plain decoding"
    for tally in receipt["drafters"].values():
        assert tally["accepted"] <= tally["submitted"] <= tally["drafted"]
    assert all({"value", "reason"} == set(decision) for decision in document["decisions"].values())


def test_json_lines_are_tokens_then_a_result(cli: Cli, tiny_folder: Path, answer: str) -> None:
    """--jsonl is one line per event, each with the schema first; the tokens' texts joined are the result's."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--jsonl")
    *tokens, last = result.documents

    assert all(line.startswith('{"schema": "dynx.generate/1", "event": ') for line in result.out.splitlines())
    assert {event["event"] for event in tokens} == {"token"}
    assert last["event"] == "result"
    assert "".join(event["text"] for event in tokens) == last["text"] == answer
    assert [event["id"] for event in tokens if event["id"] is not None] == last["token_ids"]


def test_what_is_unknown_is_null(cli: Cli, tiny_folder: Path) -> None:
    """With nothing written there is no speed; JSON says null and neither NaN nor a made-up 0."""
    receipt = cli("generate", "-m", tiny_folder, PROMPT, "-n", 0, "--json").document["receipt"]

    assert receipt["tokens"] == 0
    assert [receipt[key] for key in ("tokens_per_second", "first_token_seconds", "speedup")] == [None] * 3


def test_stats_and_json_go_together(cli: Cli, tiny_folder: Path) -> None:
    """--stats stays a request in every output mode: stdout is JSON, stderr the figures."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 4, "--json", "--stats")

    assert result.document["receipt"]["tokens"] == 4
    assert result.err.startswith("tokens ")


def test_plain_decoding_saves_nothing(cli: Cli, tiny_folder: Path) -> None:
    """Nor does it lose anything: how it differs from what a profile or an earlier pass took is the machine's mood."""
    said = cli("generate", "-m", tiny_folder, PROMPT, "-n", 12, "--stats", "--draft", "none").err

    assert re.search(r"^saved +nothing: no token was drafted", said, re.M)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "sampling", [[], ["--temperature", 0.9, "--seed", 5, "--top-p", 0.95], ["--repetition-penalty", 1.3]], ids=str
)
def test_drafting_changes_nothing(cli: Cli, tiny_folder: Path, draft: str, sampling: list[Any]) -> None:
    """Greedy, penalised or with a seed: the text is plain decoding's, whoever guesses ahead."""
    common = ["generate", "-m", tiny_folder, PROMPT, "-n", 48, *sampling]
    plain = cli(*common, "--plain")
    drafted = cli(*common, "--draft", draft.replace("drafter", str(tiny_folder / "drafter")))

    assert (drafted.code, drafted.out, drafted.err) == (0, plain.out, "")


def test_seeds_repeat_and_differ(cli: Cli, tiny_folder: Path) -> None:
    """The same seed writes the same text again, another seed another."""
    sample = ["generate", "-m", tiny_folder, PROMPT, "-n", 32, "--temperature", 2]
    texts = [cli(*sample, "--seed", seed).out for seed in (7, 7, 8, 2**70)]

    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_a_stop_string_ends_the_answer_before_it(cli: Cli, tiny_folder: Path, answer: str) -> None:
    """--stop cuts at the first of several strings, also inside a token, and what follows isn't shown."""
    stops = [answer[30:34], answer[11:14], "never said"]
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--json", *(f"--stop={stop}" for stop in stops))

    assert result.document["finish_reason"] == "stop"
    assert result.document["text"] == answer[: min(answer.index(stop) for stop in stops[:2])]


def test_an_empty_stop_string_stops_nothing(cli: Cli, tiny_folder: Path, answer: str) -> None:
    """A variable that was empty in a script doesn't end every answer at once."""
    assert cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--stop", "").out == answer + "\n"


def test_no_tokens_is_an_empty_line(cli: Cli, tiny_folder: Path) -> None:
    """-n 0 writes nothing, and says so."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 0, "--json")

    assert cli("generate", "-m", tiny_folder, PROMPT, "-n", 0).out == "\n"
    assert (result.document["text"], result.document["finish_reason"]) == ("", "length")


def test_a_full_context_ends_the_answer_with_a_word(cli: Cli, tiny_folder: Path) -> None:
    """The model's limit ends the text where it is, keeps it, and is told in one line; that is no failure."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 10 * CONTEXT, "--json")

    assert (result.code, result.document["finish_reason"]) == (0, "context")
    assert len(result.document["token_ids"]) > CONTEXT // 2
    assert result.err == f"dynx: the model's context of {CONTEXT} tokens is full; the text ends there\n"


def test_piped_text_precedes_the_prompt(cli: Cli, tiny_folder: Path) -> None:
    """The command reads a file on stdin before its argument, and leaves it alone with --no-stdin."""
    both = cli("generate", "-m", tiny_folder, "A summary:", "-n", 2, "--json", stdin=b"A letter.\n")
    alone = cli("generate", "-m", tiny_folder, "A summary:", "-n", 2, "--json", "--no-stdin", stdin=b"A letter.\n")

    assert both.document["prompt"] == "A letter.\nA summary:"
    assert alone.document["prompt"] == "A summary:"


def test_lines_are_answered_in_order(cli: Cli, tiny_folder: Path) -> None:
    """--lines gives a line for each line, the same as each alone, and loads the model once."""
    prompts = ["Once upon a time", "The fox", "The miller's daughter"]
    alone = [cli("generate", "-m", tiny_folder, prompt, "-n", 12).out for prompt in prompts]
    stdin = "\n".join(prompts).encode()
    text = cli("generate", "-m", tiny_folder, "--lines", "-n", 12, stdin=stdin)
    document = cli("generate", "-m", tiny_folder, "--lines", "-n", 12, "--json", stdin=stdin).document
    events = cli("generate", "-m", tiny_folder, "--lines", "-n", 12, "--jsonl", stdin=stdin).documents

    assert (text.code, text.err, text.out) == (0, "", "".join(alone))
    assert list(document) == ["schema", "results"]
    assert [r["prompt"] for r in document["results"]] == prompts
    assert [r["text"] + "\n" for r in document["results"]] == alone
    assert [e["index"] for e in events if e["event"] == "result"] == [0, 1, 2]


def test_a_line_per_answer_even_if_answers_have_several(cli: Cli, changed: Callable[..., Path]) -> None:
    """Line breaks and backslashes inside an answer are escaped with --lines, so that lines stay countable."""
    folder = changed("breaks")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    first = cli("generate", "-m", folder, PROMPT, "-n", 1, "--json").document
    vocabulary = tokenizer["model"]["vocab"]
    name = next(token for token, i in vocabulary.items() if i == first["token_ids"][0])
    vocabulary[name], vocabulary["Ċ"] = vocabulary["Ċ"], vocabulary[name]
    tokenizer["model"]["merges"] = []  # none may be made of a token that has moved
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    prompt = first["prompt"].encode()
    plain = cli("generate", "-m", folder, PROMPT, "-n", 40).out
    lines = cli("generate", "-m", folder, "--lines", "-n", 40, stdin=prompt).out

    assert lines.count("\n") == 1
    assert lines.removesuffix("\n").replace("\\n", "\n").replace("\\\\", "\\") == plain.removesuffix("\n")


def test_chat_uses_the_models_template(cli: Cli, changed: Callable[..., Path]) -> None:
    """--chat puts the prompt into the template, --system a message before it and implies --chat."""
    folder = changed("chatty")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")

    def prompt_tokens(*options: str) -> int:
        return int(cli("generate", "-m", folder, *options, "-n", 1, "--json").document["receipt"]["prompt_tokens"])

    expected = [
        prompt_tokens(f"[user] {PROMPT}\n[assistant] "),
        prompt_tokens(f"[system] Be brief\n[user] {PROMPT}\n[assistant] "),
    ]
    assert [prompt_tokens(PROMPT, "--chat"), prompt_tokens(PROMPT, "--system", "Be brief")] == expected


def test_a_template_may_refuse(cli: Cli, changed: Callable[..., Path]) -> None:
    """What a template objects to is told in its own words."""
    folder = changed("chatty")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    result = cli("generate", "-m", folder, PROMPT, "--system", "forbidden")

    assert (result.code, result.out) == (2, "")
    assert result.err == "dynx: chatty's chat template rejects this prompt: no such role\n"


@pytest.fixture
def spaced(changed: Callable[..., Path]) -> Path:
    """The tiny model with a tokenizer of words that carry their space, whose decoder drops the first one's, as Llama 2's."""
    folder = changed("spaced")
    raw = Tokenizer(models.WordLevel({f"▁{i}" if i % 3 else f"<{i}>": i for i in range(400)}, unk_token="<0>"))  # noqa: S106
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<{i}>" for i in range(0, 400, 3)]})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("mode", [[], ["--temperature", 5, "--seed", 4]], ids=["greedy", "sampled"])
def test_an_answer_continues_its_prompt(cli: Cli, spaced: Path, mode: list[object]) -> None:
    """The text is what decoding prompt and answer adds to the prompt's; with --chat it is decoded by itself."""
    tokenizer = AutoTokenizer.from_pretrained(spaced)
    prompt = "7 11"
    first = tokenizer(prompt)["input_ids"]
    start = len(tokenizer.decode(first, skip_special_tokens=True))
    wanted = ["generate", "-m", spaced, prompt, "-n", 24, *mode]

    going_on = cli(*wanted, "--json").document
    both = [*first, *going_on["token_ids"]]
    assert going_on["text"] == tokenizer.decode(both, skip_special_tokens=True)[start:]
    assert going_on["text"].startswith(" ")
    events = cli(*wanted, "--jsonl").documents
    assert "".join(e["text"] for e in events if e["event"] == "token") == going_on["text"] == events[-1]["text"]
    lines = cli("generate", "-m", spaced, "--lines", "-n", 24, *mode, stdin=f"{prompt}\n{prompt}\n".encode())
    assert lines.out == f"{going_on['text']}\n" * 2
    chat = cli(*wanted, "--json", "--chat").document
    assert chat["token_ids"] == going_on["token_ids"]
    assert chat["text"] == tokenizer.decode(chat["token_ids"], skip_special_tokens=True) == going_on["text"][1:]


def test_a_special_token_stops(cli: Cli, spaced: Path) -> None:
    """--stop takes the name of a token that isn't shown, and ends the answer before it."""
    tokenizer = AutoTokenizer.from_pretrained(spaced)
    wanted = ["generate", "-m", spaced, "7 11", "-n", 60, "--temperature", 5, "--seed", 4]
    ids = cli(*wanted, "--json").document["token_ids"]
    at = next(i for i, token in enumerate(ids) if i > 3 and token in tokenizer.all_special_ids)
    name = tokenizer.convert_ids_to_tokens(ids[at])
    stopped = cli(*wanted, "--json", "--stop", name).document
    first = ids.index(ids[at])

    assert stopped["finish_reason"] == "stop"
    assert stopped["token_ids"] == ids[: first + 1]
    whole = tokenizer.decode([*tokenizer("7 11")["input_ids"], *ids[:first]], skip_special_tokens=True)
    assert f"7 11{stopped['text']}" == whole


def test_a_byte_order_mark_changes_no_answer(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """On stdin, with --lines and in the file of --lookup."""
    mark = b"\xef\xbb\xbf"
    model = ["generate", "-m", tiny_folder, "-n", 12]
    assert cli(*model, stdin=mark + PROMPT.encode()).out == cli(*model, PROMPT).out
    lines = f"{PROMPT}\n{PROMPT}\n".encode()
    assert cli(*model, "--lines", stdin=mark + lines).out == cli(*model, "--lines", stdin=lines).out
    library = tmp_path / "library.txt"
    library.write_bytes(mark + b"Once upon")
    assert _library(GeneratorRequest(lookup=library)) == "Once upon"


def test_chat_without_a_template_is_told(cli: Cli, tiny_folder: Path) -> None:
    """A base model has no roles to speak in."""
    result = cli("generate", "-m", tiny_folder, PROMPT, "--chat")

    assert (result.code, result.out) == (2, "")
    assert result.err == "dynx: tiny has no chat template\n  leave out --chat and --system\n"


def test_help_goes_to_stderr_when_there_is_nothing_to_do(cli: Cli, tiny_folder: Path) -> None:
    """Without a prompt, and nothing to read one from, the command shows its help and fails."""
    result = cli("generate", "-m", tiny_folder, "--no-stdin")

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: dynx generate")
    assert result.err.endswith('dynx: no prompt\n  for example: dynx generate "Once upon a time"\n')


def test_lookup_takes_a_library(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """--lookup FILE lets answers be guessed from a text that holds them."""
    library = tmp_path / "tales.txt"
    common = ["generate", "-m", tiny_folder, PROMPT, "-n", 48, "--draft", "lookup", "--json"]
    text = cli(*common).document["text"]
    library.write_text(PROMPT + text, encoding="utf-8")
    known = cli(*common, "--lookup", library).document

    assert known["text"] == text
    assert known["receipt"]["drafters"]["lookup"]["accepted"] > 24


@pytest.mark.parametrize(
    ("variables", "options", "colored"),
    [
        ({}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
        ({"TERM": "dumb"}, [], False),
        ({}, [], False),
    ],
    ids=str,
)
def test_colour_is_asked_for_or_absent(
    cli: Cli,
    tiny_folder: Path,
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    options: list[str],
    colored: bool,
) -> None:
    """--color rules, then NO_COLOR, then FORCE_COLOR; a pipe gets none, and the text under the colours is the same."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--explain", "--draft", "lookup", *options)

    assert re.sub(r"\x1b\[[\d;]*m", "", result.out) == answer + "\n"
    assert ("draft source: target model" in result.err) == colored
    if not colored:
        assert "\x1b" not in result.out + result.err


def test_a_narrow_encoding_loses_letters_and_not_the_answer(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stdout isn't UTF-8, JSON is written in ASCII with nothing lost."""
    monkeypatch.setattr(console.Terminal, "unicode", False)
    result = cli("generate", "-m", tiny_folder, "Grüße 日本", "-n", 1, "--json")

    assert result.out.isascii()
    assert result.document["prompt"] == "Grüße 日本"


@pytest.mark.parametrize("name", ["a b", "Märchen 🦊", "[red]", "-dash"])
def test_any_folder_name_will_do(cli: Cli, changed: Callable[..., Path], answer: str, name: str) -> None:
    """Spaces, emoji and brackets in a path are just letters."""
    folder = changed(name)
    result = cli("generate", "-m", folder, PROMPT, "-n", 24, "--json")

    assert (result.code, result.err) == (0, "")
    assert (result.document["model"], result.document["text"]) == (name, answer)


def test_the_folder_is_named_even_from_inside(
    cli: Cli, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-m . calls the model by its folder's name."""
    monkeypatch.chdir(changed("here"))

    assert cli("generate", "-m", ".", PROMPT, "-n", 1, "--json").document["model"] == "here"


def test_home_may_be_unset(cli: Cli, tiny_folder: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services run without HOME; the cache is found or done without, in silence."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DYNX_CACHE_DIR")
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--profile", "none")

    assert (result.code, result.out, result.err) == (0, answer + "\n", "")


@pytest.mark.skipif("story" not in shipped.names(), reason="the shipped model isn't there yet")
def test_the_shipped_model_tells_a_story(cli: Cli) -> None:
    """Without -m the shipped model answers, offline and equal to plain; its own profile says what is worth drafting with."""
    dynamic = cli("generate", PROMPT, "-n", 40, "--offline", "--json").document
    plain = cli("generate", PROMPT, "-n", 40, "--offline", "--plain").out

    assert dynamic["model"] == "story"
    assert dynamic["text"] + "\n" == plain
    assert dynamic["decisions"]["draft"]["value"] == "lookup"
    assert dynamic["decisions"]["profile"]["reason"] == "came with the model"
    unknown = cli("generate", PROMPT, "-n", 40, "--offline", "--profile", "none", "--json").document
    assert unknown["text"] == dynamic["text"]
    assert "story/drafter isn't loaded before" in unknown["decisions"]["draft"]["reason"]


LINES = [
    PROMPT,
    "The fox",
    "",
    "The miller's daughter had a golden key, and",
    "Once",
    "   ",
    "The king and",
    "She said to",
]


@pytest.mark.parametrize("mode", [[], ["--json"], ["--jsonl"], ["--temperature", "0.9", "--seed", "3"]], ids=" ".join)
def test_a_batch_changes_no_byte(cli: Cli, tiny_folder: Path, mode: list[str]) -> None:
    """--batch 8 and --batch 3 print what --batch 1 prints, empty lines or not; JSON differs only in what it cost."""

    def answers(batch: int, lines: list[str]) -> Any:
        stdin = "\n".join(lines).encode()
        result = cli("generate", "-m", tiny_folder, "--lines", "-n", 20, "--batch", batch, *mode, stdin=stdin)
        assert (result.code, result.err) == (0, "")
        if "--json" in mode:
            return [(r["index"], r["prompt"], r["token_ids"], r["text"]) for r in result.document["results"]]
        if "--jsonl" in mode:
            return [(e["event"], e["index"], e["text"], e.get("id"), e.get("prompt")) for e in result.documents]
        return result.out

    one = answers(1, LINES)
    assert answers(8, LINES) == answers(3, LINES) == one
    assert answers(8, LINES[:1]) == answers(1, LINES[:1])


def test_a_batch_says_what_it_was(cli: Cli, tiny_folder: Path) -> None:
    """The decision and the receipt say how many answers shared the passes; --stats and --explain in words."""
    common = ["generate", "-m", tiny_folder, "--lines", "-n", 20, "--batch", 4]
    stdin = "\n".join(LINES).encode()
    first = cli(*common, "--json", stdin=stdin).document["results"][0]
    said = cli(*common, "--stats", "--explain", stdin=stdin).err

    assert first["decisions"]["batch"] == {"value": 4, "reason": "asked for"}
    assert 3 < first["receipt"]["rows"] <= 4
    assert re.search(r"^batch +\d\.\d sequences per forward pass", said, re.MULTILINE)
    assert re.search(r"^batch +4 \(asked for\)$", said, re.MULTILINE)


def test_batches_are_chosen_unasked(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough waiting, --batch auto times a batch and takes it where it wins, with --plain too."""
    monkeypatch.setattr("dynx.speculation.batch_size.UNMEASURED_SPEEDUP", 0.01)
    stdin = "\n".join(LINES * 2).encode()
    common = ["generate", "-m", tiny_folder, "--lines", "-n", 60]
    found = cli(*common, "--json", stdin=stdin).document["results"]
    plain = cli(*common, "--json", "--plain", stdin=stdin).document["results"]

    assert found[-1]["decisions"]["batch"]["value"] > 1
    assert plain[-1]["decisions"]["batch"]["value"] > 1
    assert [r["text"] for r in found] == [r["text"] for r in plain]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lines", "--batch", "0"], "--batch 0: must be auto or a number from 1 to 256"),
        (["--batch", "4"], "--batch requires --lines"),
        (["--lines", "--batch", "4", "--exact", "--dtype", "float32"], "--batch 4: --exact"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_batches_that_make_no_sense_are_refused(cli: Cli, tiny_folder: Path, options: list[str], said: str) -> None:
    """A usage error, in one line."""
    result = cli("generate", "-m", tiny_folder, *options, stdin=PROMPT.encode())

    assert (result.code, result.out) == (2, "")
    assert said in result.err


def test_json_lines_carry_the_callers_fields_back(cli: Cli, chatty: Path) -> None:
    """A prompt may hold line breaks, or be a conversation; a bad line has its error in its place."""
    user = {"role": "user", "content": PROMPT}
    rows: list[dict[str, Any]] = [
        {"id": "a", "index": 9, "q": f"{PROMPT}\nagain"},
        {"id": "b"},
        {"id": "c", "q": [user]},
        {"id": "d", "q": [{"role": "user"}]},
    ]
    stdin = "\n".join([json.dumps(rows[0]), "", *map(json.dumps, rows[1:]), "{"]).encode()
    result = cli("generate", "-m", chatty, "--lines", "--field", "q", "-n", 3, "--json", stdin=stdin)
    found = result.documents[0]["results"]

    assert result.code == 1
    assert [r["index"] for r in found] == [0, 1, 2, 3, 4]
    assert [r.get("original") for r in found] == [*rows, None]
    assert [r.get("line") for r in found] == [None, 3, None, 5, 6]
    assert (found[0]["prompt"], found[2]["prompt"], found[2]["messages"]) == (rows[0]["q"], None, [user])
    assert found[1]["error"] == 'no field "q"'
    assert found[3]["error"] == 'field "q": message 1 has no content'
    assert found[0]["text"] == cli("generate", "-m", chatty, rows[0]["q"], "-n", 3, "--json").document["text"]
    assert found[2]["text"] == cli("generate", "-m", chatty, PROMPT, "--chat", "-n", 3, "--json").document["text"]
    told = cli("generate", "-m", chatty, "--lines", "--field", "q", "-n", 3, stdin=stdin)
    assert 'dynx: line 3: no field "q"\n' in told.err
    assert told.out.count("\n") == 5


def test_a_conversation_is_answered_at_its_end(cli: Cli, chatty: Path, tmp_path: Path) -> None:
    """From a file or stdin; PROMPT is the user's next message, and --system goes before messages without one."""
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(turns), encoding="utf-8")

    def told(*arguments: object, stdin: bytes = b"") -> tuple[int, list[int]]:
        found = cli("generate", "-m", chatty, *arguments, "-n", 3, "--json", stdin=stdin).document
        return found["receipt"]["prompt_tokens"], found["token_ids"]

    text = "[user] one\n[assistant] two\n[user] three\n[assistant] "
    assert told("--messages", file) == told(text) == told("--messages", "-", stdin=file.read_bytes())
    system = told("--messages", file, "--system", "Be brief")
    assert system == told(f"[system] Be brief\n{text}")
    assert told("--messages", file, "four") == told(text.removesuffix("[assistant] ") + "[user] four\n[assistant] ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--field", "q", "x"], "--field requires --lines"),
        (["--lines", "--messages", "x"], "--lines and --messages exclude each other"),
        (["--messages", "-", "--no-stdin"], "--messages - reads stdin, which --no-stdin forbids"),
        (["--messages", "-", "-"], "- can be given only once"),
    ],
)
def test_options_of_conversations_fit_together(cli: Cli, tiny_folder: Path, arguments: list[str], said: str) -> None:
    """Or are refused before the model is read."""
    result = cli("generate", "-m", tiny_folder, *arguments, stdin=b"x")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"dynx: {said}\n")


def test_a_conversation_needs_a_template(cli: Cli, tiny_folder: Path) -> None:
    """Where the model has none, it is told once, and not of each line."""
    row = b'{"m": [{"role": "user", "content": "x"}]}\n'
    result = cli("generate", "-m", tiny_folder, "--lines", "--field", "m", stdin=row * 2)
    assert (result.code, result.out) == (2, "")
    assert result.err == "dynx: tiny has no chat template\n  a conversation needs a model that has one\n"
