"""The processor and the memory this process may really use, read from the operating system.

Knows /proc, /sys, control groups (versions 1 and 2, nested, fractional) and, on macOS, sysctl. Doesn't know torch,
accelerators or what to do with any of it: `dynx.runtime.device` puts the facts together and decides. Whatever can't
be read is None; nothing here raises.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

X86_ISA = (
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
ARM_ISA = ("asimd", "bf16", "i8mm", "sve")

MACOS_ISA = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}

# cgroup v1 writes "no limit" as the largest page-aligned int64; no machine has 2**60 bytes.
V1_UNLIMITED = 2**60

# Where the controllers are when /proc/self/mountinfo can't be read: (kind, controllers, mount point).
USUAL_MOUNTS = (
    ("cgroup2", "", "/sys/fs/cgroup"),
    ("cgroup2", "", "/sys/fs/cgroup/unified"),
    ("cgroup", "cpu", "/sys/fs/cgroup/cpu"),
    ("cgroup", "cpu", "/sys/fs/cgroup/cpu,cpuacct"),
    ("cgroup", "memory", "/sys/fs/cgroup/memory"),
)


def _no_sysctl(_name: str) -> bytes | None:
    return None


@dataclass(frozen=True)
class Host:
    """Where the facts come from: the machine itself (`Host.here()`), or a fake tree of files in a test.

    `physical_cores` and `memory` (total and available bytes) serve systems without /proc; Linux reads its files.
    """

    root: Path = Path("/")
    system: str = "Linux"
    machine: str = "x86_64"
    release: str = ""
    cpu_count: int | None = None
    affinity: frozenset[int] | None = None
    physical_cores: int | None = None
    memory: tuple[int, int] | None = None
    sysctl: Callable[[str], bytes | None] = _no_sysctl

    @classmethod
    def here(cls) -> Host:
        """Describe the machine this process runs on."""
        host = cls(
            system=platform.system(),
            machine=platform.machine(),
            release=platform.release(),
            cpu_count=os.cpu_count(),
            affinity=frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        )
        if host.system == "Linux":
            return host
        import psutil

        memory = psutil.virtual_memory()
        return replace(
            host,
            physical_cores=psutil.cpu_count(logical=False),
            memory=(int(memory.total), int(memory.available)),
            sysctl=_macos_sysctl if host.system == "Darwin" else _no_sysctl,
        )

    def read(self, path: str | PurePosixPath) -> str | None:
        """Read the text of a small file under `root`, stripped; None when it can't be read."""
        try:
            return (self.root / str(path).lstrip("/")).read_text(encoding="utf-8", errors="replace").strip("\0\n\t ")
        except OSError:
            return None

    def read_int(self, path: str | PurePosixPath) -> int | None:
        """Read the integer in a small file; None when it can't be read or isn't one ("max", garbage)."""
        return _int(self.read(path))


@dataclass(frozen=True)
class Caches:
    """Bytes of one instance of each data cache, as the first usable core sees it."""

    l1d: int | None = None
    l2: int | None = None
    l3: int | None = None


@dataclass(frozen=True)
class Cpu:
    """The processor: cores by how far this process may use them, and those of its instructions that matter here."""

    model: str | None
    logical_cores: int | None
    physical_cores: int | None
    affinity_cores: int | None
    affinity_physical_cores: int | None
    isa: tuple[str, ...] | None
    caches: Caches


@dataclass(frozen=True)
class Limits:
    """What control groups allow: cores (a fraction is possible), bytes in all, and bytes still free."""

    cpus: float | None = None
    memory: int | None = None
    memory_free: int | None = None


def read_cpu(host: Host) -> Cpu:
    """Read the processor as this process may use it, control groups aside."""
    blocks = _cpuinfo(host)
    first = blocks[0] if blocks else {}
    online = _cpu_list(host.read("/sys/devices/system/cpu/online")) or {
        number for number in (_int(block.get("processor")) for block in blocks) if number is not None
    }
    affine = (host.affinity & online if online else host.affinity) if host.affinity else online
    cores = _core_of_each(host, online, blocks)
    return Cpu(
        model=_model(host, first),
        logical_cores=len(online) or host.cpu_count,
        physical_cores=_count_cores(cores, online) or host.physical_cores,
        affinity_cores=len(affine) or host.cpu_count,
        affinity_physical_cores=_count_cores(cores, affine) or (None if host.affinity else host.physical_cores),
        isa=_isa(host, first),
        caches=_caches(host, min(affine, default=0)),
    )


def read_limits(host: Host) -> Limits:
    """Find the tightest limits of this process's control groups and their ancestors, which bind just as hard."""
    cpus = [quota for kind, folder in _cgroups(host, "cpu") if (quota := _cpu_quota(host, kind, folder)) is not None]
    memory = [found for kind, folder in _cgroups(host, "memory") if (found := _memory_limit(host, kind, folder))]
    return Limits(
        cpus=min(cpus, default=None),
        memory=min((limit for limit, _ in memory), default=None),
        memory_free=min((free for _, free in memory), default=None),
    )


def read_memory(host: Host, limits: Limits) -> tuple[int | None, int | None]:
    """Read the bytes of memory in all and available now, neither above what the control groups allow."""
    info: dict[str, int] = {}
    for line in (host.read("/proc/meminfo") or "").splitlines():
        if found := re.match(r"(MemTotal|MemFree|MemAvailable):\s+(\d+) kB", line):
            info[found[1]] = int(found[2]) * 1024
    total, available = host.memory or (info.get("MemTotal"), info.get("MemAvailable", info.get("MemFree")))
    return _least(total, limits.memory), _least(available, limits.memory_free)


def usable_cores(cpu: Cpu, limits: Limits) -> int:
    """Count the whole cores this process can keep busy, at least 1.

    A fractional quota is rounded down: one thread too many is throttled, and a parallel loop waits for its slowest
    thread.
    """
    cores = _least(cpu.logical_cores, cpu.affinity_cores) or 1
    return max(1, cores if limits.cpus is None else min(cores, math.floor(limits.cpus)))


def _int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _cpuinfo(host: Host) -> list[dict[str, str]]:
    """Read one dict per processor in /proc/cpuinfo, keys as the kernel writes them."""
    blocks = []
    for text in (host.read("/proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines())
        block = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if "processor" in block:
            blocks.append(block)
    return blocks


def _cpu_list(text: str | None) -> set[int]:
    """Read the numbers in the kernel's list format ("0-3,8"); empty when it's garbage."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not found:
            return set()
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return numbers


def _core_of_each(host: Host, online: set[int], blocks: list[dict[str, str]]) -> dict[int, str]:
    """Map each logical processor to a name that it shares with its hyper-threading siblings and with nobody else."""
    cores: dict[int, str] = {}
    for number in online:
        folder = f"/sys/devices/system/cpu/cpu{number}/topology"
        siblings = host.read(f"{folder}/core_cpus_list") or host.read(f"{folder}/thread_siblings_list")
        if siblings:
            cores[number] = siblings
    if len(cores) == len(online):
        return cores
    named = {block["processor"]: block for block in blocks if "physical id" in block and "core id" in block}
    return {
        number: f"{block['physical id']}/{block['core id']}"
        for number in online
        if (block := named.get(str(number))) is not None
    }


def _count_cores(cores: Mapping[int, str], numbers: set[int] | frozenset[int]) -> int | None:
    if not numbers or not all(number in cores for number in numbers):
        return None
    return len({cores[number] for number in numbers})


def _model(host: Host, block: Mapping[str, str]) -> str | None:
    if name := block.get("model name") or block.get("cpu model"):
        return " ".join(name.split())
    if "CPU implementer" in block:
        # Arm kernels give numbers and no name; `lscpu` has the table.
        return f"Arm implementer {block['CPU implementer']} part {block.get('CPU part', '?')}"
    if brand := host.sysctl("machdep.cpu.brand_string"):
        return brand.rstrip(b"\0").decode(errors="replace")
    # platform.processor() starts a subprocess on Unix; Windows has it in the environment.
    return os.environ.get("PROCESSOR_IDENTIFIER") if host.system == "Windows" else None


def _isa(host: Host, block: Mapping[str, str]) -> tuple[str, ...] | None:
    flags = set((block.get("flags") or block.get("Features") or "").split())
    flags |= {flag for name, flag in MACOS_ISA.items() if any(host.sysctl(name) or b"")}
    return tuple(flag for flag in (*X86_ISA, *ARM_ISA) if flag in flags) if flags else None


def _caches(host: Host, cpu: int) -> Caches:
    sizes: dict[str, int] = {}
    for index in range(8):
        folder = f"/sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        level, kind, size = (host.read(f"{folder}/{name}") for name in ("level", "type", "size"))
        found = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if found and kind in ("Data", "Unified"):
            sizes[level or ""] = int(found[1]) * 1024 ** " KMG".index(found[2] or " ")
    return Caches(
        l1d=sizes.get("1") or _sysctl_int(host, "hw.l1dcachesize"),
        l2=sizes.get("2") or _sysctl_int(host, "hw.l2cachesize"),
        l3=sizes.get("3") or _sysctl_int(host, "hw.l3cachesize"),
    )


def _cgroups(host: Host, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """List (kind, folder) of each control group that binds this process, from its own up to the mount point."""
    member: dict[str, str] = {}
    for line in (host.read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            member.update(dict.fromkeys(controllers.split(","), path))
    for kind, controllers, root, point in _mounts(host):
        if kind == "cgroup" and controller not in controllers.split(","):
            continue
        path = member.get(controller if kind == "cgroup" else "", "/")
        if PurePosixPath(path).is_relative_to(root) and ".." not in path:
            inside = path.removeprefix(root)
        else:
            # The process's group lies outside what is mounted (another namespace): the mount point is the best guess,
            # where it is the system's own. Elsewhere it's somebody else's group.
            if not point.startswith("/sys/fs/cgroup"):
                continue
            inside = ""
        folder = PurePosixPath(point) / inside.strip("/")
        yield kind, folder
        for parent in folder.parents:
            if not parent.is_relative_to(point):
                break
            yield kind, parent


def _mounts(host: Host) -> Iterator[tuple[str, str, str, str]]:
    """List (kind, controllers, root, mount point) of each control-group file system: proc(5), /proc/pid/mountinfo."""
    text = host.read("/proc/self/mountinfo")
    if text is None:
        yield from ((kind, controllers, "/", point) for kind, controllers, point in USUAL_MOUNTS)
        return
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) >= 5 and len(right) >= 3 and right[0] in ("cgroup", "cgroup2"):
            yield right[0], right[2], _unescape(left[3]), _unescape(left[4])


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _cpu_quota(host: Host, kind: str, folder: PurePosixPath) -> float | None:
    """Read the cores' worth of time per period; None when unlimited or unreadable."""
    if kind == "cgroup2":
        words = (host.read(folder / "cpu.max") or "").split()
        quota, period = (_int(words[0]), _int(words[1])) if len(words) == 2 else (None, None)
    else:
        quota, period = host.read_int(folder / "cpu.cfs_quota_us"), host.read_int(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _memory_limit(host: Host, kind: str, folder: PurePosixPath) -> tuple[int, int] | None:
    """Read (limit, still free) in bytes; None when unlimited or unreadable.

    Inactive page cache counts as free: the kernel drops it before it kills anybody.
    """
    if kind == "cgroup2":
        # Above memory.high the kernel throttles and reclaims, which for us is as good as full.
        limit = _least(host.read_int(folder / "memory.max"), host.read_int(folder / "memory.high"))
        used, cache = host.read_int(folder / "memory.current"), "inactive_file"
    else:
        limit = host.read_int(folder / "memory.limit_in_bytes")
        used, cache = host.read_int(folder / "memory.usage_in_bytes"), "total_inactive_file"
    if limit is None or not 0 < limit < V1_UNLIMITED:
        return None
    statistics = host.read(folder / "memory.stat") or ""
    found = re.search(rf"^{cache} (\d+)$", statistics, re.MULTILINE)
    taken = max(0, (used or 0) - (int(found[1]) if found else 0))
    return limit, max(0, limit - taken)


def _sysctl_int(host: Host, name: str) -> int | None:
    return int.from_bytes(host.sysctl(name) or b"", sys.byteorder) or None


def _macos_sysctl(name: str) -> bytes | None:
    """Read one value of macOS's sysctlbyname(3), raw; None when there is none of that name."""
    import ctypes

    libc = ctypes.CDLL(None)
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return buffer.raw[: size.value]
