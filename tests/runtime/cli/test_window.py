"""The window, on SDL's dummy display: frames arrive in order and at their rate, keys change the prompt."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime import Stream
from everframe.runtime.cli.window import Frames, play

from helpers import PROMPTS

pygame = pytest.importorskip("pygame")


@pytest.fixture(autouse=True)
def _dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_frames_are_those_of_the_stream(bundle: Bundle) -> None:
    with Stream(bundle, seed=2) as whole:
        expected = np.concatenate([whole.next_chunk().frames for _ in range(3)])
    with Stream(bundle, seed=2) as stream:
        frames, got = Frames(stream), []
        while len(got) < len(expected):
            frame = frames.next()
            if frame is not None:
                got.append(frame)
            time.sleep(0.001)
        frames.close()
    assert (np.stack(got) == expected).all()


def test_a_failure_of_the_generator_reaches_the_window(bundle: Bundle) -> None:
    with Stream(bundle) as stream:
        frames = Frames(stream)
        frames.do(lambda s: s.set_prompt("an elephant"))

        def until_it_fails() -> None:
            for _ in range(5000):
                frames.next()
                time.sleep(0.002)

        with pytest.raises(UserError, match="an elephant"):
            until_it_fails()


def test_the_window_shows_at_the_frame_rate_and_obeys_keys(bundle_path: Path) -> None:
    def press(*keys: int) -> None:
        for key in keys:
            time.sleep(0.5)
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))

    with Stream(Bundle.open(bundle_path), seed=2, prompt=PROMPTS[0]) as stream:
        presser = threading.Thread(target=press, args=(pygame.K_RIGHT, pygame.K_t, pygame.K_RIGHT))
        presser.start()
        shown = play(stream, PROMPTS, fullscreen=False, seconds=4)
        presser.join()
        assert stream.prompt == PROMPTS[2]
    assert shown <= 4 * 16 + 2  # never faster than the frame rate
    assert shown > 16


def test_quit(bundle_path: Path) -> None:
    def press() -> None:
        time.sleep(1)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q))

    with Stream(Bundle.open(bundle_path)) as stream:
        threading.Thread(target=press).start()
        began = time.monotonic()
        play(stream, PROMPTS, fullscreen=False, seconds=60)
        assert time.monotonic() - began < 30


def test_a_prompt_that_the_bank_has_not(bundle_path: Path) -> None:
    """A free one: the keys come back to it."""

    def press() -> None:
        for key in (pygame.K_RIGHT, pygame.K_LEFT):
            time.sleep(0.5)
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))

    with Stream(Bundle.open(bundle_path), prompt=PROMPTS[0], verify=False) as stream:
        threading.Thread(target=press).start()
        assert play(stream, PROMPTS[1:], fullscreen=False, seconds=2) > 0
        assert stream.prompt == PROMPTS[0]
