"""What this machine is, read from the system: memory of this process, and the GPU where CUDA finds one."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cuda import ask, device_name, driver_release, memory_of, too_old
from .errors import UserError

TEGRA = Path("/etc/nv_tegra_release")


# As Linux names them, and as people do.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512-VNNI",
    "avx512_bf16": "AVX-512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "bf16": "BF16",
}


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str  # sm_86
    memory_mib: int
    free_mib: int
    driver: str
    runtime: str


def resident_memory() -> int:
    """Bytes of this process in memory; where the system does not say so plainly, the most there ever were."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """The most bytes that this process ever had in memory; 0 where nobody tells (Windows)."""
    with contextlib.suppress(OSError, ValueError):  # getrusage's is its parent's before it began, where that was more
        told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        if "VmHWM" in told:
            return max(int(told["VmHWM"].split()[0]) << 10, resident_memory())
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(frozen=True)
class Cores:
    """CPU cores: of the machine, those this process may run on, and how many of them its cgroup's quota is worth."""

    machine: int
    allowed: int
    quota: float | None  # None: no quota

    @property
    def usable(self) -> int:
        """Threads that can run all the time: a fraction of a core serves none."""
        return max(1, min(self.allowed, int(self.quota))) if self.quota is not None else self.allowed

    @property
    def throttled(self) -> bool:
        """Whether the quota is what limits: then a thread that spins wastes what another could use."""
        return self.quota is not None and self.quota < self.allowed

    def __str__(self) -> str:
        quota = f", cgroup quota {self.quota:g}" if self.quota is not None else ""
        return f"{self.machine} cores, {self.allowed} allowed{quota}: {self.usable} used by default"


def find_cores() -> Cores:
    """What the system allows this process: its affinity mask (cpusets are in it) and its cgroup's quota, v1 or v2."""
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return Cores(machine, allowed, cgroup_quota())


def cgroup_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of CPU time that the cgroups of this process get, the least of all levels; None: no limit."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:  # v2
            found += [_v2_quota(folder) for folder in _upwards(root, path)]
        elif "cpu" in controllers.split(","):
            for home in (root / "cpu", root / controllers):
                found += [_v1_quota(folder) for folder in _upwards(home, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a cgroup and those above it. In a container the path may be the host's: then only the root is there."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if root in (parent, *parent.parents))]


def _v2_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _v1_quota(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_cores() -> int:
    """Threads that can run at the same time in this process."""
    return find_cores().usable


def thread_count(wanted: int) -> int:
    """Threads for `--threads`: 0 is one per usable core. Raises UserError for a number that no machine has."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= wanted <= most:
        raise UserError(f"threads {wanted}: expected 0 (one per core) to {most}")
    return wanted or usable_cores()


@functools.cache
def processor_name() -> str:
    """The CPU as it calls itself, and those of its instructions that decide what is fast or possible."""
    facts = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    have = facts.get("flags", facts.get("Features", "")).split()
    told = [word for flag, word in INSTRUCTIONS.items() if flag in have]
    return " ".join([facts.get("model name") or platform.processor() or platform.machine(), *told])


def find_gpu() -> tuple[Gpu | None, str]:
    """The first GPU through cuda-python, or why there is none."""
    try:
        from cuda.bindings import runtime  # type: ignore[attr-defined]
    except ImportError:
        node = any(Path("/dev").glob("nvidia[0-9]*")) or TEGRA.exists()
        return None, "there is one, but cuda-python is not installed" if node else "none found"
    try:
        if not ask(runtime, "cudaGetDeviceCount"):
            return None, "none that CUDA can use"
        properties = ask(runtime, "cudaGetDeviceProperties", 0)
        free, total = memory_of(runtime)
        driver, toolkit = (ask(runtime, name) for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"))
    except UserError as error:  # among others a card that is full, or another process's alone
        return None, f"none that CUDA can use ({error}{too_old(str(error))})"
    except RuntimeError as error:
        return None, f"none: {error}"
    known = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, toolkit))
    return Gpu(device_name(properties), f"sm_{properties.major}{properties.minor}", total >> 20, free >> 20, *known), ""


def choose_gpu(index: int | None) -> None:
    """Let CUDA see one card alone, as nvidia-smi counts them; among those of CUDA_VISIBLE_DEVICES where that is set. Nothing
    for None. It must come before CUDA is loaded, and a card that is not there shows when it is."""
    if index is None:
        return
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # else CUDA counts by speed, which nvidia-smi does not
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
        return
    seen = seen_gpus(told)
    if index >= len(seen):
        raise UserError(f"--gpu {index}: CUDA_VISIBLE_DEVICES has {len(seen)}{', ' + told if told else ''}")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[index]


def seen_gpus(told: str) -> list[str]:
    """The cards that CUDA_VISIBLE_DEVICES names, by number or UUID."""
    return [word for word in map(str.strip, told.split(",")) if word]


def nvml_card(nvml: Any, index: int | None = None) -> Any:
    """NVML's handle of the card that CUDA sees first, or that `choose_gpu(index)` would give it: NVML knows nothing of
    CUDA_VISIBLE_DEVICES. Raises IndexError, NVMLError."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return nvml.nvmlDeviceGetHandleByIndex(index or 0)
    name = seen_gpus(told)[index or 0]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def card_name() -> str:
    """The first GPU and its driver in words, or why there is none."""
    gpu, note = find_gpu()
    release = driver_release() or jetpack() or ""
    return f"{gpu.name}, driver {release} for CUDA {gpu.driver}".replace("  ", " ") if gpu else note


def jetpack() -> str | None:
    """The L4T release line of a Jetson, None elsewhere."""
    return TEGRA.read_text().splitlines()[0].strip("# ") if TEGRA.is_file() else None
