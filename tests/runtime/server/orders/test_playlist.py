"""Playlists by chunks, timetables by the wall clock: against days written out by hand."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from pathlib import Path

import pytest
from pydantic import ValidationError

from everframe.engines.bundle import Bundle
from everframe.runtime.server.config import Config
from everframe.runtime.server.orders import timetable
from everframe.runtime.server.orders.control import SET_RIGHT, Control
from everframe.runtime.server.orders.playlist import Change, Director, Item, Playlist
from everframe.runtime.server.orders.timetable import Entry, Timetable

from helpers import PROMPTS

PLACE = next(Path(root) for root in zoneinfo.TZPATH if Path(root, "Asia/Tokyo").exists())


def played(director: Director, chunks: int) -> list[str | None]:
    changes = [director.next() for _ in range(chunks)]
    return [change and change.prompt for change in changes]


def playlist(loop: bool = True, **seconds: float) -> Playlist:
    return Playlist(items=[Item(prompt=p, seconds=s) for p, s in seconds.items()], loop=loop)


def test_a_playlist_changes_at_whole_chunks() -> None:
    director = Director(0.75)
    director.follow(playlist(a=1.5, b=0.8, c=0.1))  # two chunks, two (rounded up), one
    assert played(director, 12) == ["a", None, "b", None, "c", "a", None, "b", None, "c", "a", None]


def test_without_loop_the_last_one_stays() -> None:
    director = Director(0.75)
    director.follow(playlist(loop=False, a=0.75, b=0.75))
    assert played(director, 6) == ["a", "b", None, None, None, None]


def test_a_single_item_is_not_begun_again() -> None:
    director = Director(0.75)
    director.follow(playlist(a=0.75))
    assert played(director, 5) == ["a", None, None, None, None]


def test_next_and_end() -> None:
    director = Director(0.75)
    director.follow(playlist(a=60, b=60))
    assert played(director, 2) == ["a", None]
    director.skip()
    assert played(director, 2) == ["b", None]
    director.follow(None)
    assert played(director, 200) == [None] * 200


def test_a_restored_director_goes_on_where_it_was() -> None:
    whole, first = Director(0.75), Director(0.75)
    for one in (whole, first):
        one.follow(playlist(a=2, b=3))
    expected = played(whole, 30)
    begun = played(first, 11)
    second = Director(0.75)
    second.restore(first.facts())
    assert begun + played(second, 19) == expected


def test_a_loan_ends_where_the_playlist_was() -> None:
    """Two chunks of a are left, and then b comes; also over a restart in the middle, which ends the loan."""
    director = Director(0.75)
    director.follow(playlist(a=2.25, b=0.75))
    assert played(director, 1) == ["a"]
    director.lend()
    assert played(director, 9) == [None] * 9
    restarted = Director(0.75)
    restarted.restore(director.facts())
    director.back()
    for one in (director, restarted):
        assert played(one, 5) == ["a", None, "b", "a", None]
    director.lend()
    director.skip()
    director.back()
    assert played(director, 1) == ["b"]


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def told(table: Timetable, now: str) -> tuple[str, str | None] | None:
    found = table.current(utc(now))
    return found and (found[0].strftime("%Y-%m-%d %H:%M"), found[1].prompt or ("pause" if found[1].pause else None))


WEEK = Timetable(
    timezone="Europe/Berlin",
    entries=[
        Entry(days=["mon-fri"], at="08:00", prompt="work"),
        Entry(days=["sat", "sun"], at="10:00", prompt="weekend"),
        Entry(at="22:00", pause=True),
    ],
)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-25 06:59", ("2026-11-24 21:00", "pause")),  # Wednesday, one minute to eight in Berlin (UTC+1)
        ("2026-11-25 07:00", ("2026-11-25 07:00", "work")),
        ("2026-11-28 08:59", ("2026-11-27 21:00", "pause")),  # Saturday
        ("2026-11-28 09:00", ("2026-11-28 09:00", "weekend")),
        ("2026-07-01 06:00", ("2026-07-01 06:00", "work")),  # summer: UTC+2
        ("2026-07-01 20:00", ("2026-07-01 20:00", "pause")),
    ],
)
def test_a_week_in_berlin(now: str, expected: tuple[str, str]) -> None:
    assert told(WEEK, now) == expected


def test_a_time_that_daylight_saving_skips_comes_an_hour_later() -> None:
    """New York, 8 March 2026: at 2:00 EST the clocks go to 3:00 EDT, which is 7:00 UTC. 2:30 EST would be 7:30 UTC."""
    table = Timetable(
        timezone="America/New_York", entries=[Entry(at="02:30", prompt="night"), Entry(at="01:00", prompt="late")]
    )
    assert told(table, "2026-03-08 06:59") == ("2026-03-08 06:00", "late")
    assert told(table, "2026-03-08 07:29") == ("2026-03-08 06:00", "late")
    assert told(table, "2026-03-08 07:30") == ("2026-03-08 07:30", "night")


def test_a_time_that_comes_twice_counts_once() -> None:
    """New York, 1 November 2026: 1:30 is at 5:30 UTC (EDT) and again at 6:30 UTC (EST); 2:00 EST is 7:00 UTC."""
    table = Timetable(
        timezone="America/New_York", entries=[Entry(at="01:30", prompt="a"), Entry(at="01:45", prompt="b")]
    )
    assert told(table, "2026-11-01 05:30") == ("2026-11-01 05:30", "a")
    assert told(table, "2026-11-01 05:45") == ("2026-11-01 05:45", "b")
    assert told(table, "2026-11-01 06:35") == ("2026-11-01 05:45", "b")  # 1:35 for the second time: nothing new


def test_an_entry_of_one_day_holds_for_a_week() -> None:
    table = Timetable(timezone="UTC", entries=[Entry(days=["mon"], at="00:00", prompt="a")])
    assert told(table, "2026-11-29 23:59") == ("2026-11-23 00:00", "a")
    assert told(table, "2026-11-30 00:00") == ("2026-11-30 00:00", "a")
    assert Timetable().current(utc("2026-11-25 00:00")) is None


def test_spans_over_the_weekend() -> None:
    assert Entry(days=["fri-mon", "wed"], at="08:00", prompt="a").weekdays() == {4, 5, 6, 0, 2}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"at": "25:00", "prompt": "a"}, "'25:00': expected a time of day"),
        ({"at": "08:00+02:00", "prompt": "a"}, "its zone is the timetable's timezone"),
        ({"at": "08:00Z", "prompt": "a"}, "expected a time of day"),
        ({"at": "08:00", "days": ["monday"], "prompt": "a"}, "'monday': expected mon"),
        ({"at": "08:00"}, "exactly one of"),
        ({"at": "08:00", "prompt": "a", "pause": True}, "exactly one of"),
    ],
)
def test_entries_that_are_refused(bad: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Entry(**bad)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Asia/Tokyo", "Asia/Tokyo"),
        (f":{PLACE / 'Asia/Tokyo'}", "Asia/Tokyo"),
        ("", "UTC"),
        ("NoSuchZone", "UTC"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", "UTC"),
    ],
)
def test_the_default_zone_is_the_system_s(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: str, name: str
) -> None:
    monkeypatch.setenv("TZ", told)
    assert Timetable().timezone == name
    assert ("are taken for UTC's" in caplog.text) == (told[:1] in ("N", "C"))


def test_tz_may_name_etc_localtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "localtime"
    file.symlink_to(PLACE / "Asia/Tokyo")
    monkeypatch.setattr(timetable, "LOCALTIME", file)
    monkeypatch.setenv("TZ", f":{file}")
    assert Timetable().timezone == "Asia/Tokyo"


def test_a_clock_that_is_set_back(bundle: Bundle, tmp_path: Path) -> None:
    """Neither the entry that has begun nor the one before it comes again; one that was days ahead had said nothing, once it
    is clear that it is not this one that waits for the time."""
    sea, lava, _ = PROMPTS
    ordered: list[str] = []
    control = Control(Config(state_dir=tmp_path), bundle, lambda kind, value: ordered.append(value.prompt))
    entries = [Entry(at="08:00", prompt=sea), Entry(at="22:00", prompt=lava)]
    control.set_timetable(Timetable(timezone="UTC", entries=entries))

    def at(moment: str, clock: float = 0.0) -> list[str]:
        control.tick(dt.datetime.fromisoformat(f"2026-11-{moment}+00:00"), clock)
        return ordered

    assert at("25 08:00:02") == [sea]
    for moment in ("25 07:59:57", "25 08:00:01", "25 07:10:00", "25 08:00:02", "25 21:59:59"):
        assert at(moment) == [sea]
    assert at("25 22:00:00") == [sea, lava]
    assert at("20 22:00:00") == [sea, lava]
    assert at("20 22:30:00", SET_RIGHT) == [sea, lava, lava]
    assert at("21 08:00:00", SET_RIGHT + 34200) == [sea, lava, lava, sea]


def test_an_early_clock_loses_no_order(bundle: Bundle, tmp_path: Path) -> None:
    """A box without a battery boots in 1970 and gets the time later."""
    sea, lava, snow = PROMPTS
    config = Config(state_dir=tmp_path)

    def started() -> tuple[Control, list[str]]:
        ordered: list[str] = []
        return Control(config, bundle, lambda kind, value: ordered.append(value.prompt)), ordered

    now = dt.datetime(2026, 11, 25, 9, tzinfo=dt.UTC)
    control, ordered = started()
    entries = [Entry(at="08:00", prompt=sea), Entry(at="22:00", prompt=lava)]
    control.set_timetable(Timetable(timezone="UTC", entries=entries))
    control.tick(now, 0.0)
    control.set_prompt(Change(prompt=snow))
    assert ordered == [sea, snow]
    control, ordered = started()
    for second in range(60):
        control.tick(dt.datetime.fromtimestamp(second, dt.UTC), second)
    control.tick(now, 60.0)
    assert ordered == []
    assert control.kept.prompt == Change(prompt=snow)
    control.tick(now.replace(hour=22), 70.0)
    assert ordered == [lava]


@pytest.mark.parametrize("link", [True, False])
def test_without_tz_it_is_that_of_etc_localtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, link: bool) -> None:
    """A link tells the name; in a container it may be a plain file, whose rules are followed all the same."""
    place = PLACE / "Asia/Tokyo"
    file = tmp_path / "localtime"
    file.symlink_to(place) if link else file.write_bytes(place.read_bytes())
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(timetable, "LOCALTIME", file)
    monkeypatch.setattr(timetable, "TIMEZONE", tmp_path / "none")
    table = Timetable(entries=[Entry(at="08:00", prompt="a")])
    assert table.timezone == ("Asia/Tokyo" if link else "localtime")
    assert told(table, "2026-11-25 12:00") == ("2026-11-24 23:00", "a")  # UTC+9
    assert Timetable.model_validate_json(table.model_dump_json()) == table


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="Mars/Olympus"):
        Timetable(timezone="Mars/Olympus")


def test_a_box_that_gets_another_zone_follows_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image boots in UTC and obeys, which writes its orders down; then the zone is set, and the server starts again."""
    for zone, hour in (("Europe/Lisbon", 8), ("Asia/Tokyo", 23)):
        monkeypatch.setenv("TZ", zone)
        config = Config(state_dir=tmp_path, schedule=Timetable(entries=[Entry(at="08:00", prompt=PROMPTS[1])]))
        ordered: list[str] = []
        control = Control(config, bundle, lambda kind, value, to=ordered: to.append(value.prompt))
        assert control.kept.timetable.timezone == zone
        control.tick(dt.datetime(2026, 11, 25, hour, 0, 1, tzinfo=dt.UTC))
        assert ordered == [PROMPTS[1]]


def test_the_prompt_of_a_playlist_that_was_ended_stays_over_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    """The state that was saved last may hold an earlier item, and that it plays."""
    sea, lava, _ = PROMPTS
    ordered: list[tuple[str, object]] = []

    def started() -> Control:
        return Control(Config(state_dir=tmp_path), bundle, lambda *order: ordered.append(order))

    control = started()
    items = Playlist(items=[Item(prompt=sea, seconds=60), Item(prompt=lava, seconds=60)])
    control.set_playlist(items)
    control.set_playlist(None, lava)
    ordered.clear()
    started().ready({"playlist": items, "prompt": sea})
    assert ordered == [("prompt", Change(prompt=lava))]


def test_ending_a_playlist_that_there_is_not_changes_no_order(bundle: Bundle, tmp_path: Path) -> None:
    """What was ordered last may not be shown yet, least of all in a pause."""
    control = Control(Config(state_dir=tmp_path), bundle, lambda *order: None)
    control.set_prompt(Change(prompt=PROMPTS[1]))
    for running in (PROMPTS[0], None):  # None: nothing has been shown yet, or a visitor's wish is
        control.set_playlist(None, running)
        assert control.kept.prompt == Change(prompt=PROMPTS[1])
