"""Where frames go: a video file, a PNG sequence, a GIF, or raw RGB on standard output.

Files are written under a temporary name beside their place, synced and renamed when the stream ends, so that a name that
exists is a video that plays. A file that cannot be written whole is removed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol, Self, cast

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from ..engines.errors import UserError
from ..engines.files import check_writable, reason

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}
ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "18"},
    "h264_nvenc": {"preset": "p4", "rc": "vbr", "cq": "19"},
    "hevc_nvenc": {"preset": "p4", "rc": "vbr", "cq": "21"},
}
MAX_GIF_FRAMES = 2400  # a GIF is held in memory until it is saved


def add_video(
    container: av.container.OutputContainer,
    encoder: str,
    size: tuple[int, int],
    fps: int,
    options: dict[str, str],
    keyframe_every: int,
) -> av.VideoStream:
    """A video stream of a container: 4:2:0 in BT.709, limited range, which `encoding_frame` converts to.

    size: width, height. keyframe_every: frames.
    """
    stream = cast(av.VideoStream, container.add_stream(encoder, rate=fps, options=options))
    stream.width, stream.height = size
    stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
    context = stream.codec_context
    context.gop_size = keyframe_every
    context.thread_count = 1  # fast enough by far; more of them take cores from the next chunk at times
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def encoding_frame(image: NDArray[np.uint8], number: int, fps: int) -> av.VideoFrame:
    """One frame [H, W, 3] RGB as an encoder wants it, shown at number/fps seconds."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    frame.pts, frame.time_base = number, Fraction(1, fps)
    return frame


def working_encoders() -> list[str]:
    """Video encoders that open here."""
    return [name for name in ENCODERS if choose_encoder(name, 256, 144)[0] == name]


class Output(Protocol):
    """A place for frames. Use as a context manager: leaving it normally keeps what was written, an error discards it."""

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 [T, H, W, 3] RGB. Raises UserError when they cannot be written."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None: ...


def choose_encoder(wanted: str, width: int, height: int) -> tuple[str, str | None]:
    """An encoder that really opens here, and a notice when it is not the wanted one.

    wanted: one of ENCODERS, or auto: NVENC where there is an NVIDIA card, else libx264. Raises UserError for another.
    """
    if wanted == "auto":
        wanted = "h264_nvenc" if any(Path("/dev").glob("nvidia[0-9]*")) else "libx264"
    if wanted not in ENCODERS:
        raise UserError(f"--encoder {wanted!r}: expected auto, {', '.join(ENCODERS)}")
    if wanted == "libx264":
        return wanted, None
    try:
        context = av.CodecContext.create(wanted, "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"  # type: ignore[attr-defined]
        context.time_base = Fraction(1, 16)
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        return "libx264", f"{wanted} cannot be used here ({error}); encoding with libx264"
    return wanted, None


def open_output(
    target: str, width: int, height: int, fps: int, endless: bool = False, encoder: str = "libx264"
) -> Output:
    """Choose an output by its name: `-` raw RGB frames to standard output, `*.mp4`, `*.mkv` by `encoder`, `*.gif`, `name/`
    or `*.png` (with a `%d` pattern such as frame-%06d.png) a PNG sequence.

    endless: make the MP4 fragmented, so that even after a power cut the temporary file plays.
    Raises UserError when the name says none of these or its place cannot be written.
    """
    if target == "-":
        return RawOutput(sys.stdout.buffer)
    path = Path(target)
    suffix = path.suffix.lower()
    if target.endswith(os.sep) or path.is_dir():
        return PngOutput(path / "%06d.png")
    if suffix == ".png":
        return PngOutput(path)
    if suffix == ".gif":
        return GifOutput(path, fps)
    if suffix in CONTAINERS:
        return FileOutput(path, width, height, fps, fragmented=endless and suffix == ".mp4", encoder=encoder)
    raise UserError(f"output {target!r}: expected -, a folder/, or a name ending in .mp4, .mkv, .gif or .png")


class _Part:
    """A file under a temporary name that becomes `path` when it is kept."""

    def __init__(self, path: Path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder")
        check_writable(path)
        self.path = path
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file: BinaryIO = open(self.part, "wb")  # noqa: SIM115 - kept open over many calls

    def keep(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.part.replace(self.path)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        self.part.unlink(missing_ok=True)


class FileOutput:
    """H.264 (or HEVC, by encoder) in MP4 or Matroska; frame n is shown at n/fps seconds."""

    def __init__(
        self, path: Path, width: int, height: int, fps: int, fragmented: bool = False, encoder: str = "libx264"
    ):
        self._part = _Part(path)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if fragmented else {}
        self._sink = _Sink(self._part.file)
        self._container = av.open(self._sink, "w", format=CONTAINERS[path.suffix.lower()], container_options=options)
        # A fragmented MP4 has no edit list to hide the delay of B-frames: without them it starts at 0.
        encoding = ENCODERS[encoder] | ({"bf": "0"} if fragmented else {})
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
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self._abandon()
            return
        try:
            self._mux(None)
            self._container.close()
            self._check()
            self._part.keep()
        except OSError as error:
            self._abandon()
            raise self._failure(error) from None
        except UserError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._sink.broken = True
        with contextlib.suppress(Exception):
            self._container.close()
        self._part.discard()


class _Sink:
    """The file that libav writes into; remembers the first error, because libav may not pass it on."""

    def __init__(self, file: BinaryIO):
        self._file, self.error, self.broken = file, None, False
        self.seek, self.tell = file.seek, file.tell

    error: OSError | None

    def write(self, data: bytes) -> int:
        if self.broken or self.error:
            return len(data)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            self.error = error
        return len(data)


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


class PngOutput:
    """One PNG per frame, numbered from 0; every file appears whole."""

    def __init__(self, pattern: Path):
        try:
            names = {pattern.name % 0, pattern.name % 1}
        except (TypeError, ValueError):
            names = set()
        if len(names) != 2:
            raise UserError(f"output {pattern}: a PNG sequence needs a number pattern such as frame-%06d.png")
        try:
            pattern.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{pattern.parent}: cannot make the folder: {reason(error)}") from None
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
        return


class GifOutput:
    """An animated GIF. Its frames last whole hundredths of a second, so 16 fps becomes 6 or 7 of them in turn."""

    def __init__(self, path: Path, fps: int):
        self._part, self._fps, self._frames = _Part(path), fps, []

    _frames: list[Image.Image]

    def write(self, frames: NDArray[np.uint8]) -> None:
        if len(self._frames) + len(frames) > MAX_GIF_FRAMES:
            raise UserError(f"{self._part.path}: a GIF holds at most {MAX_GIF_FRAMES} frames here; use .mp4 or .mkv")
        self._frames += [Image.fromarray(image).quantize(dither=Image.Dither.NONE) for image in frames]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if (kind is not None and not issubclass(kind, KeyboardInterrupt)) or not self._frames:
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
