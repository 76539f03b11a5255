"""Video encoders: which there are, how a stream of a container is set up, and a frame as an encoder wants it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from ..engines.errors import UserError

ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "18"},
    "h264_nvenc": {"preset": "p4", "rc": "vbr", "cq": "19"},
    "hevc_nvenc": {"preset": "p4", "rc": "vbr", "cq": "21"},
}


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
    if context.codec.canonical_name == "hevc" and container.format.name in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # Apple's players open no other
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


def check_encoder(wanted: str) -> None:
    """Raises UserError for a name that is none."""
    if wanted != "auto" and wanted not in ENCODERS:
        raise UserError(f"--encoder {wanted!r}: expected auto, {', '.join(ENCODERS)}")


def choose_encoder(wanted: str, width: int, height: int) -> tuple[str, str | None]:
    """An encoder that really opens here, and a notice when it is not the wanted one.

    wanted: one of ENCODERS, or auto: NVENC where there is an NVIDIA card, else libx264. Raises UserError for another.
    """
    if wanted == "auto":
        wanted = "h264_nvenc" if any(Path("/dev").glob("nvidia[0-9]*")) else "libx264"
    check_encoder(wanted)
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
