"""What was measured and learned of a model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dynx.schemas.documents.fields import ABSENT, NAME, Cases, Count, Limit, Task
from dynx.schemas.documents.profile_classify import ClassifyProfile
from dynx.schemas.documents.profile_draw import DrawProfile
from dynx.schemas.documents.profile_generate import GenerateProfile


@dataclass(frozen=True, kw_only=True)
class ProfileKey:
    """What a profile is for; it is used for nothing else."""

    task: Annotated[Task, "What the model does."]
    model: Annotated[str, "Hash of its weights."]
    companion: Annotated[str | None, "Hash of the draft model's; null for none."]
    device: Annotated[str, "Fingerprint of the machine, device and threads."]
    dtype: Annotated[str, "Precision of the computation."]
    quantization: Annotated[str, "How weights are stored: none, int8 or int4."] = ABSENT
    form: Annotated[
        Literal["chat", "pair", "ranking", "zero-shot"],
        "What inputs were: a language model's chats in its template; a classifier's pairs of texts, queries with documents, or "
        "texts with candidate labels; absent for plain texts.",
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class ProfileDevice:
    """Where a profile was measured."""

    name: Annotated[str | None, "Of the processor, or of PyTorch's device."] = ABSENT
    threads: Annotated[Count, "Processor threads."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a calibration found."""

    summary: Annotated[str, "In words."]


@dataclass(frozen=True, kw_only=True)
class ArraysFile:
    """The file of fitted arrays beside the profile."""

    file: Annotated[str, "Its name, in safetensors."]
    size: Annotated[Count, "Its bytes."]
    sha256: Annotated[str, Limit(pattern="^[0-9a-f]{64}$"), "Its hash."]
    base64: Annotated[str, "Its contents, as --export puts them in."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured and learned of a model on a machine."""

    id: Annotated[str, Limit(pattern="^[0-9a-f]{12}$"), "Hash of the key."]
    key: ProfileKey
    model_name: Annotated[str, "Name of the model."]
    created: Annotated[str, "When it was measured, ISO 8601 in UTC."]
    versions: Annotated[dict[str, str], "Versions of the libraries that computed."]
    device: Annotated[ProfileDevice, "Where it was measured."]
    decision: Annotated[Summary, "What was found."]
    weights: Annotated[
        Annotated[str, Limit(pattern="^[0-9a-f]{32}$")] | None,
        "Hash of every byte of the weights that it was measured on; a profile without it isn't used.",
    ] = ABSENT
    arrays: Annotated[ArraysFile | None, "The file of fitted arrays beside the profile; null for none."]
    cases: ClassVar = Cases(
        ("key", "task"),
        {
            Literal["generate"]: GenerateProfile,
            Literal["classify"]: ClassifyProfile,
            Literal["draw"]: DrawProfile,
        },
    )


@dataclass(frozen=True, kw_only=True)
class StoredProfile(Profile):
    """A stored profile, as `dynx calibrate --show` and --export print it."""

    schema: Annotated[Literal["dynx.profile/1"], NAME]
