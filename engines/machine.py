"""What this machine is, read from the system: memory of this process, and the GPU where CUDA finds one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TEGRA = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str  # sm_86
    memory_mib: int
    free_mib: int
    driver: str
    runtime: str


def resident_memory() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_gpu() -> tuple[Gpu | None, str]:
    """The first GPU through cuda-python, or why there is none."""
    try:
        from cuda.bindings import runtime  # type: ignore[attr-defined]
    except ImportError:
        node = any(Path("/dev").glob("nvidia[0-9]*")) or TEGRA.exists()
        return None, "there is one, but cuda-python is not installed" if node else "none found"
    try:
        code, count = runtime.cudaGetDeviceCount()
        if code != runtime.cudaError_t.cudaSuccess or not count:
            return None, f"none that CUDA can use ({code.name})"
        properties = runtime.cudaGetDeviceProperties(0)[1]
        free, total = runtime.cudaMemGetInfo()[1:]
        driver, toolkit = runtime.cudaDriverGetVersion()[1], runtime.cudaRuntimeGetVersion()[1]
    except RuntimeError as error:
        return None, f"none: {error}"
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    known = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, toolkit))
    return Gpu(name, f"sm_{properties.major}{properties.minor}", total >> 20, free >> 20, *known), ""


def jetpack() -> str | None:
    """The L4T release line of a Jetson, None elsewhere."""
    return TEGRA.read_text().splitlines()[0].strip("# ") if TEGRA.is_file() else None
