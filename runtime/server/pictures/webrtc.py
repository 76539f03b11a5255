"""One viewer's connection by WebRTC, through `aiortc` (extra `webrtc`), which is imported here and nowhere else.

Nothing is encoded for it: the frames are those of the channel's own encoder, packed into RTP (RFC 6184).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from fractions import Fraction

import av
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)

from ....engines.errors import UserError
from .fmp4 import Fragment

logging.getLogger("aioice").setLevel(logging.WARNING)  # it tells every address that it tries

CODECS = ("video/H264", "video/rtx")
MOST_BYTES = 16_384  # of an offer: browsers send a quarter of it
MOST_SECTIONS = 8  # each may ask for sockets
MOST_CANDIDATES = 32  # each is tried with every address of this machine
PATIENCE = 15.0  # seconds in which a connection has to come about


class Pictures(MediaStreamTrack):
    """The frames that wait for one viewer, bounded: who lags loses everything up to the next keyframe. Used on the event
    loop's thread."""

    kind = "video"

    def __init__(self, fps: int):
        super().__init__()
        self._fps, self._frames = fps, deque[tuple[int, Fragment]]()
        self._asked, self._begun, self._there = False, False, asyncio.Event()
        self._source: object = None  # the encoder that the viewer follows; None: it waits for a keyframe

    def put(self, number: int, source: object, frame: Fragment) -> int:
        """A frame, shown at number/fps seconds, and what has encoded it. How many frames the viewer loses with it."""
        if not self._asked:  # the connection is not made yet
            return 0
        lost = 0
        if len(self._frames) > self._fps:
            lost = len(self._frames)
            self._frames.clear()
            self._source = None
        if source is not self._source and not frame.key:
            return lost + self._begun
        self._source, self._begun = source, True
        self._frames.append((number, frame))
        self._there.set()
        return lost

    async def recv(self) -> av.Packet:  # type: ignore[override] - aiortc takes coded frames as well
        self._asked = True
        while not self._frames:
            self._there.clear()
            await self._there.wait()
        number, frame = self._frames.popleft()
        packet = av.Packet(frame.data)
        packet.pts, packet.time_base = number, Fraction(1, self._fps)
        return packet


def hides(line: str) -> bool:
    """Browsers hide their addresses behind names that multicast has to resolve, for a second or in vain. The viewer's own
    checks tell where it is; until then more candidates are waited for."""
    return line.startswith("a=end-of-candidates") or (line.startswith("a=candidate:") and ".local " in line)


class Peer:
    """A connection. `pictures` is what it is sent; `gone` is set when it has ended."""

    def __init__(self, fps: int):
        self.pictures, self.gone = Pictures(fps), asyncio.Event()
        # No server of anybody's is asked for this machine's address: viewers are on the same network.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._connection.add_listener("connectionstatechange", self._changed)
        self._late: asyncio.TimerHandle | None = None

    async def answer(self, offer: str) -> str:
        """The answer to an offer, both SDP. Raises UserError for one that nothing can be sent to."""
        if len(offer) > MOST_BYTES:
            raise UserError(f"offer: {len(offer)} bytes, expected {MOST_BYTES} at most")
        offer = "".join(line for line in offer.splitlines(keepends=True) if not hides(line))
        if offer.count("a=candidate:") > MOST_CANDIDATES:
            raise UserError(f"offer: more than {MOST_CANDIDATES} candidates")
        wanted = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType in CODECS]
        if offer.count("\nm=") > MOST_SECTIONS:
            raise UserError(f"offer: more than {MOST_SECTIONS} media sections, expected one of video")
        try:
            video = self._connection.addTransceiver(self.pictures, "sendonly")
            video.setCodecPreferences(wanted)
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception:  # aiortc's parser raises whatever Python does, its text is no help
            raise UserError("offer: not an SDP offer with a section of video in H.264, packetization-mode=1") from None
        if video.currentDirection != "sendonly":
            raise UserError("offer: no section of video that receives, expected a=recvonly")
        self._late = asyncio.get_running_loop().call_later(PATIENCE, self._give_up)
        return self._connection.localDescription.sdp

    def _give_up(self) -> None:
        if self._connection.connectionState != "connected":
            self.gone.set()

    def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            self.gone.set()

    async def close(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self.pictures.stop()
        await self._connection.close()
