"""What a real server answers to what nobody should send: 422 in a few words, never a 500; and to HEAD."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everframe.runtime.server.guard import Told

from helpers import PROMPTS
from serving import TOKEN, Site, serve

NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "-0.5",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    '"x"',
    "null",
    "[]",
)
FIELDS = [
    ("POST", "/api/prompt", '{"prompt": "PROMPT", "crossfade": NUMBER}'),
    ("POST", "/api/seed", '{"seed": NUMBER}'),
    ("PUT", "/api/playlist", '{"items": [{"prompt": "PROMPT", "seconds": NUMBER}]}'),
    ("PUT", "/api/playlist", '{"items": [{"prompt": "PROMPT", "crossfade": NUMBER}]}'),
    ("PUT", "/api/schedule", '{"entries": [{"at": "08:00", "prompt": "PROMPT", "crossfade": NUMBER}]}'),
    ("PUT", "/api/schedule", '{"entries": [{"at": NUMBER, "pause": true}]}'),
]
LONG = "x" * 200_000
BODIES = [
    ("POST", "/api/prompt", rb'{"prompt": "\ud800"}'),
    ("POST", "/api/prompt", rb'{"\udfff": 1, "prompt": "a"}'),
    ("POST", "/api/prompt", b'{"prompt": "\xff\xfe"}'),
    ("POST", "/api/prompt", b"[" * 100_000),
    ("POST", "/api/prompt", b"{"),
    ("POST", "/api/prompt", b""),
    ("POST", "/api/prompt", b"\xef\xbb\xbf{}"),
    ("POST", "/api/prompt", json.dumps({"prompt": LONG}).encode()),
    ("POST", "/api/prompt", json.dumps({"prompt": LONG[:2000]}).encode()),
    ("POST", "/api/prompt", json.dumps({LONG: 1, "prompt": "a"}).encode()),
    ("POST", "/api/prompt", json.dumps({"prompt": PROMPTS[0], "transition": LONG}).encode()),
    ("PUT", "/api/playlist", json.dumps({"items": [{}] * 20_000}).encode()),
    ("PUT", "/api/playlist", json.dumps({"items": [{"prompt": 3}] * 400}).encode()),
    ("PUT", "/api/playlist", rb'{"items": [{"prompt": "\udfff", "seconds": 1}]}'),
    ("PUT", "/api/schedule", rb'{"timezone": "\ud800", "entries": []}'),
    ("PUT", "/api/schedule", json.dumps({"timezone": LONG}).encode()),
    ("PUT", "/api/schedule", json.dumps({"timezone": "../../etc/passwd"}).encode()),
    ("PUT", "/api/schedule", json.dumps({"timezone": "a\0b"}).encode()),
    ("PUT", "/api/schedule", json.dumps({"entries": [{"at": LONG, "pause": True}]}).encode()),
    ("PUT", "/api/schedule", json.dumps({"entries": [{"at": "08:00", "days": [LONG], "pause": True}]}).encode()),
    *(
        ("PUT", "/api/schedule", json.dumps({"entries": [{"at": at, "pause": True}]}).encode())
        for at in ("08:00+02:00", "08:00Z", "8", "0800", "T08:00", "24:00", "08:00:00.5", "٠٨:٠٠")
    ),
]


@pytest.mark.parametrize(("method", "path", "form"), FIELDS)
def test_numbers_that_are_none(site: Site, method: str, path: str, form: str) -> None:
    for number in NUMBERS:
        status, answer = site.ask(path, method, form.replace("PROMPT", PROMPTS[0]).replace("NUMBER", number).encode())
        assert status == 422, (number, status, answer)
        assert len(json.dumps(answer)) < 4000
    assert "Traceback" not in site.log.read_text()


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
def test_bodies_are_refused_and_not_echoed(site: Site, method: str, path: str, body: bytes) -> None:
    status, answer = site.ask(path, method, body)
    assert status == 422, answer
    assert isinstance(answer["detail"], str) or all({"loc", "msg", "type"} == set(one) for one in answer["detail"])
    assert len(json.dumps(answer)) < 4000
    log = site.log.read_text()
    assert "Traceback" not in log
    assert max(map(len, log.splitlines())) < 2500


@pytest.mark.parametrize("query", ["lines=NaN", "lines=1e999", "lines=-1", "lines=" + "9" * 5000, "lines=%ed%a0%80"])
def test_queries_are_refused_like_bodies(site: Site, query: str) -> None:
    status, answer = site.ask(f"/api/log?{query}")
    assert status == 422
    assert len(json.dumps(answer)) < 2000


def head(site: Site, path: str, method: str = "HEAD") -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    found = answer.status, b"" if path == "/video.mjpeg" and method == "GET" else answer.read(), dict(answer.headers)
    connection.close()
    return found


def test_head_is_get_without_a_body(site: Site) -> None:
    paths = [path for path, methods in site.ask("/api/openapi.json")[1]["paths"].items() if "get" in methods]
    pages = ["/", "/operator", "/sw.js", "/static/player.js", "/static/style.css", "/api/openapi.json", "/nothing"]
    for path in [*(path.replace("{name}", "init.mp4") for path in paths), *pages]:
        status, body, headers = head(site, path)
        assert body == b""
        expected, _, theirs = head(site, path, "GET")
        assert status == expected, path
        assert headers["content-type"] == theirs["content-type"]
    assert head(site, "/")[0] == head(site, "/video.mjpeg")[0] == 200
    assert head(site, "/api/seed")[0] == 405  # there is no GET either


@pytest.mark.parametrize(
    "query", ["preview=abc", "preview=" + "9" * 3000, "screen=" + "x" * 5000, "screen=%ff%00%ed%a0%80"]
)
def test_queries_of_websockets(site: Site, query: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = f"ws://127.0.0.1:{site.port}/ws/video?{query}"
    if query.startswith("preview"):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address)
    else:
        with connect(address) as socket:
            assert json.loads(socket.recv(timeout=10))["type"] == "init"
            socket.send('{"shown": NaN, "buffered": 1e999, "visible": "\\ud800"}')
            socket.send("[" * 20_000)
    assert site.ask("/healthz")[0] == 200
    assert "Traceback" not in site.log.read_text()


def test_looking_a_prompt_up_does_not_hold_up_the_pages(site: Site) -> None:
    """Thirty orders that are refused at once, each with a suggestion to be found; pages are answered meanwhile."""
    body = {"prompt": "a quite see " * 160}
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(site.ask, "/api/prompt", "POST", body) for _ in range(30)]
        began = time.monotonic()
        assert site.ask("/healthz")[0] == 200
        assert time.monotonic() - began < 5
        assert {one.result()[0] for one in asked} == {422}


def test_lines_of_one_kind_are_few_and_come_again_the_next_day(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever makes up a hundred names a day keeps no true line from the log but that day's."""
    told = Told()
    for n in range(1000):
        told.once(f"made up {n}", 0.0)
    told.once("screen 'lobby': not by WebRTC", 10.0)
    assert len(caplog.records) == 100
    for now in (90_000.0, 90_001.0):
        told.once("screen 'lobby': not by WebRTC", now)
    assert len(caplog.records) == 101


def test_an_address_with_a_slash_too_many(site: Site) -> None:
    """Below a proxy's path, by its scheme: the answer names neither."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    connection.request("GET", "/operator/")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (307, "../operator")


def test_a_proxy_that_passes_its_own_host(bundle_path: Path, tmp_path: Path) -> None:
    """With the origin of the pages in the configuration their WebSockets are theirs; no other is."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with serve(tmp_path, bundle_path, 'origins = ["https://Signage.example:8443"]\n') as site:
        address = f"ws://127.0.0.1:{site.port}/ws/video"
        with connect(address, origin="https://signage.example:8443") as socket:  # type: ignore[arg-type]
            assert json.loads(socket.recv())["type"] == "init"
        with pytest.raises(InvalidStatus):
            connect(address, origin="https://signage.example")  # type: ignore[arg-type]


def test_wrong_names_are_told_once(bundle_path: Path, tmp_path: Path) -> None:
    """A reverse proxy that passes another Host, or leaves the port out, shows a dark page: the log says why."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with serve(tmp_path, bundle_path) as site:
        for _ in range(3):
            assert site.ask("/", Host="upstream.example")[0] == 400
            with pytest.raises(InvalidStatus):
                connect(f"ws://127.0.0.1:{site.port}/ws/video", origin="http://signage.example:8443")  # type: ignore[arg-type]
        log = site.log.read_text()
        assert log.count("host 'upstream.example' is not served here: see server.hosts") == 1
        assert log.count("a page from origin 'http://signage.example:8443', asked for as host '127.0.0.1:") == 1
