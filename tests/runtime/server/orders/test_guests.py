"""Visitors' wishes: their turn, their queue, who may not, and what comes back; the page on a phone, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime.server.config import Config, Guest
from everframe.runtime.server.orders.control import Control
from everframe.runtime.server.orders.guests import Guests, WaitError
from everframe.runtime.server.orders.playlist import Change, Item, Playlist

from helpers import PROMPTS
from serving import CHROMIUM, Site, serve, until, wait_for

SEA, LAVA, SNOW = PROMPTS


@pytest.fixture
def ordered() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def control(bundle: Bundle, tmp_path: Path, ordered: list) -> Control:
    return Control(Config(state_dir=tmp_path), bundle, lambda kind, value: ordered.append((kind, value)))


def prompts(ordered: list[tuple[str, Any]]) -> list[str]:
    return [value.prompt if kind in ("prompt", "lend") else kind for kind, value in ordered]


def test_wishes_take_turns_and_the_playlist_comes_back(control: Control, ordered: list) -> None:
    playlist = Playlist(items=[Item(prompt=SEA)])
    control.set_playlist(playlist)
    guests = Guests(Guest(seconds=45, every_seconds=60), control)
    guests.wish("visitor-a", LAVA.upper(), 0.0)
    guests.wish("visitor-b", SNOW, 1.0)
    guests.tick(2.0)
    assert guests.place("visitor-a", 12.0)["yours_is_shown"]
    assert guests.place("visitor-b", 12.0)["yours_in_seconds"] == 35.0
    guests.tick(46.9)
    guests.tick(47.0)
    assert guests.place("visitor-b", 50.0)["yours_is_shown"]
    guests.tick(92.0)
    assert prompts(ordered) == ["playlist", LAVA, SNOW, "back"]
    assert control.kept.playlist == playlist
    guests.tick(1000.0)
    assert len(ordered) == 4


def test_who_orders_with_the_token_has_the_last_word(control: Control, ordered: list) -> None:
    guests = Guests(Guest(), control)
    guests.wish("visitor-a", LAVA, 0.0)
    guests.tick(0.0)
    control.set_prompt(Change(prompt=SNOW))
    guests.tick(10.0)
    guests.tick(100.0)
    assert prompts(ordered) == [LAVA, SNOW]
    for n in range(2):  # wishes that wait do not take the place of an order at once
        guests.wish(f"visitor-{n}", LAVA, 101.0 + n)
    guests.tick(103.0)
    control.set_prompt(Change(prompt=SEA))
    guests.tick(104.0)
    guests.tick(148.9)
    assert prompts(ordered) == [LAVA, SNOW, LAVA, SEA]
    assert guests.place("visitor-1", 110.0)["yours_in_seconds"] == 39.0
    guests.tick(149.0)
    assert prompts(ordered)[-1] == LAVA
    guests.wish("visitor-3", LAVA, 150.0)
    guests.clear()
    assert guests.place("visitor-3", 151.0)["queue"] == 0
    guests.tick(194.0)
    guests.wish("visitor-a", LAVA, 200.0)
    control.pause(True)
    guests.tick(200.0)
    assert prompts(ordered)[-1] == "pause"
    control.pause(False)
    guests.tick(201.0)
    guests.tick(300.0)
    assert prompts(ordered)[-2:] == [LAVA, SEA]


def test_a_playlist_that_ends_takes_a_wish_along(control: Control, ordered: list) -> None:
    """What was shown before the wish is what an ended playlist leaves."""
    control.set_playlist(Playlist(items=[Item(prompt=SEA)]))
    running = [SEA]
    guests = Guests(Guest(), control, lambda: running[0])
    guests.wish("visitor-a", LAVA, 0.0)
    guests.wish("visitor-b", SNOW, 1.0)
    guests.tick(1.0)
    guests.tick(50.0)
    control.set_playlist(None)
    guests.tick(51.0)
    assert prompts(ordered) == ["playlist", LAVA, SNOW, "playlist", SEA]
    assert control.kept.prompt is not None
    control.set_playlist(Playlist(items=[Item(prompt=SEA)]))
    running[0] = SNOW  # the last wish, still
    guests.wish("visitor-c", LAVA, 200.0)
    guests.tick(200.0)
    control.set_playlist(None)
    guests.tick(201.0)
    assert prompts(ordered)[-2:] == ["playlist", SEA]


def test_a_restart_goes_on_with_what_was_ordered(bundle: Bundle, control: Control, tmp_path: Path) -> None:
    control.set_prompt(Change(prompt=SNOW))
    guests = Guests(Guest(), control)
    guests.wish("visitor-a", LAVA, 0.0)
    guests.tick(0.0)
    again: list = []
    other = Control(Config(state_dir=tmp_path), bundle, lambda *order: again.append(order))
    other.ready({"playlist": None, "prompt": LAVA})
    assert prompts(again) == [SNOW]


def test_who_has_to_wait(control: Control) -> None:
    guests = Guests(Guest(every_seconds=60, queue=2), control)
    guests.wish("visitor-a", LAVA, 0.0)
    with pytest.raises(WaitError, match="again in 50 s") as caught:
        guests.wish("visitor-a", SEA, 10.0)
    assert caught.value.seconds == 50
    guests.wish("visitor-b", SEA, 10.0)
    with pytest.raises(WaitError, match="2 wishes are waiting already"):
        guests.wish("visitor-c", SEA, 11.0)
    with pytest.raises(UserError, match="expected one of the prompts"):
        guests.wish("visitor-c", "something else", 11.0)


def test_nothing_is_wished_for_while_the_picture_stands(control: Control) -> None:
    """A wish would wait until the morning, with no word of it."""
    guests = Guests(Guest(), control)
    control.pause(True)
    assert guests.place("visitor-a", 0.0)["paused"]
    with pytest.raises(UserError, match="stands still now"):
        guests.wish("visitor-a", LAVA, 0.0)
    control.pause(False)
    guests.wish("visitor-a", LAVA, 0.0)
    assert guests.place("visitor-a", 0.0)["yours_in_seconds"] == 0.0


def test_wishes_of_the_evening_are_not_shown_in_the_morning(control: Control, ordered: list) -> None:
    guests = Guests(Guest(), control)
    guests.wish("visitor-a", LAVA, 0.0)
    guests.wish("visitor-b", SNOW, 800.0)
    control.pause(True)
    guests.tick(910.0)  # a short pause takes none away but those that have waited too long
    control.pause(False)
    guests.tick(911.0)
    assert prompts(ordered)[-1:] == [SNOW]


def test_only_the_prompts_that_are_allowed(control: Control) -> None:
    guests = Guests(Guest(prompts=[LAVA.upper()]), control)
    assert guests.prompts == [LAVA]
    with pytest.raises(UserError, match="expected one of the prompts"):
        guests.wish("visitor-a", SEA, 0.0)
    with pytest.raises(UserError, match=r"guest\.prompts: .* is not in the bundle"):
        Guests(Guest(prompts=["a horse"]), control)
    with pytest.raises(UserError, match=r"guest\.free_text"):
        Guests(Guest(free_text=True), control)


def test_free_texts(control: Control, ordered: list) -> None:
    control.spelling.free_text = True  # as of a bundle with its text encoder, which is asked in the generator
    blocked = ["war", "Bad  word", "裸体", "เปลือย", "कल", "ปา", "지산", "나체"]
    guests = Guests(Guest(free_text=True, blocked=blocked, every_seconds=0, longest=40), control)
    for text, word in (
        ("A WAR in space", "not shown"),
        ("a bad, word", "not shown"),
        ("a &amp;amp;amp;#119;ar", "not shown"),  # what names a letter in HTML is that letter in the end
        *[(f"a w{c}ar", "not shown") for c in "\u200b\u200c\u200d\u00ad\u034f\ufe0f\u3164"],
        ("a ｗａｒ", "not shown"),
        ("a w\u0332a\u0332r\u0332", "not shown"),  # with a line below every letter
        ("我要裸体画面", "not shown"),
        ("ขอภาพเปลือยหน่อย", "not shown"),
        ("나체를 보여줘", "not shown"),
        ("...", "words"),
        ("x " * 21, "most"),
    ):
        with pytest.raises(UserError, match=word):
            guests.wish("visitor-a", text, 0.0)
    for text in ("a warm evening", "कुल", "ป่า", "강아지 산책"):  # no word of it is blocked
        guests.wish("visitor-a", text, 0.0)
    for wish in guests.waiting[1:]:
        guests.decide(wish.number, approve=False)
    guests.tick(0.0)
    assert guests.place("visitor-a", 0.0)["yours_waits_for_approval"]
    assert prompts(ordered) == []
    (wish,) = guests.waiting
    guests.decide(wish.number, approve=True)
    guests.tick(1.0)
    assert prompts(ordered) == ["a warm evening"]
    with pytest.raises(UserError, match="does not wait"):
        guests.decide(wish.number, approve=False)
    guests.wish("visitor-b", "another", 2.0)
    guests.decide(guests.waiting[0].number, approve=False)
    guests.tick(500.0)
    assert prompts(ordered)[1:] == [PROMPTS[0]]  # back to the first of the bank, where nothing is known to run
    guests.wish("visitor-c", "a third", 600.0)
    guests.tick(1400.0)
    assert len(guests.waiting) == 1
    guests.tick(1600.0)  # a quarter of an hour without a word
    assert guests.waiting == []


def test_the_stream_s_own_prompt_comes_back_where_nothing_was_ordered(
    bundle: Bundle, control: Control, ordered: list, tmp_path: Path
) -> None:
    """Also after a restart during a wish, and after an order of what runs already."""
    guests = Guests(Guest(), control, lambda: SNOW)
    guests.wish("visitor-a", LAVA, 0.0)
    guests.tick(0.0)
    again: list = []
    Control(Config(state_dir=tmp_path), bundle, lambda *order: again.append(order)).ready(
        {"playlist": None, "prompt": LAVA}
    )
    assert prompts(again) == [SNOW]
    control.set_prompt(Change(prompt=SNOW))
    guests.tick(1.0)
    guests.tick(100.0)
    assert prompts(ordered) == [LAVA, SNOW]


@pytest.mark.parametrize("raw", [{"seconds": 0}, {"queue": 0}, {"transition": "fade"}, {"blocked": [""]}, {"html": 1}])
def test_settings_that_are_none(raw: dict) -> None:
    with pytest.raises(ValidationError):
        Guest.model_validate(raw)


@pytest.fixture(scope="module")
def lobby(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    config = "[guest]\nenabled = true\nseconds = 6\nevery_seconds = 8\n"
    with serve(tmp_path_factory.mktemp("lobby"), bundle_path, config) as running:
        yield running


def test_over_http(lobby: Site) -> None:
    me = "visitor-12345"
    found = lobby.ask(f"/api/guest?visitor={me}", token=None)[1]
    assert [one["prompt"] for one in found["prompts"]] == PROMPTS
    other = next(p for p in PROMPTS if p != lobby.state_of()["prompt"])
    status, answer = lobby.ask("/api/guest", "POST", {"visitor": me, "prompt": other}, token=None)
    assert (status, answer["queue"]) == (200, 1)
    status, answer = lobby.ask("/api/guest", "POST", {"visitor": me, "prompt": other}, token=None)
    assert (status, "one wish every 8 s" in answer["detail"]) == (429, True)
    wait_for(lambda: lobby.state_of()["prompt"] == other)
    wait_for(lambda: lobby.state_of()["prompt"] != other)
    assert lobby.ask("/api/guest", "POST", {"visitor": "x", "prompt": other}, token=None)[0] == 422
    assert lobby.ask("/api/guest", "POST", {"visitor": "visitor-other", "prompt": "a horse"}, token=None)[0] == 422
    assert lobby.ask("/api/guest/waiting", token=None)[0] == 401
    assert lobby.ask("/api/guest", "DELETE", token=None)[0] == 401
    assert lobby.ask("/api/guest", "DELETE")[0] == 204
    assert lobby.ask("/api/guest/waiting")[1] == {"wishes": []}
    assert lobby.ask("/api/guest/waiting/1", "POST", {"approve": True})[0] == 422


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
def test_the_page_on_a_phone(lobby: Site, browser: Any) -> None:
    """A tap, the place in the queue, the picture on the screen; and the token nowhere."""
    context = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{lobby.url}/guest")
    until(page, f"document.querySelectorAll('#wishes button').length === {len(PROMPTS)}")
    other = next(p for p in PROMPTS if p != lobby.state_of()["prompt"])
    page.get_by_role("button", name=other).tap()
    until(page, "/Yours in|is on the screen/.test(document.getElementById('told').textContent)")
    until(page, "document.getElementById('told').textContent === 'Your wish is on the screen.'")
    assert lobby.state_of()["prompt"] in PROMPTS
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    assert "token" not in page.content().lower()
    until(page, "document.querySelector('#wishes img')?.naturalWidth === 320", 60)  # once the stream has shown it
    context.close()


def test_without_being_asked_for_there_is_no_such_page(site: Site) -> None:
    assert site.ask("/guest", token=None)[0] == 404
    assert site.ask("/api/guest?visitor=visitor-12345", token=None)[0] == 404
