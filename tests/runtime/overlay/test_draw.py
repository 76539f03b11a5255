"""Overlays as pixels: where parts stand, that codes can be read, that blending is the usual one, and what is refused."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import zxingcpp
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from everframe.engines.errors import UserError
from everframe.runtime.overlay.draw import _words, draw, picture_of
from everframe.runtime.overlay.layer import Layer, read_logo
from everframe.runtime.overlay.parts import Clock, Code, Logo, Message, Overlay, Text, Ticker

NOW = dt.datetime(2026, 7, 1, 10, 5, tzinfo=dt.UTC)
SIZE = (640, 360)


def png(colour: tuple[int, int, int, int], size: tuple[int, int] = (40, 20)) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", size, colour).save(out, "PNG")
    return out.getvalue()


def painted(overlay: Overlay, logo: bytes | None = None, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """What lies above a black picture."""
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    return Layer(overlay, lambda: dt.UTC, logo).burned(frame, NOW)


def box(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not black."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in ((1, 2), (0, 2)))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_nothing_above_the_picture_is_the_picture_itself() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    assert Layer(Overlay(), lambda: dt.UTC).burned(frame, NOW) is frame


@pytest.mark.parametrize("size", [(640, 360), (1920, 1080), (144, 256)])
@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("top-left", lambda w, h, m, a, b: (m, m)),
        ("top", lambda w, h, m, a, b: ((w - a) // 2, m)),
        ("bottom-right", lambda w, h, m, a, b: (w - m - a, h - m - b)),
        ("middle", lambda w, h, m, a, b: ((w - a) // 2, (h - b) // 2)),
    ],
)
def test_a_logo_stands_where_it_is_said(at: str, expected, size: tuple[int, int]) -> None:
    """Ten percent of the height high, twice as wide as high, four percent from the edges."""
    pixels = painted(Overlay(logo=Logo(at=at, size=10)), png((255, 0, 0, 255)), size)  # type: ignore[arg-type]
    high, margin = round(0.1 * size[1]), round(0.04 * size[1])
    left, top = expected(*size, margin, 2 * high, high)
    assert box(pixels) == (left, top, left + 2 * high, top + high)
    assert (pixels[top + high // 2, left + high] == (255, 0, 0)).all()


def test_a_place_in_percent_and_what_is_outside_is_cut_off() -> None:
    pixels = painted(Overlay(logo=Logo(x=95, y=50, size=50)), png((255, 255, 255, 255)))
    assert box(pixels) == (608, 180, 640, 360)


def test_blending_is_straight_alpha_over() -> None:
    """Against the formula in float: (alpha · colour + (1 − alpha) · frame)."""
    frame = np.random.default_rng(0).integers(0, 256, (36, 64, 3)).astype(np.uint8)
    layer = Layer(
        Overlay(logo=Logo(at="top-left", margin=0, size=100, opacity=40)),
        lambda: dt.UTC,
        png((200, 100, 50, 128), (64, 36)),
    )
    alpha = round(128 * 0.4) / 255
    expected = alpha * np.array([200, 100, 50]) + (1 - alpha) * frame.astype(float)
    assert np.abs(layer.burned(frame, NOW) - expected).max() <= 0.51


def test_a_picture_that_stands_still_is_burned_once() -> None:
    frame = np.zeros((360, 640, 3), np.uint8)
    layer = Layer(Overlay(clock=Clock(format="%S")), lambda: dt.UTC)
    burned = layer.burned(frame, NOW)
    assert layer.burned(frame, NOW) is burned
    assert layer.burned(frame.copy(), NOW) is not burned
    later = layer.burned(frame, NOW + dt.timedelta(seconds=1))
    assert (later != burned).any()
    assert not frame.any()


def test_a_code_can_be_read() -> None:
    """By ZXing, from the burned frame."""
    frame = np.full((360, 640, 3), 90, np.uint8)
    text = "https://example.org/visit?from=lobby"
    burned = Layer(Overlay(code=Code(text=text, size=40)), lambda: dt.UTC).burned(frame, NOW)
    assert [found.text for found in zxingcpp.read_barcodes(burned)] == [text]


def test_the_clock_is_that_of_its_zone_and_drawn_anew_with_its_face() -> None:
    zone = ZoneInfo("Europe/Berlin")
    layer = Layer(Overlay(clock=Clock(format="%H:%M")), lambda: zone)
    assert layer.face(NOW) == "12:05"
    same = layer.drawn(SIZE, NOW)
    assert layer.drawn(SIZE, NOW + dt.timedelta(seconds=50)) is same
    later = layer.drawn(SIZE, NOW + dt.timedelta(seconds=60))
    expected = draw(Overlay(texts=[Text(text="12:06", at="top-left", size=8)]), SIZE, NOW)
    assert (later.pieces[0].pixels == expected.pieces[0].pixels).all()


def test_a_message_covers_everything() -> None:
    overlay = Overlay(message=Message(text="Please leave", ground="#00a00010"), clock=Clock(), ticker=Ticker(text="x"))
    frame = np.random.default_rng(0).integers(0, 256, (360, 640, 3)).astype(np.uint8)
    burned = Layer(overlay, lambda: dt.UTC).burned(frame, NOW)
    other = Layer(overlay, lambda: dt.UTC).burned(255 - frame, NOW)
    assert (burned == other).all()
    assert (burned[0, 0] == (0, 160, 0)).all()


@pytest.mark.parametrize("text", ["word " * 390, "a" * 1500, "one\ntwo\n\nthree"])
def test_long_messages_fit(text: str) -> None:
    ground = (160, 0, 0)
    pixels = painted(Overlay(message=Message(text=text)))
    written = (pixels != ground).any(2)
    assert written.any()
    assert not written[:, :8].any()
    assert not written[:, -8:].any()


def test_lines_that_no_picture_can_show_take_no_memory() -> None:
    """Those that fit are all there, also where a wide one makes the letters small."""
    made = _words("a\n" * 999 + "a", 180, "#ff0000", None, 1000, 180)
    assert made.height < 5 * 180
    lines = ["a"] * 12 + ["a wide one, wider than the picture by far, as it is at first"]
    small = _words("\n".join(lines), 64, "#ff0000", None, 300, 180)
    assert small.width <= 300
    rows = np.asarray(small)[..., 3].any(1).astype(int).tolist()
    assert sum(a < b for a, b in itertools.pairwise([0, *rows])) == 13  # lines, told by what is empty between them


def test_a_ticker_stands_in_the_same_place_at_every_height() -> None:
    """On all screens of a wall, and in what is burned in, though letters round differently: after 56 years of seconds."""
    layer = Layer(Overlay(ticker=Ticker(text="a line of news " * 9, speed=12)), lambda: dt.UTC)
    strips = [layer.drawn((16 * high // 9, high), NOW).strip for high in (144, 360, 720, 1080, 2160)]
    seconds = NOW.timestamp()
    places = np.array([[s.place(seconds + t) / s.width for t in (0, 3.3, 7.7)] for s in strips if s is not None])
    assert len(places) == 5
    assert np.ptp(places, 0).max() < 0.01


def test_the_ticker_comes_in_at_the_right_and_leaves_at_the_left() -> None:
    ticker = Ticker(text="hello", speed=10, ground=None, size=10)
    layer = Layer(Overlay(ticker=ticker), lambda: dt.UTC)
    strip = layer.drawn(SIZE, NOW).strip
    assert strip is not None
    assert strip.share * SIZE[0] == pytest.approx(strip.pixels.shape[1], abs=2)
    period = (1 + strip.share) / 0.1  # seconds: a tenth of the width a second
    places = []
    for step in np.linspace(0.05, period - 0.05, 20):
        now = dt.datetime.fromtimestamp(1000 * period + step, dt.UTC)
        frame = layer.burned(np.zeros((360, 640, 3), np.uint8), now)
        places.append(box(frame) if frame.any() else None)
        if places[-1] is not None:
            assert places[-1][1] >= 360 * 0.8
    assert places[1][2] == 640  # type: ignore[index]
    assert places[-2][0] <= 4  # type: ignore[index]
    lefts = [max(4, place[0]) for place in places if place]  # at the edge a letter's own gap shows
    assert lefts == sorted(lefts, reverse=True)


def test_an_svg_is_drawn_at_the_size_it_has() -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="10" height="10" fill="#0000ff"/></svg>'
    pixels = painted(Overlay(logo=Logo(at="top-left", margin=0, size=50)), svg)
    assert box(pixels) == (0, 0, 180, 180)
    assert (pixels[90, 90] == (0, 0, 255)).all()


SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">{}</svg>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SVG.format('<image href="/etc/hostname"/>').encode(), "another file"),
        (SVG.format("<image xlink:href = 'http://x/y.png'/>").encode(), "another file"),
        (SVG.format("<style>@import 'x.css'</style>").encode(), "another file"),
        (SVG.format("<rect fill='url(http://x#y)'/>").encode(), "another file"),
        (SVG.format("""<rect fill='url( "http://x#y")'/>""").encode(), "another file"),
        (b"<svg", "not an SVG"),
        (b"<html></html>", "not an SVG"),
        (b"GIF89a", "neither"),
        (b"", "neither"),
        (png((1, 1, 1, 1))[:60], "neither"),
    ],
)
def test_files_that_are_no_logo(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        painted(Overlay(logo=Logo()), content)
    assert str(caught.value).startswith("overlay.logo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["url(#g)", 'url("#g")', "url( #g )", "url(&quot;#g&quot;)"])
def test_an_svg_may_refer_to_itself(url: str) -> None:
    """As browsers and editors write it, with or without a byte order mark before it."""
    ramp = "<linearGradient id='g'><stop stop-color='#00f'/></linearGradient>"
    drawn = SVG.format(f"{ramp}<rect width='9' height='9' style='fill:{url}'/>").encode()
    for content in (drawn, b"\xef\xbb\xbf" + drawn):
        assert picture_of(content, 9).getpixel((4, 4)) == (0, 0, 255, 255)


def test_a_logo_is_seen_as_the_eye_sees_it() -> None:
    """Turned as the camera says, and sixteen bits as what they are."""
    turned, grey = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), (255, 0, 0)).save(turned, "JPEG", exif=exif)
    Image.fromarray(np.full((4, 4), 0x8080, np.uint16)).save(grey, "PNG")
    assert picture_of(turned.getvalue(), 9).size == (20, 40)
    assert picture_of(grey.getvalue(), 9).getpixel((0, 0)) == (128, 128, 128, 255)


def test_an_svg_that_is_very_wide_is_not_drawn() -> None:
    """By its height alone it would be 216,000,000,000 pixels."""
    wide = SVG.replace("0 0 9 9", "0 0 100000 1").format("<rect width='100000' height='1'/>")
    with pytest.raises(UserError, match=r"overlay\.logo: 2160 pixels high it is wider than"):
        picture_of(wide.encode(), 2160)
    assert picture_of(SVG.replace("0 0 9 9", "0 0 90 9").format("").encode(), 100).size == (1000, 100)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_logo(tmp_path / "none.png")
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"overlay\.font"):
        painted(Overlay(texts=[Text(text="x")], font=tmp_path / "font.ttf"))


@pytest.mark.parametrize(
    "raw",
    [
        {"texts": [{"text": ""}]},
        {"texts": [{"text": "a\x00b"}]},
        {"texts": [{"text": "x", "colour": "red"}]},
        {"texts": [{"text": "x", "size": 0}]},
        {"texts": [{"text": "x", "size": 101}]},
        {"texts": [{"text": "x", "at": "centre"}]},
        {"texts": [{"text": "x"}] * 9},
        {"clock": {"format": ""}},
        {"clock": {"format": "%c" * 50}},
        {"ticker": {"text": "x", "speed": 0}},
        {"code": {"text": "x" * 501}},
        {"message": {"text": " "}},
        {"html": "<b>x</b>"},
    ],
)
def test_what_is_no_overlay(raw: dict) -> None:
    with pytest.raises(ValidationError):
        Overlay.model_validate(raw)
