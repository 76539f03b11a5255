"""The generator, in this process, with a pipe that keeps what it says."""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everframe.engines.bundle import Bundle
from everframe.engines.errors import CudaError, RunError, UserError
from everframe.runtime import Stream
from everframe.runtime import state as states
from everframe.runtime import stream as streams
from everframe.runtime.server.orders.playlist import Change, Item, Playlist
from everframe.runtime.server.survival import worker
from everframe.runtime.server.survival.worker import Generator
from everframe.runtime.state import read_facts, save_state

from helpers import PROMPTS, with_prompts
from piped import Pipe, generator


@pytest.mark.parametrize("overlap", [False, True])
def test_a_crossfade_begins_with_the_new_scene(
    bundle_path: Path, tmp_path: Path, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With overlap a chunk of the old one comes after the order: it is not touched, and the scene does not come hard."""
    monkeypatch.setattr(worker, "Stream", partial(Stream, overlap=overlap))
    pipe, change = Pipe(), Change(prompt=PROMPTS[1], transition="cut", crossfade=0.5)
    running = generator(pipe, bundle_path, tmp_path / "state", prompt=PROMPTS[0])
    with Stream(Bundle.open(bundle_path), prompt=PROMPTS[0], overlap=overlap, verify=False) as plain:
        bare = []
        for n in range(5):
            if n == 2:
                running._change(change)
                plain.set_prompt(change.prompt, change.transition)
            running._advance()
            bare.append(plain.next_chunk())
    shown = [frames for _, frames in pipe.chunks]
    first = next(i for i, chunk in enumerate(bare) if chunk.prompt == PROMPTS[1])
    assert [i for i, chunk in enumerate(bare) if chunk.begins] == [0, first]
    assert first == (3 if overlap else 2)
    for i in {0, 1, 2, 3, 4} - {first}:
        assert (shown[i] == bare[i].frames).all(), i
    fps = Bundle.open(bundle_path).output.fps
    count = round(0.5 * fps)
    old, new = bare[first - 1].frames[-1].astype(float), bare[first].frames.astype(float)
    for i in range(len(new)):
        share = min(1.0, (i + 1) / (count + 1))
        assert np.abs(shown[first][i] - (share * new[i] + (1 - share) * old)).max() <= 0.5001, i


def test_what_broke_is_not_saved(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of a chunk leaves a ring that nobody can go on with: the state of before stays."""
    state = tmp_path / "state"
    pipe = Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    pipe.orders.append(("stop",))
    running.run()
    good = state.read_bytes()

    running = generator(Pipe(), bundle_path, state, seed=3)
    running._advance()
    begun = running.stream._begin

    def half(anew: bool) -> Any:
        begun(anew)
        raise MemoryError

    monkeypatch.setattr(running.stream, "_begin", half)
    with pytest.raises(MemoryError):
        running.run()
    assert state.read_bytes() == good

    pipe = Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    made = running.stream.next_chunk

    def broken() -> Any:
        chunk = made()
        chunk.latent[:] = np.nan
        return chunk

    monkeypatch.setattr(running.stream, "next_chunk", broken)
    with pytest.raises(UserError, match="4 chunks are not finite, and none after them"):
        running.run()
    assert state.read_bytes() == good


def test_an_unusable_state_on_a_disk_that_takes_no_changes_keeps_no_picture_away(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(state: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(worker, "put_aside", read_only)
    (tmp_path / "state").write_bytes(b"rubbish")
    running = generator(pipe := Pipe(), bundle_path, tmp_path / "state")
    running._advance()
    assert [kind for kind, _ in pipe.events] == ["unusable"]
    assert "cannot be put aside: Read-only file system" in pipe.events[0][1]
    assert len(pipe.chunks) == 1
    assert (tmp_path / "state").read_bytes() == b"rubbish"


def test_leftovers_that_cannot_be_removed_are_left(bundle_path: Path, tmp_path: Path) -> None:
    """A disk that takes no changes does not keep the picture away (root may remove any file, so here it is a folder)."""
    (tmp_path / ".state.1-1.part").mkdir()
    (tmp_path / ".state.2-2.part").touch()
    generator(Pipe(), bundle_path, tmp_path / "state")._advance()
    assert (tmp_path / ".state.1-1.part").exists()


def test_the_state_is_saved_when_the_pipe_is_lost(bundle_path: Path, tmp_path: Path) -> None:
    running = generator(Pipe(gone=3), bundle_path, tmp_path / "state")
    with pytest.raises(BrokenPipeError):
        running.run()
    assert read_facts(tmp_path / "state").index == 4 + running.stream.overlap  # with the one that is being made


def test_a_chunk_that_is_being_made_and_not_finite_is_not_saved(bundle_path: Path, tmp_path: Path) -> None:
    with Stream(Bundle.open(bundle_path), overlap=True, verify=False) as stream:
        stream.next_chunk()
        save_state(stream, tmp_path / "state")
        stream._settle()
        stream._loop.x0.write(np.full_like(stream._loop.x0.read(), np.nan))
        with pytest.raises(UserError, match="not finite"):
            save_state(stream, tmp_path / "state")
    assert read_facts(tmp_path / "state").index == 2


def test_the_seed_that_was_ordered_holds_over_a_restart(bundle_path: Path, tmp_path: Path) -> None:
    """One that was ordered after the last saved state, and another one in the configuration; one that the stream took by
    itself stays too."""
    state, pipe = tmp_path / "state", Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    running._advance()
    running.stream.set_seed(4)  # as after numbers that were not finite
    pipe.orders.append(("stop",))
    running.run()
    again = generator(Pipe(), bundle_path, state, seed=3)
    assert (again.resumed, again.stream.seed) == (True, 4)
    other = generator(Pipe(), bundle_path, state, seed=77)
    assert (other.resumed, other.stream.seed, other.stream.position) == (True, 77, 3)
    pipe = Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    pipe.orders += [("seed", 77), ("stop",)]
    running.run()
    again = generator(Pipe(), bundle_path, state, seed=77)
    assert (again.resumed, again.stream.seed) == (True, 77)


def test_another_anchor_begins_anew(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sinks of the saved state are the old picture's. (The test's bundle has no encoder: what it would make is none.)"""
    monkeypatch.setattr(streams, "encode_anchor", lambda backend, bundle, frames: [])
    state, picture = tmp_path / "state", tmp_path / "logo.png"

    def started(colour: str) -> tuple[Generator, Pipe]:
        Image.new("RGB", (64, 64), colour).save(picture)
        return generator(pipe := Pipe(), bundle_path, state, anchor=picture), pipe

    running, pipe = started("red")
    running._advance()
    pipe.orders.append(("stop",))
    running.run()
    running, pipe = started("red")
    assert running.resumed
    running, pipe = started("blue")
    assert (running.resumed, running.stream.position) == (False, 0)
    assert "another anchor" in dict(pipe.events)["unusable"]
    assert (tmp_path / "state.bad").exists()


def test_a_save_that_failed_does_not_cost_the_last_one(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full while the periodic one was written, and has room again when the server is stopped."""
    write, tried = states.write_whole, []

    def once_full(*words: Any) -> None:
        tried.append(words)
        if len(tried) == 1:
            time.sleep(0.5)  # still under way when the stop comes
            raise UserError("no space left")
        write(*words)

    monkeypatch.setattr(states, "write_whole", once_full)
    pipe = Pipe()
    running = generator(pipe, bundle_path, tmp_path / "state", save_seconds=0.1)
    running._advance()
    pipe.orders.append(("stop",))
    running.run()
    assert ("unsaved", "no space left") in pipe.events
    assert read_facts(tmp_path / "state").index == 1 + running.stream.overlap


def test_a_state_whose_playlist_the_bank_lacks_begins_anew(bundle_path: Path, tmp_path: Path) -> None:
    """It is put aside, and so is all that was in it: the stream does not go on half way."""
    state, pipe = tmp_path / "state", Pipe()
    running = generator(pipe, bundle_path, state, prompt=PROMPTS[0])
    running.director.follow(Playlist(items=[Item(prompt=PROMPTS[1], seconds=60)]))
    running._advance()
    pipe.orders.append(("stop",))
    running.run()
    fewer = with_prompts(bundle_path, tmp_path / "fewer.everframe", [PROMPTS[0], PROMPTS[2]])
    running = generator(pipe := Pipe(), fewer, state, prompt=PROMPTS[0])
    assert (running.resumed, running.stream.position, running.director.playlist) == (False, 0, None)
    assert "is not in the bundle's prompt bank" in dict(pipe.events)["unusable"]


def test_a_card_that_fails_while_a_state_is_loaded_costs_no_state(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    with Stream(Bundle.open(bundle_path), prompt=PROMPTS[0]) as stream:
        stream.next_chunk()
        save_state(stream, state)
    kept = state.read_bytes()

    def fails(*_: object) -> None:
        raise CudaError("CUDA: cudaHostAlloc: cudaErrorMemoryAllocation")

    monkeypatch.setattr(worker, "load_state", fails)
    with pytest.raises(RunError, match=r"cudaHostAlloc"):
        generator(Pipe(), bundle_path, state, prompt=PROMPTS[0])
    assert state.read_bytes() == kept
    assert not list(tmp_path.glob("*.bad"))


def test_an_order_at_which_an_engine_fails_is_refused(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(gone=2)
    running = generator(pipe, bundle_path, tmp_path / "state", prompt=PROMPTS[0])

    def fails(*_: object) -> None:
        raise RunError("prompt.onnx: ONNX Runtime cannot run it: out of memory")

    monkeypatch.setattr(running, "_change", fails)
    pipe.orders.append(("prompt", Change(prompt=PROMPTS[1])))
    with pytest.raises(BrokenPipeError):
        running.run()
    assert ("refused", "prompt.onnx: ONNX Runtime cannot run it: out of memory") in pipe.events
    assert len(pipe.chunks) == 2


def test_a_long_save_at_the_end_is_told(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who waits for it knows that it is none that hangs."""
    write = states.write_whole

    def slowly(*words: Any) -> None:
        time.sleep(1)
        write(*words)

    monkeypatch.setattr(states, "write_whole", slowly)
    pipe = Pipe()
    running = generator(pipe, bundle_path, tmp_path / "state")
    pipe.orders.append(("stop",))
    running.run()
    assert [kind for kind, _ in pipe.events].count("alive") > 2
    assert pipe.events[-1][0] == "saved"
    assert (tmp_path / "state").exists()
