"""A fleet on two real Ray nodes of this machine, one of which is killed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from everframe.engines.errors import UserError
from everframe.runtime.demo import open_bundle
from everframe.runtime.server.orders.playlist import Change
from everframe.runtime.state import read_facts

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
        wait_for(lambda: states()["lobby"]["position"] > 60, 60)  # farther than a stream comes until it is asked
        saved = read_facts(tmp_path / "state" / "lobby" / "state.safetensors").position

        victim = next(n for n in nodes if n.node_id == homes["lobby"])
        cluster.remove_node(victim, allow_graceful=False)
        wait_for(lambda: (s := states()["lobby"]) and s["node"] != homes["lobby"], 180)
        after = wait_for(running, 120)
        assert after["lobby"]["node"] == after["hall"]["node"] == homes["hall"]
        assert after["lobby"]["prompt"] == PROMPTS[1]  # the order is kept
        assert after["lobby"]["position"] >= saved > 30  # and the stream goes on
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
        (
            "state_dir = 's'\n[video]\npush = ['udp://h:1']\n[[streams]]\nname = 'a'\n[[streams]]\nname = 'b'",
            "video.push: 2 streams would go to one address",
        ),
        ("state_dir = 's'\n[video]\nwebrtc = 3\n[[streams]]\nname = 'a'", "video.webrtc"),
        ("state_dir = 's'\n[server]\nmissing_seconds = 0\n[[streams]]\nname = 'a'", "server.missing_seconds"),
        ("state_dir = 's'\n[server]\nembed = ['*']\n[[streams]]\nname = 'a'", "server.embed"),
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


def test_a_push_of_one_stream_is_fine(tmp_path: Path) -> None:
    from everframe.runtime.server.fleet.actors import read_fleet

    file = tmp_path / "fleet.toml"
    file.write_text("state_dir = 's'\n[video]\npush = ['udp://h:1']\n[[streams]]\nname = 'a'")
    assert read_fleet(file).video.push == ["udp://h:1"]


@pytest.mark.parametrize(
    ("address", "words"), [("nonsense", "Invalid address"), ("127.0.0.1:9", "no cluster is there")]
)
def test_an_address_without_a_cluster(bundle_path: Path, tmp_path: Path, address: str, words: str) -> None:
    """One line, and soon."""
    from everframe.runtime.server.fleet.start import serve_fleet

    file = tmp_path / "fleet.toml"
    server = f"[server]\nport = {free_port()}\n"
    file.write_text(f'state_dir = "s"\nray = "{address}"\n{server}[[streams]]\nname = "a"\nbundle = "{bundle_path}"\n')
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        serve_fleet(file)
    assert str(error.value).startswith(f"{file}: ray '{address}': ")
    assert words in str(error.value)
    assert time.monotonic() - began < 20


def test_a_stream_that_no_node_can_ever_take() -> None:
    """By nodes as ray.nodes() tells them."""
    from everframe.runtime.server.fleet.actors import no_place

    head = {"Alive": True, "Resources": {"memory": 64.0 * 2**30, "node:10.0.0.1": 1.0}}
    worker = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * 2**30}}
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 512.0 * 2**30}}
    needs = {"CPU": 2.0, "GPU": 0.0, "memory": 3.0 * 2**30}
    assert no_place(needs, [head, worker, dead]) == ""
    words = "no node has the 2 CPUs, 0 GPUs and 9.5 GiB of memory"
    assert words in no_place(needs | {"memory": 9.5 * 2**30}, [head, worker, dead])
    assert "1 GPUs" in no_place(needs | {"GPU": 1.0}, [head, worker, dead])


def test_what_a_stream_is_expected_to_take(bundle_path: Path) -> None:
    """Of a ring in bfloat16 as much as of one in float16, and at least twice what a stream has of its own."""
    from everframe.runtime import Stream
    from everframe.runtime.server.fleet.actors import PROCESS, memory_of

    bundle = open_bundle(bundle_path)

    def of_type(name: str) -> int:
        manifest = bundle.manifest.model_copy(deep=True)
        for spec in manifest.graphs["step"].inputs:
            if spec.name.startswith(("k_", "v_")):
                object.__setattr__(spec, "dtype", name)
        return memory_of(replace(bundle, manifest=manifest))

    with Stream(bundle, verify=False) as stream:
        sizes = stream.sizes()
    assert of_type("float32") - of_type("bfloat16") == sizes["ring"]  # half of it, there and beside it
    assert of_type("bfloat16") == of_type("float16")
    weights = sum({f.file: f.bytes for g in bundle.manifest.graphs.values() for f in (g.model, *g.data)}.values())
    assert memory_of(bundle) - PROCESS - 2 * weights >= 2 * sizes["ring"] + sizes["states"]


def test_a_stream_whose_disk_comes_late_begins_then(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts no actor again whose constructor has failed."""
    from everframe.runtime.server.config import Config, StreamSettings
    from everframe.runtime.server.fleet import actors

    monkeypatch.setattr(actors, "AGAIN", 0.1)
    late = tmp_path / "late.everframe"
    actor = actors.Actor(Config(state_dir=tmp_path / "state", stream=StreamSettings(bundle=late, threads=1)))
    try:
        wait_for(lambda: "cannot begin" in actor._why)
        with pytest.raises(actors.NotUpError, match=r"late\.everframe"):
            actor.snapshot()
        late.symlink_to(bundle_path)
        wait_for(lambda: actor._service is not None)
        assert actor.prompt(Change(prompt=PROMPTS[1])).prompt == PROMPTS[1]
        wait_for(lambda: actor.service.ready(), 120)
    finally:
        actor.stop()
    assert (tmp_path / "state" / "state.safetensors").exists()
