"""The hardware probe reads machines made of files: control groups of both versions, processors, caches, memory."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynx.runtime.device import Device, choose_dtype, probe
from dynx.runtime.hardware import Caches, Host, Limits, read_cpu, read_limits, read_memory, usable_cores

GIB, MIB = 2**30, 2**20

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpuinfo(count: int, flags: str = "fpu avx2 avx512f", siblings: int = 1) -> str:
    return "\n\n".join(
        f"processor\t: {n}\nmodel name\t: Xeon(R)   Test @ 2GHz\n"
        f"physical id\t: 0\ncore id\t: {n // siblings}\nflags\t: {flags}"
        for n in range(count)
    )


def machine(root: Path, files: dict[str, str] | None = None, *, cores: int = 8, **host: object) -> Host:
    """Build a Linux host of `cores` plain cores, with `files` on top."""
    plant(root, {"proc/cpuinfo": cpuinfo(cores), "proc/meminfo": MEMINFO, **(files or {})})
    return Host(root=root, cpu_count=cores, **host)  # type: ignore[arg-type]


def probe_fake(host: Host) -> Device:
    return probe(host=host, version_of=lambda name: None, which=lambda name: None)


def test_v2_fractional_quota_rounds_down(tmp_path: Path) -> None:
    """A quota of 2.5 cores is reported as 2.5 and used as 2."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        },
    )
    device = probe_fake(host)
    assert device.cgroup_cpus == 2.5
    assert device.usable_cores == 2


def test_quota_below_one_core_leaves_one(tmp_path: Path) -> None:
    """A quota of half a core still leaves one usable core."""
    host = machine(
        tmp_path,
        {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cpu.max": "50000 100000"},
    )
    assert probe_fake(host).usable_cores == 1


def test_v2_tightest_ancestor_binds(tmp_path: Path) -> None:
    """With nested groups the tightest limit counts, whether a parent or the process's own group sets it."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/pod/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/slice/cpu.max": "300000 100000",
            "sys/fs/cgroup/slice/pod/cpu.max": "max 100000",
            "sys/fs/cgroup/slice/pod/box/cpu.max": "600000 100000",
            "sys/fs/cgroup/slice/memory.max": "max",
            "sys/fs/cgroup/slice/pod/memory.max": str(6 * GIB),
            "sys/fs/cgroup/slice/pod/memory.current": str(4 * GIB),
            "sys/fs/cgroup/slice/pod/memory.stat": f"anon 1\ninactive_file {1 * GIB}\n",
            "sys/fs/cgroup/slice/pod/box/memory.max": str(8 * GIB),
            "sys/fs/cgroup/slice/pod/box/memory.current": "0",
        },
    )
    limits = read_limits(host)
    assert limits == Limits(cpus=3.0, memory=6 * GIB, memory_free=3 * GIB)
    assert read_memory(host, limits) == (6 * GIB, 3 * GIB)


def test_v2_memory_high_counts_as_limit(tmp_path: Path) -> None:
    """memory.high limits as memory.max does, because the kernel throttles above it."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/box/memory.max": str(8 * GIB),
            "sys/fs/cgroup/box/memory.high": str(2 * GIB),
        },
    )
    assert read_limits(host).memory == 2 * GIB


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    """The word "max" limits neither cores nor memory, and then the machine's own figures stand."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "max 100000",
            "sys/fs/cgroup/memory.max": "max",
        },
    )
    device = probe_fake(host)
    assert device.cgroup_cpus is None
    assert (device.usable_cores, device.memory_total, device.memory_available) == (8, 16 * GIB, 8 * GIB)


def test_v1_limits(tmp_path: Path) -> None:
    """Version 1 groups limit cores and memory through their own files, page cache counted as free."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n1:name=systemd:/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
            "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * GIB}\n",
        },
    )
    assert read_limits(host) == Limits(cpus=1.5, memory=4 * GIB, memory_free=3 * GIB)


def test_v1_unlimited(tmp_path: Path) -> None:
    """Version 1's ways to say "no limit" (-1, and the largest page-aligned number) are no limits."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert read_limits(host) == Limits()


@pytest.mark.parametrize("path", ["/docker/abc", "/docker/abcdef/../..", "/elsewhere"])
def test_v1_container_sees_its_group_at_the_mount_point(tmp_path: Path, path: str) -> None:
    """Inside a container the host's path doesn't exist, and the mount point itself is the group."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": f"5:cpu,cpuacct:{path}\n4:memory:{path}\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/docker/abc"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
        },
    )
    limits = read_limits(host)
    assert (limits.cpus, limits.memory) == (2.0, GIB)


def test_somebody_elses_group_is_ignored(tmp_path: Path) -> None:
    """A control group of others that is mounted at an unusual place doesn't limit us."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/mine2",
            "proc/self/mountinfo": "9 1 0:2 /mine /srv/watch rw - cgroup2 cgroup2 rw\n",
            "srv/watch/cpu.max": "100000 100000",
            "srv/watch/2/cpu.max": "100000 100000",
        },
    )
    assert read_limits(host).cpus is None


def test_mount_point_with_a_space(tmp_path: Path) -> None:
    """The kernel's octal escapes in mountinfo are decoded."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box",
            "proc/self/mountinfo": "9 1 0:2 / /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n",
            "sys/fs/c group/box/cpu.max": "100000 100000",
        },
    )
    assert read_limits(host).cpus == 1.0


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("sys/fs/cgroup", {"cpu.max": "300000 100000", "memory.max": str(GIB)}),
        ("sys/fs/cgroup/cpu", {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}),
    ],
)
def test_limits_without_mountinfo(tmp_path: Path, folder: str, files: dict[str, str]) -> None:
    """Where the mounts can't be listed, the usual places are looked at."""
    host = machine(tmp_path, {f"{folder}/{name}": text for name, text in files.items()})
    assert read_limits(host).cpus == 3.0


@pytest.mark.parametrize("text", ["", "max", "abc 100000", "100000", "100000 0", "-5 100000", "1 2 3", "\x00\xff"])
def test_garbage_quota_is_no_limit(tmp_path: Path, text: str) -> None:
    """A quota that can't be understood limits nothing and raises nothing."""
    host = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\nnonsense\n::\n",
            "proc/self/mountinfo": V2_MOUNT + "short line\n - cgroup2\n",
            "sys/fs/cgroup/cpu.max": text,
            "sys/fs/cgroup/memory.max": "lots",
        },
    )
    assert read_limits(host) == Limits()


FILES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.stat",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
    "sys/devices/system/cpu/cpu0/cache/index0/size",
)
SNIPPETS = st.sampled_from(
    ["processor : 0\n\n", "flags : avx2\n", "0::/\n", V2_MOUNT, MEMINFO, "max 1", "5 1", "0-3,7", "48K", "9" * 30, "-1"]
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FILES), SNIPPETS | st.text(max_size=60) | st.lists(SNIPPETS).map("".join)))
def test_any_content_gives_a_device(files: dict[str, str]) -> None:
    """Whatever the system's files hold, probing ends in a device with at least one core and strict JSON."""
    with tempfile.TemporaryDirectory() as folder:
        root = plant(Path(folder), {})
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        device = probe_fake(Host(root=root, cpu_count=2, affinity=frozenset({0})))
    assert device.usable_cores >= 1
    json.dumps(device.describe(), allow_nan=False)
    assert all(isinstance(value, str) for row in device.rows() for value in row)


def test_affinity_bounds_the_usable_cores(tmp_path: Path) -> None:
    """A process that may run on 3 of 8 cores has 3 usable ones."""
    device = probe_fake(machine(tmp_path, affinity=frozenset({0, 1, 5})))
    assert (device.logical_cores, device.affinity_cores, device.usable_cores) == (8, 3, 3)


def test_siblings_from_topology(tmp_path: Path) -> None:
    """Physical cores are counted by sibling lists, over the machine and over what affinity leaves."""
    lists = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    files = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in lists.items()}
    files["sys/devices/system/cpu/online"] = "0-7\n"
    cpu = read_cpu(machine(tmp_path, files, affinity=frozenset({0, 1, 4, 5})))
    assert (cpu.logical_cores, cpu.physical_cores) == (8, 4)
    assert (cpu.affinity_cores, cpu.affinity_physical_cores) == (4, 2)


def test_siblings_from_cpuinfo(tmp_path: Path) -> None:
    """Without the topology files, /proc/cpuinfo tells the physical cores."""
    host = machine(tmp_path, {"proc/cpuinfo": cpuinfo(8, siblings=2)})
    assert read_cpu(host).physical_cores == 4


def test_x86_flags_and_model(tmp_path: Path) -> None:
    """Only the instruction sets that matter are kept, in one order, and the model's blanks are squeezed."""
    flags = "fpu amx_tile avx512_vnni avx2 sse amx_bf16 avx512_bf16 amx_int8 avx_vnni avx512f avx512_fp16"
    cpu = read_cpu(machine(tmp_path, {"proc/cpuinfo": cpuinfo(1, flags)}))
    assert cpu.model == "Xeon(R) Test @ 2GHz"
    assert cpu.isa == (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "avx512_fp16",
    )


def test_arm_flags_and_model(tmp_path: Path) -> None:
    """An Arm kernel's Features and part numbers are understood."""
    text = "processor : 0\nFeatures : fp asimd sve bf16 i8mm\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    cpu = read_cpu(machine(tmp_path, {"proc/cpuinfo": text}))
    assert cpu.isa == ("asimd", "bf16", "i8mm", "sve")
    assert cpu.model == "Arm implementer 0x41 part 0xd40"


def test_caches(tmp_path: Path) -> None:
    """Data and unified caches of the first usable core are read in bytes, instruction caches left out."""
    files: dict[str, str] = {}
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "2M"), ("3", "Unified", "32768K")]
    ):
        folder = f"sys/devices/system/cpu/cpu2/cache/index{index}"
        files |= {f"{folder}/level": level, f"{folder}/type": kind, f"{folder}/size": size}
    cpu = read_cpu(machine(tmp_path, files, affinity=frozenset({2, 3})))
    assert cpu.caches == Caches(l1d=48 * 1024, l2=2 * MIB, l3=32 * MIB)


def test_empty_machine(tmp_path: Path) -> None:
    """A system that tells nothing gives one core and None everywhere else."""
    device = probe_fake(Host(root=tmp_path))
    assert device.usable_cores == 1
    assert (device.cpu, device.isa, device.memory_total, device.physical_cores) == (None, None, None, None)
    assert device.caches == Caches()
    assert choose_dtype(None, "cpu", device).value == "float32"


def test_macos_facts_come_from_sysctl(tmp_path: Path) -> None:
    """On macOS the brand, caches and instructions come from sysctl, cores and memory from psutil's figures."""
    answers = {
        "machdep.cpu.brand_string": b"Apple M2\0",
        "hw.l1dcachesize": (65536).to_bytes(8, sys.byteorder),
        "hw.optional.AdvSIMD": (1).to_bytes(4, sys.byteorder),
        "hw.optional.arm.FEAT_BF16": (1).to_bytes(4, sys.byteorder),
        "hw.optional.avx2_0": (0).to_bytes(4, sys.byteorder),
    }
    host = Host(
        root=tmp_path,
        system="Darwin",
        machine="arm64",
        cpu_count=8,
        physical_cores=8,
        memory=(16 * GIB, 4 * GIB),
        sysctl=answers.get,
    )
    device = probe_fake(host)
    assert (device.cpu, device.isa, device.caches.l1d) == ("Apple M2", ("asimd", "bf16"), 65536)
    assert (device.usable_cores, device.physical_cores) == (8, 8)
    assert (device.memory_total, device.memory_available) == (16 * GIB, 4 * GIB)


def test_usable_cores_take_the_least(tmp_path: Path) -> None:
    """Usable cores are the least of machine, affinity and quota."""
    cpu = read_cpu(machine(tmp_path, affinity=frozenset(range(6))))
    assert usable_cores(cpu, Limits()) == 6
    assert usable_cores(cpu, Limits(cpus=4.9)) == 4
    assert usable_cores(cpu, Limits(cpus=64.0)) == 6
