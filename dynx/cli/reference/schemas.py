"""JSON Schemas of all documents, written from the dataclasses in `dynx.schemas.documents`.

A dataclass becomes an object: fields are properties, and required unless their default is ABSENT; a docstring is its description;
a base class is an `allOf`; `forms` are a `oneOf` and `cases` an `if` and `then` each. A class inside another becomes a
definition ($defs) under its name, or a reference to the document that it is. Text in an annotation is the description.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dynx.schemas.documents import (
    bench,
    calibrate,
    classify,
    device,
    draw,
    entities,
    error,
    generate,
    job,
    picture,
    plan,
    profile,
    profiles,
    rank,
)
from dynx.schemas.documents.fields import ABSENT, Cases, Form, Key, Limit

Schema = dict[str, Any]

DOCUMENTS: tuple[type, ...] = (
    bench.Bench,
    bench.BenchSuite,
    calibrate.Calibration,
    classify.Classification,
    device.Device,
    draw.Drawing,
    entities.Entities,
    error.Error,
    generate.Generation,
    job.JobStats,
    picture.PictureFile,
    plan.Plan,
    profile.StoredProfile,
    profiles.Profiles,
    rank.Ranking,
)

SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}
EVERYTHING = ["string", "number", "boolean", "array", "object", "null"]


def schema_files() -> dict[str, str]:
    """Return every schema by its path in the repository."""
    return {f"dynx/schemas/{stem(name_of(one))}.json": text(Writer(one).schema()) for one in DOCUMENTS}


def text(schema: Schema) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def stem(name: str) -> str:
    """Name the file of a schema: dynx.bench/1 is in bench.1.json."""
    return name.removeprefix("dynx.").replace("/", ".")


def name_of(document: type) -> str:
    """Return the name of a document's schema."""
    return str(get_args(parts(document.__annotations__["schema"])[0])[0])


def urn(document: type) -> str:
    """Return the identity of a document's schema."""
    return f"urn:dynx:{stem(name_of(document))[::-1].replace('.', ':', 1)[::-1]}"


def parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation's type, and its other arguments."""
    if get_origin(annotation) is Annotated:
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


def definition(cls: type) -> str:
    """Name a class in $defs: LabelsGuarantee is labels_guarantee."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def camel(name: str) -> str:
    """Spell a keyword as JSON Schema does: min_items is minItems."""
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)


def described(cls: type) -> str:
    """Return the docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split())


class Writer:
    """Writes the schema of one document."""

    def __init__(self, document: type) -> None:
        self._document = document
        self._definitions: dict[str, Schema] = {}
        self._classes: dict[str, type] = {}

    def schema(self) -> Schema:
        """Return the whole schema."""
        body = self._object(self._document)
        head = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": urn(self._document),
            "title": name_of(self._document),
        }
        return head | body | ({"$defs": self._definitions} if self._definitions else {})

    def _object(self, cls: type) -> Schema:
        own = [field for field in dataclasses.fields(cls) if field.name in cls.__annotations__]
        named = [(self._key(field), field) for field in own]
        required = [key for key, field in named if field.default is not ABSENT]
        every = [self._reference(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)]
        every += self._cases(getattr(cls, "cases", None))
        one = [self._form(form) for form in getattr(cls, "forms", ())]
        return {
            "description": described(cls),
            "type": "object",
            **({"required": required} if required else {}),
            **({"properties": {key: self._type(field.type) for key, field in named}} if named else {}),
            **({"allOf": every} if every else {}),
            **({"oneOf": one} if one else {}),
        }

    def _key(self, field: dataclasses.Field[Any]) -> str:
        return next((says.name for says in parts(field.type)[1] if isinstance(says, Key)), field.name)

    def _form(self, form: Form) -> Schema:
        without = [{"not": {"required": [key]}} for key in form.without]
        return {"title": form.title, "allOf": [self._type(form.type), *without]}

    def _cases(self, cases: Cases | None) -> list[Schema]:
        found = []
        for kind, cls in cases.classes.items() if cases else ():
            test = self._type(kind)
            for key in reversed(cases.path if cases else ()):
                test = {"properties": {key: test}}
            found.append({"if": test, "then": self._reference(cls)})
        return found

    def _reference(self, cls: type) -> Schema:
        """Refer to a class: to the schema of a document that it is or is the base of, or to a definition."""
        name = definition(cls)
        for other in DOCUMENTS:
            if other is cls:
                return {"$ref": urn(other)}
            if cls in other.__bases__ and other is not self._document:
                return {"$ref": f"{urn(other)}#/$defs/{name}"}
        if self._classes.setdefault(name, cls) is not cls:
            raise ValueError(f"{name_of(self._document)} has two classes {cls.__name__}")
        if name not in self._definitions:
            self._definitions[name] = {}  # its place, while classes inside it are written
            self._definitions[name] = self._object(cls)
        return {"$ref": f"#/$defs/{name}"}

    def _type(self, annotation: Any) -> Schema:
        kind, says = parts(annotation)
        schema = dict(self._bare(kind))
        for more in says:
            if isinstance(more, str):
                schema["description"] = more
            if isinstance(more, Limit):
                limits = {camel(key): value for key, value in vars(more).items() if value is not None}
                schema.update(limits)
        return schema

    def _bare(self, kind: Any) -> Schema:
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self._union([self._type(one) for one in inner])
        if origin is Literal:
            return {"const": inner[0]} if len(inner) == 1 else {"enum": list(inner)}
        if origin is list:
            return {"type": "array", "items": self._item(inner[0])}
        if origin is tuple:  # of a fixed length, all of one type
            return {"type": "array", "items": self._item(inner[0]), "minItems": len(inner), "maxItems": len(inner)}
        if origin is dict:
            names, values = inner
            limited = {} if names is str else {"propertyNames": self._type(names)}
            return {"type": "object", "additionalProperties": self._item(values), **limited}
        if kind is None or kind in SCALARS:
            return {"type": SCALARS[types.NoneType if kind is None else kind]}
        if kind is object:
            return {"type": EVERYTHING}
        if dataclasses.is_dataclass(kind):
            return self._reference(typing.cast("type", kind))
        raise TypeError(f"{kind} has no schema")

    def _item(self, kind: Any) -> Any:
        """Return the schema of what is in an array or a map; for Any whatever there is."""
        return True if kind is Any else self._type(kind)

    def _union(self, members: list[Schema]) -> Schema:
        """Return one of several: their types together where each has its own, else a list of alternatives."""
        if all("enum" in one or one == {"type": "null"} for one in members):
            return {"enum": [item for one in members for item in one.get("enum", [None])]}
        if all("type" in one for one in members):
            flat = [
                name for one in members for name in (one["type"] if isinstance(one["type"], list) else [one["type"]])
            ]
            return {key: value for one in members for key, value in one.items()} | {"type": list(dict.fromkeys(flat))}
        return {"oneOf": members}
