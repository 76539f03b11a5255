"""The memory of an hour with all of it on: a server with overlay, visitors, HLS, Motion JPEG, WebRTC, MSE, a push, OSC.

    nice -n 10 python benchmarks/everything_on.py [--minutes 60] [--precision bf16] [--width 640] [--out …]

Starts the server, opens Chromium with two players (MSE, WebRTC), the visitors' and the operator's page, reads HLS, Motion
JPEG and the pushed stream, gives orders by OSC and wishes as a visitor, and once a minute loads a third player anew, which
comes and goes by both ways in turn. Every minute the resident memory of every process is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, ViewportSize, sync_playwright
from pythonosc.udp_client import SimpleUDPClient

from everframe.runtime import DEMO_BUNDLE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime" / "server"))
from serving import CHROMIUM, FLAGS, Site, free_port, serve, until

CONFIG = """[stream]
backend = "{backend}"
precision = "{precision}"
[video]
webrtc = 4
push = ["udp://127.0.0.1:{sink}"]
push_audio = "silence"
[osc]
enabled = true
port = {osc}
[guest]
enabled = true
seconds = 20
every_seconds = 0
[overlay]
clock = {{format = "%H:%M:%S", at = "top-left"}}
ticker = {{text = "Lunch is at twelve", speed = 12}}
code = {{text = "https://example.org/visit"}}
[[overlay.texts]]
text = "Welcome"
"""
PAGES = ("?screen=mse&via=mse", "?screen=webrtc&via=webrtc", "guest", "operator")
VISITOR = "0123456789abcdef01234567"


class Readers:
    """Whoever reads what is no page: bytes by the way they took."""

    def __init__(self, site: Site, sink: socket.socket):
        self.bytes = {"hls": 0, "mjpeg": 0, "push": 0}
        for name, work in (("hls", self._hls), ("mjpeg", self._mjpeg), ("push", self._push)):
            threading.Thread(target=self._again, args=(name, work, site, sink), daemon=True).start()

    def _again(self, name: str, work: Callable[..., Any], site: Site, sink: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                for size in work(site, sink):
                    self.bytes[name] += size
            time.sleep(1)

    def _hls(self, site: Site, _: socket.socket) -> Any:
        for line in site.ask("/hls/live.m3u8")[1].decode().splitlines()[-1:]:
            yield len(site.ask(f"/hls/{line}")[1])

    def _mjpeg(self, site: Site, _: socket.socket) -> Any:
        with urllib.request.urlopen(f"{site.url}/video.mjpeg", timeout=60) as answer:
            while data := answer.read1(1 << 16):
                yield len(data)

    def _push(self, _: Site, sink: socket.socket) -> Any:
        while True:
            yield len(sink.recv(1 << 16))


def memory(site: Site) -> dict[str, float]:
    """MiB of every process: the server's two, and Chromium's by what they do, summed."""
    found: dict[str, float] = {}
    generator = site.generator()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words, size = " ".join(process.cmdline()), process.memory_info().rss / 2**20
            if process.pid in (site.process.pid, generator):
                name = "web process" if process.pid == site.process.pid else "generator"
            elif "chromium" in words:
                name = f"chromium {words.partition('--type=')[2].split(' ')[0] or 'browser'}"
            else:
                continue
            found[name] = round(found.get(name, 0) + size, 1)
    return found


def minute(site: Site, osc: SimpleUDPClient, prompts: list[str], n: int, third: Page) -> None:
    """Orders, wishes, and a screen that comes and goes."""
    third.goto(f"{site.url}/?screen=third&via={('mse', 'webrtc')[n % 2]}", wait_until="commit", timeout=0)
    osc.send_message("/everframe/prompt", [prompts[n % len(prompts)], ("smooth", "cut")[n % 2]])
    time.sleep(20)
    site.ask("/api/guest", "POST", {"visitor": VISITOR, "prompt": prompts[(n + 3) % len(prompts)]}, token=None)
    text = {"text": f"Note {n}", "at": "bottom-left"}
    now = site.ask("/api/overlay")[1]
    site.ask("/api/overlay", "PUT", {k: v for k, v in now.items() if k not in ("message", "font")} | {"texts": [text]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--backend", default="openvino", help="the demo's engine in the server")
    parser.add_argument("--precision", default="auto", help="of openvino")
    parser.add_argument(
        "--width", type=int, default=320, help="of the pages; a browser without a GPU pays for each pixel"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/measured/everything_on.json"))
    args = parser.parse_args()
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    port = free_port()
    config = CONFIG.format(sink=sink.getsockname()[1], osc=port, backend=args.backend, precision=args.precision)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), DEMO_BUNDLE, config) as site,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        viewport: ViewportSize = {"width": args.width, "height": args.width * 9 // 16}
        pages = [browser.new_context(viewport=viewport).new_page() for _ in PAGES]
        for page, address in zip(pages, PAGES, strict=True):
            page.goto(f"{site.url}/{address}")
        for page in pages[:2]:
            until(page, "window.player && player.shown() > 30", 90)
        readers, osc = Readers(site, sink), SimpleUDPClient("127.0.0.1", port)
        prompts, third, rows = site.ask("/api/prompts")[1]["prompts"], browser.new_page(viewport=viewport), []
        began = time.monotonic()
        for n in range(args.minutes):
            minute(site, osc, prompts, n, third)
            time.sleep(max(0.0, began + 60 * (n + 1) - time.monotonic()))
            state, listed = site.state_of(), site.ask("/api/screens")[1]["screens"]
            row = {"minute": n + 1, "mib": memory(site), "bytes": dict(readers.bytes), "load": os.getloadavg()[0]}
            row |= {"fps": {s["name"]: s.get("fps") for s in listed}, "webrtc": site.metric("webrtc_viewers")}
            row |= {key: state[key] for key in ("restarts", "frames_shown", "frames_repeated", "real_time_factor")}
            rows.append(row)
            print(row, flush=True)
            args.out.write_text(json.dumps({"minutes": rows}, indent=1) + "\n")
        browser.close()


if __name__ == "__main__":
    main()
