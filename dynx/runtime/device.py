"""What this machine has, and which device, precision and number of threads dynx takes for it.

`probe()` only looks; the `choose_*` functions only decide, each as a `Decision` whose reason the user gets to read.
Knows nothing of models or tasks. Importing this module loads no torch; `probe()` loads it only when an accelerator is
possible, and the optional libraries never (their versions come from package metadata).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, TypeAlias

from dynx.errors import DeviceError, InvalidInput
from dynx.runtime import accelerators as gpus
from dynx.runtime.accelerators import Accelerator
from dynx.runtime.backends.availability import ipex_torch_conflict
from dynx.runtime.bandwidth import Bandwidth, measure_bandwidth
from dynx.runtime.decision import Decision
from dynx.runtime.hardware import Caches, Host, read_cpu, read_limits, read_memory, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

__all__ = [
    "Accelerator",
    "Decision",
    "Device",
    "Library",
    "choose_device",
    "choose_dtype",
    "choose_threads",
    "installed_version",
    "probe",
]

SCHEMA = "dynx.device/1"

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BF16_ISA = ("amx_bf16", "avx512_bf16", "bf16")
OPTIONAL_LIBRARIES = (
    "openvino",
    "openvino-genai",
    "intel-extension-for-pytorch",
    "torchao",
    "triton",
    "bitsandbytes",
    "onnxruntime",
    "diffusers",
)
COMPILERS = ("g++", "clang++", "cl")


@dataclass(frozen=True)
class Library:
    """An optional library that is installed; `reason` says why it isn't usable, and is None when it is."""

    name: str
    version: str
    reason: str | None = None

    @property
    def usable(self) -> bool:
        """Whether dynx may import it."""
        return self.reason is None


@dataclass(frozen=True)
class Device:
    """The machine as this process may use it: memory in bytes, None for what can't be known here.

    `logical_cores` and `physical_cores` are the machine's, `affinity_*` those that the scheduler lets us have,
    `cgroup_cpus` the quota in cores (a fraction is possible), `usable_cores` the least of them in whole cores.
    """

    cpu: str | None = None
    logical_cores: int | None = None
    physical_cores: int | None = None
    affinity_cores: int | None = None
    affinity_physical_cores: int | None = None
    cgroup_cpus: float | None = None
    usable_cores: int = 1
    isa: tuple[str, ...] | None = None
    caches: Caches = field(default_factory=Caches)
    memory_total: int | None = None
    memory_available: int | None = None
    accelerators: tuple[Accelerator, ...] = ()
    libraries: tuple[Library, ...] = ()
    compiler: str | None = None
    system: str = ""
    release: str = ""
    machine: str = ""
    python: str = ""
    torch: str | None = None
    transformers: str | None = None
    notes: tuple[str, ...] = ()
    bandwidth: Bandwidth | None = None

    @property
    def memory_bandwidth(self) -> float | None:
        """Bytes per second read from memory; None until `with_bandwidth` has measured it."""
        return self.bandwidth.bytes_per_second if self.bandwidth else None

    def has(self, flag: str) -> bool:
        """Tell whether the processor is known to have this instruction set, as the kernel spells it ("avx512_bf16")."""
        return flag in (self.isa or ())

    @property
    def bf16_instruction(self) -> str | None:
        """The instruction set that makes bfloat16 fast on this processor, None without one."""
        return next(filter(self.has, BF16_ISA), None)

    def with_bandwidth(self, *, clock: Callable[[], float] = time.perf_counter) -> Device:
        """Measure the memory bandwidth (about 0.3 s) and return a device with it; itself where it was measured already."""
        if self.bandwidth:
            return self
        threads = choose_threads(None, self, environ={}).value
        cache = self.caches.l3 or self.caches.l2
        measured = measure_bandwidth(threads, cache_bytes=cache, memory_available=self.memory_available, clock=clock)
        return replace(self, bandwidth=measured)

    def accelerator(self, name: str) -> Accelerator | None:
        """Find the accelerator that torch calls `name` ("cuda" is "cuda:0"); None for "cpu" and what isn't here."""
        kind, _, index = name.partition(":")
        return next((one for one in self.accelerators if one.kind == kind and str(one.index) == (index or "0")), None)

    def library(self, name: str) -> Library | None:
        """Find the optional library of that name; None when it isn't installed."""
        return next((one for one in self.libraries if one.name == name), None)

    @property
    def names(self) -> list[str]:
        """Every name that `choose_device` accepts here."""
        return [f"{one.kind}:{one.index}" for one in self.accelerators] + ["cpu"]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change exactly when costs measured before no longer hold for this machine.

        Covers what sets speed (processor, usable cores, instructions, accelerators, torch's minor version, system).
        Leaves out what drifts from run to run, such as free memory and the measured bandwidth.
        """
        facts = {
            "cpu": self.cpu,
            "usable_cores": self.usable_cores,
            "isa": sorted(self.isa or ()),
            "accelerators": [f"{one.kind} {one.name}" for one in self.accelerators],
            "torch": _minor(self.torch),
            "system": self.system,
            "machine": self.machine,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, JSON]:
        """Write the device as one JSON document, sizes in bytes, null for what isn't known."""
        accelerators: list[JSON] = [
            {
                "kind": one.kind,
                "index": one.index,
                "name": one.name,
                "memory": one.memory,
                "capability": f"{one.capability[0]}.{one.capability[1]}" if one.capability else None,
            }
            for one in self.accelerators
        ]
        libraries: dict[str, JSON] = dict.fromkeys(OPTIONAL_LIBRARIES)
        for one in self.libraries:
            libraries[one.name] = {"version": one.version, "usable": one.usable, "reason": one.reason}
        bandwidth: JSON = None
        if self.bandwidth:
            bandwidth = {
                "bytes_per_second": round(self.bandwidth.bytes_per_second),
                "array_bytes": self.bandwidth.array_bytes,
                "beyond_cache": self.bandwidth.beyond_cache,
            }
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "cpu": {
                "model": self.cpu,
                "logical_cores": self.logical_cores,
                "physical_cores": self.physical_cores,
                "affinity_cores": self.affinity_cores,
                "affinity_physical_cores": self.affinity_physical_cores,
                "cgroup_cpus": self.cgroup_cpus,
                "usable_cores": self.usable_cores,
                "isa": None if self.isa is None else list(self.isa),
                "caches": {"l1d": self.caches.l1d, "l2": self.caches.l2, "l3": self.caches.l3},
            },
            "memory": {"total": self.memory_total, "available": self.memory_available, "bandwidth": bandwidth},
            "accelerators": accelerators,
            "libraries": libraries,
            "compiler": self.compiler,
            "system": self.system,
            "release": self.release,
            "machine": self.machine,
            "python": self.python,
            "torch": self.torch,
            "transformers": self.transformers,
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, str]]:
        """List (label, value) pairs for a table, most important first."""
        caches = {"L1d": self.caches.l1d, "L2": self.caches.l2, "L3": self.caches.l3}
        rows = [
            ("processor", self.cpu or "unknown"),
            ("cores", _cores_in_words(self)),
            (
                "instructions",
                "unknown" if self.isa is None else ", ".join(self.isa) or "none of those that matter here",
            ),
            ("caches", ", ".join(f"{name} {_size(size)}" for name, size in caches.items() if size) or "unknown"),
            ("memory", f"{_size(self.memory_total)}, of which available: {_size(self.memory_available)}"),
            ("bandwidth", _bandwidth_in_words(self.bandwidth)),
        ]
        rows += [(f"{one.kind}:{one.index}", _accelerator_in_words(one)) for one in self.accelerators]
        if not self.accelerators:
            rows.append(("accelerators", "none"))
        rows += [
            ("libraries", "; ".join(_library_in_words(one) for one in self.libraries) or "none of the optional ones"),
            ("C++ compiler", self.compiler or "none on PATH"),
            ("system", " ".join(filter(None, (self.system, self.release, self.machine)))),
            ("python", self.python),
            ("torch", self.torch or "not installed"),
            ("transformers", self.transformers or "not installed"),
            *(("note", note) for note in self.notes),
            ("fingerprint", self.fingerprint),
        ]
        return rows


def probe(
    *,
    measure_bandwidth: bool = False,
    host: Host | None = None,
    version_of: Callable[[str], str | None] | None = None,
    find_accelerators: Callable[[str | None], tuple[tuple[Accelerator, ...], tuple[str, ...]]] | None = None,
    which: Callable[[str], str | None] = shutil.which,
    clock: Callable[[], float] = time.perf_counter,
) -> Device:
    """Look at this machine: milliseconds, unless torch has to be loaded or the bandwidth measured.

    The other arguments stand in for the machine in tests: its files, package metadata, accelerators (with notes about
    why one can't be used), PATH and clock.
    """
    host = host or Host.here()
    version_of = version_of or installed_version
    cpu, limits = read_cpu(host), read_limits(host)
    total, available = read_memory(host, limits)
    torch = version_of("torch")
    accelerators, notes = (find_accelerators or gpus.find_accelerators)(torch)
    device = Device(
        cpu=cpu.model,
        logical_cores=cpu.logical_cores,
        physical_cores=cpu.physical_cores,
        affinity_cores=cpu.affinity_cores,
        affinity_physical_cores=cpu.affinity_physical_cores,
        cgroup_cpus=limits.cpus,
        usable_cores=usable_cores(cpu, limits),
        isa=cpu.isa,
        caches=cpu.caches,
        memory_total=total,
        memory_available=available,
        accelerators=accelerators,
        libraries=tuple(
            Library(name, version, _unusable(name, version, torch))
            for name in OPTIONAL_LIBRARIES
            if (version := version_of(name)) is not None
        ),
        compiler=next(filter(None, map(which, COMPILERS)), None),
        system=host.system,
        release=host.release,
        machine=host.machine,
        python=platform.python_version(),
        torch=torch,
        transformers=version_of("transformers"),
        notes=notes,
    )
    return device.with_bandwidth(clock=clock) if measure_bandwidth else device


def choose_device(requested: str | None, device: Device) -> Decision[str]:
    """Choose the torch device to run on: "auto" or None takes the best kind that is here.

    Raises InvalidInput for what can't be a device's name, DeviceError for a device that isn't here.
    """
    name = (requested or "auto").strip().lower()
    if name == "auto":
        for kind in gpus.KINDS:
            if best := device.accelerator(kind):
                return Decision(kind, f"{best.name} is here")
        return Decision("cpu", "no CUDA, XPU or MPS device here")
    if not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise InvalidInput(f"{requested!r} is not a device", hint=f'Use "auto" or one of: {", ".join(device.names)}.')
    if name in ("cpu", "cpu:0"):
        return Decision("cpu", "asked for")
    if not device.accelerator(name):
        raise DeviceError(f"there is no device {name!r} here", hint=_what_is_here(name, device))
    return Decision(name, "asked for")


def choose_dtype(
    requested: str | None, device_name: str, device: Device, checkpoint_dtype: str | None = None
) -> Decision[str]:
    """Choose the precision, as torch names it; "auto" or None takes the fastest that the device computes in well.

    `checkpoint_dtype` is the precision that the weights are stored in, None when unknown. Raises InvalidInput for a name
    that dynx doesn't know.
    """
    kind = device_name.partition(":")[0]
    name = (requested or "auto").strip().lower().removeprefix("torch.")
    name = DTYPES.get(name, name)
    if name in DTYPES.values():
        return Decision(name, "asked for" + _slow_in_words(name, kind, device))
    if name != "auto":
        raise InvalidInput(
            f"{requested!r} is not a precision", hint=f'Use "auto" or one of: {", ".join(DTYPES.values())}.'
        )
    if kind == "cuda":
        accelerator = device.accelerator(device_name)
        if accelerator and accelerator.capability and accelerator.capability[0] >= 8:
            return Decision("bfloat16", f"{accelerator.name} computes in bfloat16")
        return Decision("float16", "this GPU isn't known to compute in bfloat16 (compute capability 8 or above)")
    if kind == "xpu":
        return Decision("bfloat16", "Intel GPUs compute in bfloat16")
    if kind == "mps":
        return Decision("float16", "the fastest precision of Apple GPUs")
    if not device.bf16_instruction:
        return Decision("float32", "this processor isn't known to compute in bfloat16")
    stored = (checkpoint_dtype or "").removeprefix("torch.")
    if DTYPES.get(stored, stored) == "float32":
        return Decision("float32", "the checkpoint is float32")
    return Decision("bfloat16", f"this processor computes in bfloat16 ({device.bf16_instruction})")


def choose_threads(requested: int | None, device: Device, *, environ: Mapping[str, str] | None = None) -> Decision[int]:
    """Choose the threads for one operation: what was asked for, else OMP_NUM_THREADS, else the usable physical cores.

    Hyper-threading siblings share the units that matrix products need, so a second thread per core only adds waiting.
    Raises InvalidInput below 1.
    """
    if requested is not None:
        if requested < 1:
            raise InvalidInput(
                f"{requested} threads: at least 1 is needed", hint="Leave the option out to let dynx choose."
            )
        beyond = f"; more than the {device.usable_cores} usable cores" if requested > device.usable_cores else ""
        return Decision(requested, "asked for" + beyond)
    ignored = ""
    if setting := (os.environ if environ is None else environ).get("OMP_NUM_THREADS"):
        # The variable may be a list, one number per level of nesting: OpenMP 5.2, section 21.1.2.
        outer = setting.partition(",")[0].strip()
        if outer.isdecimal() and int(outer) >= 1:
            return Decision(int(outer), f"OMP_NUM_THREADS={setting}")
        ignored = f"; OMP_NUM_THREADS={setting!r} is not a number of threads and is ignored"
    physical = device.affinity_physical_cores
    if physical is not None and physical < device.usable_cores:
        return Decision(physical, f"physical cores among {device.usable_cores} usable logical ones{ignored}")
    quota = f" (the container's limit is {device.cgroup_cpus:g})" if _bound_by_quota(device) else ""
    return Decision(device.usable_cores, f"usable cores{quota}{ignored}")


def installed_version(name: str) -> str | None:
    """Read the version of a distribution from its metadata alone; None when it isn't installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str | None) -> str | None:
    found = re.match(r"\d+\.\d+", version or "")
    return found[0] if found else version


def _unusable(name: str, version: str, torch: str | None) -> str | None:
    return ipex_torch_conflict(version, torch) if name == "intel-extension-for-pytorch" else None


def _what_is_here(name: str, device: Device) -> str:
    here = f"Here: {', '.join(device.names)}."
    kind = name.partition(":")[0]
    if kind in gpus.KINDS and (device.torch or "").endswith("+cpu"):
        return f"{here} torch {device.torch} is a build for processors only."
    return " ".join((here, *device.notes))


def _slow_in_words(name: str, kind: str, device: Device) -> str:
    """Write a warning to append when the processor has to emulate the precision that was asked for."""
    if kind != "cpu" or device.isa is None:
        return ""
    # Arm's flag for half precision isn't among those we keep, so an Arm processor gets the benefit of the doubt.
    fast = {"bfloat16": device.bf16_instruction, "float16": device.has("avx512_fp16") or device.has("asimd")}
    return "" if fast.get(name, True) else f"; slow, this processor has no {name} arithmetic"


def _bound_by_quota(device: Device) -> bool:
    seen = [cores for cores in (device.logical_cores, device.affinity_cores) if cores is not None]
    return device.cgroup_cpus is not None and device.usable_cores < min(seen, default=device.usable_cores + 1)


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    for unit, bytes_per_unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_per_unit:
            return f"{size / bytes_per_unit:.3g} {unit}"
    return f"{size} B"


def _cores_in_words(device: Device) -> str:
    parts = [f"{device.usable_cores} usable"]
    if device.logical_cores is not None:
        parts.append(f"{device.logical_cores} logical")
    if device.physical_cores is not None:
        parts.append(f"{device.physical_cores} physical")
    if device.affinity_cores is not None and device.affinity_cores != device.logical_cores:
        parts.append(f"{device.affinity_cores} by affinity")
    if device.cgroup_cpus is not None:
        parts.append(f"{device.cgroup_cpus:g} by cgroup")
    return ", ".join(parts)


def _bandwidth_in_words(bandwidth: Bandwidth | None) -> str:
    if bandwidth is None:
        return "not measured"
    flatters = "" if bandwidth.beyond_cache else f" (of {_size(bandwidth.array_bytes)}, which the cache may hold)"
    return f"{bandwidth.bytes_per_second / 1e9:.3g} GB/s{flatters}"


def _accelerator_in_words(one: Accelerator) -> str:
    capability = f", compute capability {one.capability[0]}.{one.capability[1]}" if one.capability else ""
    return f"{one.name}, {_size(one.memory)}{capability}"


def _library_in_words(one: Library) -> str:
    return f"{one.name} {one.version}" + (f" (not usable: {one.reason})" if one.reason else "")
