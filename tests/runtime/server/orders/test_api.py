"""The API of a real server, by plain requests: what it does, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from everframe.engines.errors import UserError
from everframe.runtime.server.config import read_config

from helpers import PROMPTS
from serving import TOKEN, Site, serve, wait_for


def test_the_stream_runs(site: Site) -> None:
    state = site.state_of()
    assert (state["size"], state["fps"], state["generator"]) == ([64, 32], 16, "running")
    assert state["prompt"] in PROMPTS
    position = state["position"]
    wait_for(lambda: site.state_of()["position"] > position + 6)
    assert site.ask("/healthz") == (200, {"status": "ok", "problems": []})
    assert site.ask("/api/prompts")[1]["prompts"] == PROMPTS


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_a_prompt_change_takes_effect(site: Site, transition: str) -> None:
    wanted = next(p for p in PROMPTS if p != site.state_of()["prompt"])
    body = {"prompt": wanted.upper(), "transition": transition, "crossfade": 0.5}
    status, answer = site.ask("/api/prompt", "POST", body)
    assert status == 200, answer
    assert answer["prompt"] == wanted  # the bank's spelling
    wait_for(lambda: site.state_of()["prompt"] == wanted)


def test_a_playlist_runs_and_ends(site: Site) -> None:
    items = [{"prompt": PROMPTS[0], "seconds": 0.75}, {"prompt": PROMPTS[1], "seconds": 0.75}]
    assert site.ask("/api/playlist", "PUT", {"items": items})[0] == 200
    wait_for(lambda: site.state_of()["playlist_item"] == 0)
    wait_for(lambda: site.state_of()["playlist_item"] == 1)
    assert site.ask("/api/playlist")[1]["items"][1]["prompt"] == PROMPTS[1]
    assert site.ask("/api/playlist/next", "POST")[0] == 204
    assert site.ask("/api/playlist", "DELETE")[0] == 204
    assert site.ask("/api/playlist") == (200, None)
    wait_for(lambda: site.state_of()["playlist_item"] is None)


def test_pause_and_resume(site: Site) -> None:
    assert site.ask("/api/pause", "POST")[0] == 204
    wait_for(lambda: site.state_of()["generator"] == "paused")
    time.sleep(0.3)
    picture = site.ask("/api/snapshot.png")[1]
    time.sleep(1.5)
    position = site.state_of()["position"]
    time.sleep(1)
    assert site.state_of()["position"] == position
    assert site.ask("/api/snapshot.png")[1] == picture
    assert site.ask("/readyz")[0] == 200
    assert site.ask("/api/resume", "POST")[0] == 204
    wait_for(lambda: site.state_of()["position"] > position + 6)


def test_the_seed(site: Site) -> None:
    assert site.ask("/api/seed", "POST", {"seed": 2**64 - 1})[0] == 200
    wait_for(lambda: site.state_of()["seed"] == 2**64 - 1)


def test_the_timetable_takes_effect_at_once(site: Site) -> None:
    wanted = next(p for p in PROMPTS if p != site.state_of()["prompt"])
    table = {"timezone": "Europe/Berlin", "entries": [{"days": ["mon-sun"], "at": "00:00", "prompt": wanted}]}
    assert site.ask("/api/schedule", "PUT", table)[0] == 200
    wait_for(lambda: site.state_of()["prompt"] == wanted)
    other = next(p for p in PROMPTS if p != wanted)
    site.ask("/api/prompt", "POST", {"prompt": other})  # by hand, until the timetable's next time
    wait_for(lambda: site.state_of()["prompt"] == other)
    time.sleep(1.5)
    assert site.state_of()["prompt"] == other
    assert site.ask("/api/schedule", "PUT", {})[0] == 200


def test_snapshot_hls_and_mjpeg_show_the_same_picture(site: Site) -> None:
    site.ask("/api/pause", "POST")
    wait_for(lambda: site.state_of()["generator"] == "paused")
    time.sleep(6)  # until the HLS window holds nothing but the still picture
    picture = np.asarray(Image.open(io.BytesIO(site.ask("/api/snapshot.png")[1])), np.float64)
    assert picture.shape == (32, 64, 3)
    lines = wait_for(lambda: site.ask("/hls/live.m3u8")[1]).decode().splitlines()
    newest = [line for line in lines if line.endswith(".m4s")][-1]
    data = site.ask("/hls/init.mp4")[1] + site.ask(f"/hls/{newest}")[1]
    with av.open(io.BytesIO(data), "r") as container:
        *_, last = container.decode(video=0)
    assert np.abs(last.to_ndarray(format="rgb24") - picture).mean() < 6
    with socket.create_connection(("127.0.0.1", site.port), 10) as s:
        s.sendall(f"GET /video.mjpeg HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\n\r\n".encode())
        data = b""
        while data.count(b"\xff\xd9") < 2:
            data += s.recv(65536)
    assert b"multipart/x-mixed-replace; boundary=frame" in data
    jpeg = data[data.index(b"\xff\xd8") : data.index(b"\xff\xd9") + 2]
    assert np.abs(np.asarray(Image.open(io.BytesIO(jpeg)), np.float64) - picture).mean() < 6
    site.ask("/api/resume", "POST")


def test_metrics(site: Site) -> None:
    wait_for(lambda: site.metric("chunks_total") > 5)
    text = site.ask("/metrics")[1].decode()
    for stage in ("diffuse", "finalize", "decode", "total"):
        assert f'everframe_chunk_seconds_count{{stage="{stage}"}}' in text
    assert site.metric("memory_bytes") > 1 << 20
    assert site.metric("generator_running") == 1
    there = {name for name in re.findall(r"^# TYPE (everframe_\w+)", text, re.M) if not name.endswith("_created")}
    told = set(re.findall(r"everframe_\w+", (Path(__file__).parents[4] / "docs" / "monitoring.md").read_text()))
    assert there == {name for name in told if not name.startswith("everframe_gpu_")}


CHANGING = [
    ("POST", "/api/prompt", {"prompt": PROMPTS[0]}),
    ("PUT", "/api/playlist", {"items": [{"prompt": PROMPTS[0]}]}),
    ("DELETE", "/api/playlist", None),
    ("POST", "/api/playlist/next", None),
    ("PUT", "/api/schedule", {}),
    ("POST", "/api/seed", {"seed": 1}),
    ("POST", "/api/pause", None),
    ("POST", "/api/resume", None),
    ("GET", "/api/log", None),
    ("PUT", "/api/overlay", {}),
    ("DELETE", "/api/overlay", None),
    ("POST", "/api/overlay/message", {"text": "x"}),
    ("DELETE", "/api/overlay/message", None),
    ("PUT", "/api/overlay/logo", b"x"),
    ("POST", "/api/screens/{name}/reload", None),
    ("POST", "/api/screens/{name}/picture", None),
    ("DELETE", "/api/screens/{name}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGING)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], "ünsinn"])
def test_changes_want_the_token(site: Site, method: str, path: str, body: object, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode().decode("latin-1")}
    status, answer = site.ask(path, method, body, token=None, **headers)
    assert status == 401
    assert "token" in answer["detail"]
    assert not site.state_of()["paused"]


def test_every_changing_route_of_the_schema_is_in_the_list_above(site: Site) -> None:
    schema = site.ask("/api/openapi.json")[1]
    found = {
        (method.upper(), path)
        for path, methods in schema["paths"].items()
        for method in methods
        if method != "get" or "security" in methods[method]
    }
    # Who watches by WebRTC changes nothing, and needs no token.
    watching = {("POST", "/whep"), ("OPTIONS", "/whep"), ("DELETE", "/whep/{name}")}
    assert found == {(method, path) for method, path, _ in CHANGING} | watching


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "  "}, "is empty"),
        ({"prompt": "an elephant"}, "not in the bundle's prompt bank"),
        ({"prompt": PROMPTS[0], "transition": "explode"}, "transition"),
        ({"prompt": PROMPTS[0], "crossfade": -1}, "crossfade"),
        ({"prompt": PROMPTS[0], "colour": "red"}, "colour"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({}, "prompt"),
        (b"{", "JSON"),
        ([], "model"),
    ],
)
def test_bad_orders_are_refused_in_words(site: Site, body: object, words: str) -> None:
    before = site.state_of()["prompt"]
    status, answer = site.ask("/api/prompt", "POST", body)
    assert status == 422
    assert words in json.dumps(answer)
    assert site.state_of()["prompt"] == before


def test_large_bodies_are_refused(site: Site) -> None:
    assert site.ask("/api/prompt", "POST", b" " * (300 << 10))[0] == 413
    with socket.create_connection(("127.0.0.1", site.port), 10) as s:  # without a length
        s.sendall(
            f"POST /api/prompt HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(20):
            s.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        s.sendall(b"0\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("name", "status"),
    [("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost", 200), ("127.0.0.1", 200), ("[::1]", 200)],
)
def test_pages_that_rebind_their_name_are_refused(site: Site, name: str, status: int) -> None:
    assert site.ask("/api/state", Host=f"{name}:{site.port}")[0] == status


def test_foreign_pages_get_no_cors(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), 10) as s:
        request = f"GET /api/state HTTP/1.1\r\nHost: localhost:{site.port}\r\nOrigin: http://evil.example\r\n\r\n"
        s.sendall(request.encode())
        head = s.recv(65536).split(b"\r\n\r\n")[0].lower()
    assert b"access-control-allow-origin" not in head
    assert b"content-security-policy" in head


def test_the_rate_is_limited_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from everframe.runtime.server import guard

    now = [100.0]
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rates = guard.Rates(2)
    assert [rates.wait("a") == 0 for _ in range(6)] == [True] * 4 + [False] * 2
    assert rates.wait("b") == 0
    now[0] += rates.wait("a") + 0.01
    assert rates.wait("a") == 0


def test_who_guesses_tokens_does_not_lock_out_who_knows(bundle_path: Path, tmp_path: Path) -> None:
    """Behind a proxy both come from one address."""
    with serve(tmp_path, bundle_path, rate=0.01) as site:
        refused = [site.ask("/api/pause", "POST", token="wrong")[0] for _ in range(4)]
        assert refused == [401, 429, 429, 429]
        assert site.ask("/api/pause", "POST")[0] == 204


CONFIGS = [
    ("port = 1", "port: Extra inputs"),
    ("[server]\nport = 99999", "server.port"),
    ("[server]\ntoken = 'short'", "server.token"),
    ("[stream]\nseed = -1", "stream.seed"),
    ("[video]\npush = ['http://x']", "expected rtmp://"),
    ("[schedule]\ntimezone = 'Mars'", "'Mars'"),
    ("[[schedule.entries]]\nat = '8 o clock'\nprompt = 'x'", "schedule.entries.0.at"),
    ("[[playlist.items]]\nseconds = 3", "playlist.items.0.prompt"),
    ("[server", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "words"), CONFIGS)
def test_configurations_that_are_refused_name_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(file)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)
    assert "\n" not in str(error.value).strip() or "TOML" in words


def test_the_sample_configuration_is_valid() -> None:
    config = read_config(Path(__file__).parents[4] / "docs" / "deploy" / "everframe.toml")
    assert config.server.host == "127.0.0.1"


def test_the_rate_holds_for_many_threads() -> None:
    """Routes ask in the threads of a pool: none may find an address's bucket while another one holds it."""
    import sys
    import threading
    import time

    from everframe.runtime.server.guard import Rates

    rates, allowed, before = Rates(1), [], sys.getswitchinterval()

    def ask() -> None:
        for _ in range(3000):
            if rates.wait("10.0.0.1") == 0:
                allowed.append(1)

    sys.setswitchinterval(1e-6)
    began = time.monotonic()
    try:
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(allowed) <= 2 + time.monotonic() - began
