"""Figures that cannot be told, and whose card they are of."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from everframe.runtime.server.survival.logs import Tail
from everframe.runtime.server.survival.metrics import Metrics, gpu_gauges


class NVMLError(Exception): ...


def nvml(asked: list[Any], broken: set[str]) -> SimpleNamespace:
    """Looks like pynvml: what is in `broken` fails."""

    def tell(name: str, value: float) -> float:
        if name in broken:
            raise NVMLError(name)
        return value

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: asked.append(index) or "card",
        nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "card",
        nvmlDeviceGetTemperature=lambda card, kind: tell("celsius", 61),
        nvmlDeviceGetPowerUsage=lambda card: tell("watts", 70_000),
    )


def test_a_figure_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is reset while the server runs; a sensor that the card has not is not there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    broken: set[str] = set()
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], broken))
    metrics = Metrics()
    assert gpu_gauges(metrics)
    assert b"everframe_gpu_celsius 61.0" in metrics.text()
    broken.add("celsius")
    text = metrics.text()
    assert b"everframe_gpu_celsius NaN" in text
    assert b"everframe_gpu_watts 70.0" in text
    without = Metrics()
    assert gpu_gauges(without)
    assert b"gpu_celsius" not in without.text()
    broken.add("watts")
    assert not gpu_gauges(Metrics())


@pytest.mark.parametrize(
    ("visible", "gpu", "card"),
    [(None, None, 0), (None, 2, 2), ("3,5", None, 3), ("3,5", 1, 5), ("GPU-8f2a,GPU-11c0", 1, "GPU-11c0")],
)
def test_the_card_is_the_generator_s(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpu: int | None, card: int | str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "pynvml", nvml(asked, set()))
    assert gpu_gauges(Metrics(), gpu)
    assert asked == [card]


def test_a_line_whose_words_do_not_fit_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    tail, logger = Tail(), logging.getLogger("a-line-that-does-not-fit")
    logger.addHandler(tail)
    logger.propagate = False
    try:
        logger.warning("%d frames", "many")
        logger.warning("%d frames", 3)
    finally:
        logger.removeHandler(tail)
    assert tail.newest(5) == ["3 frames"]
