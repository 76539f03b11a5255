"""A real `everframe serve`, for the tests to talk to."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-for-the-tests"
COMMAND = (sys.executable, "-c", "from everframe.runtime.cli import main; main()", "serve")


CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
]

# Abilities that are taken away from it before a page's own scripts run: Media Source Extensions, naming HLS, playing it.
NO_MSE = "delete window.MediaSource; delete window.ManagedMediaSource; delete window.WebKitMediaSource;"
DEAF = "HTMLMediaElement.prototype.canPlayType = () => '';"
NOWHERE = (
    "Object.defineProperty(HTMLMediaElement.prototype, 'src', "
    "{set(v) { this.setAttribute('src', String(v).replace('live.m3u8', 'none')) }});"
)


@contextlib.contextmanager
def page_of(browser: Any, width: int = 640, height: int = 360, script: str = "") -> Iterator[Any]:
    """A page of a browser's context of its own; script: run before the page's own."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    if script:
        page.add_init_script(script)
    yield page
    context.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.05)
    return found


def ask(url: str, method: str = "GET", body: Any = None, token: str | None = TOKEN, **headers: str) -> tuple[int, Any]:
    """Status and body: JSON where it is, else bytes."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, content, kind = answer.status, answer.read(), answer.headers.get("content-type", "")
    except urllib.error.HTTPError as error:
        status, content, kind = error.code, error.read(), error.headers.get("content-type", "")
    return status, json.loads(content) if "json" in kind and content else content


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Until it is true in the page. (Playwright's own wait evaluates strings in the page, which the pages' CSP forbids.)"""
    from playwright.sync_api import Error

    def true() -> bool:
        try:
            return bool(page.evaluate(expression))
        except Error:  # the page is just being loaded
            return False

    wait_for(true, seconds)


@dataclass
class Site:
    """A real `everframe serve` in a process of its own."""

    port: int
    state: Path
    process: subprocess.Popen
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        return ask(self.url + path, method, body, token, **headers)

    def state_of(self) -> dict[str, Any]:
        return self.ask("/api/state")[1]

    def metric(self, name: str) -> float:
        text = self.ask("/metrics")[1].decode()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"everframe_{name} "))

    def generator(self) -> int:
        """Its process, found by what it holds: the child that is no helper of multiprocessing."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        # Children of all threads: the supervisor's thread starts it.
        pids: list[int] = []
        for task in children.parent.parent.iterdir():
            with contextlib.suppress(OSError):
                pids += [int(p) for p in (task / "children").read_text().split()]
        for pid in pids:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in line:
                    return pid
        return 0


def obeys_ctrl_c() -> None:
    """Also where the tests run in the background of a shell, which lets its children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def serve(folder: Path, bundle: Path, config: str = "", port: int | None = None, rate: float = 1000) -> Iterator[Site]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "everframe.toml"
    file.write_text(f'state_dir = "state"\n[server]\ntoken = "{TOKEN}"\nrate = {rate}\n{config}')
    port = port or free_port()
    log = folder / "log.txt"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [
                *(*COMMAND, str(bundle)),
                *("--config", str(file), "--port", str(port)),
            ],
            stdout=out,
            stderr=out,
            preexec_fn=obeys_ctrl_c,
        )
    site = Site(port, folder / "state", process, log)
    try:
        wait_for(lambda: process.poll() is not None or up(site), 180)
        assert process.poll() is None, log.read_text()
        yield site
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def up(site: Site) -> bool:
    try:
        return site.ask("/readyz")[0] == 200
    except OSError:
        return False
