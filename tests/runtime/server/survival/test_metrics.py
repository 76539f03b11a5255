"""Figures that cannot be told, and whose card they are of."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everframe.engines.errors import UserError
from everframe.runtime.server.config import Logging, read_config
from everframe.runtime.server.survival.logs import Tail, set_up
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


@pytest.fixture
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises


def test_the_log_file_is_bounded_and_knows_no_secret(tmp_path: Path, own_logging: None) -> None:
    (tmp_path / "x.toml").write_text('[logging]\nfile = "a.log"\nmax_mb = 1\n')
    set_up(read_config(tmp_path / "x.toml").logging, {"quite-secret"})
    lines = 9000
    for number in range(lines):
        logging.getLogger("x").info("line %d to rtmp://host/live/quite-secret %s", number, 1000 * "-")
    files = list(tmp_path.glob("a.log*"))
    assert len(files) == 5
    assert all(file.stat().st_size <= 1 << 20 for file in files)
    assert f"line {lines - 1} " in (tmp_path / "a.log").read_text().splitlines()[-1]
    assert not any("quite-secret" in file.read_text() for file in files)
    with pytest.raises(UserError, match=r"logging\.file .*none/a\.log: "):
        set_up(Logging(file=tmp_path / "none" / "a.log"))


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
