"""Every document and event that the commands print keeps to the schema that it names; and the schemas aren't empty words.

What `cli` prints is held to its schema in every test, each key of it (see `commands.checked`); here are the documents of all
commands, what is written to files, and the schemas themselves.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from support import keys, pipelines
from support.classifier_folders import sentences, write_text_classifier
from support.commands import PROMPT, parse_json
from support.exits import EPS, LESSONS

from dynx import schemas, shipped
from dynx.cli.draw import png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings

    Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier."""
    return write_text_classifier(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline that draws."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


def check(result: Result, schema: str) -> list[dict[str, Any]]:
    """The documents on stdout, one whole or a line each, all by this schema and nothing left out of it."""
    try:
        found = [parse_json(result.out)]
    except json.JSONDecodeError:
        found = result.documents
    for document in found:
        assert document["schema"] == schema
        assert schemas.complaint(document) is None
        assert keys.complaint(document) is None
    return found


TYPES = {"type", "const", "enum", "anyOf", "oneOf"}
"""What says of which kind a value is."""


def wordless(place: keys.Place, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """Properties without type or description, by their place; a branch need not describe those `known` from around it."""
    (name, steps), schema = place, keys.at(place)
    if not isinstance(schema, dict):
        return
    own = schema.get("properties", {})
    for key, about in own.items():
        parts = [about, keys.at(keys.referred(place, about["$ref"]))] if "$ref" in about else [about]
        said = any(part.get("description", "").endswith(".") for part in parts)
        if key not in known and not (said and any(TYPES & part.keys() for part in parts)):
            yield "/".join((name, *steps, key))
    for word in ("properties", "$defs"):
        for key in schema.get(word, ()):
            yield from wordless((name, (*steps, word, key)))
    for word in {"items", "additionalProperties"} & schema.keys():
        yield from wordless((name, (*steps, word)))
    branches = [(many, str(i)) for many in ("allOf", "anyOf", "oneOf") for i in range(len(schema.get(many, ())))]
    for branch in (*branches, *([("then",)] if "then" in schema else ())):
        yield from wordless((name, (*steps, *branch)), known | own.keys())


@pytest.mark.parametrize("name", schemas.names())
def test_schemas_are_schemas(name: str) -> None:
    """Each is a schema of draft 2020-12, says what it is of and what every property is, and asks for its own name."""
    schema = schemas.load(name)
    Draft202012Validator.check_schema(schema)

    assert (schema["$schema"], schema["title"]) == ("https://json-schema.org/draft/2020-12/schema", name)
    assert schema["$id"] == f"urn:{name.replace('.', ':', 1).replace('/', ':')}"
    assert schema["description"].endswith(".")
    assert list(wordless((name, ()))) == []
    assert not schemas.validator(name).is_valid({"schema": name.replace("/1", "/2")})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dynx.bench/1 labels_guarantee", "dynx.classify/1 labels_guarantee"),
        ("dynx.bench/1 pictures_guarantee", "dynx.draw/1 pictures_guarantee"),
        *((f"dynx.{name}/1 decision", "dynx.bench/1 decision") for name in ("calibrate", "device", "draw", "generate")),
        *((f"dynx.picture/1 {part}", f"dynx.draw/1 {part}") for part in ("grid", "schedule", "steps")),
        ("dynx.profile/1 grid", "dynx.draw/1 grid"),
    ],
)
def test_what_several_schemas_define_is_one(one: str, other: str) -> None:
    """A schema that people validate with stands by itself, and its copies of others' parts are exact."""
    (a, x), (b, y) = one.split(), other.split()

    assert schemas.load(a)["$defs"][x] == schemas.load(b)["$defs"][y]


MAPS = {"decisions", "drafters"}
"""Keys in the documents below that hold a value for each of any names."""


def objects(value: Any, under: str = "") -> Iterator[dict[str, Any]]:
    """All objects in a document that aren't maps."""
    if isinstance(value, dict) and under not in MAPS:
        yield value
    for key, item in value.items() if isinstance(value, dict) else ((under, v) for v in value):
        if isinstance(item, (dict, list)):
            yield from objects(item, key)


def test_a_key_too_many_is_seen(cli: Cli, tiny_folder: Path) -> None:
    """Anywhere in a document one that its schema doesn't know is valid, as it may be a newer dynx's, and fails these tests."""
    words = ("generate", "-m", tiny_folder, "--lines", "-n", 12, "--json", "--verify", "--draft", "lookup")
    answers = cli(*words, stdin=b"The fox\nThe fox. The fox. The fox.\n").document
    plan = cli("calibrate", "-m", tiny_folder, "--dry-run", "--json").document
    for document in (answers, plan):
        found = list(objects(document))
        for one in found:
            one["unheard"] = {"of": 1}
            assert schemas.complaint(document) is None
            assert (keys.complaint(document) or "").endswith(".unheard")
            del one["unheard"]

        assert keys.complaint(document) is None
        assert len(found) > (20 if document is answers else 6)


def test_facts_of_an_arm_are_averages() -> None:
    """An arm's counters are averaged over its rounds, so that none of them is promised to be a whole number."""
    facts = schemas.load("dynx.bench/1")["$defs"]["facts"]["properties"]

    assert facts["passes"]["type"] == "number"
    assert [name for name, about in facts.items() if about.get("type") == "integer"] == []


def test_what_has_no_schema_is_told() -> None:
    """Something else than an object, one without a name, and one of an unknown schema each have their sentence."""
    assert schemas.complaint([1]) == "it names no schema"
    assert schemas.complaint({}) == "it names no schema"
    assert schemas.complaint({"schema": "dynx.nothing/1"}) == "there is no schema dynx.nothing/1"
    with pytest.raises(KeyError):
        schemas.load("../generate/1")


@pytest.mark.parametrize("mode", [["--json"], ["--jsonl"], ["--lines", "--json"], ["--lines", "--jsonl"]], ids=str)
def test_generate(cli: Cli, tiny_folder: Path, mode: list[str]) -> None:
    """Answers, lists of them, and events."""
    prompt = [] if "--lines" in mode else [PROMPT]
    words = ("generate", "-m", tiny_folder, *prompt, "-n", 12, "--temperature", 0.7, "--seed", 3)
    found = check(cli(*words, *mode, stdin=f"{PROMPT}\nThe fox\n".encode()), "dynx.generate/1")
    events = [document.get("event") for document in found]

    assert set(events) == ({"token", "result"} if "--jsonl" in mode else {None})


def test_generate_events_are_not_documents(cli: Cli, tiny_folder: Path) -> None:
    """Taking away any key that a document, a token or a result has to have is noticed."""
    words = ("generate", "-m", tiny_folder, PROMPT, "-n", 2)
    whole = cli(*words, "--json").document
    token, *_, result = cli(*words, "--jsonl").documents
    for document in (whole, token, result):
        for key in document.keys() - ({"event"} if document is result else set()):  # a result alone is a document
            assert schemas.complaint({k: v for k, v in document.items() if k != key}) is not None, key


@pytest.mark.parametrize("mode", [["--json"], ["--jsonl"]], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_classify(cli: Cli, easy: Path, findings: Findings, mode: list[str], learned: bool) -> None:
    """Labels with and without a promise, and an error in the place of one."""
    from support.exits import keep

    if learned:
        keep(findings)
    lines = [{"t": text} for text in LESSONS[:9]] + [{"t": 3}]
    stdin = "".join(json.dumps(line) + "\n" for line in lines).encode()
    result = cli("classify", "-m", easy, "--field", "t", "--max-disagreement", EPS, *mode, stdin=stdin)
    found = check(result, "dynx.classify/1")
    labels = found[0]["results"] if mode == ["--json"] else found

    assert result.code == 1
    assert [label["error"] is None for label in labels] == [True] * 9 + [False]
    assert any(label["exit"] for label in labels) == learned


def test_one_label(cli: Cli, bert: Path) -> None:
    """A single input has a document of its own; a label without its reason for being one is noticed."""
    (found,) = check(cli("classify", "-m", bert, "fine", "--json"), "dynx.classify/1")

    assert schemas.complaint({**found, "label": None}) is not None
    assert schemas.complaint({**found, "error": "broken"}) is not None


@pytest.mark.parametrize("mode", [["--lines", "--json"], ["--lines", "--jsonl"]], ids=str)
def test_draw_lines(cli: Cli, pipeline: Path, tmp_path: Path, mode: list[str]) -> None:
    """A picture for each line of stdin: in a list, or as events that say which picture they are of."""
    words = ("draw", "-m", pipeline, "--seed", 1, "--steps", 4, "-o", f"{tmp_path}/")
    found = check(cli(*words, *mode, stdin=b"a red cat\nblue moon\n"), "dynx.draw/1")
    pictures = found[0]["results"] if "--json" in mode else [d for d in found if d["event"] == "result"]

    assert [picture["index"] for picture in pictures] == [0, 1]
    assert len(found) == (1 if "--json" in mode else 2 * (4 + 1))


@pytest.mark.parametrize("mode", [["--json"], ["--jsonl"], ["--json", "--count", "2"]], ids=str)
def test_draw(cli: Cli, pipeline: Path, tmp_path: Path, mode: list[str]) -> None:
    """Pictures, lists of them, and events."""
    words = ("draw", "-m", pipeline, "a red cat", "--seed", 1, "--steps", 5, "-o", f"{tmp_path}/")
    found = check(cli(*words, *mode), "dynx.draw/1")
    drawn = sorted(tmp_path.glob("*.png"))
    check(cli("draw", "--info", drawn[0], "--json"), "dynx.picture/1")
    check(cli("draw", "--info", *drawn, drawn[0], "--json"), "dynx.draw/1")

    assert len(drawn) == (2 if "--count" in mode else 1)
    assert all(keys.complaint(png.read(file)) is None for file in drawn)
    assert [d.get("event") for d in found] == (["step"] * 5 + ["result"] if mode == ["--jsonl"] else [None])


def test_plans(cli: Cli, tiny_folder: Path, bert: Path, pipeline: Path) -> None:
    """What each command would do, and a plan that lacks anything is noticed."""
    for command, model in (("generate", tiny_folder), ("classify", bert), ("draw", pipeline)):
        (plan,) = check(cli(command, "-m", model, "a red cat", "--dry-run", "--json"), "dynx.plan/1")

        assert plan["command"] == command
        for key in plan:
            assert schemas.complaint({k: v for k, v in plan.items() if k != key}) is not None, key
        (setting, one), *_ = plan["decisions"].items()
        assert schemas.complaint({**plan, "decisions": {setting: {**one, "origin": None}}}) is not None
        assert schemas.complaint({**plan, "decisions": {setting: {**one, "reason": None}}}) is not None


def test_calibrate_generation(cli: Cli, tiny_folder: Path) -> None:
    """The plan, the profile as printed, shown and listed, and the device."""
    (plan,) = check(cli("calibrate", "-m", tiny_folder, "--dry-run", "--json"), "dynx.calibrate/1")
    (made,) = check(cli("calibrate", "-m", tiny_folder, "--budget", 5, "--json"), "dynx.calibrate/1")
    check(cli("calibrate", "--show", made["id"]), "dynx.profile/1")
    (listed,) = check(cli("calibrate", "--list", "--json"), "dynx.profiles/1")
    check(cli("calibrate", "--device-info", "--json"), "dynx.device/1")

    assert plan["profile"] == made["id"] == listed["profiles"][0]["id"]


def test_calibrate_classification(cli: Cli, steady: None, easy: Path, tmp_path: Path) -> None:
    """The plan and the profile of a classifier."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text in LESSONS), encoding="utf-8")
    words = ("calibrate", "-m", easy, "--data", texts, "--max-disagreement", EPS, "--json")
    check(cli(*words, "--dry-run"), "dynx.calibrate/1")
    (made,) = check(cli(*words), "dynx.calibrate/1")

    (shown,) = check(cli("calibrate", "--show", made["id"]), "dynx.profile/1")

    assert shown["arrays"]["file"]


def test_calibrate_drawing(cli: Cli, pipeline: Path) -> None:
    """The plan of a pipeline that draws."""
    check(cli("calibrate", "-m", pipeline, "--dry-run", "--json"), "dynx.calibrate/1")


@pytest.mark.parametrize("file", ["mood/exits.json", "emoji/steps.json", "story/drafts.json"])
def test_profiles_that_models_carry(file: str) -> None:
    """They are profiles as --export writes them."""
    document = parse_json(files(shipped).joinpath(file).read_text(encoding="utf-8"))

    assert document["schema"] == "dynx.profile/1"
    assert keys.complaint(document) is None


def test_bench(cli: Cli, tiny_folder: Path, bert: Path, tmp_path: Path) -> None:
    """One result with a gate, and a suite of several, printed and exported."""
    texts, out = tmp_path / "texts.txt", tmp_path / "out.json"
    texts.write_text("\n".join(sentences(8)) + "\n", encoding="utf-8")
    short = ("--runs", 1, "-n", 4, "--inputs", 2, "--static", "1", "--json", "--export", f"json:{out}")
    check(cli("bench", "-m", tiny_folder, *short, "--require-identical"), "dynx.bench/1")
    assert keys.complaint(parse_json(out.read_text(encoding="utf-8"))) is None
    result = cli("bench", "-m", tiny_folder, "-m", bert, "--data", texts, *short)
    (suite,) = check(result, "dynx.bench.suite/1")

    assert [one["task"] for one in suite["results"]] == ["generate", "classify"]
    assert suite == parse_json(out.read_text(encoding="utf-8"))
