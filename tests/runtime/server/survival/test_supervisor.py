"""The watchdog, with generators that do what is asked of them here and make no video."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from everframe.engines.errors import CudaError
from everframe.runtime.server.config import StreamSettings
from everframe.runtime.server.survival import supervisor as module
from everframe.runtime.server.survival import worker
from everframe.runtime.server.survival.supervisor import Supervisor
from everframe.runtime.server.survival.worker import Job

from serving import wait_for


def dies(connection: Connection, job: Job) -> None:
    connection.send(("ready", {}))
    os._exit(1)


def fails(connection: Connection, job: Job) -> None:
    """As a generator whose card is full at its first pass."""

    class Full:
        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> None:
            connection.send(("ready", {}))
            raise CudaError("CUDA: cudaMalloc: cudaErrorMemoryAllocation")

    worker.Generator = Full  # type: ignore[assignment, misc]
    worker.main(connection, job)


def cannot_load(connection: Connection, job: Job) -> None:
    """As one whose card is full when it starts."""
    sys.exit(worker.NOT_NOW)


def refuses(connection: Connection, job: Job) -> None:
    """As one whose bundle lies on a disk that is away."""
    sys.exit(2)


def saves_long(connection: Connection, job: Job) -> None:
    """Longer than a generator may say nothing, and says so."""
    connection.send(("ready", {}))
    while connection.recv() != ("stop",):
        pass
    for _ in range(35):
        connection.send(("event", "alive", ""))
        time.sleep(0.1)
    job.state.write_text("saved")


def says_nothing(connection: Connection, job: Job) -> None:
    connection.send(("ready", {}))
    time.sleep(60)


def stalls_once(connection: Connection, job: Job) -> None:
    connection.send(("ready", {}))
    for seconds in (60.0, *[0.5] * module.RECENT):
        connection.send(("chunk", {"frames": (1, 1, 1, 3), "stages": {"total": seconds}}))
        connection.send_bytes(bytes(3))
    time.sleep(60)


def watched(job: Job) -> tuple[Supervisor, list[str]]:
    events: list[str] = []
    ready = events.append
    return Supervisor(
        lambda: job,
        lambda: True,
        lambda facts, frames: None,
        lambda facts: ready("ready"),
        lambda kind, text: ready(kind),
        60,
        60,
    ), events


def chunks_slowly_taken(connection: Connection, job: Job) -> None:
    connection.send(("ready", {}))
    while not connection.poll():  # until it is to stop
        connection.send(("chunk", {"frames": (1, 1, 1, 3), "stages": {"total": 0.1}}))
        connection.send_bytes(bytes(3))


def test_a_disk_that_is_slow_here_kills_no_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with a chunk may take longer than a generator may say nothing."""
    monkeypatch.setattr(module, "main", chunks_slowly_taken)
    watch, events = watched(Job(StreamSettings(), tmp_path / "state"))
    taken: list[int] = []

    def take(facts: object, frames: object) -> None:
        taken.append(1)
        time.sleep(1.5)

    watch.chunk, watch.stall_seconds, watch.start_seconds = take, 0.5, 60
    watch.start()
    wait_for(lambda: len(taken) == 4, 60)
    watch.stop()
    assert events == ["ready"]


def test_a_generator_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """As where the system has no more processes, or files: here its job cannot be handed over."""
    job = Job(StreamSettings(), tmp_path / "state", playlist=lambda: None)  # type: ignore[arg-type]
    watch, events = watched(job)
    watch.start()
    wait_for(lambda: "backoff" in events, 60)
    assert watch.is_alive()
    watch.stop()
    assert not watch.is_alive()


@pytest.mark.parametrize(
    ("main", "paused", "kept"),
    [
        (dies, True, True),
        (dies, False, False),
        (refuses, False, True),
        (fails, False, True),
        (cannot_load, False, True),
    ],
)
def test_which_lives_speak_against_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Callable[..., None], paused: bool, kept: bool
) -> None:
    """Those that should have brought a chunk and did not: not while the stream is paused, nor before the state was read,
    nor where engines cannot run now."""
    monkeypatch.setattr(module, "main", main)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    state = tmp_path / "state"
    state.write_text("good")
    supervisor, events = watched(Job(StreamSettings(), state, paused=paused))
    supervisor.start()
    wait_for(lambda: supervisor.restarts > 3, 120)
    supervisor.stop()
    assert state.exists() == kept
    assert ("unusable" in events) != kept


def test_a_state_under_which_engines_never_run_is_put_aside_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "main", fails)
    monkeypatch.setattr(module, "BARREN", 3)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    state = tmp_path / "state"
    state.write_text("good")
    supervisor, events = watched(Job(StreamSettings(), state))
    supervisor.start()
    wait_for(lambda: "unusable" in events, 120)
    supervisor.stop()
    assert supervisor.restarts >= 3
    assert state.with_name("state.bad").read_text() == "good"


def test_a_card_that_is_full_at_the_first_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that somebody else's job has: where a person has something to mend, the server ends. Neither speaks
    against a state."""
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "BARREN", 1)
    state = tmp_path / "state"
    state.write_text("good")
    for main, tried in ((cannot_load, True), (refuses, False)):
        monkeypatch.setattr(module, "main", main)
        supervisor, events = watched(Job(StreamSettings(), state))
        supervisor.hopeless = lambda why: True
        supervisor.start()
        wait_for(lambda: supervisor.restarts > 1 or not supervisor.is_alive(), 60)  # noqa: B023
        assert ("backoff" in events) == supervisor.is_alive() == tried
        supervisor.stop()
        assert state.exists()


def test_one_slow_chunk_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall, or a first chunk that compiles: the watch would wait five times as long for good."""
    monkeypatch.setattr(module, "main", stalls_once)
    supervisor, seen = watched(Job(StreamSettings(), tmp_path / "state"))[0], list[float]()
    supervisor.chunk = lambda facts, frames: seen.append(supervisor.slowest)
    supervisor.start()
    wait_for(lambda: len(seen) == module.RECENT + 1, 60)
    supervisor._ending.set()
    supervisor._kill()
    supervisor.join(60)
    assert seen == [60.0] * module.RECENT + [0.5]


def test_who_saves_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    monkeypatch.setattr(module, "STOP", 2.0)
    monkeypatch.setattr(module, "notify", told.append)
    for main in (saves_long, says_nothing):
        monkeypatch.setattr(module, "main", main)
        supervisor, events = watched(Job(StreamSettings(), tmp_path / main.__name__))
        supervisor.start()
        wait_for(lambda found=events: "ready" in found, 60)
        with caplog.at_level(logging.WARNING):
            began = time.monotonic()
            supervisor.stop()
        assert supervisor.state == "stopped"
        assert time.monotonic() - began < 20
        assert ("has not ended" in caplog.text) == (main is says_nothing)
    assert (tmp_path / "saves_long").read_text() == "saved"
    assert set(told) == {"EXTEND_TIMEOUT_USEC=60000000"}


def chunks_until_it_dies(connection: Connection, job: Job) -> None:
    connection.send(("ready", {}))
    for _ in range(3):
        connection.send(("chunk", {"frames": (1, 1, 1, 3), "stages": {"total": 0.1}}))
        connection.send_bytes(bytes(3))
    while not job.state.exists():
        time.sleep(0.02)
    job.state.unlink()
    os._exit(9)


def test_one_that_dies_while_the_picture_stands_is_started_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the morning, when the picture goes on and would stand until the model is loaded."""
    monkeypatch.setattr(module, "main", chunks_until_it_dies)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    chunks: list[object] = []
    supervisor, events = watched(Job(StreamSettings(), tmp_path / "state"))
    supervisor.chunk = lambda facts, frames: chunks.append(facts)
    supervisor.wanted = lambda: not chunks
    supervisor.start()
    wait_for(lambda: chunks, 60)
    (tmp_path / "state").touch()
    wait_for(lambda: "died" in events and events.count("ready") == 2, 60)
    supervisor.stop()
    assert events.count("died") == 1
