"""The device has one identity and one description, and each decision about it says why."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dynx.errors import DeviceError, UsageError
from dynx.runtime.accelerators import Accelerator
from dynx.runtime.bandwidth import Bandwidth
from dynx.runtime.device import (
    Decision,
    Device,
    Library,
    choose_device,
    choose_dtype,
    choose_threads,
    installed_version,
    probe,
)
from dynx.runtime.hardware import Caches, Host

if TYPE_CHECKING:
    from pathlib import Path

GIB, MIB = 2**30, 2**20

CUDA = Accelerator("cuda", 0, "NVIDIA H100", 80 * GIB, (9, 0))
SECOND_CUDA = Accelerator("cuda", 1, "NVIDIA H100", 80 * GIB, (9, 0))
OLD_CUDA = Accelerator("cuda", 0, "Tesla T4", 16 * GIB, (7, 5))
XPU = Accelerator("xpu", 0, "Intel Arc A770", 16 * GIB)
MPS = Accelerator("mps", 0, "Apple GPU", 12 * GIB)

PLAIN_CPU = Device(cpu="Old", usable_cores=4, isa=("avx2",), torch="2.13.0+cpu", system="Linux", machine="x86_64")
BF16_CPU = Device(cpu="New", usable_cores=4, isa=("avx2", "avx512_bf16"), torch="2.13.0+cpu")


FULL = Device(
    cpu="Xeon",
    logical_cores=16,
    physical_cores=8,
    affinity_cores=12,
    affinity_physical_cores=6,
    cgroup_cpus=6.5,
    usable_cores=6,
    isa=("avx2", "avx512_bf16"),
    caches=Caches(48 * 1024, 2 * MIB, 32 * MIB),
    memory_total=16 * GIB,
    memory_available=8 * GIB,
    accelerators=(CUDA,),
    libraries=(Library("openvino", "2026.1"), Library("intel-extension-for-pytorch", "2.8.0", "it needs torch 2.8")),
    compiler="/usr/bin/g++",
    system="Linux",
    release="6.1",
    machine="x86_64",
    python="3.12.1",
    torch="2.13.0+cu130",
    transformers="5.23.0",
    notes=("a note",),
    bandwidth=Bandwidth(2e10, 128 * MIB, True),
)


def probe_fake(root: Path, versions: dict[str, str] | None = None, **others: object) -> Device:
    """Probe a machine that has the files under `root` and these distributions, and nothing else."""
    arguments = {"which": lambda name: None, "version_of": (versions or {}).get} | others
    return probe(host=Host(root=root), **arguments)  # type: ignore[arg-type]


def variant(**changes: Any) -> Device:
    return replace(FULL, **changes)


def test_libraries_come_from_metadata(tmp_path: Path) -> None:
    """Optional libraries are listed with their versions, and absent ones as null in the document."""
    device = probe_fake(tmp_path, {"torch": "2.13.0+cpu", "openvino": "2026.1.0", "torchao": "0.15"})
    assert device.library("openvino") == Library("openvino", "2026.1.0")
    assert device.library("triton") is None
    libraries = device.describe()["libraries"]
    assert isinstance(libraries, dict)
    assert libraries["triton"] is None
    assert libraries["torchao"] == {"version": "0.15", "usable": True, "reason": None}


@pytest.mark.parametrize(("torch", "usable"), [("2.8.1+cpu", True), ("2.9.0+cpu", False), ("2.80.0+cpu", False)])
def test_ipex_needs_the_same_torch(tmp_path: Path, torch: str, usable: bool) -> None:
    """IPEX is usable only under the torch of its own major and minor version."""
    device = probe_fake(tmp_path, {"torch": torch, "intel-extension-for-pytorch": "2.8.0"})
    ipex = device.library("intel-extension-for-pytorch")
    assert ipex is not None
    assert ipex.usable is usable
    assert (ipex.reason is None) is usable


def test_first_compiler_on_path(tmp_path: Path) -> None:
    """The first C++ compiler on PATH is reported, in the order g++, clang++, cl."""
    paths = {"clang++": "/opt/clang++", "cl": "/opt/cl"}
    assert probe_fake(tmp_path, which=paths.get).compiler == "/opt/clang++"
    assert probe_fake(tmp_path).compiler is None


def test_installed_version() -> None:
    """A missing distribution has no version, and an installed one has its own."""
    assert installed_version("no-such-distribution-xyz") is None
    assert installed_version("pytest") == pytest.__version__


def test_probing_loads_nothing_heavy() -> None:
    """Importing the module loads the standard library only, and so does probing with a CPU build of torch."""
    code = (
        "import sys\n"
        "from dynx.runtime import device\n"
        "from dynx.runtime.hardware import Host\n"
        "heavy = {'torch', 'transformers', 'numpy', 'psutil', 'openvino', 'triton'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "device.probe(host=Host(), version_of={'torch': '2.13.0+cpu', 'openvino': '1'}.get).describe()\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_probe_measures_only_on_request(tmp_path: Path) -> None:
    """The bandwidth is null until it's asked for, and measured once."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 131072 kB\nMemAvailable: 131072 kB\n")
    assert probe_fake(tmp_path).memory_bandwidth is None
    device = probe_fake(tmp_path, measure_bandwidth=True, clock=itertools.count(step=0.001).__next__)
    assert device.memory_bandwidth is not None
    assert math.isfinite(device.memory_bandwidth)
    assert device.with_bandwidth() is device


@pytest.mark.parametrize(
    ("here", "expected"),
    [((), "cpu"), ((MPS,), "mps"), ((XPU, MPS), "xpu"), ((MPS, XPU, SECOND_CUDA, CUDA), "cuda")],
)
@pytest.mark.parametrize("requested", [None, "auto", "AUTO"])
def test_auto_device_order(here: tuple[Accelerator, ...], expected: str, requested: str | None) -> None:
    """Automatic choice goes CUDA, XPU, MPS, processor, and gives a reason."""
    decision = choose_device(requested, Device(accelerators=here))
    assert decision.value == expected
    assert decision.reason


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_device_asked_for(name: str) -> None:
    """A device that is here is taken when asked for, with or without its number."""
    assert choose_device(name, Device(accelerators=(CUDA, SECOND_CUDA))) == Decision(name, "asked for")


@pytest.mark.parametrize("name", ["cuda:2", "mps", "xpu:0", "tpu", "cpu:1"])
def test_absent_device(name: str) -> None:
    """Asking for a device that isn't here fails with exit code 5 and lists those that are."""
    with pytest.raises(DeviceError, match=name) as caught:
        choose_device(name, Device(accelerators=(CUDA, SECOND_CUDA), torch="2.13.0+cu130"))
    assert caught.value.exit_code == 5
    assert caught.value.hint == "Here: cuda:0, cuda:1, cpu."


def test_absent_device_hint_says_why() -> None:
    """The hint tells a processor-only build of torch apart from a driver's trouble."""
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda", Device(torch="2.13.0+cpu"))
    assert caught.value.hint == "Here: cpu. torch 2.13.0+cpu is a build for processors only."
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda", Device(torch="2.13.0", notes=("The driver is too old.",)))
    assert caught.value.hint == "Here: cpu. The driver is too old."


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "2", "a b"])
def test_malformed_device(name: str) -> None:
    """What can't be a device's name is a usage error with a hint."""
    with pytest.raises(UsageError) as caught:
        choose_device(name, Device())
    assert caught.value.hint


@pytest.mark.parametrize(
    ("device_name", "device", "checkpoint", "expected"),
    [
        ("cpu", PLAIN_CPU, "bfloat16", "float32"),
        ("cpu", PLAIN_CPU, None, "float32"),
        ("cpu", BF16_CPU, "bfloat16", "bfloat16"),
        ("cpu", BF16_CPU, "torch.float16", "bfloat16"),
        ("cpu", BF16_CPU, None, "bfloat16"),
        ("cpu", BF16_CPU, "float32", "float32"),
        ("cpu", BF16_CPU, "torch.float32", "float32"),
        ("cpu", Device(isa=("amx_tile", "amx_bf16")), None, "bfloat16"),
        ("cpu", Device(isa=("amx_tile", "amx_int8")), None, "float32"),
        ("cpu", Device(isa=("asimd", "bf16")), None, "bfloat16"),
        ("cuda", Device(accelerators=(CUDA,)), None, "bfloat16"),
        ("cuda:1", Device(accelerators=(OLD_CUDA, SECOND_CUDA)), None, "bfloat16"),
        ("cuda:0", Device(accelerators=(OLD_CUDA, SECOND_CUDA)), None, "float16"),
        ("xpu", Device(accelerators=(XPU,)), None, "bfloat16"),
        ("mps", Device(accelerators=(MPS,)), None, "float16"),
    ],
)
@pytest.mark.parametrize("requested", [None, "auto"])
def test_auto_dtype(
    device_name: str, device: Device, checkpoint: str | None, expected: str, requested: str | None
) -> None:
    """The automatic precision is what the device computes in well, with a reason."""
    decision = choose_dtype(requested, device_name, device, checkpoint)
    assert decision.value == expected
    assert decision.reason


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("fp32", "float32"),
        ("bf16", "bfloat16"),
        ("FP16", "float16"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_dtype_asked_for(requested: str, expected: str) -> None:
    """Long and short names of a precision are taken as asked for."""
    assert choose_dtype(requested, "cuda", Device(accelerators=(CUDA,))) == Decision(expected, "asked for")


def test_slow_dtype_is_pointed_out() -> None:
    """A precision that the processor has to emulate is granted, and the reason says it's slow."""
    assert choose_dtype("bf16", "cpu", PLAIN_CPU) == Decision(
        "bfloat16", "asked for; slow, this processor has no bfloat16 arithmetic"
    )
    assert "slow" in choose_dtype("fp16", "cpu", BF16_CPU).reason
    assert choose_dtype("bf16", "cpu", BF16_CPU).reason == "asked for"
    assert choose_dtype("fp32", "cpu", PLAIN_CPU).reason == "asked for"


@pytest.mark.parametrize("name", ["int8", "double", "float", "bf-16"])
def test_unknown_dtype(name: str) -> None:
    """An unknown precision is a usage error that names the known ones."""
    with pytest.raises(UsageError, match=name) as caught:
        choose_dtype(name, "cpu", PLAIN_CPU)
    assert "bfloat16" in (caught.value.hint or "")


def test_threads_are_physical_cores_within_the_usable() -> None:
    """By default each usable physical core gets one thread, never more than the usable cores."""
    hyper = Device(logical_cores=16, affinity_cores=16, affinity_physical_cores=8, usable_cores=16)
    assert choose_threads(None, hyper, environ={}).value == 8
    quota = Device(logical_cores=16, affinity_cores=16, affinity_physical_cores=8, usable_cores=3, cgroup_cpus=3.5)
    assert choose_threads(None, quota, environ={}) == Decision(3, "usable cores (the container's limit is 3.5)")
    assert choose_threads(None, Device(usable_cores=4), environ={}) == Decision(4, "usable cores")


def test_threads_follow_omp() -> None:
    """OMP_NUM_THREADS decides when it's set, and the reason names it; a list counts with its first number."""
    device = Device(usable_cores=8)
    assert choose_threads(None, device, environ={"OMP_NUM_THREADS": "3"}) == Decision(3, "OMP_NUM_THREADS=3")
    assert choose_threads(None, device, environ={"OMP_NUM_THREADS": "4,2"}).value == 4


@pytest.mark.parametrize("setting", ["zero", "0", "-2", "1.5"])
def test_senseless_omp_is_ignored_aloud(setting: str) -> None:
    """A senseless OMP_NUM_THREADS is ignored, and the reason says so."""
    decision = choose_threads(None, Device(usable_cores=8), environ={"OMP_NUM_THREADS": setting})
    assert decision.value == 8
    assert f"OMP_NUM_THREADS='{setting}'" in decision.reason


def test_threads_default_to_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a given environment the process's own is read."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert choose_threads(None, Device(usable_cores=8)).value == 5


def test_threads_asked_for() -> None:
    """A number asked for wins over OMP_NUM_THREADS, is never cut, and its reason says when it's too many."""
    device = Device(usable_cores=4)
    assert choose_threads(2, device, environ={"OMP_NUM_THREADS": "3"}) == Decision(2, "asked for")
    assert choose_threads(6, device, environ={}) == Decision(6, "asked for; more than the 4 usable cores")
    with pytest.raises(UsageError):
        choose_threads(0, device, environ={})


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_available": GIB},
        {"memory_total": 2 * GIB},
        {"bandwidth": None},
        {"torch": "2.13.1"},
        {"transformers": "5.24.0"},
        {"python": "3.13.0"},
        {"release": "6.2"},
        {"libraries": ()},
        {"compiler": None},
        {"notes": ()},
        {"cgroup_cpus": 6.9},
        {"isa": ("avx512_bf16", "avx2")},
    ],
)
def test_fingerprint_ignores_what_drifts(changes: dict[str, object]) -> None:
    """Free memory, patch releases and other things that leave measured costs comparable keep the fingerprint."""
    assert variant(**changes).fingerprint == FULL.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "Epyc"},
        {"usable_cores": 5},
        {"isa": ("avx2",)},
        {"accelerators": ()},
        {"accelerators": (OLD_CUDA,)},
        {"accelerators": (CUDA, SECOND_CUDA)},
        {"torch": "2.14.0"},
        {"torch": None},
        {"system": "Windows"},
        {"machine": "aarch64"},
    ],
)
def test_fingerprint_notices_what_sets_speed(changes: dict[str, object]) -> None:
    """Whatever makes measured costs incomparable changes the fingerprint."""
    assert variant(**changes).fingerprint != FULL.fingerprint


def test_fingerprint_is_pinned() -> None:
    """The fingerprint is the same in every process and release: profiles on users' disks are keyed by it."""
    assert FULL.fingerprint == "3409f5a17ae3"


def test_describe_is_strict_json() -> None:
    """The document starts with its schema, holds every figure, and survives a strict JSON round trip."""
    document = FULL.describe()
    assert next(iter(document.items())) == ("schema", "dynx.device/1")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["accelerators"] == [
        {"kind": "cuda", "index": 0, "name": "NVIDIA H100", "memory": 80 * GIB, "capability": "9.0"}
    ]
    assert document["memory"] == {
        "total": 16 * GIB,
        "available": 8 * GIB,
        "bandwidth": {"bytes_per_second": 20_000_000_000, "array_bytes": 128 * MIB, "beyond_cache": True},
    }


def test_describe_has_the_same_keys_when_nothing_is_known() -> None:
    """A device of which nothing is known has the same keys, with null for the unknown."""

    def keys(value: object) -> object:
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    full, empty = variant(bandwidth=None, libraries=()).describe(), Device().describe()
    assert keys(full) == keys(empty)
    assert empty["torch"] is None


def test_rows_for_people() -> None:
    """The rows give each fact in words, units included."""
    rows = dict(FULL.rows())
    assert rows["cores"] == "6 usable, 16 logical, 8 physical, 12 by affinity, 6.5 by cgroup"
    assert rows["caches"] == "L1d 48 KiB, L2 2 MiB, L3 32 MiB"
    assert rows["memory"] == "16 GiB, of which available: 8 GiB"
    assert rows["bandwidth"] == "20 GB/s"
    assert rows["cuda:0"] == "NVIDIA H100, 80 GiB, compute capability 9.0"
    assert rows["libraries"] == "openvino 2026.1; intel-extension-for-pytorch 2.8.0 (not usable: it needs torch 2.8)"
    assert rows["note"] == "a note"
    assert rows["fingerprint"] == FULL.fingerprint


def test_rows_when_nothing_is_known() -> None:
    """The rows of an unknown device say so in words, never None."""
    rows = dict(Device().rows())
    assert rows["processor"] == "unknown"
    assert rows["accelerators"] == "none"
    assert rows["bandwidth"] == "not measured"
    assert "None" not in " ".join(rows.values())


def test_probe_of_this_machine() -> None:
    """The machine that runs the tests has at least one core, and a description in strict JSON."""
    device = probe(find_accelerators=lambda torch: ((), ()))
    assert device.usable_cores >= 1
    assert device.memory_total is None or device.memory_total > 0
    json.dumps(device.describe(), allow_nan=False)
