"""What a run costs in joules, where the machine tells."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...engines.base import Computing
from ...engines.machine import nvml_card

RAPL = Path("/sys/class/powercap")
OFTEN = 10.0  # seconds between two looks at a meter that begins anew when it is full


class Looks:
    """When the next look at a meter is due: by the clock, for a chunk may take minutes."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        due = now - self._last >= OFTEN
        self._last = now if due else self._last
        return due


def energy_meter(computes: Computing) -> tuple[Callable[[], float], str] | None:
    """A function that tells joules so far, and whose they are: of engines on an NVIDIA card the card's by NVML, on the CPU
    its packages' by RAPL. None: nobody tells, as of OpenVINO's other devices."""
    if computes.device.startswith("CPU"):
        files = [f for f in sorted(RAPL.glob("intel-rapl:?/energy_uj")) if _is_package(f)]
        if files and all(os.access(f, os.R_OK) for f in files):
            return Counters(files).joules, "RAPL, CPU packages"
        return None
    if computes.backend.startswith("openvino"):
        return None
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        card = nvml_card(pynvml)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
        return (
            lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000,
            f"NVML, GPU {pynvml.nvmlDeviceGetIndex(card)}",
        )
    except Exception:  # no package, no driver, no card, or one that does not tell
        return None


def _is_package(counter: Path) -> bool:
    """Of a zone: others hold packages and more (psys), which would count them twice."""
    with contextlib.suppress(OSError):
        return counter.with_name("name").read_text().startswith("package")
    return False


class Counters:
    """RAPL's, which begin anew when they are full, after minutes on a large machine: read more often than that, their sum
    goes on."""

    def __init__(self, files: Sequence[Path]):
        self._seen = {file: int(file.read_text()) for file in files}
        self._full = {file: _number(file.with_name("max_energy_range_uj")) for file in files}
        self._sum = 0

    def joules(self) -> float:
        for file, before in self._seen.items():
            now = int(file.read_text())
            self._sum += now - before if now >= before else now - before + self._full[file]
            self._seen[file] = now
        return self._sum / 1e6


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 1 << 32  # of the register, in the usual unit
