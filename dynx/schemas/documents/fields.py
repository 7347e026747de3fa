"""What the annotations of documents are made of: limits, common types, and alternatives.

    tokens: Annotated[Count, "Tokens of the answer."]                 an integer from 0, always there
    seed: Annotated[Count | None, "Of the sampling; null for none."]  the same or null
    cached: Annotated[Count, "Steps from the cache."] = ABSENT        a key that may be missing

`as_document` makes a dict of an instance.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class _Missing(Enum):
    ABSENT = "absent"


ABSENT: Any = _Missing.ABSENT
"""Default of a key that a document need not have. A key with another default is required; that only helps who builds it."""


def as_document(value: "DataclassInstance") -> dict[str, Any]:
    """Return a document as dicts and lists, without the keys that are absent."""
    return asdict(value, dict_factory=lambda items: {key: item for key, item in items if item is not ABSENT})


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What values of a type are valid, by the keywords of JSON Schema."""

    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    min_length: int | None = None
    pattern: str | None = None
    min_items: int | None = None


@dataclass(frozen=True)
class Key:
    """The key of a field, where that is no Python name."""

    name: str


@dataclass(frozen=True)
class Form:
    """One of several forms of a document: valid against `type`, and without the keys that tell other forms apart."""

    title: str
    type: Any
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cases:
    """What else holds of an object, by what it has at a path of keys: a class of further keys for each type there."""

    path: tuple[str, ...]
    classes: Mapping[Any, type]


Count = Annotated[int, Limit(minimum=0)]
CountFromOne = Annotated[int, Limit(minimum=1)]
NonNegative = Annotated[float, Limit(minimum=0)]
Positive = Annotated[float, Limit(exclusive_minimum=0)]
Fraction = Annotated[float, Limit(minimum=0, maximum=1)]
OpenFraction = Annotated[float, Limit(exclusive_minimum=0, exclusive_maximum=1)]
NonEmpty = Annotated[str, Limit(min_length=1)]

Task = Literal["generate", "classify", "draw"]
Drafter = Literal["draft", "self", "lookup"]

NAME = "Name and major version of this schema."
EVENT = "What this line tells."
