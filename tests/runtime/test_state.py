"""A stream that is killed and resumed goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, Shots
from everframe.engines.errors import UserError
from everframe.runtime import Stream
from everframe.runtime.state import load_state, save_state

from helpers import PROMPTS


@pytest.fixture(params=["in-place", "portable"])
def bundle(request: pytest.FixtureRequest, bundle_path: Path, portable_path: Path) -> Bundle:
    return Bundle.open(portable_path if request.param == "portable" else bundle_path)


@pytest.mark.parametrize(("mode", "overlap"), [("absolute", False), ("relative", False), ("absolute", True)])
@pytest.mark.parametrize("at", [0, 1, 3, 7])
def test_bit_for_bit(
    bundle: Bundle, following_paths: dict[str, Path], tmp_path: Path, at: int, mode: str, overlap: bool
) -> None:
    """At every fill level, with a prompt change waiting, and another one after it."""

    def change(stream: Stream, c: int) -> None:
        if c == at:
            stream.set_prompt(PROMPTS[1], "smooth")
        if c == at + 3:
            stream.set_prompt(PROMPTS[2], "flush")

    if mode == "relative":
        bundle = Bundle.open(following_paths[bundle.manifest.form])
    kw = {"seed": 4, "prompt": PROMPTS[0], "rope_mode": mode, "overlap": overlap}
    with Stream(bundle, **kw) as whole:  # type: ignore[arg-type]
        expected = []
        for c in range(at + 6):
            change(whole, c)
            expected.append(whole.next_chunk())
    with Stream(bundle, **kw) as first:  # type: ignore[arg-type]
        for _ in range(at):
            first.next_chunk()
        change(first, at)
        save_state(first, tmp_path / "s.safetensors")
    with Stream(bundle, **kw) as second:  # type: ignore[arg-type]
        load_state(second, tmp_path / "s.safetensors")
        for c in range(at, at + 6):
            if c > at:
                change(second, c)
            chunk = second.next_chunk()
            assert (chunk.index, chunk.position, chunk.prompt) == (c, 3 * c, expected[c].prompt)
            assert (chunk.frames == expected[c].frames).all()
            assert (chunk.latent == expected[c].latent).all()
    assert [f.name for f in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_running_stream_goes_back(bundle: Bundle) -> None:
    """As the server does when numbers are not finite: a chunk is in flight, with one thread not even begun."""
    one = EngineOptions(threads=1)
    with Stream(bundle, seed=4, overlap=True, options=one) as stream:
        for _ in range(5):
            stream.next_chunk()
        state = stream.snapshot()
        expected = [stream.next_chunk() for _ in range(4)]
        for _ in range(2):  # the same state again
            stream.restore(*state)
            for chunk in expected:
                again = stream.next_chunk()
                assert again.index == chunk.index
                assert (again.latent == chunk.latent).all()
                assert (again.frames == chunk.frames).all()


LOOP = """
import sys
from pathlib import Path
from everframe.runtime import Stream, open_bundle
from everframe.runtime.state import load_state, save_state
state = Path(sys.argv[2])
with Stream(open_bundle(sys.argv[1]), seed=8) as stream, open(sys.argv[3], "ab", buffering=0) as out:
    if state.exists():
        load_state(stream, state)
    out.truncate(stream.position // 3 * 12 * 32 * 64 * 3)
    out.seek(0, 2)
    while stream.position < 3 * 300:
        out.write(stream.next_chunk().frames.tobytes())
        save_state(stream, state)
"""


def test_killed_again_and_again(bundle_path: Path, tmp_path: Path) -> None:
    """kill -9 at random moments: what was written in the end equals the uninterrupted stream, byte for byte."""
    draw, kills = random.Random(0), 0
    run = [sys.executable, "-c", LOOP, str(bundle_path), str(tmp_path / "state"), str(tmp_path / "out.rgb")]
    out, chunk = tmp_path / "out.rgb", 12 * 32 * 64 * 3
    while kills < 6:
        process = subprocess.Popen(run, stderr=subprocess.PIPE)
        goal = (40 * kills + 10 + 20 * draw.random()) * chunk  # killed while it works, wherever it then is
        while process.poll() is None and (not out.exists() or out.stat().st_size < goal):
            time.sleep(0.002)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    assert subprocess.run(run, capture_output=True).returncode == 0
    with Stream(Bundle.open(bundle_path), seed=8) as stream:
        expected = b"".join(stream.next_chunk().frames.tobytes() for _ in range(300))
    assert (tmp_path / "out.rgb").read_bytes() == expected


def test_states_of_something_else(following_paths: dict[str, Path], tmp_path: Path) -> None:
    file, bundle = tmp_path / "s.safetensors", Bundle.open(following_paths["in-place"])
    with Stream(bundle, seed=1) as stream:
        stream.next_chunk()
        save_state(stream, file)
    for settings, words in (
        ({"seed": 2}, "another seed"),
        ({"seed": 1, "rope_mode": "absolute"}, "another rope mode"),
        ({"seed": 1, "sink_distance": 30}, "another sink distance"),
        ({"seed": 1, "jitter_sigma": 0.1}, "another frequencies"),
        ({"seed": 1, "overlap": False}, "another overlap"),
    ):
        with Stream(bundle, **settings) as other, pytest.raises(UserError, match=words):  # type: ignore[arg-type]
            load_state(other, file)
    with Stream(bundle, seed=1) as stream:
        with pytest.raises(UserError, match="no such state"):
            load_state(stream, tmp_path / "none")
        whole = file.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"x" * 100):
            file.write_bytes(broken)
            with pytest.raises(UserError, match="not a whole state"):
                load_state(stream, file)
        file.write_bytes(whole)
        with safe_open(file, "np") as f:
            facts, tensors = json.loads(f.metadata()["state"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        for change, words in (
            ({"format": 9}, "state format 9"),
            ({"bundle": "0"}, "another bundle"),
            ({"index": "far"}, "index"),
            ({"recent": [0, 3, 6]}, "fewer than 3"),
        ):
            save_file(tensors, file, {"state": json.dumps(facts | change)})
            with pytest.raises(UserError, match=words):
                load_state(stream, file)
        save_file(tensors | {"k_0": np.zeros(3, np.float32)}, file, {"state": json.dumps(facts)})
        with pytest.raises(UserError, match="tensor k_0"):
            load_state(stream, file)


@pytest.mark.parametrize("lost", [0, 1])  # the prompt that is shown, the one that waits
def test_a_state_that_cannot_be_taken_changes_nothing(bundle_path: Path, tmp_path: Path, lost: int) -> None:
    """Of a bundle with the same graphs, whose bank has not all of its prompts."""
    whole, file = Bundle.open(bundle_path), tmp_path / "s.safetensors"
    with Stream(whole, seed=1, prompt=PROMPTS[0]) as stream:
        for _ in range(3):
            stream.next_chunk()
        stream.set_prompt(PROMPTS[1], "swap")
        save_state(stream, file)
    bank = [prompt for prompt in whole.manifest.prompts if prompt != PROMPTS[lost]]
    fewer = Bundle(whole.path, whole.manifest.model_copy(update={"prompts": bank}))
    with Stream(fewer, seed=1, prompt=PROMPTS[2]) as stream:
        expected = [stream.next_chunk() for _ in range(4)]
    with Stream(fewer, seed=1, prompt=PROMPTS[2]) as stream:
        with pytest.raises(UserError, match="is not in the bundle's prompt bank"):
            load_state(stream, file)
        for chunk in expected:
            again = stream.next_chunk()
            assert (again.index, again.position, again.begins) == (chunk.index, chunk.position, chunk.begins)
            assert (again.frames == chunk.frames).all()


def test_states_of_bundles_whose_graphs_are_the_same(bundle_path: Path, tmp_path: Path) -> None:
    """Sinks that stay and shots are in no step graph: the ring is another one all the same. States of before say less, and
    are taken where they fit."""
    plain = Bundle.open(bundle_path)
    shots = Shots(offset=8, prefix="Next. ")

    def other(geometry: dict[str, object], **changes: object) -> Bundle:
        g = plain.manifest.geometry.model_copy(update=geometry)
        return Bundle(plain.path, plain.manifest.model_copy(update={"geometry": g, **changes}))

    def load(bundle: Bundle, file: Path) -> None:
        with Stream(bundle, seed=1, verify=False) as stream:
            load_state(stream, file)
            stream.next_chunk()

    files = {name: tmp_path / name for name in ("plain", "shots", "old-plain", "old-shots")}
    cutting = other({}, shots=shots)
    for name, bundle in (("plain", plain), ("shots", cutting)):
        with Stream(bundle, seed=1, verify=False) as stream:
            stream.next_chunk()
            save_state(stream, files[name])
        with safe_open(files[name], "np") as f:
            facts, tensors = json.loads(f.metadata()["state"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        del facts["ring"]
        save_file(tensors, files[f"old-{name}"], {"state": json.dumps(facts)})
    for bundle, name in ((plain, "plain"), (cutting, "shots")):
        load(bundle, files[name])
        load(bundle, files[f"old-{name}"])
    for bundle, name, words in (
        (other({"sink": 6}), "plain", "sink 3, here 6"),
        (other({"sink_ema": 0.9}), "plain", "sink_ema None, here 0.9"),
        (cutting, "plain", "shots None, here 8"),
        (cutting, "old-plain", "shots None, here 8"),
        (plain, "shots", "shots 8, here None"),
        (plain, "old-shots", "shots 0, here None"),
        (other({}, shots=Shots(offset=4, prefix="Next. ")), "shots", "shots 8, here 4"),
    ):
        with pytest.raises(UserError, match=f"belongs to another bundle: {words}"):
            load(bundle, files[name])


def test_a_disk_that_is_full_keeps_the_old_state(bundle_path: Path, tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from everframe.engines.errors import UserError
from everframe.runtime import Stream, open_bundle
from everframe.runtime.state import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Stream(open_bundle(sys.argv[1])) as stream:
    save_state(stream, Path("s"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        save_state(stream, Path("s"))
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "s: cannot write: File too large\n"
    assert [f.name for f in tmp_path.iterdir()] == ["s"]
    with Stream(Bundle.open(bundle_path)) as stream:
        load_state(stream, tmp_path / "s")
