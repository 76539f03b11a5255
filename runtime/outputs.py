"""Where frames go: a video file, a PNG sequence, a GIF, or raw RGB on standard output.

A video is recorded under a name beside its own, synced and renamed when the stream ends, so that a name that exists is a
video that plays; what was recorded when the disk is full or the process is killed plays too, and stays.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, Self, cast

import av
import av.container
import av.error
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.bundle import MANIFEST
from ..engines.errors import UserError
from ..engines.files import check_writable, make_folder, reason
from .video import ENCODERS, add_video, encoding_frame

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}
# Written in pieces of a second that play without what follows; an MP4 becomes a plain one when it is finished, unless nobody
# knows when that will be: for that libav keeps a list of all frames in memory, 100 MB a day at 16 fps.
IN_PIECES = {
    "mp4": {"movflags": "hybrid_fragmented+frag_keyframe", "frag_duration": "1000000", "flush_packets": "1"},
    "matroska": {"cluster_time_limit": "1000", "flush_packets": "1"},
}
ENDLESS_MP4 = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
GIF_FPS = 50
MAX_GIF_FRAMES, MAX_GIF_BYTES = 2400, 512 << 20  # a GIF is held in memory until it is saved, a byte a pixel


class Output(Protocol):
    """A place for frames. Use as a context manager: leaving it normally keeps what was written; an error
    keeps what a video has recorded and discards the rest."""

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 [T, H, W, 3] RGB. Raises UserError when they cannot be written."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None: ...


def open_output(
    target: str,
    width: int,
    height: int,
    fps: int,
    encoder: str = "libx264",
    replace: bool = False,
    frames: int | None = None,
) -> Output:
    """Choose an output by its name: `-` raw RGB frames to standard output, `*.mp4`, `*.mkv` by `encoder`, `*.gif`, `name/`
    or `*.png` (with a `%d` pattern such as frame-%06d.png) a PNG sequence.

    replace: allow a name that exists already. frames: how many will come, where that is known.
    Raises UserError when the name says none of these, is taken, or its place cannot be written.
    """
    kind, path = check_output(target, width, height, fps, replace, frames)
    if kind == "raw":
        return RawOutput(sys.stdout.buffer)
    if kind == "png":
        return PngOutput(path, replace)
    if kind == "gif":
        return GifOutput(path, width, height, fps)
    return FileOutput(path, width, height, fps, encoder, endless=frames is None)


def check_output(
    target: str, width: int, height: int, fps: int, replace: bool = False, frames: int | None = None
) -> tuple[Literal["raw", "png", "gif", "video"], Path]:
    """What `open_output` would open, and where. Raises UserError for what it would refuse: nobody should wait for engines to
    be told that."""
    path = Path(target)
    suffix = path.suffix.lower()
    if target == "-":
        return "raw", path
    if target and (target.endswith(("/", os.sep)) or path.is_dir()):  # '' is no folder, though a path of it is
        if (path / MANIFEST).is_file():
            raise UserError(
                f"{path}: is a bundle; expected another folder, or a name ending in .mp4, .mkv, .gif or .png"
            )
        path, suffix = path / "%06d.png", ".png"
    if suffix == ".png":
        earlier_frames(path, replace)
        above = next(folder for folder in path.absolute().parents if folder.exists())  # what is missing is made
        if not above.is_dir():
            raise UserError(f"{above}: not a folder")
        check_writable(above / path.name)
        return "png", path
    if suffix not in (".gif", *CONTAINERS):
        raise UserError(f"output {target!r}: expected -, a folder/, or a name ending in .mp4, .mkv, .gif or .png")
    check_free(path, replace)
    check_writable(path)
    if suffix != ".gif":
        return "video", path
    step = _gif_step(fps)
    shown = -(-(frames or 0) // step)
    if shown > _gif_room(width, height):
        raise UserError(f"{path}: {_gif_holds(width, height, fps / step)}, this are {shown}; use .mp4 or .mkv")
    return "gif", path


def check_free(path: Path, replace: bool) -> None:
    """Raises UserError where a recording would be overwritten."""
    if path.exists() and not path.is_dir() and not replace:
        raise UserError(f"{path}: already exists; choose another name or pass --force")


class _Part:
    """A file under a temporary name that becomes `path` when it is kept. A hidden one is removed when its writer fails; a
    visible one is a recording, and stays."""

    def __init__(self, path: Path, visible: bool = False):
        if path.is_dir():
            raise UserError(f"{path}: is a folder")
        check_writable(path)
        self.path = path
        hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.part = free_name(path.with_name(f"{path.stem}.part{path.suffix}")) if visible else hidden
        # A recording is written without a buffer of Python's, which would try the write that failed again when it closes.
        mode, buffering = ("xb", 0) if visible else ("wb", -1)
        self.file: BinaryIO = cast(BinaryIO, open(self.part, mode, buffering))  # noqa: SIM115 - kept open over many calls

    def keep(self, whole: bool = True) -> None:
        """Sync as far as the disk lets, and take the name. One that is not whole never replaces another file: then it stays
        under the name that it was written under, which `path` tells."""
        self.file.flush()
        with contextlib.suppress(OSError):  # a full disk may refuse; what is written is written
            os.fsync(self.file.fileno())
        self.file.close()
        if not whole and self.part.suffix.lower() == ".mp4" and (length := whole_length(self.part)):
            os.truncate(self.part, length)
        if not whole and self.path.exists():
            self.path = self.part
        else:
            self.part.replace(self.path)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        self.part.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The path, or with a number where that is taken: by the recording of a run that was cut off, which stays."""
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not name.exists())


class FileOutput:
    """H.264 (or HEVC, by encoder) in MP4 or Matroska; frame n is shown at n/fps seconds.

    It is recorded under a visible name, `out.part.mp4`, and gets its own when it ends. Whatever ends it (a full disk, an
    error, a kill), what was recorded until then plays: an MP4 is fragmented until it is finished, an endless one for good.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, encoder: str = "libx264", endless: bool = False):
        self._part = _Part(path, visible=True)
        kind = CONTAINERS[path.suffix.lower()]
        options = IN_PIECES[kind] | (ENDLESS_MP4 if endless and kind == "mp4" else {})
        self._sink = _Sink(self._part.file)
        self._container = av.open(self._sink, "w", format=kind, container_options=options)
        # A fragmented MP4 has no edit list to hide the delay of B-frames: without them it starts at 0.
        encoding = ENCODERS[encoder] | ({"bf": "0"} if kind == "mp4" else {})
        stream = add_video(self._container, encoder, (width, height), fps, encoding, 4 * fps)
        self._stream, self._fps, self._count = stream, fps, 0

    def write(self, frames: NDArray[np.uint8]) -> None:
        for image in frames:
            self._mux(encoding_frame(image, self._count, self._fps))
            self._count += 1

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, av.error.FFmpegError) as error:
            raise self._failure(error) from None
        self._check()

    def _check(self) -> None:
        if self._sink.error:  # libav may swallow what its writer raised
            raise self._failure(self._sink.error)

    def _failure(self, error: Exception) -> UserError:
        error = self._sink.error or error
        return UserError(f"{self._part.path}: cannot write: {reason(error) if isinstance(error, OSError) else error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        failed = kind is not None and not issubclass(kind, KeyboardInterrupt)
        problem = exc[0] if failed else None
        if not self._count:
            self._give_up()
            return
        try:
            if not self._sink.error:
                self._mux(None)
            self._container.close()
            self._check()
        except (OSError, UserError, av.error.FFmpegError) as late:
            problem = problem or (late if isinstance(late, UserError) else self._failure(late))
        if self._sink.written == 0:
            self._give_up()
        else:
            self._part.keep(whole=not failed and problem is None)
        if isinstance(problem, UserError):
            seconds = f"{self._count / self._fps:.1f} s"
            raise UserError(
                f"{problem}; what was recorded until then (up to {seconds}) is in {self._part.path}"
            ) from None

    def _give_up(self) -> None:
        self._sink.broken = True
        with contextlib.suppress(Exception):
            self._container.close()
        self._part.discard()


class _Sink:
    """The file that libav writes into; remembers the first error, because libav may not pass it on, and writes nothing
    behind it."""

    def __init__(self, file: BinaryIO):
        self._file, self.error, self.broken, self.written = file, None, False, 0
        self.tell = file.tell

    error: OSError | None

    def write(self, data: bytes) -> int:
        if self.broken or self.error:
            return len(data)
        try:
            left = memoryview(data)
            while left:
                count = self._file.write(left)
                left = left[count:]
                self.written += count
        except OSError as error:
            self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.tell() if self.error else self._file.seek(offset, whence)


class RawOutput:
    """rgb24 frames, one after the other, for a pipe."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def write(self, frames: NDArray[np.uint8]) -> None:
        try:
            self._stream.write(frames.tobytes())
            self._stream.flush()
        except BrokenPipeError:
            raise  # the reader has had enough: the command ends quietly
        except OSError as error:
            raise UserError(f"standard output: cannot write: {reason(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        return


def earlier_frames(pattern: Path, replace: bool) -> int:
    """How many frames of a sequence of this name are there, from 0 to the first gap. Raises UserError for a name without a
    number, and for frames that are in the way and may not be replaced."""
    parts = re.fullmatch(r"((?:[^%]|%%)*)%0?\d*d((?:[^%]|%%)*)", pattern.name)
    if parts is None:
        raise UserError(f"output {pattern}: a PNG sequence needs a number pattern such as frame-%06d.png")
    if not pattern.parent.is_dir():
        return 0
    before, after = (re.escape(part.replace("%%", "%")) for part in parts.groups())
    named = re.compile(rf"{before} *(\d+){after}")
    numbers = {int(found[1]) for path in pattern.parent.iterdir() if (found := named.fullmatch(path.name))}
    # Named as a frame would be: 20240131.png and 7.png are no frames of %06d.png, or not for weeks.
    taken = {n for n in numbers if (pattern.parent / (pattern.name % n)).exists()}
    for number in sorted(taken):
        check_free(pattern.parent / (pattern.name % number), replace)
    return next(n for n in itertools.count() if n not in taken)


class PngOutput:
    """One PNG per frame, numbered from 0; every file appears whole. Of a sequence that it replaces nothing stays."""

    def __init__(self, pattern: Path, replace: bool = False):
        self._earlier = earlier_frames(pattern, replace)
        make_folder(pattern.parent)
        check_writable(pattern)
        self._pattern, self._count = pattern, 0

    def write(self, frames: NDArray[np.uint8]) -> None:
        for image in frames:
            part = _Part(self._pattern.with_name(self._pattern.name % self._count))
            try:
                Image.fromarray(image).save(part.file, "PNG")
                part.keep()
            except OSError as error:
                part.discard()
                raise UserError(f"{part.path}: cannot write: {reason(error)}") from None
            self._count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for number in range(self._count, self._earlier) if self._count else ():
            self._pattern.with_name(self._pattern.name % number).unlink(missing_ok=True)


def _gif_step(fps: int) -> int:
    return -(-fps // GIF_FPS)


def _gif_room(width: int, height: int) -> int:
    return min(MAX_GIF_FRAMES, MAX_GIF_BYTES // (width * height))


def _gif_holds(width: int, height: int, fps: float) -> str:
    room = _gif_room(width, height)
    return f"a GIF of {width}×{height} holds at most {room} frames here ({room / fps:g} s)"


class GifOutput:
    """An animated GIF. Its frames last whole hundredths of a second, so 16 fps becomes 6 or 7 of them in turn. Browsers show
    what should last less than two hundredths for ten: of more than 50 fps every other frame is left out, or more."""

    def __init__(self, path: Path, width: int, height: int, fps: int):
        self._every, self._seen = _gif_step(fps), 0
        self._part, self._size, self._fps, self._full = _Part(path), (width, height), fps / self._every, False
        self._frames = []

    _frames: list[Image.Image]

    def write(self, frames: NDArray[np.uint8]) -> None:
        self._seen, frames = self._seen + len(frames), frames[-self._seen % self._every :: self._every]
        room = _gif_room(*self._size) - len(self._frames)
        self._frames += [Image.fromarray(image).quantize(dither=Image.Dither.NONE) for image in frames[:room]]
        if len(frames) > room:  # of a video without an end: what there is stays
            self._full = True
            raise UserError(
                f"{self._part.path}: {_gif_holds(*self._size, self._fps)}, which it has; use .mp4 or .mkv for more"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        kept = kind is None or issubclass(kind, KeyboardInterrupt) or self._full
        if not kept or not self._frames:
            self._part.discard()
            return
        edges = [round(100 * i / self._fps) for i in range(len(self._frames) + 1)]
        durations = [10 * (b - a) for a, b in pairwise(edges)]
        try:
            first, *rest = self._frames
            first.save(self._part.file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
            self._part.keep()
        except OSError as error:
            self._part.discard()
            raise UserError(f"{self._part.path}: cannot write: {reason(error)}") from None


def whole_length(file: Path) -> int:
    """Bytes of an MP4 up to the end of its last whole fragment: what a writer that was cut off left behind is dropped."""
    size, end, at = file.stat().st_size, 0, 0
    with open(file, "rb") as f:
        while at + 8 <= size:
            f.seek(at)
            head = f.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8 or at + length > size:
                break
            at += length
            if kind != b"moof":  # which means nothing without the mdat behind it
                end = at
    return end
