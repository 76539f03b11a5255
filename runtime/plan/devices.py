"""The table of cards (`devices.toml`), and the classes of card with the share of their peak that this workload reaches."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...engines.errors import UserError


@dataclass(frozen=True)
class Device:
    """Dense peaks in TFLOP/s (TOP/s), with FP32 accumulation where the card tells it apart; GB/s; GB."""

    name: str
    kind: str  # key of CLASSES
    fp16: float
    int8: float
    bandwidth: float
    memory: float
    source: str
    fp8: float | None = None


@dataclass(frozen=True)
class DeviceClass:
    """Share of the dense FP16 peak that this very workload reached, and whose figure that is."""

    lowest: float
    highest: float
    why: str


_table = tomllib.loads((Path(__file__).parent / "devices.toml").read_text(encoding="utf-8"))
CLASSES = {name: DeviceClass(**values) for name, values in _table["classes"].items()}
DEVICES = tuple(Device(**values) for values in _table["devices"])


def find_devices(names: Sequence[str]) -> list[Device]:
    """Devices whose names contain one of the given ones. Raises UserError for a name that matches none."""
    for name in names:
        if not any(name.casefold() in d.name.casefold() for d in DEVICES):
            raise UserError(f"--device {name!r}: not in the table; there are: {', '.join(d.name for d in DEVICES)}")
    return [d for d in DEVICES if not names or any(name.casefold() in d.name.casefold() for name in names)]
