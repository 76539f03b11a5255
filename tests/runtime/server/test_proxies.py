"""Behind real reverse proxies, set up as the documents say, with the server below a path and with a host of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from serving import CHROMIUM, Site, ask, free_port, serve, until, wait_for

DOCS = Path(__file__).parents[3] / "docs"
PLAYS = "window.player && player.shown() > 8"


def nginx(site: Site, path: str, port: int, folder: Path) -> list[str]:
    """The block of serve.md in the least that nginx starts with."""
    text = (DOCS / "serve.md").read_text()
    block = text[text.index("```nginx\n") + 9 :].partition("```")[0]
    block = block.replace("location /lobby/", f"location {path}").replace("127.0.0.1:8080", f"127.0.0.1:{site.port}")
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    server = f"server {{ listen 127.0.0.1:{port}; {block} }}"
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {temporary} {server} }}"
    )
    return ["nginx", "-c", str(folder / "nginx.conf")]


def caddy(site: Site, path: str, port: int, folder: Path) -> list[str]:
    """The file of docs/deploy, one of its two sites at an address of this machine."""
    text = (DOCS / "deploy" / "Caddyfile").read_text().replace("127.0.0.1:8080", f"127.0.0.1:{site.port}")
    mine, other = ("signage", "wall") if path == "/lobby/" else ("wall", "signage")
    text = re.sub(rf"(?m)^{mine}\.example \{{", f"http://127.0.0.1:{port} {{", text)
    text = re.sub(rf"(?m)^{other}\.example \{{", f"http://127.0.0.1:{free_port()} {{", text)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("behind"), bundle_path, "[video]\nwebrtc = 4\n") as running:
        yield running


@pytest.fixture(
    scope="module",
    params=[(make, path) for make in (nginx, caddy) for path in ("/", "/lobby/")],
    ids=lambda p: str(p[1]),
)
def address(request: pytest.FixtureRequest, behind: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    make, path = request.param
    if shutil.which(make.__name__) is None:
        pytest.skip(f"{make.__name__} is not installed")
    port = free_port()
    command = make(behind, path, port, tmp_path_factory.mktemp(make.__name__))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}{path}"
    try:
        wait_for(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, command
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return ask(f"{url}readyz")[0] == 200
    except OSError:
        return False


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
@pytest.mark.parametrize("via", ["mse", "webrtc"])
def test_the_player(address: str, browser: Browser, behind: Site, via: str) -> None:
    page = browser.new_context(viewport={"width": 640, "height": 360}).new_page()
    page.goto(f"{address}?screen=x&via={via}")
    until(page, PLAYS, 60)
    assert page.evaluate("Boolean(player.direct)") == (via == "webrtc")
    page.goto(f"{address}operator")  # leaving gives the connection back, by the address that the proxy has made of it
    until(page, "document.getElementById('prompt').textContent.length > 3", 20)
    wait_for(lambda: behind.metric("webrtc_viewers") == 0, 60)
    page.context.close()


def test_what_streams(address: str) -> None:
    """Motion JPEG comes picture by picture, not when a buffer is full; HLS names segments that are there."""
    with urllib.request.urlopen(f"{address}video.mjpeg", timeout=20) as answer:
        data = b""
        while data.count(b"--frame") < 4:
            data += answer.read1(4096)
    assert len(data) < 32_000
    playlist = wait_for(lambda: (found := ask(f"{address}hls/live.m3u8"))[0] == 200 and found[1].decode())
    status, segment = ask(f"{address}hls/{playlist.splitlines()[-1]}")
    assert status == 200
    assert segment[4:8] == b"moof"


def test_orders(address: str) -> None:
    assert ask(f"{address}api/pause", "POST", token=None)[0] == 401
    assert ask(f"{address}api/pause", "POST")[0] == 204
    assert ask(f"{address}api/resume", "POST")[0] == 204
