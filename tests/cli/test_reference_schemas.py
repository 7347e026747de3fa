"""The schemas that dataclasses become: each construct against the schema that it should be, written out by hand."""
# No `from __future__ import annotations`: the generator reads annotations as they are.

import ast
import dataclasses
import inspect
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest

from dynx.bench import gates, runner, statistics
from dynx.cli.reference.schemas import DOCUMENTS, Writer, name_of, parts, schema_files
from dynx.early_exit import agreement
from dynx.runtime import certify
from dynx.schemas import documents
from dynx.schemas.documents import bench, generate, profile_classify
from dynx.schemas.documents.fields import ABSENT, Cases, Count, Form, Fraction, Key, Limit, as_document
from dynx.speculation import equivalence
from dynx.speculation import types as speculation

MODULES = [import_module(f"{documents.__name__}.{module.name}") for module in pkgutil.iter_modules(documents.__path__)]


@dataclass(frozen=True, kw_only=True)
class TwoWords:
    """Inside
    another.
    """

    share: Annotated[Fraction, "A share."]


@dataclass(frozen=True, kw_only=True)
class Longer(TwoWords):
    """With a key more."""

    event: Annotated[Literal["longer"], "Its kind."]


@dataclass(frozen=True, kw_only=True)
class ByKind:
    """What else there is."""

    more: Annotated[bool, "More."]


def properties(annotation: Any, default: Any = dataclasses.MISSING) -> dict[str, Any]:
    """The schema of a document with one more key, "x", of that type."""
    field = dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default=default)
    one = dataclasses.make_dataclass(
        "One", [("schema", Literal["dynx.one.two/1"]), ("x", annotation, field)], frozen=True, kw_only=True
    )
    return Writer(one).schema()


def test_a_whole_document() -> None:
    """Head, description, what is required, and the classes inside as definitions."""
    assert properties(Annotated[TwoWords | None, "Said of the key."]) | {"description": "…"} == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:dynx:one.two:1",
        "title": "dynx.one.two/1",
        "description": "…",
        "type": "object",
        "required": ["schema", "x"],
        "properties": {
            "schema": {"const": "dynx.one.two/1"},
            "x": {"oneOf": [{"$ref": "#/$defs/two_words"}, {"type": "null"}], "description": "Said of the key."},
        },
        "$defs": {
            "two_words": {
                "description": "Inside another.",
                "type": "object",
                "required": ["share"],
                "properties": {
                    "share": {"type": "number", "minimum": 0, "maximum": 1, "description": "A share."},
                },
            }
        },
    }


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (object, {"type": ["string", "number", "boolean", "array", "object", "null"]}),
        (str | None, {"type": ["string", "null"]}),
        (Count | None, {"type": ["integer", "null"], "minimum": 0}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (Literal["a", "b"] | None, {"enum": ["a", "b", None]}),
        (list[Count], {"type": "array", "items": {"type": "integer", "minimum": 0}}),
        (tuple[int, int], {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (dict[str, Any], {"type": "object", "additionalProperties": True}),
        (
            dict[Literal["a", "b"], str] | None,
            {
                "type": ["object", "null"],
                "additionalProperties": {"type": "string"},
                "propertyNames": {"enum": ["a", "b"]},
            },
        ),
        (Annotated[str, Limit(min_length=1, pattern="^a")], {"type": "string", "minLength": 1, "pattern": "^a"}),
        (
            Annotated[float, Limit(exclusive_minimum=0, exclusive_maximum=1)],
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ),
        (
            Annotated[list[str], Limit(min_items=1), "Words."],
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "Words."},
        ),
        (TwoWords, {"$ref": "#/$defs/two_words"}),
    ],
    ids=str,
)
def test_a_type(annotation: Any, schema: dict[str, Any]) -> None:
    """What can stand in an annotation, and the schema that it means."""
    assert properties(annotation)["properties"]["x"] == schema


def test_keys() -> None:
    """One that defaults to ABSENT may be missing, one with any other default not; one that is no Python name is called so."""
    assert properties(int, ABSENT)["required"] == ["schema"]
    assert properties(int, 3)["required"] == ["schema", "x"]
    assert properties(Annotated[int, Key("two words")])["required"] == ["schema", "two words"]


def test_a_subclass() -> None:
    """It is its base and its own keys."""
    found = properties(Longer)["$defs"]

    assert (found["longer"]["allOf"], found["longer"]["required"]) == ([{"$ref": "#/$defs/two_words"}], ["event"])
    assert list(found["longer"]["properties"]) == ["event"]
    assert found["two_words"]["required"] == ["share"]


def test_forms_and_cases() -> None:
    """Forms exclude each other by the keys that others have; a case holds where the type at its path does."""

    @dataclass(frozen=True, kw_only=True)
    class One:
        """Either."""

        schema: Literal["dynx.one/1"]
        forms: ClassVar = (Form("short", TwoWords, without=("event",)), Form("long", Longer))
        cases: ClassVar = Cases(("a", "b"), {Literal["c"]: ByKind})

    found = Writer(One).schema()

    assert found["oneOf"] == [
        {"title": "short", "allOf": [{"$ref": "#/$defs/two_words"}, {"not": {"required": ["event"]}}]},
        {"title": "long", "allOf": [{"$ref": "#/$defs/longer"}]},
    ]
    assert found["allOf"] == [
        {
            "if": {"properties": {"a": {"properties": {"b": {"const": "c"}}}}},
            "then": {"$ref": "#/$defs/by_kind"},
        }
    ]


def test_what_has_no_schema_is_refused() -> None:
    """A type that JSON doesn't have, and two classes that would be one definition."""
    with pytest.raises(TypeError, match="bytes"):
        properties(bytes)
    other = dataclasses.make_dataclass("TwoWords", [("y", int)])
    with pytest.raises(ValueError, match="two classes TwoWords"):
        properties(dict[str, TwoWords] | list[other])  # type: ignore[valid-type]


def test_other_documents_are_referred_to() -> None:
    """A document in another, and what one is made of, aren't copied: bench's in a suite, a profile in what calibrate prints."""
    files = schema_files()

    assert '"$ref": "urn:dynx:bench:1"' in files["dynx/schemas/bench.suite.1.json"]
    assert '"$ref": "urn:dynx:profile:1#/$defs/profile"' in files["dynx/schemas/calibrate.1.json"]


def test_every_class_is_in_a_document() -> None:
    """What describes a document is found by it: all with a key "schema" are written, and no class is left over."""
    own = {
        value
        for module in MODULES
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and inspect.isclass(value) and value.__module__ == module.__name__
    }
    own = {one for one in own if not one.__module__.endswith(".fields")}
    found: set[type] = set(DOCUMENTS)
    for document in DOCUMENTS:
        writer = Writer(document)
        writer.schema()
        found |= set(writer._classes.values())

    assert {one.__qualname__ for one in own - found} == set()
    assert len({name_of(one) for one in DOCUMENTS}) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("document", "key", "code"),
    [
        (bench.Arm, "group", runner.Group),
        (bench.Bench, "stopped", runner.Stop),
        (bench.Ratio, "scope", statistics.Scope),
        (bench.Ratio, "estimator", statistics.Estimator),
        (bench.Gate, "verdict", gates.Verdict),
        (generate.Token, "origin", speculation.DraftSource),
        (generate.Answer, "finish_reason", speculation.FinishReason),
        (generate.Verification, "verdict", equivalence.Verdict),
        (profile_classify.ClassifyFitted, "problem", agreement.Problem),
        (profile_classify.ExitRules, "family", certify.Family),
    ],
    ids=lambda part: part if isinstance(part, str) else getattr(part, "__name__", ""),
)
def test_choices_are_those_of_the_code(document: type, key: str, code: Any) -> None:
    """A value that the code knows of is one that the schema takes, and none besides."""
    assert set(get_args(parts(document.__annotations__[key])[0])) == set(get_args(code) or code)  # or an Enum


def test_documents_import_nobody() -> None:
    """Modules of data: of dynx they import each other alone, however deep in the file."""
    for file in Path(next(iter(documents.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("dynx") or name.startswith(documents.__name__), (file.name, name)


def test_an_instance_as_a_document() -> None:
    """Dicts and lists all the way, without keys that are absent; null stays."""

    @dataclass(frozen=True, kw_only=True)
    class Inner:
        """Inside."""

        a: int = ABSENT
        b: int | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        """Around."""

        inner: dict[str, Inner]
        several: list[Inner]
        path: str = ABSENT

    found = as_document(Outer(inner={"x": Inner(a=1)}, several=[Inner()]))

    assert found == {"inner": {"x": {"a": 1, "b": None}}, "several": [{"b": None}]}
