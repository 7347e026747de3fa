"""A profile survives writing and reading unchanged, and each way of being wrong has a name."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynx.runtime.profile import (
    SCHEMA,
    ArraysFile,
    Profile,
    ProfileError,
    ProfileFault,
    ProfileKey,
    device_key,
    read_arrays,
    unpack,
    write_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = ProfileKey("generate", "0123456789abcdef", "fedcba9876543210", "x86_64-avx512-8c", "bfloat16")
PROFILE = Profile(
    key=KEY,
    model_name="story",
    created="2026-03-01T12:00:00Z",
    versions={"torch": "2.13.0", "dynx": "0.1.0"},
    device={"name": "A processor", "cores": 8},
    measured={"forward_ms": [1.0, 1.25, 2], "overhead_ms": 0.1},
    fitted={"acceptance": {"draft": 0.7}},
    evidence={"n": 512, "data": "00ff", "promise": None},
    decision={"summary": "draft 4 tokens", "draft": 4},
)
BLOB = write_arrays({"w": np.arange(4.0)})

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=3)
KEYS = st.builds(
    ProfileKey,
    task=st.text(),
    model=st.text(),
    companion=st.none() | st.text(),
    device=st.text(),
    dtype=st.text(),
    quantization=st.text(),
)
ARRAYS = st.builds(
    ArraysFile,
    file=st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}\.[0-9a-f]{8}\.safetensors", fullmatch=True),
    size=st.integers(0, 2**60),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
PROFILES = st.builds(
    Profile,
    key=KEYS,
    model_name=st.text(st.characters()),  # half surrogate pairs included
    created=st.datetimes().map(lambda time: f"{time.isoformat()}+00:00"),
    versions=st.dictionaries(st.text(), st.text(), max_size=3),
    device=OBJECT,
    measured=OBJECT,
    fitted=OBJECT,
    evidence=OBJECT,
    decision=st.builds(lambda inner, summary: inner | {"summary": summary}, OBJECT, st.text()),
    arrays=st.none() | ARRAYS,
    extra=st.dictionaries(st.text().map("new_{}".format), JSON, max_size=2),
)


@given(PROFILES)
def test_round_trip(profile: Profile) -> None:
    """Whatever profile is written is read back equal, from text and from UTF-8, and writes the same bytes again."""
    text = profile.to_json()
    assert Profile.from_json(text) == profile
    assert Profile.from_json(text.encode("utf-8")) == profile
    assert Profile.from_json(text).to_json() == text


@given(st.binary())
def test_noise_is_a_profile_error(data: bytes) -> None:
    """Bytes that aren't a profile raise a profile error and nothing else."""
    with pytest.raises(ProfileError):
        Profile.from_json(data)


@given(st.data())
def test_damage_is_noticed_or_harmless(data: st.DataObject) -> None:
    """A document with a field of its top level replaced by anything is read as valid or raises a profile error."""
    document = json.loads(PROFILE.to_json())
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    try:
        profile = Profile.from_json(json.dumps(document))
    except ProfileError:
        return
    assert Profile.from_json(profile.to_json()) == profile


def test_document_starts_with_its_schema_and_has_one_order() -> None:
    """The first field is the schema, the rest has one order whatever order it was built in, and lines stay short."""
    shuffled = replace(PROFILE, versions=dict(reversed(PROFILE.versions.items())))
    text = shuffled.to_json()
    assert text == PROFILE.to_json()
    assert text.startswith(f'{{\n  "schema": "{SCHEMA}",\n  "id": "{KEY.id}",\n  "key": {{\n    "task": "generate",')
    assert text.endswith("}\n")
    assert max(map(len, text.splitlines())) < 80


def test_document_keeps_letters_readable() -> None:
    """Text beyond ASCII is written as itself, so that diffs can be read."""
    assert "2 × schneller — 速い" in replace(PROFILE, decision={"summary": "2 × schneller — 速い"}).to_json()


def test_tuples_become_lists() -> None:
    """A tuple is written as the list that it is read back as."""
    assert Profile.from_json(replace(PROFILE, fitted={"grid": (1, 2)}).to_json()).fitted == {"grid": [1, 2]}


def test_id_is_part_of_the_format() -> None:
    """A key's id never changes between releases, and every field has a part in it."""
    assert KEY.id == "d8b965faca12"
    others = [
        replace(KEY, task="classify"),
        replace(KEY, model="0"),
        replace(KEY, companion=None),
        replace(KEY, device="gpu"),
        replace(KEY, dtype="float32"),
        replace(KEY, quantization="int8"),
    ]
    assert len({KEY.id, *(key.id for key in others)}) == 7
    assert [KEY.differences(key)[0] for key in others] == [
        "task",
        "model",
        "companion",
        "device",
        "dtype",
        "quantization",
    ]
    assert KEY.differences(KEY) == ()


def on(fingerprint: str = "0a1b2c3d4e5f", place: str = "cpu", threads: int = 2) -> ProfileKey:
    return replace(KEY, device=device_key(fingerprint, place, threads))


@pytest.mark.parametrize(
    ("measured", "wanted", "words"),
    [
        (on(), on(), ""),
        (on(threads=1), on(), "with 1 thread, not 2"),
        (on(threads=8), on(threads=1), "with 8 threads, not 1"),
        (on(place="cuda:0"), on(), "on cuda:0, not cpu"),
        (on(place="cuda:0", threads=4), on(), "on cuda:0, not cpu and with 4 threads, not 2"),
        (on("f" * 12), on(), "on another device (AMD EPYC)"),
        (on("f" * 12, threads=4), on(), "on another device (AMD EPYC)"),
        (replace(KEY, device="laptop"), on(), "on another device (AMD EPYC)"),
        (replace(KEY, dtype="bfloat16"), replace(KEY, dtype="float32"), "in bfloat16, not float32"),
        (replace(KEY, quantization="int8"), KEY, "with int8 weights, not with weights as they are"),
        (replace(KEY, companion=None), replace(KEY, companion="a"), "without a draft model"),
        (replace(KEY, companion="b"), replace(KEY, companion="a"), "with another draft model"),
        (replace(KEY, companion="b"), replace(KEY, companion=None), "with a draft model"),
        (replace(KEY, model="0"), KEY, "with other weights"),
        (replace(KEY, task="draw"), replace(KEY, task="classify"), "for dynx draw, not dynx classify"),
        (
            replace(on(threads=1), dtype="float64"),
            on(),
            f"with 1 thread, not 2 and in float64, not {KEY.dtype}",
        ),
    ],
)
def test_how_keys_differ_in_words(measured: ProfileKey, wanted: ProfileKey, words: str) -> None:
    """The very thing that differs: another machine is said only of another machine."""
    assert measured.told_apart(wanted, "AMD EPYC") == words


def test_later_minor_fields_are_kept() -> None:
    """A field that a later release adds is ignored by reading and still there after writing again."""
    document = json.loads(PROFILE.to_json())
    document["new"] = {"a": [1]}
    document["decision"]["new"] = 2
    profile = Profile.from_json(json.dumps(document))
    assert replace(profile, extra={}, decision=PROFILE.decision) == PROFILE
    assert json.loads(profile.to_json()) == document


def test_extra_never_hides_a_field() -> None:
    """An extra field with the name of a real one doesn't replace it."""
    assert Profile.from_json(replace(PROFILE, extra={"created": "x", "id": "y"}).to_json()) == PROFILE


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Set fields of a document, `key__model` inside its key; `...` deletes."""

    def apply(document: dict[str, Any]) -> None:
        for path, value in changes.items():
            target, *rest = path.split("__")
            inner = document[target] if rest else document
            if value is ...:
                del inner[(rest or [target])[0]]
            else:
                inner[(rest or [target])[0]] = value

    return apply


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (edit(schema=...), ProfileFault.SCHEMA_MISSING, "no schema"),
        (edit(schema="dynx.profile/2"), ProfileFault.SCHEMA_UNKNOWN, "reads dynx.profile/1"),
        (edit(schema="dynx.profile/x"), ProfileFault.SCHEMA_UNKNOWN, "not a dynx profile"),
        (edit(schema="dynx.generate/1"), ProfileFault.SCHEMA_UNKNOWN, "not a dynx profile"),
        (edit(schema=1), ProfileFault.SCHEMA_UNKNOWN, "not a dynx profile"),
        (edit(measured=...), ProfileFault.FIELD_MISSING, "measured"),
        (edit(key=...), ProfileFault.FIELD_MISSING, "key"),
        (edit(id=...), ProfileFault.FIELD_MISSING, "id"),
        (edit(key__dtype=...), ProfileFault.FIELD_MISSING, "key.dtype"),
        (edit(key__companion=...), ProfileFault.FIELD_MISSING, "key.companion"),
        (edit(decision__summary=...), ProfileFault.FIELD_MISSING, "decision.summary"),
        (edit(fitted=[]), ProfileFault.WRONG_TYPE, "fitted isn't an object"),
        (edit(model_name=None), ProfileFault.WRONG_TYPE, "model_name isn't a string"),
        (edit(key__model=7), ProfileFault.WRONG_TYPE, "key.model isn't a string"),
        (edit(key__companion=7), ProfileFault.WRONG_TYPE, "key.companion isn't a string"),
        (edit(versions__torch=2.13), ProfileFault.WRONG_TYPE, "versions.torch isn't a string"),
        (edit(arrays__size="9"), ProfileFault.WRONG_TYPE, "arrays.size isn't a whole number"),
        (edit(arrays__size=True), ProfileFault.WRONG_TYPE, "arrays.size isn't a whole number"),
        (edit(arrays=[]), ProfileFault.WRONG_TYPE, "arrays isn't an object"),
        (edit(created="yesterday"), ProfileFault.BAD_VALUE, "created"),
        (edit(created="2026-03-01T12:00:00"), ProfileFault.BAD_VALUE, "UTC"),
        (edit(created="2026-03-01T12:00:00+02:00"), ProfileFault.BAD_VALUE, "UTC"),
        (edit(arrays__file="../../passwd.safetensors"), ProfileFault.BAD_VALUE, "arrays.file"),
        (edit(arrays__file="/etc/passwd"), ProfileFault.BAD_VALUE, "arrays.file"),
        (edit(arrays__sha256="00"), ProfileFault.BAD_VALUE, "sha256"),
        (edit(arrays__size=-1), ProfileFault.BAD_VALUE, "size"),
        (edit(id="0" * 12), ProfileFault.ID_MISMATCH, "isn't that of its key"),
        (edit(key__device="mine"), ProfileFault.ID_MISMATCH, "isn't that of its key"),
        (edit(key__backend="openvino"), ProfileFault.ID_MISMATCH, "isn't that of its key"),
    ],
)
def test_wrong_field_is_named(change: Callable[[dict[str, Any]], None], kind: ProfileFault, message: str) -> None:
    """Each wrong field of a document raises its own kind of error, and the message names the field."""
    document = json.loads(replace(PROFILE, arrays=ArraysFile("a.safetensors", 9, "0" * 64)).to_json())
    Profile.from_json(json.dumps(document))
    change(document)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.from_json(json.dumps(document))
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"schema": "\xff"}', ProfileFault.NOT_UTF8),
        (b"", ProfileFault.NOT_JSON),
        (b'{"schema": ', ProfileFault.NOT_JSON),
        (b"\xef\xbb\xbf{}", ProfileFault.SCHEMA_MISSING),
        (b"[" * 100_000, ProfileFault.NOT_JSON),
        (b'{"a": ' + b"9" * 5000 + b"}", ProfileFault.NOT_JSON),
        (b"[]", ProfileFault.NOT_OBJECT),
        (b"null", ProfileFault.NOT_OBJECT),
        (b'{"a": NaN}', ProfileFault.NOT_FINITE),
        (b'{"a": -Infinity}', ProfileFault.NOT_FINITE),
        (b'{"a": 1e999}', ProfileFault.NOT_FINITE),
    ],
)
def test_wrong_document_is_named(data: bytes, kind: ProfileFault) -> None:
    """Each way of not being a JSON object of finite numbers has its own kind of error."""
    with pytest.raises(ProfileError) as caught:
        Profile.from_json(data)
    assert caught.value.kind is kind


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"measured": {"a": [0.0, float("nan")]}}, ProfileFault.NOT_FINITE, r"measured\.a\[1\] is nan"),
        ({"fitted": {"a": {"b": float("inf")}}}, ProfileFault.NOT_FINITE, r"fitted\.a\.b is inf"),
        ({"extra": {"a": float("-inf")}}, ProfileFault.NOT_FINITE, "a is -inf"),
        ({"measured": {"a": np.float32(1)}}, ProfileFault.WRONG_TYPE, r"measured\.a is a float32"),
        ({"measured": {"a": np.ones(1)}}, ProfileFault.WRONG_TYPE, r"measured\.a is a ndarray"),
        ({"measured": {1: 2}}, ProfileFault.WRONG_TYPE, "measured is a dict"),
        ({"measured": {"a": 2**80}}, ProfileFault.BAD_VALUE, r"measured\.a is a whole number of 81 bits"),
        ({"measured": {"a": nest(5000)}}, ProfileFault.BAD_VALUE, "nested"),
        ({"measured": None}, ProfileFault.WRONG_TYPE, "measured isn't an object"),
        ({"decision": {}}, ProfileFault.FIELD_MISSING, "decision.summary"),
        ({"created": ""}, ProfileFault.BAD_VALUE, "created"),
        ({"key": replace(KEY, model=None)}, ProfileFault.WRONG_TYPE, "key.model"),  # type: ignore[arg-type]
    ],
)
def test_unwritable_value_is_refused(change: dict[str, Any], kind: ProfileFault, message: str) -> None:
    """What reading would refuse is refused by writing, with the place of the value."""
    with pytest.raises(ProfileError, match=message) as caught:
        replace(PROFILE, **change).to_json()
    assert caught.value.kind is kind


def test_arrays_round_trip() -> None:
    """Arrays keep names, types, shapes and values, whatever their memory order, and equal arrays give equal bytes."""
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.int64)[::3],
        "scalar": np.array(3.5, np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "mask": np.array([True, False]),
    }
    back = read_arrays(write_arrays(arrays))
    assert set(back) == set(arrays)
    for name, value in arrays.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
    assert write_arrays(back) == write_arrays(dict(reversed(arrays.items())))


def test_object_arrays_are_refused() -> None:
    """An array that safetensors can't hold raises a profile error when written."""
    with pytest.raises(ProfileError) as caught:
        write_arrays({"a": np.array([object()])})
    assert caught.value.kind is ProfileFault.ARRAYS_INVALID


def packed(blob: bytes = BLOB) -> dict[str, Any]:
    arrays = ArraysFile("a.safetensors", len(blob), hashlib.sha256(blob).hexdigest())
    document: dict[str, Any] = json.loads(replace(PROFILE, arrays=arrays).to_json(embed=blob))
    return document


def test_unpack_returns_what_was_embedded() -> None:
    """A self-contained document gives back its arrays' bytes, and one without arrays gives none."""
    assert unpack(json.dumps(packed()))[1] == BLOB
    assert unpack(PROFILE.to_json(embed=BLOB)) == (PROFILE, None)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (
            packed() | {"arrays": packed()["arrays"] | {"base64": packed()["arrays"]["base64"] + "*"}},
            ProfileFault.BAD_VALUE,
        ),
        (packed() | {"arrays": packed()["arrays"] | {"base64": "é"}}, ProfileFault.BAD_VALUE),
        (packed() | {"arrays": packed()["arrays"] | {"base64": 7}}, ProfileFault.WRONG_TYPE),
        (
            packed() | {"arrays": {n: v for n, v in packed()["arrays"].items() if n != "base64"}},
            ProfileFault.ARRAYS_MISSING,
        ),
        (packed() | {"arrays": packed()["arrays"] | {"base64": ""}}, ProfileFault.ARRAYS_TORN),
        (
            packed() | {"arrays": packed()["arrays"] | {"base64": base64.b64encode(bytes(len(BLOB))).decode()}},
            ProfileFault.ARRAYS_CHANGED,
        ),
        (packed(b"not safetensors"), ProfileFault.ARRAYS_INVALID),
    ],
)
def test_wrong_embedded_arrays_are_named(document: dict[str, Any], kind: ProfileFault) -> None:
    """Each way in which embedded arrays can be wrong has its own kind of error."""
    with pytest.raises(ProfileError) as caught:
        unpack(json.dumps(document))
    assert caught.value.kind is kind


def test_the_form_of_prompts_is_part_of_the_key() -> None:
    """Chats have a profile of their own; the id of plain texts' is what it was before there were chats."""
    chats = replace(KEY, form="chat")
    assert "form" not in KEY.to_json()
    assert chats.id != KEY.id
    assert chats.told_apart(KEY) == "on chats, not plain texts"
    again = Profile.from_json(replace(PROFILE, key=chats).to_json())
    assert again.key == chats
    text = replace(PROFILE, key=chats).to_json().replace('"form": "chat"', '"form": "song"')
    with pytest.raises(ProfileError, match=r"key\.form is 'song'"):
        Profile.from_json(text)
