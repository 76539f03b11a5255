"""The server with post graphs: every way out has their size, rate and frames, also after a generator was replaced."""

from __future__ import annotations

import io
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from everframe.engines.bundle import Bundle
from everframe.export.post import add
from everframe.runtime import Stream

from helpers import PROMPTS
from postfiles import enlarged, smooth_file, smoothed, upscale_file
from serving import Site, free_port, serve, wait_for

SEED, CHUNKS = 3, 60
CONFIG = f'[stream]\nseed = {SEED}\nprompt = "{PROMPTS[0]}"\nsave_seconds = 1.5\n'


@pytest.fixture(scope="module")
def both(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    path = Path(shutil.copytree(bundle_path, folder / "post.everframe"))
    add(path, upscale_file(folder / "u.onnx"), smooth_file(folder / "s.onnx"), 2)
    return path


@pytest.fixture(scope="module")
def site(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("site"), both, CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def frames(both: Path) -> np.ndarray:
    """What is shown, frame by frame, from the decoder's frames by the formula. [n, 64, 128, 3]"""
    with Stream(Bundle.open(both).with_post("none"), seed=SEED, verify=False) as stream:
        stream.set_prompt(PROMPTS[0])
        decoded = [(stream.next_chunk().frames, False) for _ in range(CHUNKS)]
    return np.concatenate([enlarged(chunk) for chunk in smoothed(decoded)])


def still(site: Site) -> np.ndarray:
    status, data = site.ask("/api/snapshot.png")
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def assert_shown(site: Site, frames: np.ndarray) -> None:
    """A paused stream shows one of the last two chunks' frames, within a grey level."""
    assert site.ask("/api/pause", "POST")[0] == 204
    wait_for(lambda: site.state_of()["generator"] == "paused")
    wait_for(lambda: (still(site) == still(site)).all())
    picture, chunks = still(site), site.state_of()["position"] // 3
    assert 2 < chunks <= CHUNKS, "the test's own frames end before"
    apart = np.abs(frames[: 24 * chunks].astype(int) - picture).max((1, 2, 3))
    assert apart[-48:].min() <= 1
    assert (apart <= 1).sum() < 4  # it could have been another
    assert site.ask("/api/resume", "POST")[0] == 204


def test_the_picture_is_the_formula_s_also_of_the_next_generator(site: Site, frames: np.ndarray) -> None:
    wait_for(lambda: site.state_of()["position"] > 9)
    assert_shown(site, frames)
    os.kill(site.generator(), signal.SIGKILL)
    wait_for(lambda: site.metric("generator_restarts") == 1)
    before = site.state_of()["position"]
    wait_for(lambda: site.state_of()["position"] > before + 6)
    assert_shown(site, frames)


def test_hls_has_their_size_and_rate(site: Site) -> None:
    lines = wait_for(lambda: site.ask("/hls/live.m3u8")[1] if site.ask("/hls/live.m3u8")[0] == 200 else b"")
    names = lines.decode().splitlines()
    init = [line.split('"')[1] for line in names if line.startswith("#EXT-X-MAP")][-1]
    seconds = float([line for line in names if line.startswith("#EXTINF:")][-1][8:].rstrip(","))
    data = site.ask(f"/hls/{init}")[1] + site.ask(f"/hls/{names[-1]}")[1]
    with av.open(io.BytesIO(data), "r") as container:
        picture = container.streams.video[0]
        assert (picture.width, picture.height) == (128, 64)
        count = sum(1 for _ in container.decode(video=0))
    assert count == pytest.approx(32 * seconds, abs=1)


def first_jpeg(site: Site) -> Any:
    with urllib.request.urlopen(f"{site.url}/video.mjpeg", timeout=10) as stream:
        data = stream.read(1 << 16)
    start = data.index(b"\xff\xd8")
    return Image.open(io.BytesIO(data[start : data.index(b"\xff\xd9", start) + 2])).convert("RGB")


def test_motion_jpeg_and_the_burned_message(site: Site) -> None:
    assert first_jpeg(site).size == (128, 64)
    red = {"text": "x", "ground": "#ff0000", "colour": "#ff0000"}
    status, said = site.ask("/api/overlay/message", "POST", red)
    assert status == 204, said
    wait_for(lambda: np.abs(np.asarray(first_jpeg(site)).astype(int) - (255, 0, 0)).max() < 12)
    assert still(site).shape == (64, 128, 3)
    assert site.ask("/api/overlay/message", "DELETE")[0] == 204


def test_a_push_carries_them(both: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        serve(tmp_path, both, f'{CONFIG}[video]\npush = ["udp://127.0.0.1:{port}"]\n'),
        av.open(f"udp://127.0.0.1:{port}?timeout=15000000", format="mpegts") as container,
    ):
        times = [float(frame.time) for frame, _ in zip(container.decode(video=0), range(40), strict=False)]
        picture = container.streams.video[0]
        assert (picture.width, picture.height) == (128, 64)
    assert np.median(np.diff(times)) == pytest.approx(1 / 32, abs=1e-3)


def test_none_of_them_by_the_configuration(both: Path, tmp_path: Path) -> None:
    with serve(tmp_path, both, '[stream]\npost = "none"\n') as plain:
        assert still(plain).shape == (32, 64, 3)
