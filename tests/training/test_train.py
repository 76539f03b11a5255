"""The driver: stages in order, each only if it is not done, and a wish to stop that reaches the one that runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import train
from train import Driver, Stage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train, "HERE", tmp_path)
    monkeypatch.setattr(train, "WORK", tmp_path)
    monkeypatch.setattr(train, "LOG", tmp_path / "train.log")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own
    monkeypatch.setattr(os, "nice", lambda _: 0)
    return tmp_path


def stage(folder: Path, name: str, code: str) -> Stage:
    """A script that notes its name; it is done when there is a file of that name."""
    note = f"import pathlib, sys\nopen({str(folder / 'order')!r}, 'a').write({name!r} + ' ')\n"
    (folder / f"{name}.py").write_text(note + code)
    return Stage(name, (f"{name}.py", "--flag"), lambda: (folder / name).exists())


def finish(folder: Path, name: str) -> str:
    return f"pathlib.Path({str(folder / name)!r}).touch()\nprint(sys.argv[1:])\n"


def run_main(monkeypatch: pytest.MonkeyPatch, plan: list[Stage]) -> int:
    monkeypatch.setattr(train, "stages", lambda *_: plan)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return train.main()


def test_stages_run_in_order_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [stage(folder, name, finish(folder, name)) for name in ("first", "second", "third")]
    (folder / "second").touch()
    assert run_main(monkeypatch, plan) == 0
    assert (folder / "order").read_text().split() == ["first", "third"]
    assert "--flag" in (folder / "train.log").read_text()
    assert run_main(monkeypatch, plan) == 0
    assert (folder / "order").read_text().split() == ["first", "third"]


def test_a_failure_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [stage(folder, "bad", "sys.exit(3)"), stage(folder, "next", finish(folder, "next"))]
    assert run_main(monkeypatch, plan) == 3
    assert (folder / "order").read_text().split() == ["bad"]


PATIENT = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({stopped!r}).touch(), sys.exit(0)))
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


def patient(folder: Path) -> Stage:
    code = PATIENT.format(stopped=str(folder / "stopped"), ready=str(folder / "ready"))
    return stage(folder, "patient", code)


def test_a_wish_to_stop_is_handed_on(folder: Path) -> None:
    driver, slow = Driver(float("inf"), "cpu"), patient(folder)

    def wish() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.05)
        driver.stop()

    thread = threading.Thread(target=wish)
    thread.start()
    assert driver.run(slow) == 0
    thread.join()
    assert (folder / "stopped").exists()
    assert driver.over()


def test_the_clock_stops_a_stage_without_one(folder: Path) -> None:
    driver = Driver(3 / 60, "cpu")
    begun = time.monotonic()
    driver.run(patient(folder))
    assert time.monotonic() - begun < 30
    assert driver.over()


def test_a_stage_with_steps_is_told_time_and_device(folder: Path) -> None:
    (folder / "told.py").write_text("import sys\nprint(sys.argv[1:])\n")
    Driver(5, "cuda").run(Stage("told", ("told.py", "--steps", "7"), lambda: False, steps=7))
    told = (folder / "train.log").read_text()
    assert "'--steps', '7', '--device', 'cuda', '--minutes', '5.00'" in told or "'--minutes', '4.99'" in told
