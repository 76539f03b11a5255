"""The overlay of a real server: ordered, seen in every way out, kept over a restart."""

from __future__ import annotations

import datetime as dt
import http.client
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime.overlay.parts import Code, Logo, Message, Overlay, Ticker
from everframe.runtime.server.config import Config
from everframe.runtime.server.orders.control import Control
from everframe.runtime.server.orders.overlays import Overlays

from serving import CHROMIUM, TOKEN, Site, page_of, serve, until, wait_for

RED = {"text": "x", "colour": "#ff0000", "ground": "#ff0000"}
GREEN = {"text": "x", "colour": "#00ff00", "ground": "#00ff00"}


def png(colour: tuple[int, int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (40, 40), colour).save(out, "PNG")
    return out.getvalue()


def picture(site: Site, path: str) -> Any:
    status, data = site.ask(path)
    assert status == 200, data
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))


def close(found: Any, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(found[..., :3].astype(int) - colour).max() < 12)


def of_hls(site: Site) -> Any:
    """The newest frame that HLS has, decoded."""
    names = [line for line in site.ask("/hls/live.m3u8")[1].decode().splitlines() if line]
    init = [line.split('"')[1] for line in names if line.startswith("#EXT-X-MAP")][-1]
    data = site.ask(f"/hls/{init}")[1] + site.ask(f"/hls/{names[-1]}")[1]
    with av.open(io.BytesIO(data), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1]


def of_jpeg(site: Site) -> Any:
    import urllib.request

    with urllib.request.urlopen(f"{site.url}/video.mjpeg", timeout=10) as stream:
        data = stream.read(1 << 16)
    start = data.index(b"\xff\xd8")
    with Image.open(io.BytesIO(data[start : data.index(b"\xff\xd9", start) + 2])) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "way", [lambda s: picture(s, "/api/snapshot.png"), of_jpeg, of_hls], ids=["still", "jpeg", "hls"]
)
def test_a_message_covers_every_way_out_and_goes_again(site: Site, way: Callable[[Site], Any]) -> None:
    wait_for(lambda: site.ask("/hls/live.m3u8")[0] == 200)
    assert not close(way(site), (255, 0, 0))
    assert site.ask("/api/overlay/message", "POST", RED)[0] == 204
    wait_for(lambda: close(way(site), (255, 0, 0)), 20)
    assert close(picture(site, "/overlay.png"), (255, 0, 0))
    assert site.ask("/api/overlay/message", "DELETE")[0] == 204
    wait_for(lambda: not close(way(site), (255, 0, 0)), 20)
    assert not picture(site, "/overlay.png").any()


def test_what_the_message_covered_comes_back(site: Site) -> None:
    body = {"clock": {"format": "%H"}, "texts": [{"text": "hello"}]}
    assert site.ask("/api/overlay", "PUT", body)[0] == 200
    for text in ("x", "another"):
        assert site.ask("/api/overlay/message", "POST", RED | {"text": text})[0] == 204
    assert site.ask("/api/overlay")[1]["message"]["text"] == "another"
    assert site.ask("/api/overlay", "PUT", body)[0] == 200  # which does not take it away
    assert site.ask("/api/overlay/logo", "PUT", png((0, 0, 255, 255)))[0] == 204
    assert site.ask("/api/overlay")[1]["message"]["text"] == "another"
    assert close(picture(site, "/overlay.png"), (255, 0, 0))
    assert site.ask("/api/overlay/message", "DELETE")[0] == 204
    found = site.ask("/api/overlay")[1]
    assert found["logo"]["at"] == "top-right"
    assert (found["message"], found["clock"]["format"], found["texts"][0]["text"]) == (None, "%H", "hello")
    assert site.ask("/api/overlay", "DELETE")[0] == 204
    assert site.ask("/api/overlay")[1] == {
        "logo": None, "texts": [], "ticker": None, "clock": None, "code": None, "message": None, "font": None
    }  # fmt: skip


def test_what_cannot_be_drawn_is_refused_under_a_message_too(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the message could not be taken away again."""
    monkeypatch.setitem(sys.modules, "segno", None)  # as where the extra is not installed
    overlays = Overlays(Overlay(), tmp_path, Control(Config(state_dir=tmp_path), bundle, lambda *_: None), (64, 32))
    overlays.tell(Message(text="Leave"))
    with pytest.raises(UserError, match="needs segno"):
        overlays.put(Overlay(code=Code(text="https://example.org")))
    assert overlays.shown().message is not None
    overlays.tell(None)
    assert overlays.layer.empty


def test_the_page_s_picture_is_the_burned_one(site: Site) -> None:
    """Drawn larger for a page, shrunk here, and laid over the frame by Pillow."""
    body = {"texts": [{"text": "WIDE", "size": 40, "at": "middle", "ground": "#ffff00"}]}
    assert site.ask("/api/overlay", "PUT", body)[0] == 200
    page = picture(site, "/overlay.png?height=720")
    assert page.shape == (720, 1440, 4)
    small = np.asarray(Image.fromarray(page).resize((64, 32), Image.Resampling.BOX)).astype(float)
    inside = small[..., 3] == 255
    assert inside.mean() > 0.15

    def apart() -> float:
        return float(np.abs(small[..., :3] - picture(site, "/api/snapshot.png")[..., :3])[inside].mean())

    wait_for(lambda: apart() < 30, 5)
    site.ask("/api/overlay", "DELETE")


def test_a_logo_is_uploaded(site: Site) -> None:
    assert site.ask("/api/overlay/logo", "PUT", png((0, 0, 255, 255)))[0] == 204
    assert site.ask("/api/overlay")[1]["logo"]["at"] == "top-right"
    body = {"logo": {"at": "middle", "size": 100, "margin": 0}}
    assert site.ask("/api/overlay", "PUT", body)[0] == 200
    found = picture(site, "/overlay.png")
    assert (found[540, 1080] == (0, 0, 255, 255)).all()
    site.ask("/api/overlay", "DELETE")


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "/api/overlay", {"logo": {"file": "/etc/passwd"}}, "in the configuration only"),
        ("PUT", "/api/overlay", {"font": "/etc/passwd"}, "in the configuration only"),
        ("PUT", "/api/overlay", {"texts": [{"text": "x", "colour": "blue"}]}, "expected a colour"),
        ("PUT", "/api/overlay", {"html": "<b>"}, "Extra inputs"),
        ("PUT", "/api/overlay", {"message": {"text": "x"}}, "expected at /api/overlay/message"),
        ("PUT", "/api/overlay", {"clock": {"format": "%H:%M:%f"}}, "a form of a time"),
        ("POST", "/api/overlay/message", {"text": ""}, "at least 1"),
        ("PUT", "/api/overlay/logo", b"GIF89a", "neither a PNG"),
        ("PUT", "/api/overlay/logo", b"", "neither a PNG"),
        ("PUT", "/api/overlay", {"code": {"text": "x" * 400, "size": 1}}, ""),
    ],
)
def test_what_is_refused_changes_nothing(site: Site, method: str, path: str, body: Any, words: str) -> None:
    before = site.ask("/api/overlay")[1]
    status, answer = site.ask(path, method, body)
    if not words:
        assert status == 200  # small, but there
        site.ask("/api/overlay", "DELETE")
        return
    assert (status, words in str(answer)) == (422, True), answer
    assert site.ask("/api/overlay")[1] == before
    assert site.ask(path, method, body, token=None)[0] == 401


def test_a_message_waits_for_no_logo(bundle: Bundle, tmp_path: Path) -> None:
    """Its file may have gone since, as a stick does: the message covers everything, and goes again."""
    file = tmp_path / "logo.png"
    file.write_bytes(png((0, 0, 255, 255)))
    config = Config(state_dir=tmp_path)
    control = Control(config, bundle, lambda *_: None)
    shown = Overlays(Overlay(logo=Logo(file=file, at="middle", size=100, margin=0)), tmp_path, control, (64, 32))
    file.unlink()
    frame = np.zeros((32, 64, 3), np.uint8)
    for message in (Message(text="x", colour="#ff0000", ground="#ff0000"), None, Message(text="y")):
        shown.tell(message)
        found = shown.layer.burned(frame, dt.datetime.now(dt.UTC))[16, 32]
        if message is None or message.text == "x":
            assert tuple(found) == ((0, 0, 255) if message is None else (255, 0, 0))
    with pytest.raises(UserError, match=r"logo\.png"):
        shown.put(Overlay(logo=Logo(at="middle")))


def test_kept_over_a_restart_until_the_configuration_changes(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(png((0, 0, 255, 255)))
    config = '[overlay]\nlogo = {file = "logo.png", at = "middle", size = 100}\n'
    with serve(tmp_path, bundle_path, config) as site:
        assert (picture(site, "/overlay.png")[540, 1080] == (0, 0, 255, 255)).all()
        assert site.ask("/api/overlay")[1]["logo"]["file"] is None
        assert site.ask("/api/overlay/message", "POST", GREEN)[0] == 204
    with serve(tmp_path, bundle_path, config) as site:
        assert close(picture(site, "/overlay.png"), (0, 255, 0))
        assert site.ask("/api/overlay/message", "DELETE")[0] == 204
        assert (picture(site, "/overlay.png")[540, 1080] == (0, 0, 255, 255)).all()
        assert site.ask("/api/overlay/logo", "PUT", png((0, 255, 255, 255)))[0] == 204
        assert (picture(site, "/overlay.png")[540, 1080] == (0, 255, 255, 255)).all()
    (tmp_path / "state" / "logo").write_bytes(b"damaged")
    with serve(tmp_path, bundle_path, config) as site:  # as configured, and said so
        assert (picture(site, "/overlay.png")[540, 1080] == (0, 0, 255, 255)).all()
        assert "not usable, starting from the configuration: overlay.logo" in site.log.read_text()
        site.ask("/api/overlay/message", "POST", GREEN)
    with serve(tmp_path, bundle_path, config.replace("100", "50")) as site:  # nothing but an order takes a message away
        found = site.ask("/api/overlay")[1]
        assert (found["message"]["text"], found["logo"]["size"]) == (GREEN["text"], 50)


def test_pages_ask_anew_after_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    """They stay while the server starts with another configuration, and know its pictures by their version."""
    control = Control(Config(state_dir=tmp_path), bundle, lambda *order: None)
    first, second = (
        Overlays(Overlay(ticker=Ticker(text=text)), tmp_path, control, (64, 32)) for text in ("before", "after")
    )
    assert first.version != second.version
    first.tell(Message(text="now"))
    assert first.version not in (second.version, Overlays(Overlay(), tmp_path, control, (64, 32)).version)


def test_a_message_is_kept_though_the_logo_is_not(bundle: Bundle, tmp_path: Path) -> None:
    control = Control(Config(state_dir=tmp_path), bundle, lambda *_: None)
    overlays = Overlays(Overlay(), tmp_path, control, (64, 32))
    overlays.put_logo(png((0, 0, 255, 255)))
    overlays.tell(Message(text="Leave"))
    (tmp_path / "logo").unlink()  # as by a power cut in between, or by hand
    again = Overlays(Overlay(), tmp_path, control, (64, 32))
    message = again.shown().message
    assert message is not None
    assert message.text == "Leave"
    again.tell(None)
    assert again.layer.empty


def test_a_logo_that_the_disk_does_not_take_is_shown_all_the_same(bundle: Bundle, tmp_path: Path) -> None:
    control = Control(Config(state_dir=tmp_path), bundle, lambda *_: None)
    (tmp_path / "logo").mkdir()  # what no file can take the place of, whoever asks
    overlays = Overlays(Overlay(), tmp_path, control, (64, 32))
    overlays.put_logo(png((0, 0, 255, 255)))
    assert not overlays.layer.empty
    overlays.put(overlays.shown().model_copy(update={"ticker": Ticker(text="now")}))
    assert overlays.layer.logo == png((0, 0, 255, 255))


def test_a_logo_may_be_larger_than_an_order(site: Site) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8))
    out = io.BytesIO()
    noise.save(out, "PNG")
    assert out.tell() > 1 << 20
    assert site.ask("/api/overlay/logo", "PUT", out.getvalue())[0] == 204
    for length, status in ((out.tell(), 401), ((8 << 20) + 1, 413)):  # answered before a byte of the body is read
        connection = http.client.HTTPConnection("127.0.0.1", site.port)
        connection.putrequest("PUT", "/api/overlay/logo")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
    assert site.ask("/api/overlay", "DELETE")[0] == 204


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
def test_the_operator_s_page_changes_what_was_changed_on_it(site: Site, browser: Any) -> None:
    """It may have been open for days, and others give orders meanwhile."""
    site.ask("/api/overlay", "PUT", {"texts": [{"text": "before"}]})
    with page_of(browser) as page:
        page.goto(f"{site.url}/operator")
        until(page, "document.getElementById('line').value === 'before'")
        page.fill("#token", f"{TOKEN}\u200b ")  # as a paste brings it
        site.ask("/api/overlay", "PUT", {"texts": [{"text": "before"}, {"text": "beside"}], "code": {"text": "x"}})
        page.fill("#ticker", "after")
        page.click("#overlay-form button[type=submit]")
        wait_for(lambda: site.ask("/api/overlay")[1]["ticker"])
        found = site.ask("/api/overlay")[1]
    assert [found["ticker"]["text"], found["code"]["text"]] == ["after", "x"]
    assert [text["text"] for text in found["texts"]] == ["before", "beside"]
    site.ask("/api/overlay", "DELETE")
