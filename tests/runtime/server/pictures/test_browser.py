"""Both pages in a real Chromium: the picture moves, changes with the prompt, comes back, and a frozen one is noticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from everframe.runtime import DEMO_BUNDLE

from serving import CHROMIUM, TOKEN, Site, free_port, serve, until, wait_for

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
# Mean colour of what the video element shows.
COLOUR = """() => {
  const c = document.createElement("canvas"); c.width = 16; c.height = 9;
  const d = c.getContext("2d"); d.drawImage(document.querySelector("video"), 0, 0, 16, 9);
  const p = d.getImageData(0, 0, 16, 9).data, sum = [0, 0, 0];
  for (let i = 0; i < p.length; i += 4) for (let j = 0; j < 3; j++) sum[j] += p[i + j] / 144;
  return sum;
}"""
SEA, REEF, SNOW = (
    "a calm sea under an orange sunset sky",
    "orange fish swimming in a turquoise reef",
    "snow falling on pine trees at night",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("demo"), DEMO_BUNDLE, "[stream]\nsave_seconds = 5\n") as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 640, "height": 360})
    made = context.new_page()
    made.errors = []  # type: ignore[attr-defined]
    made.on("pageerror", lambda error: made.errors.append(str(error)))  # type: ignore[attr-defined]
    yield made
    assert made.errors == []  # type: ignore[attr-defined]
    context.close()


def watch(page: Page, site: Site, query: str = "") -> Page:
    page.goto(f"{site.url.replace('127.0.0.1', 'localhost')}/{query}")
    until(page, "window.player && player.shown() > 8", 60)
    return page


def moving(page: Page, seconds: float = 1.5) -> bool:
    """Whether time and frames of the video element advance."""
    ask = "[document.querySelector('video').currentTime, player.shown()]"
    before = page.evaluate(ask)
    time.sleep(seconds)
    after = page.evaluate(ask)
    return after[0] > before[0] and after[1] > before[1]


def test_the_picture_moves_and_fills_the_screen(page: Page, demo: Site) -> None:
    watch(page, demo)
    assert moving(page)
    box = page.locator("video").bounding_box()
    assert box == {"x": 0, "y": 0, "width": 640, "height": 360}
    shots = []
    for _ in range(4):
        shots.append(page.screenshot())
        time.sleep(1.5)
    assert len(set(shots)) > 1  # pixels change
    assert page.evaluate("document.body.innerText.trim()") == ""  # nothing to read
    assert page.evaluate("player.ahead()") < 3  # close to the live edge


@pytest.mark.parametrize(("transition", "prompt"), [("cut", REEF), ("flush", SEA), ("smooth", REEF), ("swap", SEA)])
def test_a_prompt_change_is_seen_on_the_screen(page: Page, demo: Site, transition: str, prompt: str) -> None:
    """The reef is more blue than red, the sunset more red than blue."""

    def bluer() -> float:
        red, _, blue = page.evaluate(COLOUR)
        return (blue - red) * (1 if prompt == REEF else -1)

    other = SEA if prompt == REEF else REEF
    demo.ask("/api/prompt", "POST", {"prompt": other, "transition": "cut"})
    watch(page, demo)
    wait_for(lambda: bluer() < -15, 60)
    demo.ask("/api/prompt", "POST", {"prompt": prompt, "transition": transition})
    wait_for(lambda: bluer() > 5, 60)


def test_two_viewers_and_a_preview(browser: Browser, page: Page, demo: Site) -> None:
    watch(page, demo, "?screen=one")
    second = browser.new_context().new_page()
    watch(second, demo, "?screen=two")
    assert moving(page)
    assert moving(second)
    assert demo.metric("viewers") >= 2
    second.close()


def test_the_generator_is_killed_and_the_screen_goes_on(page: Page, demo: Site) -> None:
    watch(page, demo)
    restarts = demo.state_of()["restarts"]
    os.kill(demo.generator(), signal.SIGKILL)
    assert moving(page, 1)  # the channel repeats its last frame
    wait_for(lambda: demo.state_of()["restarts"] > restarts)
    wait_for(lambda: demo.state_of()["generator"] == "running", 60)
    before = page.evaluate("player.shown()")
    assert moving(page)
    assert page.evaluate("player.shown()") > before


@pytest.mark.slow
def test_a_frozen_viewer_is_noticed_reloaded_and_reported(page: Page, demo: Site) -> None:
    """The page's video stands still while its connection lives: three times, then /healthz names the screen."""
    for number in range(1, 4):
        watch(page, demo, "?screen=lobby")
        before = demo.metric("viewer_reloads_total")
        page.evaluate(
            "() => { window.stale = true; player.watch = () => {}; player.feed = () => {}; player.play = () => {};"
            " document.querySelector('video').pause(); }"
        )
        wait_for(lambda b=before: demo.metric("viewer_reloads_total") > b, 40)
        until(page, "window.stale === undefined && window.player", 20)
        until(page, "player.shown() > 8", 60)  # it recovered
        problems = demo.ask("/healthz")[1]["problems"]
        assert any("'lobby'" in problem for problem in problems) == (number == 3)


def test_a_slow_viewer_costs_nobody_anything(page: Page, demo: Site) -> None:
    """A connection that never reads: the others go on, and its queue is bounded."""
    import base64
    import socket

    with socket.create_connection(("127.0.0.1", demo.port), 10) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = base64.b64encode(os.urandom(16)).decode()
        s.sendall(
            f"GET /ws/video?screen=slow HTTP/1.1\r\nHost: 127.0.0.1:{demo.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        watch(page, demo)
        wait_for(lambda: demo.metric("viewers") >= 2)
        memory = demo.metric("memory_bytes")
        for _ in range(6):
            assert moving(page, 1.5)
        assert demo.metric("memory_bytes") < memory + (30 << 20)
    # It never said a word, so it is given up.
    wait_for(lambda: demo.metric("viewers") == 1, 60)


def test_foreign_pages_cannot_open_the_socket(page: Page, demo: Site) -> None:
    page.goto("about:blank")
    code = page.evaluate(
        f"""() => new Promise((done) => {{
            const s = new WebSocket("ws://127.0.0.1:{demo.port}/ws/video");
            s.onmessage = () => done("opened"); s.onclose = (e) => done(e.code);
        }})"""
    )
    assert code != "opened"


@pytest.mark.slow
def test_the_screen_survives_a_restart_of_the_server(page: Page, tmp_path: Path) -> None:
    """Reloaded while the server is away, the page comes out of the browser's cache and finds the server again."""
    port = free_port()
    with serve(tmp_path, DEMO_BUNDLE, port=port) as site:
        watch(page, site)
        until(page, "navigator.serviceWorker.ready.then(() => caches.match('/')).then(Boolean)", 20)
    page.reload()
    assert page.locator("video").count() == 1
    until(page, "window.player", 10)
    with serve(tmp_path, DEMO_BUNDLE, port=port):
        until(page, "player.shown() > 8", 60)
        assert moving(page)


def test_the_operator_page(page: Page, demo: Site) -> None:
    page.set_viewport_size({"width": 390, "height": 800})  # a phone
    page.goto(f"http://localhost:{demo.port}/operator")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out
    until(page, "document.getElementById('prompt').textContent.length > 3", 20)
    page.select_option("#text", SNOW)
    page.get_by_role("button", name="Change", exact=True).click()
    until(page, "document.getElementById('told').textContent.includes('token')")  # refused, in words
    page.fill("#token", TOKEN)
    page.select_option("#transition", "cut")
    page.get_by_role("button", name="Change", exact=True).click()
    wait_for(lambda: demo.state_of()["prompt"] == SNOW)
    until(page, f"document.getElementById('prompt').textContent === '{SNOW}'")
    page.fill("#items", f"30: {SEA}\n30: {REEF}")
    page.get_by_role("button", name="Start", exact=True).click()
    wait_for(lambda: demo.state_of()["prompt"] == SEA)
    page.click("#next")
    wait_for(lambda: demo.state_of()["prompt"] == REEF)
    page.click("#end")
    page.click("#pause")
    wait_for(lambda: demo.state_of()["paused"])
    until(page, "document.getElementById('pause').textContent === 'Resume'")
    page.click("#pause")
    wait_for(lambda: not demo.state_of()["paused"])
    until(page, "document.getElementById('lines').textContent.includes('generator ready')", 20)
    # Every field has a label, every section a name.
    assert page.evaluate("[...document.querySelectorAll('input,select,textarea')].every((e) => e.labels.length > 0)")
    assert page.evaluate("[...document.querySelectorAll('section')].every((e) => e.getAttribute('aria-labelledby'))")


@pytest.mark.slow
def test_memory_with_viewers_coming_and_going(browser: Browser, demo: Site) -> None:
    memory = []
    for _ in range(6):
        context = browser.new_context()
        watch(context.new_page(), demo)
        memory.append(demo.metric("memory_bytes"))
        context.close()
    wait_for(lambda: demo.metric("viewers") == 0, 60)
    assert memory[-1] < memory[1] + (20 << 20)
