"""Whether a schema says something of every key of a document, at any depth: what the schemas themselves must not insist on.

A document of the same major version may gain keys, so validators let unknown ones pass. Here they don't. A key is described by
`properties` of any part of the schema that applies (`$ref`, `allOf`, `then` where its `if` holds, and of `anyOf` and `oneOf` what
the value keeps to), or is a name in a map, whose schema says `additionalProperties`. A document inside another that names a
schema of its own is held to that one.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from dynx import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

    Place = tuple[str, tuple[str, ...]]
    """Of a part of a schema: the schema's name, and the steps to it."""


@cache
def load(name: str) -> dict[str, Any]:
    """The schema of that name, read once."""
    return schemas.load(name)


@cache
def ids() -> dict[str, str]:
    """$id → name."""
    return {load(name)["$id"]: name for name in schemas.names()}


@cache
def registry() -> Any:
    """All schemas, for validators."""
    return Registry().with_resources([(i, Resource.from_contents(load(name))) for i, name in ids().items()])


@cache
def validator(place: Place) -> Any:
    """Of a part of a schema."""
    name, steps = place
    whole = f"{load(name)['$id']}#{''.join(f'/{step}' for step in steps)}"
    return Draft202012Validator({"$ref": whole}, registry=registry())


def at(place: Place) -> Any:
    """A part of a schema."""
    found: Any = load(place[0])
    for step in place[1]:
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def referred(place: Place, reference: str) -> Place:
    """Where a `$ref` leads."""
    identity, _, pointer = reference.partition("#")
    return ids()[identity] if identity else place[0], tuple(pointer.split("/")[1:])


def applying(place: Place, value: object) -> Iterator[Place]:
    """The part itself and all that apply to the value with it."""
    yield place
    (name, steps), schema = place, at(place)
    if not isinstance(schema, dict):  # true: anything
        return
    if "$ref" in schema:
        yield from applying(referred(place, schema["$ref"]), value)
    if "if" in schema and validator((name, (*steps, "if"))).is_valid(value):
        yield from applying((name, (*steps, "then")), value)
    for many in ("allOf", "anyOf", "oneOf"):
        for i in range(len(schema.get(many, ()))):
            branch = (name, (*steps, many, str(i)))
            if many == "allOf" or validator(branch).is_valid(value):
                yield from applying(branch, value)


def below(places: list[Place], key: str) -> list[Place]:
    """What says something of a key: its `properties`, or else `additionalProperties`."""
    own = [(n, (*s, "properties", key)) for n, s in places if key in at((n, s)).get("properties", ())]
    return own or [(n, (*s, "additionalProperties")) for n, s in places if "additionalProperties" in at((n, s))]


def undescribed(value: object, places: list[Place], path: str = "$") -> Iterator[str]:
    """The JSON paths of keys in a value that no part of a schema speaks of."""
    if isinstance(value, dict) and value.get("schema") in ids().values():
        places = [(value["schema"], ())]
    places = [one for place in places for one in applying(place, value)]
    if any(at(place) is True for place in places):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            found = below(places, key)
            yield from undescribed(item, found, f"{path}.{key}") if found else [f"{path}.{key}"]
    if isinstance(value, list):
        items = [(n, (*s, "items")) for n, s in places if "items" in at((n, s))]
        for i, item in enumerate(value):
            yield from undescribed(item, items, f"{path}[{i}]")


def complaint(document: object, place: Place | None = None) -> str | None:
    """What is wrong with a document by the schema that it names (or with a line by that part of one), or what it doesn't say."""
    if place is None:
        name = document.get("schema") if isinstance(document, dict) else None
        if name not in ids().values():
            return f"there is no schema {name}"
        place = (str(name), ())
    error = best_match(validator(place).iter_errors(document))
    if error is not None:
        return f"{error.json_path}: {error.message}"
    unknown = list(undescribed(document, [place]))
    return f"{place[0]} doesn't describe {', '.join(unknown[:9])}" if unknown else None


def complaints(text: str) -> list[str]:
    """Of what a command printed: of the JSON document that it is, or of each line that is one."""
    try:
        found = [json.loads(text)]
    except ValueError:
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # words, or the beginning of a document
                continue
    wrong = (complaint(one) for one in found if isinstance(one, dict) and "schema" in one)
    return [one for one in wrong if one is not None]
