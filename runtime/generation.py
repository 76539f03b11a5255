"""A whole video in one call: what `everframe generate` does, for a program.

from everframe.runtime import generate, open_bundle

generate(open_bundle(), "sea.mp4", seconds=60, prompt="a calm sea under an orange sunset sky")
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from .chunks import Chunk
from .outputs import check_output, open_output
from .overlay.layer import Layer
from .prompts import Transition, check_transition
from .stream import Stream
from .video import check_encoder, choose_encoder

LONGEST = 1e9  # seconds: of a video, and into it


@dataclass(frozen=True)
class PromptChange:
    """Another prompt from a moment of the video on."""

    seconds: float
    prompt: str
    transition: Transition = "smooth"


@dataclass(frozen=True)
class Progress:
    """How far a video is, after each chunk."""

    frames: int  # written so far
    total: int | None  # None: endless
    fps: int
    chunk: Chunk


@dataclass(frozen=True)
class Video:
    """What was written."""

    frames: int
    fps: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def generate(
    bundle: Bundle,
    output: str,
    *,
    seconds: float | None = 30.0,
    prompt: str | None = None,
    seed: int = 0,
    start: int = 0,
    changes: Sequence[PromptChange] = (),
    anchor: NDArray[np.uint8] | None = None,
    rope_mode: Literal["absolute", "relative"] | None = None,
    sink_distance: int | None = None,
    jitter_sigma: float | None = None,
    overlap: bool | None = None,
    verify: bool = True,
    overlay: Layer | None = None,
    encoder: str = "auto",
    replace: bool = False,
    backend: Backend | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    notice: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Video:
    """Generate a video into a file, a PNG or GIF sequence, or standard output.

    Args:
        output: as `open_output` takes it.
        seconds: length of the video, at least one frame; None: until `stop` says so.
        changes: other prompts and when they come; each takes effect with the first chunk not yet begun at its moment (the
            second at the earliest). One at or behind the video's end is refused; `notice` is told of one that no chunk of
            the video was left for.
        overlay: what is burned into every frame; its clock begins at the present time.
        encoder: "auto" or one of `video.ENCODERS`; one that does not open here is replaced, and `notice` told.
        replace: allow a name that exists already.
        progress: called after every chunk that was written.
        stop: asked before every chunk; true ends the video there.
        The others are `Stream`'s.

    Raises UserError before anything is written for bad arguments, and when the output cannot be written.
    """
    g = bundle.output
    total = frames_in(seconds, g.fps)
    waiting = sorted(changes, key=lambda change: change.seconds)
    if total is not None and waiting and waiting[-1].seconds * g.fps >= total:
        last = waiting[-1]
        raise UserError(f"--then {last.seconds:g}:{last.prompt}: the video ends at {total / g.fps:g} s")
    check_encoder(encoder)
    kind, _ = check_output(output, g.width, g.height, g.fps, replace, total)
    chosen, told = choose_encoder(encoder, g.width, g.height) if kind == "video" else ("libx264", None)
    if told:
        notice(told)
    with Stream(
        bundle,
        prompt=prompt,
        seed=seed,
        start=start,
        rope_mode=rope_mode,
        sink_distance=sink_distance,
        jitter_sigma=jitter_sigma,
        anchor=anchor,
        overlap=overlap,
        verify=verify,
        backend=backend,
    ) as stream:
        for change in waiting:
            check_transition(change.transition)
            stream.bank.change(change.prompt, change.transition)  # fail now, not in an hour
        for note in stream.notices:
            notice(note)
        ahead = g.chunk_frames if stream.overlap else 0  # the chunk that is being made already
        made, began = 0, dt.datetime.now(dt.UTC)
        ordered: list[tuple[int, PromptChange]] = []  # and the chunk that each takes effect with
        with open_output(output, g.width, g.height, g.fps, chosen, replace, total) as out:
            while made != total and not stop():
                chunk = stream.next_chunk()
                frames = chunk.frames if total is None else chunk.frames[: total - made]
                if overlay is not None:
                    moments = (began + dt.timedelta(seconds=(made + i) / g.fps) for i in range(len(frames)))
                    frames = np.stack([overlay.burned(f, at) for f, at in zip(frames, moments, strict=True)])
                out.write(frames)
                made += len(frames)
                progress(Progress(made, total, g.fps, chunk))
                due = [change for change in waiting if change.seconds * g.fps <= made + ahead]
                del waiting[: len(due)]
                for change in due[:-1]:
                    notice(f"--then {change.seconds:g}:{change.prompt}: another comes with the same chunk: not seen")
                for change in due[-1:]:
                    stream.set_prompt(change.prompt, change.transition)
                    ordered.append((chunk.index + (2 if stream.overlap else 1), change))
                if made == total:
                    for change in [*(one for at, one in ordered if at > chunk.index), *waiting]:
                        notice(
                            f"--then {change.seconds:g}:{change.prompt}: comes after the last chunk has begun: not seen"
                        )
    return Video(made, g.fps)


def frames_in(seconds: float | None, fps: int) -> int | None:
    """Of a video's length; None is endless. Raises UserError."""
    if seconds is None:
        return None
    if not 0 < seconds <= LONGEST:
        raise UserError(f"seconds {seconds}: expected more than 0 and at most {LONGEST:g}; None is endless")
    return max(1, round(seconds * fps))


def parse_change(text: str, transition: Transition = "smooth") -> PromptChange:
    """'12.5:a prompt' -> its change. Raises UserError."""
    time_text, colon, prompt = text.partition(":")
    try:
        at = float(time_text)
    except ValueError:
        at = -1.0
    if not colon or not 0 <= at <= LONGEST or not prompt.strip():
        raise UserError(f"--then {text!r}: expected SECONDS:PROMPT, for example 12.5:a calm sea")
    return PromptChange(at, prompt, transition)
