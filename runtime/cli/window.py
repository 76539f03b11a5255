"""`everframe play`: the stream in a window of this machine, by SDL (extra `play`).

The generator works in a thread and waits when the small queue is full; the window shows a frame when it is due and the
display is ready for it. Keys change the prompt.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engines.errors import UserError
from ..prompts import TRANSITIONS, Transition
from ..stream import Stream

KEYS = "←/→ prompt · t transition · f full screen · space pause · q or Esc quit"


class Frames:
    """Frames of a stream, made ahead in a thread: at most one chunk waits. Commands run between chunks."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._ready: queue.Queue[NDArray[np.uint8] | BaseException] = queue.Queue(stream.output.chunk_frames)
        self._commands: queue.Queue[Callable[[Stream], Any]] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def do(self, command: Callable[[Stream], Any]) -> None:
        """Call it with the stream before the next chunk."""
        self._commands.put(command)

    def next(self) -> NDArray[np.uint8] | None:
        """The next frame [H, W, 3]; None: not made yet. Raises what the generator's thread died of."""
        try:
            found = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            self.next()  # it may be waiting for room
            self._thread.join(0.05)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                while not self._commands.empty():
                    self._commands.get()(self._stream)
                for frame in self._stream.next_chunk().frames:
                    self._ready.put(frame)
                    if self._stop.is_set():
                        return
        except BaseException as error:
            self._ready.put(error)


def play(stream: Stream, prompts: Sequence[str], fullscreen: bool, seconds: float | None = None) -> int:
    """Show the stream until the window is closed, or for so many seconds. Returns how many frames were shown.

    Raises UserError where no window can be opened.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    g = stream.output
    flags = pygame.SCALED | pygame.RESIZABLE | (pygame.FULLSCREEN if fullscreen else 0)
    try:
        pygame.display.init()
        screen = pygame.display.set_mode((g.width, g.height), flags, vsync=1)
    except pygame.error as error:
        pygame.quit()
        raise UserError(f"no window can be opened here: {error}") from None
    pygame.display.set_caption(f"Everframe · {stream.prompt}")
    pygame.mouse.set_visible(not fullscreen)
    # A free prompt is the first of those that the keys go through.
    prompts = list(prompts) if stream.prompt in prompts else [stream.prompt, *prompts]
    frames, at, way = Frames(stream), prompts.index(stream.prompt), 1
    shown, paused, due, end = 0, False, time.monotonic(), None if seconds is None else time.monotonic() + seconds
    try:
        while end is None or time.monotonic() < end:
            for event in pygame.event.get():
                key = event.key if event.type == pygame.KEYDOWN else None
                if event.type == pygame.QUIT or key in (pygame.K_q, pygame.K_ESCAPE):
                    return shown
                if key in (pygame.K_LEFT, pygame.K_RIGHT):
                    at = (at + (1 if key == pygame.K_RIGHT else -1)) % len(prompts)
                    frames.do(lambda s, text=prompts[at], how=TRANSITIONS[way]: s.set_prompt(text, how))
                elif key == pygame.K_t:
                    way = (way + 1) % len(TRANSITIONS)
                elif key == pygame.K_f:
                    pygame.display.toggle_fullscreen()
                elif key == pygame.K_SPACE:
                    paused = not paused
                if key is not None:
                    pygame.display.set_caption(_title(prompts[at], TRANSITIONS[way], paused))
            now = time.monotonic()
            frame = frames.next() if now >= due and not paused else None
            if frame is None:
                time.sleep(0.002)
                continue
            # From the frame's own time on while we keep up; from now on after a wait, so that nothing is rushed.
            due = max(due + 1 / g.fps, now - 1 / g.fps)
            pygame.surfarray.blit_array(screen, frame.swapaxes(0, 1))
            pygame.display.flip()  # waits for the display's own beat
            shown += 1
        return shown
    finally:
        frames.close()
        pygame.quit()


def _title(prompt: str, transition: Transition, paused: bool) -> str:
    return f"Everframe · {prompt} · {transition}{' · paused' if paused else ''}"
