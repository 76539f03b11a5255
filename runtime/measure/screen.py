"""`everframe bench --browser`: from an order to the screen, end to end.

Seconds from the request of a cut until a Chromium on this machine shows the new scene. A server of its own is started, its
page is opened, and cuts between two prompts are ordered; the page looks at its video at every frame that is put on the
screen and notes its mean colour, which comes nearer to the other prompt's.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...engines.errors import UserError
from ...engines.text import first_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
)
START, LONGEST = 240.0, 20.0  # seconds that a first picture and a cut are waited for
SETTLED = 4.0  # seconds after which a cut has become its scene
WATCH = """() => {
  const video = document.querySelector("video"), c = document.createElement("canvas");
  c.width = c.height = 8;
  const pen = c.getContext("2d", { willReadFrequently: true });
  window.colours = [];
  const look = () => {
    pen.drawImage(video, 0, 0, 8, 8);
    const p = pen.getImageData(0, 0, 8, 8).data, sum = [0, 0, 0];
    for (let i = 0; i < p.length; i += 4) for (let j = 0; j < 3; j++) sum[j] += p[i + j] / 64;
    window.colours.push([Date.now() / 1000, ...sum]);
    if (window.colours.length > 1000) window.colours.shift();
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}"""


@dataclass(frozen=True)
class Taken:
    """Seconds of every cut, by the way that the picture took, and the generator's chunk meanwhile."""

    way: str
    cuts: list[float]
    chunk_ms: float


@dataclass(frozen=True)
class Served:
    """A server of our own."""

    url: str
    token: str

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST where there is a body; both JSON. Raises UserError."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError) as error:  # refused, or no answer
            raise UserError(f"the server that is measured does not answer {path}: {error}") from None


def find_browser() -> str:
    """Raises UserError where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(f"--browser: no Chromium on PATH, expected one of {', '.join(BROWSERS)}")
    return found


def order_to_screen(
    bundle: Path,
    ways: Sequence[str],
    cuts: int,
    stream: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Taken]:
    """What cuts take by each way to the screen: "mse", "webrtc". One after the other, with one server.

    stream: of the server's configuration. Raises UserError where there is no Chromium, no playwright, or no picture.
    """
    browser = find_browser()
    try:
        from playwright.sync_api import Error as PlaywrightError
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("--browser: needs playwright: pip install 'everframe[browser]'") from None
    with served(bundle, "webrtc" in ways, stream or {}) as site, sync_playwright() as play:
        try:
            running = play.chromium.launch(executable_path=browser, args=FLAGS)
            try:
                return [_cuts(site, running, way, cuts, tell) for way in ways]
            finally:
                running.close()
        except PlaywrightError as error:
            raise UserError(f"--browser: {browser}: {first_line(error)}") from None


@contextlib.contextmanager
def served(bundle: Path, webrtc: bool, stream: Mapping[str, Any]) -> Iterator[Served]:
    """`everframe serve` in a process of its own. Raises UserError with its last words where it does not start."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port, token = probe.getsockname()[1], secrets.token_hex(16)
        probe.close()
        settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in stream.items() if value is not None)
        file, log = Path(folder, "bench.toml"), Path(folder, "log")
        server = f'[server]\nport = {port}\ntoken = "{token}"\nrate = 1000\n'
        file.write_text(f'state_dir = "state"\n{server}[video]\nwebrtc = {int(webrtc)}\n[stream]\n{settings}\n')
        command = [sys.executable, "-m", "everframe.runtime.cli", "serve", str(bundle), "--config", str(file)]
        with open(log, "wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            site = Served(f"http://127.0.0.1:{port}", token)
            _until(
                lambda: process.poll() is not None or _ready(site), START, "the server that is measured is not ready"
            )
            if process.poll() is not None:
                said = log.read_text().strip().splitlines() or [f"ended with {process.returncode}"]
                raise UserError(f"the server that is measured: {said[-1]}")
            yield site
        finally:
            process.terminate()
            process.wait()


def _ready(site: Served) -> bool:
    try:
        with urllib.request.urlopen(f"{site.url}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _cuts(site: Served, browser: Any, way: str, cuts: int, tell: Callable[[str], None]) -> Taken:
    page = browser.new_page(viewport={"width": 640, "height": 360})
    page.goto(f"{site.url}/?via={way}")
    _until(lambda: page.evaluate("window.player && player.shown() > 30"), START, f"no picture by {way}")
    if (why := page.evaluate("player.why")) or page.evaluate("Boolean(player.direct)") != (way == "webrtc"):
        raise UserError(f"--browser: the page shows no picture by {way}: {why}")
    page.evaluate(WATCH)
    prompts = site.ask("/api/prompts")["prompts"]
    pair, colours, taken = (prompts[0], prompts[-1]), [], []
    for prompt in pair:
        _order(site, prompt)
        _until(lambda p=prompt: site.ask("/api/state")["prompt"] == p, LONGEST, "a cut is not made")
        time.sleep(1.5 * SETTLED)
        colours.append(_settled(page))
    for i in range(cuts):
        old, new = colours[1 - i % 2], colours[i % 2]
        # Else what is seen at once would be the cut before, or no cut at all.
        _until(lambda o=old, n=new: _nearer(_settled(page), o, n), LONGEST, "the scene before a cut is not seen")
        page.evaluate("window.colours = []")
        began = time.time()
        _order(site, pair[i % 2])
        seen: list[float] = []
        _until(lambda b=began, o=old, n=new, s=seen: s.extend(_first(page, b, o, n)) or s, LONGEST, "a cut is not seen")
        taken.append(seen[0] - began)
        tell(f"{way}, cut {i + 1} of {cuts}: {taken[-1]:.2f} s")
        time.sleep(SETTLED + 0.37 * i % 1)  # so that a cut comes anywhere in a chunk
    page.close()
    return Taken(way, taken, site.ask("/api/state")["chunk_ms"])


def _order(site: Served, prompt: str) -> None:
    site.ask("/api/prompt", {"prompt": prompt, "transition": "cut"})


def _settled(page: Any) -> list[float]:
    """Mean colour over a second."""
    page.evaluate("window.colours = []")
    time.sleep(1)
    rows = page.evaluate("window.colours")
    if not rows:
        raise UserError("--browser: the picture stands still: the machine is too slow for it")
    return np.mean(rows, 0)[1:].tolist()


def _first(page: Any, began: float, old: list[float], new: list[float]) -> list[float]:
    """When a frame was first nearer to the new scene than to the old one."""
    rows = [row for row in page.evaluate("window.colours") if row[0] > began]
    return [row[0] for row in rows if _nearer(row[1:], new, old)][:1]


def _nearer(colour: list[float], one: list[float], other: list[float]) -> bool:
    return _apart(colour, one) < _apart(colour, other)


def _apart(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def _until(what: Callable[[], Any], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise UserError(f"{otherwise} within {seconds:.0f} s")
        time.sleep(0.1)


def summary(found: Sequence[Taken]) -> list[list[str]]:
    """Rows of COLUMNS."""
    rows, base = [], float(np.median(found[0].cuts))
    for one in found:
        median, p99 = np.percentile(one.cuts, (50, 99))
        figures = (median, p99, min(one.cuts), max(one.cuts), one.chunk_ms / 1000, median / base)
        rows.append([one.way, str(len(one.cuts)), *(f"{figure:.2f}" for figure in figures)])
    return rows


def record(found: Sequence[Taken], of: dict[str, Any]) -> str:
    """As JSON. of: what it was, where."""
    return json.dumps(of | {"order_to_screen": [asdict(one) for one in found]}, indent=1) + "\n"


COLUMNS = ("order to screen by", "cuts", "median s", "p99 s", "best s", "worst s", "chunk s", "ratio of medians")
