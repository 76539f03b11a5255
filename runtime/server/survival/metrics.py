"""What Prometheus is told. Gauges are asked at the scrape, counters counted where things happen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ....engines.machine import nvml_card

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
EVENTS = {
    "nan": "Chunks that were not finite; the stream went back to its last good state.",
    "died": "Generators that ended.",
    "hung": "Generators that were killed because they hung.",
    "saved": "States saved.",
    "unsaved": "States that could not be saved.",
    "unusable": "States that could not be used.",
    "refused": "Orders that the generator refused.",
}


class Metrics:
    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.stage = Histogram("everframe_chunk_seconds", "Seconds of a chunk.", ["stage"], buckets=BUCKETS, registry=r)
        self.chunks = Counter("everframe_chunks", "Chunks made.", registry=r)
        self.events = {k: Counter(f"everframe_{k}", text, registry=r) for k, text in EVENTS.items()}
        self.reloads = Counter("everframe_viewer_reloads", "Frozen viewers that were told to reload.", registry=r)
        self.silent = Counter("everframe_viewers_silent", "Viewers given up because they said nothing.", registry=r)
        self.dropped = Counter("everframe_dropped_frames", "Frames that slow viewers did not get.", registry=r)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """NaN while it cannot be told: one that fails leaves the others."""

        def told() -> float:
            with contextlib.suppress(Exception):
                return value()
            return math.nan

        Gauge(f"everframe_{name}", text, registry=self.registry).set_function(told)

    def chunk(self, facts: dict[str, Any]) -> None:
        self.chunks.inc()
        for stage, seconds in facts["stages"].items():
            self.stage.labels(stage).observe(seconds)

    def event(self, kind: str) -> None:
        if kind in self.events:
            self.events[kind].inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


def gpu_gauges(metrics: Metrics, gpu: int | None = None) -> bool:
    """What the card that the generator was given tells of temperature and power, where NVML (package nvidia-ml-py) finds
    it. Whether it tells anything."""
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return False
    try:
        pynvml.nvmlInit()
        card = nvml_card(pynvml, gpu)
    except (pynvml.NVMLError, IndexError):
        return False
    asked = (
        ("gpu_celsius", "GPU temperature.", lambda: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
        ("gpu_watts", "GPU power.", lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1000),
    )
    found = False
    for name, text, value in asked:
        with contextlib.suppress(pynvml.NVMLError):  # a card that has no such sensor
            value()
            metrics.gauge(name, text, value)
            found = True
    return found
