"""The player's page shown in other ways, in a real Chromium: in frames, below a path, on its side, on a phone."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Frame
from websockets.sync.client import connect

from everframe.runtime.server import app as pages
from everframe.runtime.server.config import Server
from everframe.runtime.server.guard import headers_of

from serving import CHROMIUM, DEAF, NO_MSE, NOWHERE, Site, free_port, page_of, serve, until, wait_for

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
PLAYS = "window.player && player.shown() > 8"


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    text = '[video]\nkeyframe_seconds = 0.5\n[playlist]\nitems = [{prompt = "a quiet sea", seconds = 60}]\n'
    with serve(tmp_path_factory.mktemp("framed"), bundle_path, f'embed = ["*"]\n{text}') as running:
        yield running


BOX = "JSON.stringify(document.querySelector('video').getBoundingClientRect())"
FIT = "getComputedStyle(document.querySelector('video')).objectFit"


@pytest.mark.parametrize("angle", ["90", "180", "270"])
def test_a_screen_that_hangs_on_its_side(framed: Site, browser: Browser, angle: str) -> None:
    """The picture fills the screen, and its upper edge is where the screen's is."""
    with page_of(browser, 540, 960) as page:
        page.goto(f"{framed.url}/?rotate={angle}&fit=contain")
        until(page, PLAYS, 60)
        box = page.evaluate(BOX)
        assert '"x":0,"y":0,"width":540,"height":960' in box
        assert page.evaluate(FIT) == "contain"
        matrix = page.evaluate("getComputedStyle(document.querySelector('#stage')).transform")
        turned = {"90": "matrix(0, 1, -1, 0", "180": "matrix(-1, 0, 0, -1", "270": "matrix(0, -1, 1, 0"}
        assert matrix.startswith(turned[angle])


def test_without_asking_the_picture_fills_the_screen(framed: Site, browser: Browser) -> None:
    with page_of(browser, 540, 960) as page:
        page.goto(f"{framed.url}/?rotate=45&fit=x")
        until(page, PLAYS, 60)
        assert page.evaluate(FIT) == "cover"
        assert '"width":540,"height":960' in page.evaluate(BOX)


@pytest.mark.parametrize("hls", [True, False])
def test_a_browser_without_media_source(framed: Site, browser: Browser, hls: bool) -> None:
    """It gets HLS as a phone does, or Motion JPEG where it plays no HLS; and is never told that it is frozen."""
    with page_of(browser, script=NO_MSE + ("" if hls else DEAF + NOWHERE)) as page:
        loads = []
        page.on("framenavigated", lambda frame: loads.append(frame.url))
        page.goto(f"{framed.url}/?screen=phone")
        assert page.evaluate("typeof MediaSource") == "undefined"
        if hls:
            until(page, "document.querySelector('video').currentSrc.endsWith('/hls/live.m3u8')")
            until(
                page,
                "document.querySelector('video').currentTime > 1 || document.querySelector('img')?.naturalWidth",
                60,
            )
        else:
            until(page, "document.querySelector('img')?.naturalWidth === 64", 60)
        time.sleep(10)
        assert len(loads) == 1
        assert framed.ask("/healthz")[1]["status"] == "ok"


SHOWN = "document.querySelector('video').currentTime > 1 || document.querySelector('img')?.naturalWidth"


def test_a_browser_that_plays_no_h264(framed: Site, browser: Browser) -> None:
    """As builds without the codecs that cost licences: other ways show the picture, and the log says why."""
    with page_of(browser, script="MediaSource.isTypeSupported = () => false;") as page:
        page.goto(f"{framed.url}/?screen=free")
        until(page, f"player.ended && ({SHOWN})", 60)
    assert "screen 'free': this browser does not play video/mp4" in framed.log.read_text()


def test_a_proxy_that_passes_no_websocket_on(framed: Site, browser: Browser) -> None:
    """The page is there, its WebSocket is refused: other ways show the picture; the log says what the proxy has to do."""
    closed = free_port()
    elsewhere = f"constructor() {{ super('ws://127.0.0.1:{closed}'); }}"
    script = f"const Real = WebSocket; window.WebSocket = class extends Real {{ {elsewhere} }};"
    with page_of(browser, script=script) as page:
        page.goto(f"{framed.url}/?screen=office")
        until(page, f"player.ended && ({SHOWN})", 60)
    assert framed.ask("/ws/video")[0] == 426  # which pages ask themselves
    assert "came without Upgrade" not in framed.log.read_text()
    assert framed.ask("/ws/video", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==")[0] == 426
    address = f"{framed.url.replace('http', 'ws', 1)}/ws/video?screen=x&why=y%0A2026-01-01%20ERROR%20forged"
    with connect(address):
        wait_for(lambda: "ERROR forged" in framed.log.read_text())
    assert not [line for line in framed.log.read_text().splitlines() if line.startswith("2026-01-01 ERROR")]
    assert "came without Upgrade: a proxy has to pass Upgrade and Connection on" in framed.log.read_text()


@pytest.mark.parametrize("old", [False, True])
def test_a_named_screen_without_a_connection(bundle_path: Path, browser: Browser, tmp_path: Path, old: bool) -> None:
    """It hangs as the configuration says, and counts as there."""
    config = "missing_seconds = 3\n[video]\nkeyframe_seconds = 0.5\n[screens.tv]\nrotate = 90\n"
    with serve(tmp_path, bundle_path, config) as site, page_of(browser, script=NO_MSE) as page:
        if old:  # a browser that knows no modules
            page.route("**/static/screen.js", lambda route: route.abort())
        page.goto(f"{site.url}/?screen=tv")
        until(page, "document.body.classList.contains('rotate-90')")
        time.sleep(4)
        assert site.ask("/healthz")[1]["problems"] == []
        assert site.ask("/api/screens")[1]["screens"][0]["state"] == "ok"
        assert site.ask("/api/screens/somebody/view")[1].keys() == {"life", "message"}
        for path in ("/api/screens/tv/view", "/ws/video"):  # which a page in a sandboxed frame asks too
            try:
                answer = urllib.request.urlopen(site.url + path)
            except urllib.error.HTTPError as refused:
                answer = refused
            assert answer.headers["Access-Control-Allow-Origin"] == "*"


PAGES = sorted((Path(pages.__file__).parent / "pages").glob("*.js"))


@pytest.mark.parametrize("file", PAGES, ids=[file.name for file in PAGES])
def test_pages_keep_to_what_older_browsers_know(file: Path) -> None:
    """One word that a browser does not know, and it runs nothing of the file: televisions of 2018, iPhones of 2019."""
    young = re.findall(r"\?\?|\?\.[A-Za-z(\[]|catch \{|replaceChildren|\.at\(|structuredClone", file.read_text())
    assert young == []


def test_named_pages_may_embed_the_player() -> None:
    policy = dict(headers_of(Server()))[b"content-security-policy"]
    assert b"frame-ancestors 'self';" in policy
    policy = dict(headers_of(Server(embed=["https://Intranet.example"])))[b"content-security-policy"]
    assert b"frame-ancestors 'self' https://intranet.example;" in policy


@pytest.mark.parametrize("sandbox", ["", 'sandbox="allow-scripts"'])
def test_in_a_frame_of_another_page(
    framed: Site,
    browser: Browser,
    tmp_path: Path,
    sandbox: str,
) -> None:
    (tmp_path / "x.html").write_text(f"<iframe {sandbox} src='{framed.url}/' width=500 height=300></iframe>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object):
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with page_of(browser) as page:
            page.goto(f"http://localhost:{other.server_port}/x.html")

            def inner() -> Frame | None:
                return next((f for f in page.frames if f.url.startswith(framed.url)), None)

            wait_for(inner)
            until(inner(), PLAYS, 60)  # type: ignore[arg-type]
            assert framed.ask("/api/overlay/message", "POST", {"text": "Leave"})[0] == 204
            lies = "!document.querySelector('#overlay').hidden && document.querySelector('#overlay').width > 1"
            until(inner(), lies)  # type: ignore[arg-type]
            assert framed.ask("/api/overlay/message", "DELETE")[0] == 204
        other.shutdown()


@contextmanager
def below(path: str, site: Site) -> Iterator[int]:
    """A reverse proxy as small as can be: takes the path off every request's first line and passes the rest through."""
    listener = socket.create_server(("127.0.0.1", port := free_port()))

    def pump(source: socket.socket, target: socket.socket, first: bool) -> None:
        try:
            while data := source.recv(65536):
                if first:
                    verb, rest = data.split(b" ", 1)
                    if not rest.startswith(path.encode()):
                        target.sendall(b"GET /nothing/here HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                        continue
                    data = verb + b" /" + rest.removeprefix(path.encode())
                    if b"upgrade: websocket" in data.lower():
                        first = False  # frames follow
                target.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, target):
                one.close()

    def take() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", site.port))
            threading.Thread(target=pump, args=(client, upstream, True), daemon=True).start()
            threading.Thread(target=pump, args=(upstream, client, False), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()
    yield port
    listener.close()


def test_below_a_path_of_a_reverse_proxy(framed: Site, browser: Browser) -> None:
    with below("/lobby/", framed) as port, page_of(browser) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/lobby/?screen=x")
        until(page, PLAYS, 60)
        page.goto(f"http://127.0.0.1:{port}/lobby/operator")
        until(page, "document.getElementById('prompt').textContent === 'a quiet sea'", 60)
        assert all(url.startswith(f"http://127.0.0.1:{port}/lobby/") for url in asked if url.startswith("http")), asked
