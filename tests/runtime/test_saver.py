"""A state that is written while the stream goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from everframe.engines.errors import UserError
from everframe.runtime import Stream, open_bundle
from everframe.runtime.state import Saver, load_state, save_state

from simulated_cuda import SimulatedBackend, SimulatedRuntime


def goes_on(stream: Stream, file: Path, again: Stream) -> None:
    """What is saved while three chunks are made is what was there before them."""
    for _ in range(6):
        stream.next_chunk()
    saver = Saver(stream, file)
    saver.begin({"a": 1})
    expected = [stream.next_chunk().frames for _ in range(3)]
    assert saver.wait()
    assert not saver.wait()
    saver.close()
    assert load_state(again, file) == {"a": 1}
    assert all((again.next_chunk().frames == frames).all() for frames in expected)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_stream_goes_on_meanwhile(bundle_path: Path, tmp_path: Path, overlap: bool) -> None:
    with (
        Stream(open_bundle(bundle_path), seed=3, overlap=overlap) as stream,
        Stream(open_bundle(bundle_path), seed=3, overlap=overlap) as again,
    ):
        goes_on(stream, tmp_path / "state", again)


@pytest.mark.parametrize("path", ["bundle_path", "portable_path"])
@pytest.mark.parametrize("room", [True, False])
def test_on_a_card(path: str, room: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its ring comes up from copies on the card beside the chunks; without room for copies, before them."""
    bundle = open_bundle(request.getfixturevalue(path))
    runtime = SimulatedRuntime()
    with (
        Stream(bundle, seed=3, backend=SimulatedBackend(runtime)) as stream,
        Stream(bundle, seed=3, backend=SimulatedBackend(SimulatedRuntime())) as again,
    ):
        if not room:
            stream.next_chunk()
            runtime.free = 1 << 16
        goes_on(stream, tmp_path / "state", again)


def test_a_file_is_what_safetensors_reads(bundle_path: Path, tmp_path: Path) -> None:
    with Stream(open_bundle(bundle_path), seed=3) as stream:
        for _ in range(5):
            stream.next_chunk()
        save_state(stream, tmp_path / "state")
        tensors, _ = stream.snapshot()
        saver = Saver(stream, tmp_path / "beside")
        saver.begin()
        saver.wait()
        saver.close()
    for name in ("state", "beside"):
        found = load_file(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[key], tensors[key]) for key in tensors)


def test_what_goes_wrong_in_the_thread_is_told(bundle_path: Path, tmp_path: Path) -> None:
    with Stream(open_bundle(bundle_path)) as stream:
        saver = Saver(stream, tmp_path / "nowhere" / "state")
        saver.begin()
        with pytest.raises(UserError, match="nowhere/state: cannot write"):
            saver.wait()
        assert not saver.wait()
        saver.close()
