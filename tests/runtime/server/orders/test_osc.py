"""Orders over OSC, sent by a real client."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest
from pythonosc.osc_message import OscMessage
from pythonosc.osc_packet import OscPacket
from pythonosc.udp_client import SimpleUDPClient

from everframe.engines.errors import UserError
from everframe.runtime.server.orders.osc import as_utf8, check_sizes

from helpers import PROMPTS
from serving import Site, free_port, serve, wait_for


def test_orders_over_osc(bundle_path: Path, tmp_path: Path) -> None:
    port = free_port()
    with serve(tmp_path, bundle_path, f"[osc]\nenabled = true\nport = {port}\n") as site:
        client = SimpleUDPClient("127.0.0.1", port)
        client.send_message("/everframe/prompt", [PROMPTS[1], "cut", 0.5])
        wait_for(lambda: site.state_of()["prompt"] == PROMPTS[1])
        client.send_message("/everframe/seed", 77)
        wait_for(lambda: site.state_of()["seed"] == 77)
        for bad in (
            ("prompt", "an elephant"),
            ("prompt", [PROMPTS[0], "explode"]),
            ("seed", "x"),
            ("pause", 3),
            ("x", []),
        ):
            client.send_message(f"/everframe/{bad[0]}", bad[1])
        client.send_message("/everframe/pause", [])
        wait_for(lambda: site.state_of()["paused"])
        client.send_message("/everframe/resume", [])
        wait_for(lambda: not site.state_of()["paused"])
        assert (site.state_of()["prompt"], site.state_of()["seed"]) == (PROMPTS[1], 77)
        log = site.log.read_text()
        assert log.count("WARNING everframe.runtime.server.orders.osc: OSC") == 5
        assert "Traceback" not in log


def test_osc_is_off_by_default(bundle_path: Path, tmp_path: Path) -> None:
    from everframe.runtime.server.config import Config

    assert not Config().osc.enabled


def words(text: bytes) -> bytes:
    return text + b"\0" * (4 - len(text) % 4)


def message(address: str, types: str = "", *values: object) -> bytes:
    """As the OSC 1.0 specification writes it down, by hand: the client library would refuse some of it."""
    out = words(address.encode()) + words(b"," + types.encode())
    for kind, value in zip(types.replace("T", "").replace("F", ""), values, strict=True):
        out += words(value) if isinstance(value, bytes) else struct.pack(f">{kind}", value)
    return out


BUTTONS = [
    ("/everframe/pause", "f", [1.0], {"paused": True}),
    ("/everframe/pause", "f", [0.0], {"paused": True}),  # let go
    ("/everframe/resume", "f", [0.0], {"paused": True}),
    ("/everframe/resume", "i", [1], {"paused": False}),
    ("/everframe/pause", "F", [], {"paused": False}),
    ("/everframe/pause", "T", [], {"paused": True}),
    ("/everframe/resume", "", [], {"paused": False}),
    ("/everframe/seed", "f", [7.0], {"seed": 7}),
    ("/everframe/seed", "d", [2.0**53], {"seed": 2**53}),
    ("/everframe/seed", "i", [9], {"seed": 9}),
    ("/everframe/next", "f", [1.0], {"seed": 9}),
    ("/everframe/pause", "sf", [b"Stop", 0.0], {"paused": True}),  # what is no number is ignored
    ("/everframe/resume", "fsi", [1.0, b"x", 5], {"paused": False}),  # and what follows
]
REFUSED = [
    message("/everframe/seed", "T"),
    message("/everframe/seed", "f", 7.5),
    message("/everframe/seed", "f", float("nan")),
    message("/everframe/seed", "f", float("inf")),
    message("/everframe/seed", "f", 3e38),
    message("/everframe/seed", "i", -1),
    message("/everframe/pause", "f", 0.5),
    message("/everframe/pause", "f", float("nan")),
    message("/everframe/prompt", "s", "café".encode("latin-1")),
    message("/everframe/prompt", "f", float("nan")),
    message("/everframe/prompt", "s", b"x" * 60_000),
    words(b"/everframe/seed") + words(b",i") + b"\0\0",
    b"#bundle\0",
    b"garbage",
    b"",
]


@pytest.fixture(scope="module")
def show(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory):
    port = free_port()
    osc = f"[osc]\nenabled = true\nport = {port}\n[stream]\nsave_seconds = 1\n"
    with serve(tmp_path_factory.mktemp("show"), bundle_path, osc) as site, socket.socket(type=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", port))
        yield site, s


def kept(site: Site) -> dict:
    """control.json: every order saves it."""
    file = site.state / "control.json"
    return json.loads(file.read_text()) if file.exists() else {}


def test_buttons_and_numbers_of_controllers(show) -> None:
    site, s = show
    for address, types, values, expected in BUTTONS:
        s.send(message(address, types, *values))
        wait_for(lambda e=expected: e.items() <= kept(site).items())
    assert "OSC" not in site.log.read_text()


def test_a_datagram_that_cannot_be_obeyed_is_one_line(show) -> None:
    site, s = show
    before = kept(site)
    for data in REFUSED:
        lines = site.log.read_text().count("\n")
        s.send(data)
        wait_for(lambda n=lines: site.log.read_text().count("\n") > n, 10)
        new = site.log.read_text().splitlines()[lines:]
        assert len(new) == 1, new
        assert " WARNING everframe.runtime.server.orders.osc: OSC from 127.0.0.1: " in new[0]
        assert len(new[0]) < 700
    assert kept(site) == before
    s.send(message("/everframe/seed", "i", 11))  # it still listens
    wait_for(lambda: kept(site)["seed"] == 11)


def test_the_state_is_told_to_who_asks(show) -> None:
    site, s = show
    s.settimeout(10)
    s.send(message("/everframe/state"))
    told = OscMessage(s.recv(4096))
    state = site.state_of()
    assert told.address == "/everframe/state"
    prompt, generator, paused, position, factor = told.params
    assert (prompt, generator, paused) == (state["prompt"], "running", 0)
    assert 0 < position <= state["position"] + 1000
    assert factor > 0


@pytest.mark.parametrize("bundled", [False, True])
def test_latin_1_is_read(bundled: bool) -> None:
    """A prompt with an umlaut as older desks send it, between arguments of every length."""
    text = "ein grüner Wald, früh am Morgen"
    one = message("/everframe/prompt", "idsf", 3, 0.25, text.encode("latin-1"), 0.5)
    data = words(b"#bundle") + bytes(8) + struct.pack(">i", len(one)) + one if bundled else one
    with pytest.raises(UnicodeDecodeError):
        OscPacket(data)
    (timed,) = OscPacket(as_utf8(data)).messages
    assert timed.message.params == [3, 0.25, text, 0.5]


def test_a_bundle_dated_into_the_future_is_obeyed_at_once(show) -> None:
    site, s = show
    one = message("/everframe/seed", "i", 12)
    s.send(words(b"#bundle") + struct.pack(">II", 0xFFFFFFF0, 0) + struct.pack(">i", len(one)) + one)
    wait_for(lambda: kept(site)["seed"] == 12, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"#bundle\0" + bytes(8) + struct.pack(">i", -4),
        b"#bundle\0" + bytes(8) + struct.pack(">i", 0),
        b"#bundle\0" + bytes(8) + struct.pack(">i", 400) + b"/x\0\0",
        b"#bundle\0" + bytes(8) + b"\0\0",
    ],
)
def test_bundles_that_never_end_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="no OSC message"):
        check_sizes(data)


def test_bundles_in_bundles_end_somewhere() -> None:
    data = b"#bundle\0" + bytes(8)
    for _ in range(300):
        data = b"#bundle\0" + bytes(8) + struct.pack(">i", len(data)) + data
    with pytest.raises(UserError, match="no OSC message"):
        check_sizes(data)
