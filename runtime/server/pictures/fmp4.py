"""Frames to H.264 in memory: fragmented MP4, one fragment a frame, and the same pictures bare."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from ...video import add_video, encoding_frame


@dataclass(frozen=True)
class Fragment:
    """moof and mdat of one frame, or the frame alone, in the byte stream of H.264's Annex B."""

    data: bytes
    key: bool  # a viewer can begin here


class Encoder:
    """H.264 in fragmented MP4. `init` (ftyp and moov) and `mime` are known from the start; `frames` counts what it was
    given.

    A keyframe every `keyframe_seconds`, no B-frames and no look-ahead, so that a frame leaves as soon as it is in. What it
    was given last is in `bare` at once, its fragment comes with the next frame. baseline: H.264's Constrained Baseline
    profile, the one that every peer of WebRTC takes (RFC 7742, 6.2).
    """

    def __init__(
        self, width: int, height: int, fps: int, encoder: str, crf: int, keyframe_seconds: float, baseline: bool = False
    ):
        self._file = _Bytes()
        flags = "empty_moov+default_base_moof+frag_every_frame+skip_trailer"
        self._container = av.open(self._file, "w", format="mp4", container_options={"movflags": flags})
        if encoder == "libx264":
            options = {"preset": "veryfast", "tune": "zerolatency", "crf": str(crf), "sc_threshold": "0"}
        else:
            options = {"preset": "p4", "tune": "ull", "rc": "vbr", "cq": str(crf), "delay": "0"}
        if baseline:
            options["profile"] = "baseline"
        every = max(1, round(keyframe_seconds * fps))
        stream = add_video(self._container, encoder, (width, height), fps, options | {"bf": "0"}, every)
        self._stream, self._fps, self.frames = stream, fps, 0
        self._keys: deque[bool] = deque()  # of packets whose fragments have not come out yet
        self.bare: list[Fragment] = []  # of the frame that it was given last; keyframes with their parameter sets
        self._container.start_encoding()
        self.init = self._file.take()
        self.mime = f'video/mp4; codecs="{codec_name(self.init)}"'

    def encode(self, image: NDArray[np.uint8]) -> list[Fragment]:
        """One frame [H, W, 3] RGB -> the fragments that are ready by now: usually that of the frame before."""
        frame = encoding_frame(image, self.frames, self._fps)
        self.frames += 1
        self.bare = []
        for packet in self._stream.encode(frame):
            sets = self._stream.codec_context.extradata if packet.is_keyframe else None
            self.bare.append(Fragment((sets or b"") + bytes(packet), packet.is_keyframe))
            self._keys.append(packet.is_keyframe)
            self._container.mux(packet)
        fragments: list[bytes] = []
        for kind, box in boxes(self._file.take()):
            if kind == b"moof":
                fragments.append(box)
            elif fragments:
                fragments[-1] += box
        return [Fragment(data, self._keys.popleft()) for data in fragments]

    def close(self) -> None:
        self._container.close()


class _Bytes:
    """What libav writes, collected. It cannot seek: fragments are written once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Top-level boxes of ISO base media (ISO/IEC 14496-12): type and the whole box."""
    found, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at : at + size]))
        at += size
    return found


def codec_name(init: bytes) -> str:
    """RFC 6381 name of the H.264 track: avc1 and profile, constraints, level out of avcC."""
    at = init.index(b"avcC") + 4
    return "avc1." + init[at + 1 : at + 4].hex()
