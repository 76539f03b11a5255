"""Named screens in a real Chromium: parts of a wall, in step, listed with what they show, told to reload; and the overlay in
the page."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from serving import CHROMIUM, TOKEN, Site, serve, until, wait_for

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
PLAYS = "window.player && player.shown() > 8"
CONFIG = """
[screens.lobby-left]
w = 48
sync = true
[screens.lobby-right]
x = 52
w = 48
sync = true
[screens.portrait]
rotate = 90
fit = "contain"
[screens."never there"]
"""


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("wall"), bundle_path, f"missing_seconds = 3\n{CONFIG}") as running:
        yield running


def opened(browser: Browser, site: Site, query: str, width: int = 640, height: int = 360) -> Page:
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.goto(f"{site.url}/?{query}")
    until(page, PLAYS, 60)
    return page


def box(page: Page, of: str = "video") -> list[float]:
    found = json.loads(page.evaluate(f"JSON.stringify(document.querySelector('{of}').getBoundingClientRect())"))
    return [found[key] for key in ("x", "y", "width", "height")]


def screen(site: Site, name: str) -> dict[str, Any]:
    return next(one for one in site.ask("/api/screens")[1]["screens"] if one["name"] == name)


def test_parts_of_a_wall(wall: Site, browser: Browser) -> None:
    """48 of 100 fill the screen, so that the whole is 1333⅓ wide; the right one begins at 52; the gap is behind the bezels.
    The address has the last word."""
    left, right = opened(browser, wall, "screen=lobby-left"), opened(browser, wall, "screen=lobby-right")
    until(right, "document.body.style.getPropertyValue('--x') === '52'")
    assert box(left) == pytest.approx([0, 0, 640 / 0.48, 360], abs=0.1)
    assert box(right) == pytest.approx([-0.52 * 640 / 0.48, 0, 640 / 0.48, 360], abs=0.1)
    other = opened(browser, wall, "screen=lobby-right&x=0&y=50&h=50&fit=fill")
    assert box(other) == pytest.approx([0, -360, 640 / 0.48, 720], abs=0.1)
    assert other.evaluate("getComputedStyle(document.querySelector('video')).objectFit") == "fill"
    for page in (left, right, other):
        page.context.close()


def test_a_part_of_a_high_wall_has_its_overlay(wall: Site, browser: Browser) -> None:
    """Of 30 rows at 360 each the whole is 10,800 high, which nobody draws."""
    page = opened(browser, wall, "x=0&y=50&w=100&h=3.333")
    assert box(page)[3] > 10_000
    shown = "(({hidden, height}) => !hidden && height)(document.getElementById('overlay'))"
    assert wall.ask("/api/overlay", "PUT", {"texts": [{"text": "here", "at": "middle"}]})[0] == 200
    until(page, f"{shown} === 2160")
    assert wall.ask("/api/overlay", "DELETE")[0] == 204
    page.context.close()


def test_a_named_screen_takes_its_place_from_the_configuration(wall: Site, browser: Browser) -> None:
    page = opened(browser, wall, "screen=portrait", 540, 960)
    until(page, "document.body.classList.contains('rotate-90')")
    assert box(page) == pytest.approx([0, 0, 540, 960], abs=0.1)
    page.context.close()


def test_a_wall_is_in_step(wall: Site, browser: Browser) -> None:
    """Two screens show the same moment within 50 ms, by their own clocks, and report it."""
    pages = [opened(browser, wall, f"screen=lobby-{side}") for side in ("left", "right")]

    def apart() -> float:
        now = [p.evaluate("[player.video.currentTime, Date.now() / 1000]") for p in pages]
        return abs((now[0][0] - now[0][1]) - (now[1][0] - now[1][1]))

    wait_for(lambda: all((screen(wall, f"lobby-{s}").get("skew_ms") or 1e3) < 50 for s in ("left", "right")), 60)
    time.sleep(5)
    assert np.median([apart() for _ in range(9)]) < 0.05
    for page in pages:
        page.context.close()


def test_the_list_of_screens(wall: Site, browser: Browser) -> None:
    page = opened(browser, wall, "screen=portrait")
    wait_for(lambda: screen(wall, "portrait")["state"] == "ok")
    wait_for(lambda: (screen(wall, "portrait").get("fps") or 0) > 5)
    assert screen(wall, "portrait")["configured"]
    assert screen(wall, "never there")["state"] == "missing"
    assert wall.ask("/api/screens/portrait/picture", "POST", token=None)[0] == 401
    assert wall.ask("/api/screens/portrait/picture", "POST")[0] == 204
    wait_for(lambda: wall.ask("/api/screens/portrait/picture.jpg")[0] == 200)
    with Image.open(io.BytesIO(wall.ask("/api/screens/portrait/picture.jpg")[1])) as shown:
        assert shown.size == (320, 160)
        sent = np.asarray(shown.convert("RGB")).mean((0, 1))
    with Image.open(io.BytesIO(wall.ask("/api/snapshot.png")[1])) as still:
        assert np.abs(sent - np.asarray(still.convert("RGB")).mean((0, 1))).max() < 25
    page.evaluate("window.mark = 1")
    assert wall.ask("/api/screens/portrait/reload", "POST")[0] == 204
    until(page, f"window.mark === undefined && {PLAYS}", 60)
    page.context.close()
    wait_for(lambda: screen(wall, "portrait")["state"] == "missing")
    problems = wait_for(lambda: [p for p in wall.ask("/healthz")[1]["problems"] if "never there" in p])
    assert problems[0].startswith("screen 'never there': missing for")
    assert wall.ask("/api/screens/nobody/reload", "POST")[0] == 404


def test_a_dark_screen_is_told(wall: Site, browser: Browser) -> None:
    page = opened(browser, wall, "screen=portrait")
    page.evaluate("CanvasRenderingContext2D.prototype.drawImage = () => {}")
    assert wall.ask("/api/screens/portrait/picture", "POST")[0] == 204
    wait_for(lambda: screen(wall, "portrait")["state"] == "dark")
    assert "screen 'portrait': dark" in wall.ask("/healthz")[1]["problems"]
    page.context.close()


def test_the_overlay_lies_above_the_video(wall: Site, browser: Browser) -> None:
    """The page's own screenshot: the message's colour everywhere, then the picture again; the ticker's words move."""
    page = opened(browser, wall, "screen=other")

    def seen() -> Any:
        with Image.open(io.BytesIO(page.screenshot())) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    assert wall.ask("/api/overlay/message", "POST", {"text": "out", "ground": "#00ff00", "colour": "#00ff00"})[0] == 204
    wait_for(lambda: np.abs(seen() - (0, 255, 0)).max() < 8)
    assert wall.ask("/api/overlay/message", "DELETE")[0] == 204
    wait_for(lambda: np.abs(seen() - (0, 255, 0)).max() > 50)
    ticker = {"text": "news " * 40, "colour": "#ff00ff", "ground": "#000000", "size": 20, "speed": 50}
    assert wall.ask("/api/overlay", "PUT", {"ticker": ticker})[0] == 200
    pink = lambda: np.abs(seen() - (255, 0, 255)).max(2) < 40  # noqa: E731
    wait_for(lambda: pink().sum() > 500)
    before, after = pink(), pink()
    assert before[:200].sum() == after[:200].sum() == 0  # at the bottom alone
    assert (before != after).sum() > 200
    # A message that comes and goes does not stop the ticker.
    assert wall.ask("/api/overlay/message", "POST", {"text": "out", "ground": "#00ff00", "colour": "#00ff00"})[0] == 204
    wait_for(lambda: np.abs(seen() - (0, 255, 0)).max() < 8)
    assert wall.ask("/api/overlay/message", "DELETE")[0] == 204
    wait_for(lambda: pink().sum() > 500)
    before, after = pink(), pink()
    assert (before != after).sum() > 200
    wall.ask("/api/overlay", "DELETE")
    page.context.close()


@pytest.mark.parametrize(("query", "width", "height"), [("screen=other", 270, 480), ("screen=lobby-left", 640, 360)])
def test_a_message_is_read_whole(wall: Site, browser: Browser, query: str, width: int, height: int) -> None:
    """On a panel that stands, where the picture is cropped to a third, and on one part of a wall: every word is there, as
    the burned-in picture has it, with its ground around it."""
    page = opened(browser, wall, query, width, height)
    message = {"text": "LEAVE the building by the stairs", "ground": "#00ff00", "colour": "#ff0000"}
    assert wall.ask("/api/overlay/message", "POST", message)[0] == 204

    def red() -> Any:
        with Image.open(io.BytesIO(page.screenshot())) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        found = (pixels[..., 0] > 150) & (pixels[..., 1] < 100)
        ground = (np.abs(pixels - (0, 255, 0)).max(2) < 60).mean()
        return found if found.any() and ground > 0.5 else None

    words = wait_for(lambda: (found := red()) is not None and (found,))[0]
    with Image.open(io.BytesIO(wall.ask("/overlay.png?height=360")[1])) as image:
        drawn = np.asarray(image.convert("RGB").resize((width, width // 2))).astype(int)
    burned = (drawn[..., 0] > 150) & (drawn[..., 1] < 100)
    columns, expected = (np.flatnonzero(x.any(0)) for x in (words, burned))
    scale = min(1.0, 2 * height / width)  # contained: a picture of 2:1
    left = (width - scale * width) / 2
    assert abs(columns[0] - left - scale * expected[0]) < 4
    assert abs(columns[-1] - left - scale * expected[-1]) < 4
    assert wall.ask("/api/overlay/message", "DELETE")[0] == 204
    until(page, "document.querySelector('#overlay').hidden")
    page.context.close()


def test_the_list_stays_over_a_restart(bundle_path: Path, browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site:
        page = opened(browser, site, "screen=hall")
        wait_for(lambda: (tmp_path / "state" / "screens.json").exists(), 60)
        page.context.close()
    with serve(tmp_path, bundle_path) as site:
        assert screen(site, "hall")["state"] == "gone"
        assert site.ask("/api/screens/hall", "DELETE")[0] == 204
        assert site.ask("/api/screens")[1] == {"screens": []}


def test_the_operator_sees_and_orders(wall: Site, browser: Browser) -> None:
    """The list of screens and what lies above the picture; an order without the token asks for it, and is given then."""
    seen = opened(browser, wall, "screen=portrait")
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{wall.url}/operator")
    cells = "[r.cells[0].textContent, r.cells[1].textContent].join()"
    rows = f"[...document.querySelectorAll('#screen-list tr')].map((r) => {cells})"
    until(page, f"{rows}.includes('portrait,ok') && {rows}.includes('never there,missing')")
    until(page, "document.getElementById('timetable').textContent.includes('(')")
    page.fill("#line", "Welcome")
    page.check("#clock")
    page.click("#overlay-form button.main")
    until(page, "document.activeElement.id === 'token'")
    assert wall.ask("/api/overlay")[1]["texts"] == []
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    wait_for(lambda: wall.ask("/api/overlay")[1]["texts"])
    shown = wall.ask("/api/overlay")[1]
    assert (shown["texts"][0]["text"], shown["clock"]["format"]) == ("Welcome", "%H:%M")
    page.click("#screen-list tr:has-text('portrait') button:has-text('Picture')")
    until(page, "document.querySelector('#screen-list img')?.naturalWidth === 320")
    page.fill("#message", "Leave the building")
    page.click("#message-form button.danger")
    wait_for(lambda: wall.ask("/api/overlay")[1]["message"])
    page.click("#uncover")
    wait_for(lambda: wall.ask("/api/overlay")[1]["message"] is None)
    page.click("#reset")
    wait_for(lambda: wall.ask("/api/overlay")[1]["texts"] == [])
    assert errors == []
    for one in (page, seen):
        one.context.close()
