"""When a picture counts as frozen: a page's reports, second by second."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import pytest
from PIL import Image

from everframe.runtime.server.pictures import screens as module
from everframe.runtime.server.pictures.screens import MAX_VIEWERS, Screens, View, picture_of
from everframe.runtime.server.pictures.viewers import BEGIN, GRACE, HOUR, SILENCE, Viewers


def test_a_moving_picture_is_left_alone() -> None:
    viewers = Viewers()
    viewer = viewers.join("lobby", True, 0.0)
    for t in range(0, 600, 2):
        viewer.report(shown=16 * t, buffered=0.5, visible=True, now=float(t))
        assert viewer.word(float(t) + 1) == "ok"


@pytest.mark.parametrize("buffered", [0.0, 2.0, 8.0])
@pytest.mark.parametrize(("shown", "patience"), [(100, GRACE), (0, BEGIN)])
def test_a_still_picture_is_reloaded_once_its_buffer_cannot_explain_it(
    buffered: float, shown: int, patience: float
) -> None:
    """A page that has not begun yet gets more time."""
    viewers = Viewers()
    viewer = viewers.join("lobby", True, 0.0)
    viewer.report(shown, buffered, True, 1.0)
    words = []
    for t in range(2, 40):
        viewer.report(shown, buffered, True, float(t))
        words.append((t, viewer.word(float(t))))
    first = next(t for t, word in words if word == "reload")
    assert 1 + buffered + patience < first <= 1 + buffered + patience + 1


def test_hidden_pages_and_previews_are_not_judged() -> None:
    viewers = Viewers()
    hidden, preview = viewers.join("a", True, 0.0), viewers.join("b", False, 0.0)
    for t in range(0, 100, 2):
        hidden.report(5, 0, False, float(t))
        preview.report(5, 0, True, float(t))
        assert hidden.word(float(t)) == preview.word(float(t)) == "ok"
    hidden.report(5, 0, True, 100.0)  # shown again: it gets its time
    assert hidden.word(101.0) == "ok"


def test_who_says_nothing_is_given_up() -> None:
    viewer = Viewers().join("lobby", True, 0.0)
    viewer.report(1, 10, True, 1.0)
    assert viewer.word(1 + SILENCE + 0.1) == "gone"


def test_a_screen_that_keeps_freezing_is_a_problem_for_an_hour() -> None:
    viewers = Viewers()
    for n in range(3):
        assert viewers.problems(100.0 * n) == []
        viewer = viewers.join("lobby", True, 100.0 * n)  # the page comes back under its name
        viewers.reload(viewer, 100.0 * n)
        viewers.leave(viewer)
    (problem,) = viewers.problems(300.0)
    assert "'lobby'" in problem
    assert "3 times" in problem
    assert viewers.problems(HOUR + 250.0) == []


def test_names_do_not_grow_memory() -> None:
    viewers = Viewers()
    for n in range(1000):
        viewers.leave(viewers.join(f"screen {n}", True, 0.0))
    assert len(viewers.screens) <= 200
    assert not viewers.watching


def test_a_crowd_takes_no_screen_s_history_away() -> None:
    """Of one that the configuration names, and of one that is there."""
    viewers = Viewers()
    Screens(viewers, {"lobby": View()}, missing=0)
    viewers.leave(viewers.join("lobby", True, 0.0))
    there = viewers.join("cafe", True, 0.0)
    for one in [viewers.join("lobby", True, 0.0), there]:
        for now in (100.0, 200.0, 300.0):
            viewers.reload(one, now)
    for n in range(1000):
        viewers.leave(viewers.join(f"visitor {n}", True, 300.0))
    assert len(viewers.problems(301.0)) == 2


def jpeg(size: tuple[int, int], grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", size, grey).save(out, "JPEG")
    return out.getvalue()


def told(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def test_a_screen_s_own_picture() -> None:
    assert picture_of(told(jpeg((320, 180), 100))) == (jpeg((320, 180), 100), False)
    assert picture_of(told(jpeg((320, 180), 0))) == (jpeg((320, 180), 0), True)
    bomb = bytearray(jpeg((16, 16), 9))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65500 by 65500, as its header says
    for bad in (
        told(bytes(bomb)),
        told(jpeg((641, 10), 9)),
        told(b"x"),
        "data:text/html,x",
        7,
        None,
        told(b"x" * 90_000),
    ):
        assert picture_of(bad) is None


def test_a_clock_that_is_set_makes_no_screen_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a box that boots in 1970, or was a day ahead when it wrote its list."""
    now, file = time.time(), tmp_path / "screens.json"

    def at(clock: float) -> None:
        monkeypatch.setattr(module.time, "time", lambda: clock)

    at(now + 86400)
    screens = Screens(Viewers(), {"lobby": View()}, missing=60, file=file)
    screens.view("lobby")
    screens.write()
    for clock in (0.0, now):
        at(clock)
        assert screens.problems() == []
        assert screens.listed()[0]["state"] == "ok"
        assert screens.listed()[0]["last_report_seconds"] < 60
    after = Screens(Viewers(), {"lobby": View()}, missing=60, file=file)  # read when the clock is right
    assert after.problems() == []
    assert after.listed()[0]["last_report_seconds"] < 60
    at(now + 9 * 86400)
    assert Screens(Viewers(), {}, missing=0, file=file).listed() == []
    at(now + 86400 + 7200)
    (known,) = Screens(Viewers(), {}, missing=0, file=file).listed()
    assert known["last_report_seconds"] == pytest.approx(7200, abs=60)


def test_visitors_pages_keep_no_configured_screen_out() -> None:
    viewers = Viewers()
    screens = Screens(viewers, {"lobby": View()}, missing=0)
    crowd = [screens.join("lobby", False, "") for _ in range(2)]  # previews of it count for nothing
    while viewer := screens.join("somebody", True, ""):
        crowd.append(viewer)
    assert len(crowd) == MAX_VIEWERS
    assert screens.join("lobby", False, "") is None  # a preview of it is a visitor's page too
    for _ in range(2):  # the one that reloads has not gone yet
        assert screens.join("lobby", True, "")
    assert screens.join("lobby", True, "") is None
    assert crowd[0]
    viewers.leave(crowd[0])
    assert screens.join("somebody", True, "") is None
