"""What a week in a lobby brings: kills, hangs, full disks, broken numbers, damaged files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from everframe.engines.bundle import Bundle, describe, read_manifest, write_manifest
from everframe.runtime import Stream, Transition
from everframe.runtime.server.config import StreamSettings
from everframe.runtime.server.orders.playlist import Director, Item, Playlist
from everframe.runtime.server.survival.worker import Job, main
from everframe.runtime.state import read_facts

from helpers import PROMPTS
from serving import serve, wait_for

WAYS: tuple[Transition, ...] = ("smooth", "flush", "cut")
PLAYLIST = Playlist(items=[Item(prompt=p, seconds=3, transition=t) for p, t in zip(PROMPTS, WAYS, strict=True)])


def job_of(bundle: Path, state: Path, playlist: Playlist | None = None, **settings: Any) -> Job:
    return Job(StreamSettings(bundle=bundle, threads=1, **settings), state, playlist)


@contextmanager
def generator(job: Job) -> Iterator[tuple[Connection, Any]]:
    """A generator process with the other end of its pipe in our hands."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()
        ours.close()


def read(pipe: Connection) -> tuple[str, Any, NDArray[np.uint8] | None]:
    """The next message, with a chunk's frames."""
    assert pipe.poll(60)
    kind, *values = pipe.recv()
    if kind != "chunk":
        return kind, values, None
    return kind, values[0], np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(values[0]["frames"])


@pytest.mark.slow
def test_twenty_kills_and_the_stream_is_the_uninterrupted_one(bundle_path: Path, tmp_path: Path) -> None:
    """Frame for frame, with a playlist that changes prompts in three ways; killed at random moments."""
    job = job_of(bundle_path, tmp_path / "state.safetensors", PLAYLIST, seed=6, save_seconds=1.5)
    got: dict[int, NDArray[np.uint8]] = {}
    rng = random.Random(1)
    for _ in range(21):
        last = rng.randint(3, 7)
        with generator(job) as (pipe, process):
            seen = 0

            def take() -> None:
                nonlocal seen
                kind, facts, frames = read(pipe)
                if kind == "chunk":
                    assert frames is not None
                    same = got.setdefault(facts["index"], frames)
                    assert (same == frames).all()  # made again after a kill: the same
                    seen += 1

            while seen < last:
                take()
            time.sleep(rng.random() * 0.05)  # somewhere in a chunk, or in a save
            os.kill(process.pid, signal.SIGKILL)
            with suppress(EOFError, OSError):  # what it sent before it died
                while pipe.poll(0):
                    take()
    assert len(got) > 40
    assert sorted(got) == list(range(len(got)))  # nothing left out
    director = Director(0.75)
    director.follow(PLAYLIST)
    with Stream(Bundle.open(bundle_path), seed=6) as whole:
        for index in range(len(got)):
            if (change := director.next()) is not None:
                whole.set_prompt(change.prompt, change.transition)
            assert (got[index] == whole.next_chunk().frames).all(), index


def test_the_state_is_saved_when_the_web_process_is_gone(bundle_path: Path, tmp_path: Path) -> None:
    job = job_of(bundle_path, tmp_path / "state.safetensors", save_seconds=0)
    with generator(job) as (pipe, process):
        while read(pipe)[0] != "chunk":
            pass
        pipe.close()
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "state.safetensors").exists()


def test_a_damaged_state_is_put_aside(bundle_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"rubbish" * 100)
    with generator(job_of(bundle_path, file)) as (pipe, _):
        kinds = [read(pipe) for _ in range(3)]
        assert kinds[0][1][0] == "unusable"
        assert str(file) in kinds[0][1][1]
        assert kinds[1][0] == "ready"
        assert kinds[2][0] == "chunk"
    assert (tmp_path / "state.safetensors.bad").read_bytes().startswith(b"rubbish")


@pytest.fixture(scope="module")
def poisoned(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with one prompt whose embedding is not finite: what is made of it is not either."""
    path = tmp_path_factory.mktemp("poisoned") / "p.everframe"
    shutil.copytree(bundle_path, path)
    bank = load_file(path / "prompts.safetensors")
    bank[PROMPTS[2]] = np.full_like(bank[PROMPTS[2]], np.nan)
    save_file(bank, path / "prompts.safetensors")
    manifest = read_manifest(path / "manifest.json")
    write_manifest(path, manifest.model_copy(update={"prompt_bank": describe(path / "prompts.safetensors")}))
    return path


@pytest.mark.parametrize("save_seconds", [1.5, 0])
def test_numbers_that_are_not_finite_are_not_shown(poisoned: Path, tmp_path: Path, save_seconds: float) -> None:
    """Back to the last good state, or where there is none to a new scene of the last good prompt."""
    from everframe.runtime.server.orders.playlist import Change

    job = job_of(poisoned, tmp_path / "state.safetensors", prompt=PROMPTS[0], seed=3, save_seconds=save_seconds)
    with generator(job) as (pipe, _):
        events, prompts, after, seed = [], [], 0, -1
        for n in range(60):
            kind, facts, frames = read(pipe)
            if n == 8:
                pipe.send(("prompt", Change(prompt=PROMPTS[2], transition="swap")))
            if kind == "event":
                events.append(facts[0])
            elif kind == "chunk":
                assert frames is not None
                prompts.append(facts["prompt"])
                seed = facts["seed"]
                assert frames.std() > 1
                after += "nan" in events
            if after == 5:
                break
    assert events.count("nan") == 1
    assert set(prompts) == {PROMPTS[0]}
    assert seed == 4  # other noise than that which ended there


@pytest.mark.parametrize("saved", [True, False])
def test_a_playlist_gets_past_what_is_never_finite(poisoned: Path, tmp_path: Path, saved: bool) -> None:
    """Tried once more, in case it was the noise; then its time passes with the prompt before it, whenever it comes again."""
    state = tmp_path / "state.safetensors"
    playlist = Playlist(items=[Item(prompt=PROMPTS[n], seconds=2) for n in (0, 2, 1)])
    if saved:
        with generator(job_of(poisoned, state, prompt=PROMPTS[0], save_seconds=0.5)) as (pipe, _):
            while not state.exists():  # there is something to go back to
                read(pipe)
    with generator(job_of(poisoned, state, playlist, prompt=PROMPTS[0], save_seconds=600)) as (pipe, _):
        pipe.send(("playlist", playlist))
        events, items = [], [(0, PROMPTS[0])]
        while len(items) < 12:
            kind, facts, frames = read(pipe)
            if kind == "event":
                events.append(facts[0])
            elif kind == "chunk":
                assert frames is not None
                assert frames.std() > 1
                if (facts["item"], facts["prompt"]) != items[-1] and facts["item"] >= 0:
                    items.append((facts["item"], facts["prompt"]))
    assert {prompt for _, prompt in items} == {PROMPTS[0], PROMPTS[1]}
    assert {item for item, _ in items} == {0, 1, 2}
    assert events.count("nan") == 2
    assert events.count("refused") >= 4  # twice what was made of it, then whenever its turn comes


def test_a_killed_and_a_hung_generator_are_replaced(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path, "[stream]\nstall_seconds = 3\nsave_seconds = 2\n") as site:
        wait_for(lambda: site.state_of()["position"] > 40, 60)  # farther than a stream comes until it is asked
        shown = site.state_of()["frames_shown"]
        for number, stop in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
            saved = read_facts(site.state / "state.safetensors").position
            os.kill(site.generator(), stop)
            wait_for(lambda n=number: site.state_of()["restarts"] == n, 60)
            state = wait_for(lambda: (found := site.state_of())["generator"] == "running" and found, 60)
            assert state["position"] >= saved > 30  # from the saved state, not from the start
            assert site.ask("/healthz")[0] == 200  # the web process has not noticed
        assert site.state_of()["frames_shown"] > shown
        assert site.metric("died_total") == 1
        assert site.metric("hung_total") == 1


def test_stop_and_start_go_on_where_they_were(bundle_path: Path, tmp_path: Path) -> None:
    items = [{"prompt": p, "seconds": 600} for p in PROMPTS]
    with serve(tmp_path, bundle_path) as site:
        site.ask("/api/playlist", "PUT", {"items": items})
        wait_for(lambda: site.state_of()["playlist_item"] == 0)
        site.ask("/api/playlist/next", "POST")
        wait_for(lambda: site.state_of()["playlist_item"] == 1)
        wait_for(lambda: site.state_of()["position"] > 30)
        position = site.state_of()["position"]
    with serve(tmp_path, bundle_path) as site:
        state = wait_for(lambda: site.state_of()["position"] and site.state_of())
        assert state["position"] > position
        assert (state["playlist_item"], state["prompt"]) == (1, PROMPTS[1])
        site.process.kill()  # the web process, without a word
        site.process.wait()
    with serve(tmp_path, bundle_path) as site:
        wait_for(lambda: site.state_of()["prompt"] == PROMPTS[1])


def test_an_order_is_not_lost_with_the_generator(bundle_path: Path, tmp_path: Path) -> None:
    """A prompt that was set after the last saved state is set again."""
    with serve(tmp_path, bundle_path, "[stream]\nsave_seconds = 0\n") as site:
        site.ask("/api/prompt", "POST", {"prompt": PROMPTS[2]})
        wait_for(lambda: site.state_of()["prompt"] == PROMPTS[2])
        os.kill(site.generator(), signal.SIGKILL)
        wait_for(lambda: site.state_of()["restarts"] == 1)
        wait_for(lambda: site.state_of()["generator"] == "running")
        wait_for(lambda: site.state_of()["prompt"] == PROMPTS[2])


def test_a_full_disk_does_not_stop_the_picture(bundle_path: Path, tmp_path: Path) -> None:
    """The state folder on a file system of 200 kB, which this test's namespace mounts; the state is larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with serve(folder, bundle_path, "[stream]\nsave_seconds = 1\n") as site:
            wait_for(lambda: site.metric("unsaved_total") >= 2)
            position = site.state_of()["position"]
            wait_for(lambda: site.state_of()["position"] > position + 12)
            assert site.ask("/api/prompt", "POST", {"prompt": PROMPTS[1]})[0] == 200
            wait_for(lambda: site.state_of()["prompt"] == PROMPTS[1])
            assert site.state_of()["restarts"] == 0
            assert not list(site.state.glob(".*.part"))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_start_on_a_disk_that_became_read_only(bundle_path: Path, tmp_path: Path) -> None:
    """As a box comes up after a power cut: it goes on from the state that is there, takes orders, and keeps nothing."""
    state = tmp_path / "state"
    state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(state)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        with serve(tmp_path, bundle_path) as site:
            wait_for(lambda: site.state_of()["position"] > 12)
        position = read_facts(state / "state.safetensors").position
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        with serve(tmp_path, bundle_path) as site:
            assert "its disk is read-only: nothing is kept" in site.log.read_text()
            assert site.state_of()["position"] >= position
            assert site.ask("/api/prompt", "POST", {"prompt": PROMPTS[1]})[0] == 200
            wait_for(lambda: site.state_of()["prompt"] == PROMPTS[1])
            assert site.state_of()["restarts"] == 0
        assert read_facts(state / "state.safetensors").position == position
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


@pytest.mark.slow
def test_a_generator_that_cannot_start_is_tried_ever_less_often(bundle_path: Path, tmp_path: Path) -> None:
    """A bundle that is damaged while the server runs: the picture stays, the log says why, and nothing spins."""
    copy = tmp_path / "copy.everframe"
    shutil.copytree(bundle_path, copy)
    with serve(tmp_path, copy) as site:
        step = copy / "step.onnx"
        good = step.read_bytes()
        step.write_bytes(good[:-10])
        os.kill(site.generator(), signal.SIGKILL)
        wait_for(lambda: "truncated or altered" in site.log.read_text(), 60)
        time.sleep(6)
        assert 1 <= site.state_of()["restarts"] <= 4
        health = wait_for(lambda: "altered" in str(found := site.ask("/healthz")) and found)  # none while one is tried
        assert (health[0], health[1]["status"]) == (200, "degraded")
        shown = site.state_of()["frames_shown"]
        time.sleep(0.5)
        assert site.state_of()["frames_shown"] > shown
        assert len(site.ask("/api/snapshot.png")[1]) > 100
        step.write_bytes(good)
        wait_for(lambda: site.state_of()["generator"] == "running", 60)


def test_systemd_hears_ready_and_watchdog(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        with serve(tmp_path / "site", bundle_path):
            heard = [s.recv(100) for _ in range(4)]
        assert heard[0] == b"READY=1"
        assert heard[1:] == [b"WATCHDOG=1"] * 3
        while (last := s.recv(100)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"


def test_orders_are_kept_on_disk(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site:
        wait_for(lambda: site.state_of()["position"] > 6)
        site.ask("/api/pause", "POST")
        kept = json.loads((site.state / "control.json").read_text())
        assert kept["paused"] is True
        wait_for(lambda: site.state_of()["generator"] == "paused")
        picture = site.ask("/api/snapshot.png")[1]
        site.process.kill()  # as when the power fails
    with serve(tmp_path, bundle_path) as site:
        assert site.state_of()["paused"] is True
        assert site.ask("/readyz")[0] == 200
        assert site.ask("/api/snapshot.png")[1] == picture  # it stands
    (tmp_path / "state" / "last.png").write_bytes(b"rubbish")
    with serve(tmp_path, bundle_path) as site:
        assert site.ask("/api/snapshot.png")[1] != picture
        assert "last.png: not a picture" in site.log.read_text()
