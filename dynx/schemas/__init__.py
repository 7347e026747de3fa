"""JSON Schemas (draft 2020-12) of every document and event line that dynx prints or writes, by the name in its "schema".

Within a major version documents only gain keys, so the schemas allow keys that they don't know; what they require is always
there. They are generated from the dataclasses in `dynx.schemas.documents`. Validating takes the package `jsonschema`, which
dynx itself doesn't need.

    schemas.load("dynx.generate/1")
    schemas.complaint(document)      # what is wrong with it, None for nothing
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

PREFIX = "dynx."


def names() -> list[str]:
    """List the names of all schemas: "dynx.bench/1" and so on."""
    stems = [item.name.removesuffix(".json") for item in files(__package__).iterdir() if item.name.endswith(".json")]
    return sorted(f"{PREFIX}{stem[::-1].replace('.', '/', 1)[::-1]}" for stem in stems)


def load(name: str) -> dict[str, Any]:
    """Return the schema of that name. Raises KeyError for one that there isn't."""
    file = files(__package__).joinpath(f"{name.removeprefix(PREFIX).replace('/', '.')}.json")
    if not name.startswith(PREFIX) or not file.is_file():
        raise KeyError(name)
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def validator(name: str) -> Any:
    """Return a `jsonschema` validator for that schema, which knows the others too. Raises ImportError without that package."""
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource

    every = [load(one) for one in names()]
    registry: Any = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in every])
    return Draft202012Validator(load(name), registry=registry)


def complaint(document: object) -> str | None:
    """Say what is wrong with a document or line by the schema that it names, or None. Raises ImportError as `validator` does."""
    name = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(name, str):
        return "it names no schema"
    try:
        check = validator(name)
    except KeyError:
        return f"there is no schema {name}"
    from jsonschema.exceptions import best_match

    error = best_match(check.iter_errors(document))
    return None if error is None else f"{error.json_path}: {error.message}"
