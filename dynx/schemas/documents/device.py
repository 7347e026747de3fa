"""A machine, and what dynx chooses on it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dynx.schemas.documents.common import Decision
from dynx.schemas.documents.fields import ABSENT, NAME, Count, NonNegative


@dataclass(frozen=True, kw_only=True)
class Caches:
    """Sizes of the processor's caches."""

    l1d: Annotated[Count | None, "First level, data, of one core."] = ABSENT
    l2: Annotated[Count | None, "Second level."] = ABSENT
    l3: Annotated[Count | None, "Third level."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor, and what this process may use of it."""

    model: Annotated[str | None, "Its name."]
    logical_cores: Annotated[Count | None, "Of the machine."]
    physical_cores: Annotated[Count | None, "Of the machine."]
    usable_cores: Annotated[float | None, "What affinity and cgroup leave."]
    isa: Annotated[list[str] | None, "Instruction sets that matter here."]
    caches: Annotated[Caches, "Sizes of its caches."]
    affinity_cores: Annotated[Count | None, "Logical cores that the scheduler may put this process on."] = ABSENT
    affinity_physical_cores: Annotated[Count | None, "Physical cores among those."] = ABSENT
    cgroup_cpus: Annotated[
        NonNegative | None, "Processors' worth of time that the cgroup allows; null for no limit."
    ] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """How fast memory can be read."""

    bytes_per_second: Annotated[Count, "Measured."] = ABSENT
    array_bytes: Annotated[Count, "Size of the array that was read."] = ABSENT
    beyond_cache: Annotated[bool, "Whether that is larger than the caches, so that memory was measured."] = ABSENT


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The machine's memory, within the cgroup's limit."""

    total: Annotated[Count | None, "All of it."]
    available: Annotated[Count | None, "What could be had now."]
    bandwidth: Annotated[Bandwidth | None, "How fast it can be read."]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU that PyTorch can use."""

    kind: Annotated[str, "cuda, xpu or mps."]
    index: Annotated[Count, "Its number."]
    name: Annotated[str | None, "Its name."]
    memory: Annotated[Count | None, "Its memory."]
    capability: Annotated[str | None, "CUDA's compute capability."]


@dataclass(frozen=True, kw_only=True)
class Library:
    """An optional library."""

    version: Annotated[str | None, "The version that is installed."]
    usable: Annotated[bool, "Whether dynx can use it here."]
    reason: Annotated[str | None, "Why not; null where it can."]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What `dynx calibrate --device-info --json` prints; sizes in bytes, null for what isn't known."""

    schema: Annotated[Literal["dynx.device/1"], NAME]
    fingerprint: Annotated[str, "Hash of what profiles depend on."]
    cpu: Annotated[Processor, "The processor, and what this process may use of it."]
    memory: Annotated[Memory, "The machine's memory, within the cgroup's limit."]
    accelerators: Annotated[list[Accelerator], "GPUs that PyTorch can use."]
    libraries: Annotated[dict[str, Library | None], "Optional libraries; null for those that aren't installed."]
    compiler: Annotated[str | None, "Path of the C++ compiler; null for none."] = ABSENT
    system: Annotated[str, "Name of the operating system."] = ABSENT
    release: Annotated[str, "Its release."] = ABSENT
    machine: Annotated[str, "Architecture of the processor."] = ABSENT
    python: Annotated[str, "Version of Python."] = ABSENT
    torch: Annotated[str | None, "Version of PyTorch; null where it isn't installed."] = ABSENT
    transformers: Annotated[str | None, "Version of transformers; null where it isn't installed."] = ABSENT
    notes: Annotated[list[str], "What couldn't be found out, and why."] = ABSENT
    choices: Annotated[dict[str, Decision], "By setting: what dynx picks here, and why."]
