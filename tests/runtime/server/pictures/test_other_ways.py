"""Where the picture comes by HLS or Motion JPEG, or a browser cannot count: a real Chromium with abilities taken away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from serving import CHROMIUM, DEAF, NO_MSE, NOWHERE, Site, page_of, serve, until, wait_for

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
MAYBE = "HTMLMediaElement.prototype.canPlayType = () => 'maybe';"
REFUSED = "HTMLMediaElement.prototype.play = () => Promise.reject(new DOMException('', 'NotAllowedError'));"
BROKEN = (
    "const append = SourceBuffer.prototype.appendBuffer;"
    "SourceBuffer.prototype.appendBuffer = function () { append.call(this, Uint8Array.of(0, 0, 0, 4, 1, 2, 3, 4)); };"
)
UNCOUNTED = (
    "delete HTMLVideoElement.prototype.requestVideoFrameCallback;"
    "delete HTMLVideoElement.prototype.getVideoPlaybackQuality;"
)
IMAGE = "document.querySelector('#wall img')?.naturalWidth === 64"
CONFIG = """embed = []
[video]
keyframe_seconds = 0.5
[screens.tv]
x = 50
w = 50
[screens.old]
[playlist]
items = [{prompt = "a quiet sea", seconds = 60}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("other"), bundle_path, CONFIG) as running:
        yield running


@pytest.mark.parametrize("more", ["", "delete HTMLVideoElement.prototype.webkitDecodedFrameCount;"])
def test_a_browser_that_counts_no_frames_reports_all_the_same(site: Site, browser: Browser, more: str) -> None:
    """As Chromium before 80 in televisions: else it says nothing, and is given up every twenty seconds."""
    with page_of(browser, script=UNCOUNTED + more) as page:
        page.goto(f"{site.url}/?screen=signage-2019")

        def shown() -> bool:
            found = {one["name"]: one for one in site.ask("/api/screens")[1]["screens"]}
            return found.get("signage-2019", {}).get("frames_shown", 0) > 8

        wait_for(shown, 60)


@pytest.mark.parametrize("script", [MAYBE + NOWHERE, MAYBE + REFUSED], ids=["plays none", "may not play"])
def test_where_the_browser_s_own_player_gives_no_picture(site: Site, browser: Browser, script: str) -> None:
    """It says that it might play HLS and does not, or lets nothing play by itself."""
    with page_of(browser, script=NO_MSE + script) as page:
        page.goto(f"{site.url}/?screen=tablet")
        until(page, IMAGE, 60)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param(REFUSED, "lets nothing play by itself", id="may not play"),
        pytest.param(
            BROKEN + NOWHERE, "cannot decode the video", id="cannot decode", marks=pytest.mark.slow
        ),  # for 30 s
    ],
)
def test_where_media_source_extensions_show_nothing(site: Site, browser: Browser, script: str, why: str) -> None:
    """They are there, and the video is said to be supported; without end nothing came of it. The log is told once."""
    before = site.log.read_text().count(why)
    with page_of(browser, script=MAYBE + script) as page:
        page.goto(f"{site.url}/?screen=lobby")
        until(page, IMAGE, 120)
    assert site.log.read_text().count(why) == before + 1


def test_a_message_that_is_burned_in_is_read_whole(site: Site, browser: Browser) -> None:
    """Also by a screen that shows half of the picture, or one without modules."""
    whole = "document.body.classList.contains('contain') && getComputedStyle(document.querySelector('#wall')).left"
    with page_of(browser, script=NO_MSE + DEAF + NOWHERE) as page, page_of(browser) as old:
        old.route("**/static/screen.js", lambda route: route.abort())
        page.goto(f"{site.url}/?screen=tv")
        old.goto(f"{site.url}/?screen=old&fit=fill")
        until(page, f"{IMAGE} && getComputedStyle(document.querySelector('#wall')).left === '-640px'", 60)
        until(old, f"{IMAGE} && document.body.classList.contains('fill')", 60)
        assert site.ask("/api/overlay/message", "POST", {"text": "Please leave"})[0] == 204
        for one in (page, old):
            until(one, f"({whole}) === '0px'", 30)
        assert site.ask("/api/overlay/message", "DELETE")[0] == 204
        until(page, "!document.body.classList.contains('contain')", 30)
        until(old, "document.body.classList.contains('fill')", 30)


def test_an_old_browser_reads_its_address_as_others_do(site: Site, browser: Browser) -> None:
    asked: list[str] = []
    with page_of(browser) as page:
        page.route("**/static/screen.js", lambda route: route.abort())
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.url}/?screen=left+wall&fit=%")
        until(page, f"{IMAGE} && document.body.classList.contains('%')", 60)
    assert any("/api/screens/left%20wall/view" in url for url in asked)


def test_a_screen_may_have_any_name(site: Site, browser: Browser) -> None:
    """One with a slash too can be told something."""
    with page_of(browser) as page:
        page.goto(f"{site.url}/?screen=hall%2Fleft")
        until(page, "window.player && player.shown() > 2", 60)
        page.evaluate("window.mark = 1")
        assert site.ask("/api/screens/hall%2Fleft/view", token=None)[0] == 200
        assert site.ask("/api/screens/hall%2Fleft/reload", "POST")[0] == 204
        until(page, "window.mark === undefined", 30)
    wait_for(lambda: site.ask("/api/screens/hall%2Fleft", "DELETE")[0] == 204)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_motion_jpeg_of_a_server_that_went_without_a_word(site: Site, browser: Browser, old: bool) -> None:
    """No error comes from a connection to a machine that lost its power: the next life of the server is another one."""
    life: list[int] = [1]
    asked: list[str] = []

    def view(route: Route) -> None:
        route.fulfill(body=json.dumps({"life": life[0], "message": False}), content_type="application/json")

    with page_of(browser, script=NO_MSE + DEAF + NOWHERE) as page:
        page.route("**/view*", view)
        page.on("request", lambda request: asked.append(request.url))
        if old:
            page.route("**/static/screen.js", lambda route: route.abort())
        page.goto(f"{site.url}/?screen=tv")
        until(page, IMAGE, 60)
        page.wait_for_timeout(12_000)
        assert motion_jpegs(asked) == 1
        life[0] = 2
        wait_for(lambda: page.evaluate("1") and motion_jpegs(asked) == 2, 30)


def motion_jpegs(urls: list[str]) -> int:
    return sum("video.mjpeg" in url for url in urls)


@pytest.mark.slow
def test_a_screen_whose_module_did_not_come_gets_it_later(site: Site, browser: Browser) -> None:
    """The server was just starting anew: Motion JPEG meanwhile, and a minute later the player."""
    refused = []

    def once(route: Route) -> None:
        refused.append(1)
        route.abort() if len(refused) == 1 else route.continue_()

    with page_of(browser) as page:
        page.route("**/static/player.js", once)
        page.goto(f"{site.url}/?screen=late")
        until(page, IMAGE, 60)
        until(page, "window.player && player.shown() > 8", 120)


@pytest.mark.slow
def test_pictures_of_an_overlay_that_do_not_come_are_asked_for_at_one_pace(site: Site, browser: Browser) -> None:
    """A clock of seconds tells of a new one every second; each that failed began a row of tries of its own."""
    asked: list[float] = []

    def fail(route: Route) -> None:
        asked.append(time.monotonic())
        route.fulfill(status=503)

    with page_of(browser) as page:
        page.route("**/overlay.png*", fail)
        page.goto(f"{site.url}/?screen=clock")
        assert site.ask("/api/overlay", "PUT", {"clock": {"format": "%H:%M:%S"}})[0] == 200
        page.wait_for_timeout(40_000)
        assert site.ask("/api/overlay", "DELETE")[0] == 204
        newest = [one for one in asked if one > asked[-1] - 10]
        assert 5 < len(newest) < 25


def test_a_page_that_never_gets_a_picture_says_so(site: Site, browser: Browser) -> None:
    with page_of(browser) as page:
        page.add_init_script("const real = performance.now.bind(performance); performance.now = () => 100 * real();")
        page.route(
            "**/static/player.js",
            lambda route: route.fulfill(body="export class Player {}", content_type="text/javascript"),
        )
        page.goto(f"{site.url}/?screen=dark")
        until(page, "!document.querySelector('#word').hidden", 30)
        assert page.inner_text("#word") == f"No picture from 127.0.0.1:{site.port}"


def test_a_strange_frame_is_told(site: Site) -> None:
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"}
    assert site.ask("/", **headers)[0] == 200
    assert site.ask("/", **headers)[0] == 200
    assert site.log.read_text().count("see server.embed") == 1
