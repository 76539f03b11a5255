"""What is work and what is a hang; and what is saved can be read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime import Stream
from everframe.runtime.server.config import StreamSettings
from everframe.runtime.server.orders.playlist import Change
from everframe.runtime.server.survival.supervisor import Patience, Supervisor
from everframe.runtime.server.survival.work import bytes_read
from everframe.runtime.server.survival.worker import Job, main
from everframe.runtime.state import read_facts, save_state

from serving import serve, wait_for


class Process:
    """Looks like multiprocessing's."""

    def __init__(self, pid: int):
        self.pid = pid


def test_a_process_that_reads_is_not_hanging(tmp_path: Path) -> None:
    """A slow disk at the start, then a stop: noticed as soon as nothing is read any more."""
    code = "import sys, time\nwith open('/dev/zero', 'rb') as f:\n while True: f.read(4096); time.sleep(0.02)"
    with subprocess.Popen([sys.executable, "-c", code]) as reader:
        patience = Patience(1.0, Process(reader.pid))  # type: ignore[arg-type]
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert patience.over() is None
            time.sleep(0.05)
        reader.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_for(lambda: patience.over() is not None, 10)
        assert time.monotonic() - began < 2.5
        reader.kill()


def test_a_generator_that_makes_chunks_may_not_read_instead() -> None:
    patience = Patience(60, Process(os.getpid()))  # type: ignore[arg-type]
    patience.chunk(0.3)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        bytes_read()
    assert patience.over() is not None
    patience.heard()
    patience.busy(60)
    time.sleep(0.5)
    assert patience.over() is None


@pytest.mark.slow
def test_a_free_prompt_is_announced_before_it_is_encoded(speaking_path: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    job = Job(StreamSettings(bundle=speaking_path, threads=1), tmp_path / "state.safetensors")
    process = context.Process(target=main, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        kinds = []
        ours.send(("prompt", Change(prompt="snow on a quiet sea")))
        while True:
            assert ours.poll(120)
            kind, *values = ours.recv()
            kinds.append(values[0] if kind == "event" else kind)
            if kind == "chunk":
                ours.recv_bytes()
                if values[0]["prompt"] == "snow on a quiet sea":
                    break
        assert "busy" in kinds
        ours.send(("prompt", Change(prompt="snow on a quiet sea")))
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_free_prompt_is_not_a_hang(speaking_path: Path, tmp_path: Path) -> None:
    """The text encoder is loaded for the first one, which takes longer than a chunk may."""
    with serve(tmp_path, speaking_path, "[stream]\nstall_seconds = 0.05\n") as site:
        slow = f"a very long prompt {'of many words ' * 100}"
        assert site.ask("/api/prompt", "POST", {"prompt": slow})[0] == 200
        wait_for(lambda: (site.state_of()["prompt"] or "").startswith("a very long"), 60)
        assert site.state_of()["restarts"] == 0, site.log.read_text()
        assert site.ask("/api/prompt", "POST", {"prompt": "\ud800"})[0] == 422


@pytest.mark.slow
def test_a_free_prompt_holds_over_a_restart_without_being_ordered_anew(speaking_path: Path, tmp_path: Path) -> None:
    """However it was written: a cut would begin another scene each time."""
    with serve(tmp_path, speaking_path, "[stream]\nsave_seconds = 0.7\n") as site:
        order = {"prompt": " A Sail   in the MIST", "transition": "cut"}
        assert site.ask("/api/prompt", "POST", order)[1]["prompt"] == "A Sail in the MIST"
        wait_for(lambda: site.state_of()["prompt"] == "A Sail in the MIST", 60)
        position = site.state_of()["position"]
        wait_for(lambda: site.state_of()["position"] > position + 12)
        os.kill(site.generator(), signal.SIGKILL)
        wait_for(lambda: site.metric("generator_restarts") == 1 and site.state_of()["generator"] == "running", 60)
        wait_for(lambda: site.state_of()["position"] > position + 24, 60)
        picture = site.ask("/api/state")[1]
        assert picture["prompt"] == "A Sail in the MIST"
        assert json.loads((tmp_path / "state" / "control.json").read_text())["prompt"]["prompt"] == "A Sail in the MIST"


def test_a_long_order_while_nobody_wants_a_chunk(bundle_path: Path, tmp_path: Path) -> None:
    """Longer than the pipe's buffer, and the generator is writing a chunk that nobody reads: neither waits for the other."""
    hungry, chunks, events = [True], [], []
    supervisor = Supervisor(
        lambda: Job(StreamSettings(bundle=bundle_path, threads=1), tmp_path / "state.safetensors"),
        lambda: hungry[0],
        lambda facts, frames: chunks.append(facts),
        lambda facts: None,
        lambda kind, text: events.append((kind, text)),
        20,
        180,
    )
    supervisor.start()
    try:
        wait_for(lambda: len(chunks) > 2, 60)
        hungry[0] = False
        time.sleep(1)  # by now the generator waits in the middle of a chunk
        supervisor.order("a kind that nobody knows", "x" * 1_000_000)  # as a playlist of long free prompts
        supervisor.order("seed", 77)
        time.sleep(1)
        hungry[0] = True
        wait_for(lambda: chunks[-1]["seed"] == 77, 30)
        assert not [kind for kind, _ in events if kind in ("died", "hung")]
    finally:
        supervisor.stop()
    assert supervisor.state == "stopped"
    assert (tmp_path / "state.safetensors").exists()


def test_a_state_that_could_not_be_read_is_not_saved(bundle_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    with Stream(Bundle.open(bundle_path), seed=5) as stream:
        stream.next_chunk()
        save_state(stream, file, {"director": {"item": 3}})
        stream.seed = True  # what an OSC boolean once did
        with pytest.raises(UserError, match="not saved"):
            save_state(stream, file)
        stream.seed = 6
        with pytest.raises(UserError, match="not saved"):
            save_state(stream, file, {"x": np.float32(1)})
    assert read_facts(file).seed == 5
    assert read_facts(file).extra == {"director": {"item": 3}}


def test_kept_orders_of_another_bank_do_not_stop_the_server(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site:
        site.ask("/api/seed", "POST", {"seed": 3})
        kept = json.loads((site.state / "control.json").read_text())
    kept["prompt"] = {"prompt": "gone", "transition": "smooth", "crossfade": 0}
    (tmp_path / "state" / "control.json").write_text(json.dumps(kept))
    with serve(tmp_path, bundle_path) as site:
        assert site.ask("/readyz")[0] == 200
        assert "kept orders do not fit, starting from the configuration: prompt 'gone'" in site.log.read_text()
