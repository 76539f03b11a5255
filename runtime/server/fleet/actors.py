"""Streams on several machines, as actors of a Ray cluster.

Every actor is a `Service` as `everframe serve` runs it, without the HTTP side: generator process, channel, orders, state on
disk. Ray places it where enough memory is free, and starts it again, on another node if need be, when its node dies; it then
goes on from its saved state, which therefore has to lie in a folder that all nodes share.

Needs the extra `fleet`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import ray
import ray.exceptions
from fastapi import HTTPException
from pydantic import Field, field_validator

from ....engines.bundle import Bundle, Graph
from ....engines.errors import UserError
from ....engines.text import first_line
from ..config import Config, Section, Server, StreamSettings, Video, beside, read_toml, video_beside
from ..discretion import shortened
from ..orders.playlist import Change
from ..service import LONGEST, Service, check_fits, check_video
from ..survival.seen import see
from ..survival.supervisor import LONGEST_STOP

log = logging.getLogger(__name__)

PROCESS = 400 << 20  # bytes that interpreters and runtime take, web and generator process together
PATIENCE = 15.0  # seconds that the gateway waits for a stream
CONNECT = 10.0  # seconds that a cluster's address may take to answer
AGAIN = 5.0  # seconds after which a stream that could not begin tries again

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]


class StreamSpec(StreamSettings):
    """One stream of the fleet."""

    name: Name
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)


class FleetConfig(Section):
    """The fleet's TOML file. Relative paths in it are relative to it."""

    state_dir: Path  # on a disk that all nodes share
    ray: str | None = None  # address of the cluster; default: a local one
    server: Server = Server()
    video: Video = Video()
    streams: list[StreamSpec] = Field(min_length=1)

    @field_validator("streams")
    @classmethod
    def _names_differ(cls, streams: list[StreamSpec]) -> list[StreamSpec]:
        names = [s.name for s in streams]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two streams are called {name!r}")
        return streams


def read_fleet(file: Path) -> FleetConfig:
    """Raises UserError naming the file and the field."""
    config = read_toml(file, FleetConfig)
    _check_effects(file, config)
    streams = [beside(file, spec) for spec in config.streams]
    changes = {"state_dir": file.absolute().parent / config.state_dir, "video": video_beside(file, config.video)}
    return config.model_copy(update=changes | {"streams": streams})


def _check_effects(file: Path, config: FleetConfig) -> None:
    """Raises UserError for what a server has and a fleet's gateway has not."""
    if config.video.webrtc:
        raise UserError(f"{file}: video.webrtc: a fleet's gateway has no WebRTC; expected 0")
    for name in ("embed", "origins", "missing_seconds"):
        if name in config.server.model_fields_set:
            raise UserError(f"{file}: server.{name}: a fleet's gateway has no pages and no screens; leave it out")
    if config.video.push and len(config.streams) > 1:
        raise UserError(
            f"{file}: video.push: {len(config.streams)} streams would go to one address; expected one stream, or none of it"
        )


def memory_of(bundle: Bundle) -> int:
    """Bytes that a stream of this bundle is expected to take: weights (float32 on a CPU); ring, decoder states and what is
    saved of them beside; frames, two processes."""
    m = bundle.manifest
    files = {ref.file: ref.bytes for graph in m.graphs.values() for ref in (graph.model, *graph.data)}
    weights = sum(files.values())  # which graphs share, once
    ring = _bytes(m.graphs["step"], ("k_", "v_", "sink_k_", "sink_v_"))
    states = _bytes(m.graphs["decode"], ("state_",))  # read from one set and written to another
    shown = bundle.output
    frames = 4 * shown.chunk_frames * shown.width * shown.height * 3  # two chunks here, and two on their way to viewers
    return 2 * weights + 2 * ring + 3 * states + frames + PROCESS


def _bytes(graph: Graph, names: tuple[str, ...]) -> int:
    sizes = {"float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
    return sum(sizes.get(s.dtype, 4) * math.prod(s.shape) for s in graph.inputs if s.name.startswith(names))


class NotUpError(Exception):
    """The stream has not begun on this node; says why."""


class Actor:
    """A stream in a Ray worker.

    It begins in a thread of its own and is tried again: Ray starts no actor again whose constructor has failed, and a shared
    disk may come later than the node.
    """

    def __init__(self, config: Config):
        self._config, self._service = config, None
        self._why = "it is starting"
        self._ending = threading.Event()
        self._beginner = threading.Thread(target=self._begin, name="begin", daemon=True)
        self._beginner.start()

    def _begin(self) -> None:
        while not self._ending.is_set():
            try:
                self._config.state_dir.mkdir(parents=True, exist_ok=True)
                service = Service(self._config, see(self._config.stream.bundle))
                service.start()
                self._service = service
                return
            except Exception as error:  # whatever it is: the gateway tells it, and what is lacking may come
                self._why = f"cannot begin: {first_line(error) or type(error).__name__}"
                self._ending.wait(AGAIN)

    @property
    def service(self) -> Service:
        """Raises NotUpError."""
        if self._service is None:
            raise NotUpError(self._why)
        return self._service

    def state(self) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        service = self.service
        why = shortened(service.supervisor.why, LONGEST)
        return service.state() | {"node": node, "ready": service.ready(), "why": why}

    def prompt(self, change: Change) -> Change:
        """Raises UserError."""
        return self.service.control.set_prompt(change)

    def snapshot(self) -> bytes:
        return self.service.channel.png()

    def hls(self, name: str) -> bytes | None:
        """live.m3u8 and what it names; None: there is no such thing now."""
        return self.service.channel.hls.file(name)

    def stop(self) -> None:
        """Save the state."""
        self._ending.set()
        self._beginner.join()
        if self._service is not None:
            self._service.stop()


def settings_of(config: FleetConfig, spec: StreamSpec) -> Config:
    """What `everframe serve` would be given for this stream alone."""
    stream = StreamSettings(**spec.model_dump(exclude={"name", "cpus", "gpus"}))
    return Config(state_dir=config.state_dir / spec.name, video=config.video, stream=stream)


def _join(address: str | None) -> None:
    """A cluster, or a local one of our own. Raises UserError."""
    place = re.fullmatch(r"(?:ray://)?([^/]+):(\d{1,5})", address or "")
    try:
        if place is not None:  # Ray itself tries for minutes
            socket.create_connection((place[1].strip("[]"), int(place[2])), CONNECT).close()
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:  # ConnectionError among them, which Ray raises too
        raise UserError(f"ray {address!r}: no cluster is there: {error.strerror or first_line(error)}") from None
    except (ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"ray {address!r}: {first_line(error)}") from None


def no_place(needs: dict[str, float], nodes: list[dict[str, Any]]) -> str:
    """Why none of Ray's nodes can ever take a stream that needs so much of its resources; empty where one can. Ray itself
    says nothing and waits for a larger node."""
    for node in nodes:
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in needs.items() if amount):
            return ""
    told = f"{needs['CPU']:g} CPUs, {needs['GPU']:g} GPUs and {needs['memory'] / 2**30:.1f} GiB of memory"
    return f"no node has the {told} that it is expected to take"


class Fleet:
    """The actors of all streams."""

    def __init__(self, config: FleetConfig):
        check_video(config.video)
        # Before a cluster is asked for anything; once each, for verifying reads every byte.
        bundles = {path: see(path).bundle for path in {spec.bundle for spec in config.streams}}
        settings = {spec.name: settings_of(config, spec) for spec in config.streams}
        for spec in config.streams:
            try:
                check_fits(settings[spec.name], bundles[spec.bundle])
            except UserError as error:
                raise UserError(f"streams {spec.name}: {error}") from None
        _join(config.ray)
        kind = ray.remote(Actor)
        self.actors: dict[str, Any] = {}
        self.needs: dict[str, dict[str, float]] = {}
        for spec in config.streams:
            memory = memory_of(bundles[spec.bundle].with_post(spec.post))
            self.needs[spec.name] = {"CPU": spec.cpus, "GPU": spec.gpus, "memory": memory}
            self.actors[spec.name] = kind.options(
                max_restarts=-1,
                max_task_retries=0,
                num_cpus=spec.cpus,
                num_gpus=spec.gpus,
                memory=memory,
                max_concurrency=8,
                scheduling_strategy="SPREAD",
            ).remote(settings[spec.name])

    async def ask(self, name: str, method: str, *values: Any) -> Any:
        """Raises HTTPException where the stream is unknown or does not answer, UserError where it refuses."""
        if name not in self.actors:
            raise HTTPException(404, f"no stream {name!r}; there are: {', '.join(self.actors)}")
        try:
            return await asyncio.wait_for(getattr(self.actors[name], method).remote(*values), PATIENCE)
        except (TimeoutError, ray.exceptions.RayActorError):
            why = no_place(self.needs[name], ray.nodes()) or "it is starting, or starting again"
            raise HTTPException(503, f"stream {name!r} does not answer: {why}") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            if isinstance(error.cause, NotUpError):
                raise HTTPException(503, f"stream {name!r} does not answer: {error.cause}") from None
            raise

    def stop(self) -> None:
        """All at once. One that no node has taken, or whose node is gone, is not waited for."""
        alive = {actor.__ray_ready__.remote(): name for name, actor in self.actors.items()}
        there, _ = ray.wait(list(alive), num_returns=len(alive), timeout=PATIENCE)
        stopping = {self.actors[name].stop.remote(): name for name in (alive[ref] for ref in there)}
        _, late = (
            ray.wait(list(stopping), num_returns=len(stopping), timeout=LONGEST_STOP + 20) if stopping else ([], [])
        )
        for ref, name in stopping.items():
            try:
                if ref in late:
                    raise TimeoutError(f"nothing for {LONGEST_STOP + 20:.0f} s")
                ray.get(ref)
            except (ray.exceptions.RayError, TimeoutError) as error:
                log.warning("stream %s did not stop: %s", name, first_line(error))
        for actor in self.actors.values():
            ray.kill(actor)
