"""Orders over OSC, sent by a real client."""

from __future__ import annotations

from pathlib import Path

from pythonosc.udp_client import SimpleUDPClient

from helpers import PROMPTS
from serving import free_port, serve, wait_for


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
