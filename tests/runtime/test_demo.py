"""The shipped demo: small enough, shows what the prompt says, keeps moving, and stays itself.

The judge (training/judge.py) learns the scenes from rendered clips alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everframe.engines.bundle import Bundle, describe
from everframe.runtime import DEMO_BUNDLE, Stream, open_bundle

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from judge import CLASSES, Judge, rendered  # noqa: E402
from post import CLASSES as CLIPS  # noqa: E402
from post import clip, halved  # noqa: E402
from postjudge import network, psnr, scaled  # noqa: E402
from prompts import PROMPTS  # noqa: E402

BANK = open_bundle().manifest.prompts


def scene_of(prompt: str) -> tuple[str, str]:
    return next((s, v) for s, v in CLASSES if prompt in PROMPTS[s][v])


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return open_bundle()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def motion(frames: np.ndarray) -> float:
    """Mean absolute frame difference in grey levels."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def test_size() -> None:
    for folder in (DEMO_BUNDLE, ROOT / "training" / "demo"):  # what was compiled here is in a folder
        assert sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) < 16 * 2**20, folder


def test_bundle_is_the_export_of_the_checkpoint(demo: Bundle) -> None:
    recorded = demo.manifest.provenance["checkpoint"]
    present = {f.name: describe(f).sha256 for f in (ROOT / "training" / "demo").iterdir()}
    assert recorded == present


def test_geometry(demo: Bundle) -> None:
    g = demo.manifest.geometry
    assert (g.width, g.height, g.fps) == (256, 144, 16)
    assert len({scene_of(p)[0] for p in BANK}) == 8


def test_it_carries_post_graphs_and_runs_them_where_asked(demo: Bundle) -> None:
    """The networks of training/post, run image by image, are what its stream shows."""
    assert demo.manifest.post == "none"
    both = demo.with_post("all").output
    assert (both.width, both.height, both.fps) == (512, 288, 32)
    made = {}
    for post in ("none", "upscale", "smooth"):
        with Stream(demo.with_post(post), seed=1) as stream:
            made[post] = stream.next_chunk().frames
    plain = made["none"]
    assert np.abs(made["upscale"].astype(int) - network("upscale")(plain)).max() <= 1
    between = made["smooth"][3::2]  # the stream's first frame is shown three times
    assert np.abs(between.astype(int) - network("smooth")(plain[:-1], plain[1:])).max() <= 1


def test_its_post_graphs_beat_plain_scaling_and_blending() -> None:
    """By a decibel in the mean, on renders of twice the size and rate that their training never saw."""
    upscale, smooth = network("upscale"), network("smooth")
    larger, between = [], []
    for i in range(0, len(CLIPS), 5):
        high = clip(*CLIPS[i], 41_000 + i)[:9]
        low = halved(high)
        one, other = low[:-1:2], low[2::2]
        bicubic = scaled(one, Image.Resampling.BICUBIC)
        larger.append(psnr(upscale(one), high[:-1:2]) - psnr(bicubic, high[:-1:2]))
        blended = ((one.astype(np.uint16) + other + 1) // 2).astype(np.uint8)
        between.append(psnr(smooth(one, other), low[1::2]) - psnr(blended, low[1::2]))
    assert np.mean(larger) > 1
    assert np.mean(between) > 1


@pytest.mark.slow
def test_judge_knows_rendered_scenes(judge: Judge) -> None:
    """Otherwise the next tests would say nothing."""
    named = [(judge.name(rendered(s, v, 9000 + i)), (s, v)) for s, v in CLASSES for i in range(3)]
    assert np.mean([found[0] == true[0] for found, true in named]) > 0.97
    assert np.mean([found == true for found, true in named]) > 0.9


# A prompt of every scene, and all of them in `make test-slow`.
SOME = {scene_of(prompt)[0]: prompt for prompt in BANK}.values()


@pytest.mark.parametrize("prompt", [p if p in SOME else pytest.param(p, marks=pytest.mark.slow) for p in BANK])
def test_prompt_decides_the_scene(demo: Bundle, judge: Judge, prompt: str) -> None:
    with Stream(demo, prompt=prompt, seed=4) as stream:
        clips = [stream.next_chunk().frames for _ in range(6)]
    assert judge.name(clips[-1])[0] == scene_of(prompt)[0]
    assert motion(clips[-1]) > 0.3


@pytest.mark.parametrize("prompt", BANK[::14])
@pytest.mark.slow
def test_sixty_seconds(demo: Bundle, judge: Judge, prompt: str) -> None:
    """Neither a still, nor noise, nor grey at the end."""
    with Stream(demo, prompt=prompt, seed=1) as stream:
        clips = [stream.next_chunk().frames for _ in range(80)]
    early, late = np.concatenate(clips[2:8]), np.concatenate(clips[-6:])
    assert judge.name(clips[-1])[0] == scene_of(prompt)[0]
    assert motion(late) > 0.5 * motion(early)
    assert motion(late) < 2 * motion(early)
    assert late.std() > 0.7 * early.std()
    assert np.abs(late.mean((0, 1, 2)) - early.mean((0, 1, 2))).max() < 20


@pytest.mark.parametrize("prompt", BANK[::5])
def test_the_first_frame_is_as_bright_as_those_after_it(demo: Bundle, prompt: str) -> None:
    """Its decoder's memory is empty: what was trained without it drew it a quarter too dark."""
    with Stream(demo, prompt=prompt, seed=5) as stream:
        brightness = stream.next_chunk().frames[:8].mean((1, 2, 3))
    assert np.abs(brightness - brightness[4:].mean()).max() < 8  # grey levels; of a render of every prompt, 3.6 at most


def test_far_out(demo: Bundle, judge: Judge) -> None:
    prompt = BANK[0]
    with Stream(demo, prompt=prompt, seed=2, start=10**8) as stream:
        clips = [stream.next_chunk().frames for _ in range(8)]
    assert judge.name(clips[-1])[0] == scene_of(prompt)[0]
    assert motion(clips[-1]) > 0.3
