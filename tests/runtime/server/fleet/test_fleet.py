"""A fleet on two real Ray nodes of this machine, one of which is killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import pytest

from everframe.engines.errors import UserError
from everframe.runtime.demo import open_bundle

from helpers import PROMPTS
from serving import ask, free_port, wait_for

ray = pytest.importorskip("ray")


@pytest.mark.slow
def test_a_node_dies_and_its_streams_go_on_elsewhere(bundle_path: Path, tmp_path: Path) -> None:
    import threading

    import uvicorn
    from ray.cluster_utils import Cluster

    from everframe.runtime.server.config import Server
    from everframe.runtime.server.fleet.actors import Fleet, memory_of, read_fleet
    from everframe.runtime.server.fleet.gateway import create_gateway

    need = memory_of(open_bundle(bundle_path))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "memory": 100 << 20, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=2, memory=int(2.5 * need)) for _ in range(2)]
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'state_dir = "state"\nray = "{cluster.address}"\n'
        + "".join(
            f'[[streams]]\nname = "{n}"\nbundle = "{bundle_path}"\nseed = {i}\nsave_seconds = 1\nthreads = 1\n'
            for i, n in enumerate(("lobby", "hall"))
        )
    )
    port = free_port()
    token = "a-token-for-the-fleet"

    def call(path: str, body: object = None, token: str = token) -> tuple[int, Any]:
        return ask(f"http://127.0.0.1:{port}{path}", "GET" if body is None else "POST", body, token)

    try:
        fleet = Fleet(read_fleet(file))
        server = uvicorn.Server(uvicorn.Config(create_gateway(fleet, Server(), token), port=port, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()

        def states() -> dict:
            return call("/api/streams")[1]

        def running() -> dict:
            found = states()
            return found if all(s and s["ready"] for s in found.values()) else {}

        wait_for(lambda: server.started)
        before = wait_for(running, 120)
        homes = {name: state["node"] for name, state in before.items()}
        assert len(set(homes.values())) == 2  # one on each
        assert call("/api/streams/lobby/prompt", {"prompt": PROMPTS[1]}, token="wrong")[0] == 401
        assert call("/api/streams/lobby/prompt", {"prompt": "an elephant"})[0] == 422
        assert call("/api/streams/attic")[0] == 404
        assert call("/api/streams/lobby/prompt", {"prompt": PROMPTS[1]})[0] == 200
        wait_for(lambda: states()["lobby"]["prompt"] == PROMPTS[1])
        assert call("/streams/hall/snapshot.png")[1][:4] == b"\x89PNG"
        wait_for(lambda: call("/streams/hall/hls/live.m3u8")[0] == 200)
        playlist = call("/streams/hall/hls/live.m3u8")[1]
        number = playlist.decode().split(".m4s")[0].split()[-1]
        movie = tmp_path / "x.mp4"
        movie.write_bytes(call("/streams/hall/hls/init.mp4")[1] + call(f"/streams/hall/hls/{number}.m4s")[1])
        with av.open(str(movie)) as container:
            assert len(list(container.decode(video=0))) == 32
        wait_for(lambda: (tmp_path / "state" / "lobby" / "state.safetensors").exists())
        time.sleep(2)
        position = states()["lobby"]["position"]

        victim = next(n for n in nodes if n.node_id == homes["lobby"])
        cluster.remove_node(victim, allow_graceful=False)
        wait_for(lambda: (s := states()["lobby"]) and s["node"] != homes["lobby"], 180)
        after = wait_for(running, 120)
        assert after["lobby"]["node"] == after["hall"]["node"] == homes["hall"]
        assert after["lobby"]["prompt"] == PROMPTS[1]  # the order is kept
        assert after["lobby"]["position"] > position - 30  # and the stream goes on
        assert after["hall"]["restarts"] == 0  # the other one has not noticed
        server.should_exit = True
        thread.join(60)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state_dir = 's'\nstreams = []", "streams"),
        ("state_dir = 's'\n[[streams]]\nname = 'A B'", "streams.0.name"),
        ("state_dir = 's'\n[[streams]]\nname = 'a'\n[[streams]]\nname = 'a'", "two streams are called 'a'"),
        ("[[streams]]\nname = 'a'", "state_dir"),
        ("[", "not valid TOML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    from everframe.runtime.server.fleet.actors import read_fleet

    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_fleet(file)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)
