"""WebRTC by WHEP: `aiortc` as a viewer, Chromium as a screen, and everybody who asks for what is not there."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from serving import CHROMIUM, Site, serve, until, wait_for

aiortc = pytest.importorskip("aiortc")
SDP = "application/sdp"
MOST = 3


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    config = f'[video]\nwebrtc = {MOST}\n[screens.lobby]\nvia = "webrtc"\n[screens.wall]\nsync = true\n'
    with serve(tmp_path_factory.mktemp("direct"), bundle_path, config) as running:
        yield running


def post(site: Site, offer: str, query: str = "", kind: str = SDP) -> tuple[int, Any]:
    return site.ask(f"/whep{query}", "POST", offer.encode(), token=None, Content_Type=kind)


class Viewer:
    """A viewer made of aiortc, which looks at what comes."""

    def __init__(self, site: Site, query: str = ""):
        self.site, self.query = site, query
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.connection.addTransceiver("video", direction="recvonly")
        self.address = ""

    async def __aenter__(self) -> Viewer:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        url = f"{self.site.url}/whep{self.query}"
        sdp = self.connection.localDescription.sdp
        status, self.address, answer = await asyncio.to_thread(posted, url, sdp)
        assert status == 201, answer
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        self.track = self.connection.getReceivers()[0].track
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def frame(self) -> Any:
        return await asyncio.wait_for(self.track.recv(), 20)

    async def colour(self, frames: int = 1) -> Any:
        """Mean colour of the last of so many frames."""
        for _ in range(frames - 1):
            await self.frame()
        return (await self.frame()).to_ndarray(format="rgb24").mean((0, 1))


def posted(url: str, sdp: str) -> tuple[int, str, str]:
    import urllib.request

    request = urllib.request.Request(url, sdp.encode(), {"Content-Type": SDP})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["Content-Type"] == SDP
        return answer.status, answer.headers["Location"], answer.read().decode()


def watching(site: Site, *works: Callable[[Viewer], Awaitable[Any]], query: str = "") -> list[Any]:
    async def run() -> list[Any]:
        async with Viewer(site, query) as viewer:
            return [await work(viewer) for work in works]

    return asyncio.run(run())


def offer(change: Callable[[str], str] = lambda sdp: sdp, kind: str = "video", direction: str = "recvonly") -> str:
    async def made() -> str:
        connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        connection.addTransceiver(kind, direction=direction)
        await connection.setLocalDescription(await connection.createOffer())
        sdp = connection.localDescription.sdp
        await connection.close()
        return sdp

    return change(asyncio.run(made()))


def empty(site: Site) -> bool:
    return site.metric("webrtc_viewers") == 0


def test_the_picture_comes_at_its_rate(direct: Site) -> None:
    """The size of the stream, 16 frames a second by their time stamps and by the clock, and the colours of the snapshot."""

    async def rate(viewer: Viewer) -> tuple[float, float]:
        first, began = await viewer.frame(), asyncio.get_running_loop().time()
        for _ in range(47):
            await viewer.frame()
        last = await viewer.frame()
        assert (last.width, last.height) == (64, 32)
        return float((last.pts - first.pts) * last.time_base), asyncio.get_running_loop().time() - began

    async def same(viewer: Viewer) -> float:
        apart = []
        for _ in range(8):
            still = await asyncio.to_thread(direct.ask, "/api/snapshot.png")
            with Image.open(io.BytesIO(still[1])) as image:
                shown = np.asarray(image.convert("RGB")).mean((0, 1))
            apart.append(np.abs(await viewer.colour(2) - shown).max())
        return min(apart)

    (stamps, clock), apart = watching(direct, rate, same)
    assert stamps == pytest.approx(48 / 16, abs=0.01)
    assert clock == pytest.approx(48 / 16, abs=1)
    assert apart < 6
    wait_for(lambda: empty(direct), 60)


def test_a_viewer_goes_by_delete(direct: Site) -> None:
    async def leave(viewer: Viewer) -> None:
        await viewer.frame()
        assert viewer.address.startswith("whep/")  # relative: a proxy may have put it below a path
        assert direct.metric("webrtc_viewers") == 1
        path = f"/{viewer.address}"
        assert (await asyncio.to_thread(direct.ask, path, "DELETE", None, None))[0] == 200
        assert direct.metric("webrtc_viewers") == 0
        assert (await asyncio.to_thread(direct.ask, path, "DELETE", None, None))[0] == 404

    watching(direct, leave)


def test_what_lies_above_the_picture(direct: Site) -> None:
    """Burned in for whoever asks, and not for pages, which draw it themselves; taken away without a broken frame."""
    green = {"text": "x", "ground": "#00ff00", "colour": "#00ff00"}

    async def look(viewer: Viewer) -> float:
        red, is_green, blue = await viewer.colour(40)
        return float(is_green - max(red, blue))

    assert direct.ask("/api/overlay/message", "POST", green)[0] == 204
    assert watching(direct, look)[0] > 150
    assert watching(direct, look, query="?overlay=false")[0] < 50

    async def uncover(viewer: Viewer) -> list[float]:
        before = await look(viewer)
        assert (await asyncio.to_thread(direct.ask, "/api/overlay/message", "DELETE"))[0] == 204
        return [before, await look(viewer)]

    before, after = watching(direct, uncover)[0]
    assert before > 150
    assert after < 50


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "", "not an SDP offer"),
        (lambda: "v=0\r\n" + "x" * 10_000, "not an SDP offer"),
        (lambda: "v=0\r\n" + "x" * 100_000, "16384 at most"),
        (lambda: "v=0\r\na=candidate:" + ".local " * 37_000, "16384 at most"),
        (lambda: "v=0\r\na=candidate:" + ".local " * 2_000, "not an SDP offer"),
        (lambda: offer() + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * 40, "32 candidates"),
        (lambda: offer(lambda sdp: sdp[: len(sdp) // 2]), "offer"),
        (lambda: offer(lambda sdp: sdp.replace("H264", "H265")), "H.264"),
        (
            lambda: offer(lambda sdp: sdp.replace("packetization-mode=1", "packetization-mode=0")),
            "packetization-mode=1",
        ),
        (lambda: offer(kind="audio"), "video"),
        (lambda: offer(direction="sendonly"), "a=recvonly"),
        (
            lambda: offer(lambda sdp: sdp.replace("a=setup", "a=unset").replace("ice-ufrag", "ice-none")),
            "not an SDP offer",
        ),
        (lambda: offer() + "m=video 9 UDP/TLS/RTP/SAVPF 97\r\n" * 20, "media sections"),
    ],
)
def test_offers_that_cannot_be_answered(direct: Site, make: Callable[[], str], words: str) -> None:
    status, answer = post(direct, make())
    assert status == 422, answer
    assert words in answer["detail"]
    assert "\n" not in answer["detail"]
    assert len(answer["detail"]) < 120
    wait_for(lambda: empty(direct))
    assert "Traceback" not in direct.log.read_text()


def test_what_whep_knows(direct: Site, site: Site) -> None:
    assert post(direct, "{}", kind="application/json")[0] == 422
    assert direct.ask("/whep", "OPTIONS", token=None)[0] == 204
    assert direct.ask("/whep/nobody", "PATCH", token=None)[0] == 405
    assert direct.ask("/whep/nobody", "DELETE", token=None) == (404, {"detail": "no such viewer"})
    assert post(site, offer()) == (404, {"detail": "WebRTC is off: see video.webrtc"})


def test_no_more_than_the_configuration_allows(direct: Site) -> None:
    """Those that were answered and never come are given up, and what they held is given back."""
    files = Path(f"/proc/{direct.process.pid}/fd")
    before = len(os.listdir(files))
    for _ in range(MOST):
        assert post(direct, offer())[0] == 201
    status, answer = post(direct, offer())
    assert (status, answer["detail"]) == (503, f"{MOST} viewers by WebRTC already: see video.webrtc")
    wait_for(lambda: empty(direct), 60)
    wait_for(lambda: len(os.listdir(files)) <= before + 2)


@pytest.mark.slow
def test_memory_over_many_viewers(direct: Site) -> None:
    async def see(viewer: Viewer) -> None:
        await viewer.frame()
        await asyncio.to_thread(direct.ask, f"/{viewer.address}", "DELETE", None, None)

    memory = []
    for _ in range(60):
        watching(direct, see)
        memory.append(direct.metric("memory_bytes"))
    assert memory[-1] < memory[19] + (4 << 20)


browsing = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")


def opened(browser: Browser, site: Site, query: str, script: str = "") -> Page:
    page = browser.new_context(viewport={"width": 640, "height": 360}).new_page()
    if script:
        page.add_init_script(script)
    page.goto(f"{site.url}/?{query}")
    until(page, "window.player && player.shown() > 8", 60)
    return page


def screen(site: Site, name: str) -> dict[str, Any]:
    return next(one for one in site.ask("/api/screens")[1]["screens"] if one["name"] == name)


@browsing
@pytest.mark.parametrize("query", ["via=webrtc&screen=hall", "screen=lobby"])
def test_a_screen_by_webrtc(direct: Site, browser: Browser, query: str) -> None:
    """By its address or the configuration: it moves, reports, sends a picture of itself, obeys, and goes."""
    page, name = opened(browser, direct, query), query.rpartition("=")[2]
    assert page.evaluate("player.direct && player.video.srcObject !== null && player.source === null")
    wait_for(lambda: (screen(direct, name).get("fps") or 0) > 10)
    assert (screen(direct, name)["via"], screen(direct, name)["state"]) == ("webrtc", "ok")
    assert direct.metric("webrtc_viewers") == 1
    page.evaluate("window.mark = 1")
    assert direct.ask(f"/api/screens/{name}/picture", "POST")[0] == 204
    wait_for(lambda: direct.ask(f"/api/screens/{name}/picture.jpg")[0] == 200)
    assert direct.ask(f"/api/screens/{name}/reload", "POST")[0] == 204
    until(page, "window.mark === undefined && window.player && player.direct && player.shown() > 8", 60)
    page.context.close()
    wait_for(lambda: empty(direct), 60)


@browsing
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("delete window.RTCPeerConnection", "this browser has no WebRTC"),
        ("window.RTCPeerConnection.prototype.setRemoteDescription = () => Promise.reject(Error('out'))", "out"),
    ],
)
def test_a_browser_that_cannot_falls_back(direct: Site, browser: Browser, script: str, why: str) -> None:
    """MSE shows the picture, and the log says why in a line."""
    page = opened(browser, direct, "via=webrtc&screen=old", script)
    assert page.evaluate("!player.direct && player.source !== null")
    assert screen(direct, "old")["via"] == "mse"
    assert f"screen 'old': not by WebRTC: {why}" in direct.log.read_text()
    page.context.close()
    wait_for(lambda: empty(direct), 60)


NO_ADDRESSES = """
const strip = (d) => d && { type: d.type, sdp: d.sdp.replace(/a=candidate:.*\\r\\n/g, "") };
const { prototype } = RTCPeerConnection, set = prototype.setRemoteDescription;
prototype.setRemoteDescription = function (d) { return set.call(this, strip(d)); };
const { get } = Object.getOwnPropertyDescriptor(prototype, "localDescription");
Object.defineProperty(prototype, "localDescription", { get() { return strip(get.call(this)); } });
"""


@browsing
def test_where_udp_is_blocked_mse_shows_the_picture(direct: Site, browser: Browser) -> None:
    """Neither side learns an address of the other: after ten seconds the page gives up and says so, once."""
    reloads = direct.metric("viewer_reloads_total")
    page = opened(browser, direct, "via=webrtc&screen=blocked", NO_ADDRESSES)
    assert page.evaluate("!player.direct && player.source !== null")
    assert direct.metric("viewer_reloads_total") == reloads
    said = direct.log.read_text()
    assert "screen 'blocked': not by WebRTC: no picture within 10 s: is UDP let through?" in said
    page.context.close()
    wait_for(lambda: empty(direct), 60)


@browsing
def test_a_server_that_has_it_off_and_a_wall(direct: Site, site: Site, browser: Browser) -> None:
    page = opened(browser, site, "via=webrtc&screen=hall")
    assert not page.evaluate("player.direct")
    assert "not by WebRTC: the server answers 404: WebRTC is off" in site.log.read_text()
    page.context.close()
    page = opened(browser, direct, "via=webrtc&screen=wall")  # screens in step are MSE's
    assert not page.evaluate("player.direct")
    page.context.close()
