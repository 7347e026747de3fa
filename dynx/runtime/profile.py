"""What calibration learns, as one versioned JSON document.

A profile is an envelope: it says for which task, model, device and precision something was measured, and by which
library versions. What was measured, fitted and decided are plain JSON objects that only the task packages understand.
Fitted arrays lie beside the document in safetensors; the document names the file, its size and its SHA-256.

Whatever `to_json` writes, `from_json` reads back equal; whatever else `from_json` is given, it refuses with one of the
`ProfileFault`s. It takes unknown fields within the major version, and keeps them when the profile is written again.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import enum
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from dynx.errors import DynxError
from dynx.runtime.hashing import hash_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

SCHEMA = "dynx.profile/1"
ID_HEX = 12
INTEGER_BITS = 64  # Python refuses to print integers past 4300 digits; other readers stop at 64 bits

T = TypeVar("T")


class ProfileFault(enum.StrEnum):
    """Every way in which a profile can be wrong."""

    UNREADABLE = "unreadable"  # the system refuses to read the file
    NOT_UTF8 = "not-utf8"
    NOT_JSON = "not-json"
    NOT_OBJECT = "not-object"
    NOT_FINITE = "not-finite"  # NaN, Infinity, or a number that only fits as one
    SCHEMA_MISSING = "schema-missing"
    SCHEMA_UNKNOWN = "schema-unknown"
    FIELD_MISSING = "field-missing"
    WRONG_TYPE = "wrong-type"
    BAD_VALUE = "bad-value"  # right type, and not a time, hash, file name or base64
    ID_MISMATCH = "id-mismatch"  # the id is not the one that the key, or the file's name, asks for
    ARRAYS_MISSING = "arrays-missing"
    ARRAYS_TORN = "arrays-torn"  # not as many bytes as recorded
    ARRAYS_CHANGED = "arrays-changed"  # as many bytes, and others
    ARRAYS_INVALID = "arrays-invalid"  # not safetensors, or of a type that NumPy lacks


class ProfileError(DynxError):
    """A profile can't be read or written as it is; `kind` says which of the faults it has."""

    def __init__(self, kind: ProfileFault, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


Form = Literal[
    "text",
    "chat",
    "pair",
    "ranking",
    "zero-shot",
    "image",
    "inpainting",
    "control",
    "control-image",
    "control-inpainting",
]
"""What inputs are: texts, a language model's chats in its template, or a classifier's pairs, queries, or texts with labels.
What pictures start from beside a text: a picture, or a picture and a mask."""

TEXT: Form = "text"
FORMS: Mapping[Form, str] = {
    "text": "plain texts",
    "chat": "chats",
    "pair": "pairs of texts",
    "ranking": "queries with documents",
    "zero-shot": "texts with candidate labels",
    "image": "pictures to start from",
    "inpainting": "pictures with masks",
    "control": "control pictures",
    "control-image": "control pictures and pictures to start from",
    "control-inpainting": "control pictures and pictures with masks",
}
"""Their names in messages."""


@dataclass(frozen=True)
class ProfileKey:
    """What a profile holds for; two runs share a profile only when all of this is equal."""

    task: str  # "generate", "classify", "draw"
    model: str  # hash of weights and configuration
    companion: str | None  # the drafter's hash
    device: str  # fingerprint
    dtype: str
    quantization: str = "none"
    form: Form = TEXT

    @property
    def id(self) -> str:
        """12 hex digits that follow from the key alone, the same on every machine and in every release."""
        return hash_json(self.to_json())[:ID_HEX]

    def to_json(self) -> dict[str, Any]:
        """Return the parts; the form of plain texts is left out, as it was before there were others."""
        parts = asdict(self)
        if self.form == TEXT:
            del parts["form"]
        return parts

    def differences(self, other: ProfileKey) -> tuple[str, ...]:
        """Name the fields in which two keys differ."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name) != getattr(other, item.name))

    def told_apart(self, other: ProfileKey, device: str = "") -> str:
        """Say how what was measured under this key differs from what `other` asks for, to follow "was measured".

        "with 2 threads, not 1", "on another device (NAME) and in bfloat16, not float32"; `device` is the name of the
        machine that was measured. Empty for equal keys.
        """
        said: dict[str, str] = {
            "task": f"for dynx {self.task}, not dynx {other.task}",
            "model": "with other weights",
            "companion": _companion_apart(self.companion, other.companion),
            "device": _device_apart(self.device, other.device, device),
            "dtype": f"in {self.dtype}, not {other.dtype}",
            "quantization": f"with {_weights(self.quantization)}, not with {_weights(other.quantization)}",
            "form": f"on {FORMS[self.form]}, not {FORMS[other.form]}",
        }
        return " and ".join(said[name] for name in self.differences(other))


DEVICE_KEY = re.compile(r"(?P<machine>.+)-(?P<place>[^-]+)-(?P<threads>\d+)t")
"""Fingerprint, where on it, and threads."""


def device_key(fingerprint: str, place: str, threads: int) -> str:
    """Build `ProfileKey.device`: the machine, where on it a model runs ("cpu", "cuda:0"), and with how many threads."""
    return f"{fingerprint}-{place}-{threads}t"


def _device_apart(measured: str, wanted: str, name: str) -> str:
    """Describe the difference between two `device_key`s."""
    one, two = DEVICE_KEY.fullmatch(measured), DEVICE_KEY.fullmatch(wanted)
    if one is None or two is None or one["machine"] != two["machine"]:
        return f"on another device{f' ({name})' if name else ''}"
    said = [] if one["place"] == two["place"] else [f"on {one['place']}, not {two['place']}"]
    if one["threads"] != two["threads"]:
        many = "thread" if one["threads"] == "1" else "threads"
        said.append(f"with {one['threads']} {many}, not {two['threads']}")
    return " and ".join(said)


def _companion_apart(measured: str | None, wanted: str | None) -> str:
    """Describe the difference between two draft models."""
    if measured is None:
        return "without a draft model"
    return "with a draft model" if wanted is None else "with another draft model"


def _weights(quantization: str) -> str:
    return "weights as they are" if quantization == "none" else f"{quantization} weights"


@dataclass(frozen=True)
class ArraysFile:
    """The safetensors file that lies beside a profile."""

    file: str  # a name without folders
    size: int  # bytes
    sha256: str

    def check(self, blob: bytes) -> None:
        """Raise `ProfileError` unless `blob` is what was recorded."""
        if len(blob) != self.size:
            message = f"its arrays are torn ({len(blob)} of {self.size} bytes)"
            raise ProfileError(ProfileFault.ARRAYS_TORN, message)
        if hashlib.sha256(blob).hexdigest() != self.sha256:
            raise ProfileError(ProfileFault.ARRAYS_CHANGED, "its arrays were changed since it was written")


@dataclass(frozen=True)
class Profile:
    """One calibration's result; the dictionaries hold what JSON can hold, and tuples come back as lists."""

    key: ProfileKey
    model_name: str  # for people; the key has the hash
    created: str  # ISO 8601, UTC
    versions: dict[str, str]  # library → version; the store asks for "torch"
    device: dict[str, Any]  # facts for people; "name" is shown where there is one
    measured: dict[str, Any]
    fitted: dict[str, Any]
    evidence: dict[str, Any]  # n, the data's hash, predictions, the promise
    decision: dict[str, Any]  # "summary": the decision in words
    arrays: ArraysFile | None = None  # set by the store
    weights: str | None = None  # hash of every byte of the weights measured; the key's is of samples
    extra: dict[str, Any] = field(default_factory=dict)  # top-level fields of a later minor version

    def to_json(self, embed: bytes | None = None) -> str:
        """Write the document: schema first, one order of keys, one line per value, a newline at the end.

        `embed` puts the arrays file's bytes into the document as base64. Raises `ProfileError` for values that
        `from_json` would refuse.
        """
        try:
            document = self._document()
            if embed is not None and self.arrays is not None:
                document["arrays"]["base64"] = base64.b64encode(embed).decode("ascii")
            _from_document(document)
            text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        except RecursionError as error:
            raise ProfileError(ProfileFault.BAD_VALUE, "nested too deeply") from error
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, as in the name of a path that isn't UTF-8
            text = json.dumps(document, allow_nan=False, indent=2) + "\n"
        return text

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"schema": SCHEMA, "id": None}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "extra":
                document |= {name: _canonical(value[name], name) for name in sorted(value) if name not in document}
            elif item.name in ("key", "arrays") and value is not None:  # these keep the order of their own fields
                parts = value.to_json() if isinstance(value, ProfileKey) else asdict(value)
                document[item.name] = {name: _canonical(part, f"{item.name}.{name}") for name, part in parts.items()}
            else:
                document[item.name] = _canonical(value, item.name)
        document["id"] = self.key.id
        return document

    @classmethod
    def from_json(cls, data: str | bytes) -> Profile:
        """Read a document; embedded arrays are left out (see `unpack`). Raises `ProfileError`."""
        return _from_document(_parse(data))


def unpack(data: str | bytes) -> tuple[Profile, bytes | None]:
    """Read a self-contained document into a profile and its arrays file's bytes, checked against each other.

    Raises `ProfileError`, also when the document names arrays and doesn't hold them.
    """
    document = _parse(data)
    profile = _from_document(document)
    if profile.arrays is None:
        return profile, None
    if "base64" not in document["arrays"]:
        message = "it names arrays and doesn't hold them"
        hint = "exporting puts both into one file"
        raise ProfileError(ProfileFault.ARRAYS_MISSING, message, hint=hint)
    try:
        blob = base64.b64decode(_take(document["arrays"], "base64", str, "arrays."), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProfileError(ProfileFault.BAD_VALUE, f"arrays.base64 isn't base64: {error}") from error
    profile.arrays.check(blob)
    read_arrays(blob)
    return profile, blob


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialize named arrays as safetensors, equal bytes for equal arrays. Raises `ProfileError`."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        return save({name: np.array(arrays[name], order="C") for name in sorted(arrays)})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProfileError(ProfileFault.ARRAYS_INVALID, f"arrays that safetensors can't hold: {error}") from error


def read_arrays(blob: bytes) -> dict[str, NDArray[Any]]:
    """Read safetensors into named arrays. Raises `ProfileError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(blob)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ProfileError(ProfileFault.ARRAYS_INVALID, f"its arrays can't be read: {error}") from error


class _NotFiniteError(ValueError):
    """A number that JSON can't say or a float can't hold; kept apart from other failures to parse."""


def _refuse(text: str) -> NoReturn:
    raise _NotFiniteError(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)  # 1e999 parses as infinity


def _parse(data: str | bytes) -> dict[str, Any]:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        document = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ProfileError(ProfileFault.NOT_UTF8, f"not UTF-8 at byte {error.start}") from error
    except _NotFiniteError as error:
        raise ProfileError(ProfileFault.NOT_FINITE, f"it holds {error}, which is no finite number") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(ProfileFault.NOT_JSON, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProfileError(ProfileFault.NOT_OBJECT, "not a JSON object")
    return document


def _from_document(document: dict[str, Any]) -> Profile:
    _check_schema(document)
    parts = _take(document, "key", dict)
    key = ProfileKey(
        **{name: _take(parts, name, str, "key.") for name in ("task", "model", "device", "dtype", "quantization")},
        companion=None if parts.get("companion", "") is None else _take(parts, "companion", str, "key."),
        form=_take_form(parts),
    )
    identity = _take(document, "id", str)
    if identity != key.id or parts.keys() - asdict(key).keys():  # one more part makes another key
        raise ProfileError(ProfileFault.ID_MISMATCH, f"its id {identity} isn't that of its key")
    versions = _take(document, "versions", dict)
    decision = _take(document, "decision", dict)
    _take(decision, "summary", str, "decision.")
    for name in versions:
        _take(versions, name, str, "versions.")
    known = {item.name for item in fields(Profile)} | {"schema", "id"}
    return Profile(
        key=key,
        model_name=_take(document, "model_name", str),
        created=_take_time(document),
        versions=versions,
        device=_take(document, "device", dict),
        measured=_take(document, "measured", dict),
        fitted=_take(document, "fitted", dict),
        evidence=_take(document, "evidence", dict),
        decision=decision,
        arrays=_take_arrays(document),
        weights=None if document.get("weights") is None else _take(document, "weights", str),
        extra={name: value for name, value in document.items() if name not in known},
    )


def _check_schema(document: dict[str, Any]) -> None:
    if "schema" not in document:
        raise ProfileError(ProfileFault.SCHEMA_MISSING, "not a dynx profile: it has no schema")
    schema = document["schema"]
    if schema == SCHEMA:
        return
    if isinstance(schema, str) and re.fullmatch(r"dynx\.profile/\d+", schema):
        message, hint = f"it has the schema {schema}, and this dynx reads {SCHEMA}", "calibrate again, or update dynx"
        raise ProfileError(ProfileFault.SCHEMA_UNKNOWN, message, hint=hint)
    raise ProfileError(ProfileFault.SCHEMA_UNKNOWN, f"not a dynx profile: its schema is {schema!r:.60}")


def _take(fields_: dict[str, Any], name: str, kind: type[T], where: str = "") -> T:
    if name not in fields_:
        raise ProfileError(ProfileFault.FIELD_MISSING, f"{where}{name} is missing")
    value = fields_[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {dict: "an object", str: "a string", int: "a whole number"}[kind]
        raise ProfileError(ProfileFault.WRONG_TYPE, f"{where}{name} isn't {wanted}")
    return value


def _take_time(document: dict[str, Any]) -> str:
    created = _take(document, "created", str)
    try:
        offset = dt.datetime.fromisoformat(created).utcoffset()
    except ValueError:
        offset = None
    if offset != dt.timedelta(0):
        raise ProfileError(ProfileFault.BAD_VALUE, "created isn't an ISO 8601 time in UTC")
    return created


def _take_form(parts: dict[str, Any]) -> Form:
    form: Form = parts.get("form", TEXT)
    if form not in FORMS:
        raise ProfileError(ProfileFault.BAD_VALUE, f"key.form is {form!r:.40}, and this dynx knows {', '.join(FORMS)}")
    return form


def _take_arrays(document: dict[str, Any]) -> ArraysFile | None:
    if document.get("arrays") is None:
        return None
    parts = _take(document, "arrays", dict)
    arrays = ArraysFile(
        file=_take(parts, "file", str, "arrays."),
        size=_take(parts, "size", int, "arrays."),
        sha256=_take(parts, "sha256", str, "arrays."),
    )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", arrays.file):  # never a way out of the folder
        raise ProfileError(ProfileFault.BAD_VALUE, "arrays.file isn't the name of a safetensors file")
    if arrays.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", arrays.sha256):
        raise ProfileError(ProfileFault.BAD_VALUE, "arrays.size or arrays.sha256 isn't one")
    return arrays


def _canonical(value: Any, where: str) -> Any:
    """Copy a JSON value with sorted keys and tuples as lists. Raises `ProfileError` naming what JSON can't hold."""
    match value:
        case float() if not math.isfinite(value):
            raise ProfileError(ProfileFault.NOT_FINITE, f"{where} is {value}")
        case int() if value.bit_length() > INTEGER_BITS:
            raise ProfileError(ProfileFault.BAD_VALUE, f"{where} is a whole number of {value.bit_length()} bits")
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _canonical(value[name], f"{where}.{name}") for name in sorted(value)}
    raise ProfileError(ProfileFault.WRONG_TYPE, f"{where} is a {type(value).__name__}, which JSON can't hold")
