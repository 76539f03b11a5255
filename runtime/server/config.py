"""The server's configuration: a TOML file, every field checked, unknown ones refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...engines.bundle import first_problem
from ...engines.errors import UserError
from ...engines.files import reason
from ..stream import MAX_SEED
from .orders.playlist import Item, Playlist
from .orders.timetable import Timetable
from .pictures.push import FORMATS

Read = TypeVar("Read", bound=BaseModel)
Stream = TypeVar("Stream", bound="StreamSettings")
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """Where the pages and the API are."""

    host: str = "127.0.0.1"
    port: Port = 8080
    token: str | None = Field(default=None, min_length=16)  # default: made once and kept in state_dir/token
    hosts: list[str] = []  # names under which browsers may ask for it, beside the loopback ones; "*" for any
    rate: float = Field(default=10, gt=0)  # changes a second that one address may ask for


class StreamSettings(Section):
    """What is generated."""

    bundle: Path | None = None  # default: the demo
    prompt: str | None = None
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    jitter: float | None = Field(default=None, ge=0, lt=1)
    anchor: Path | None = None
    threads: int = Field(default=0, ge=0)
    provider: str = "cpu"
    backend: str = "onnxruntime"
    save_seconds: float = Field(default=300, ge=0)  # seconds of video between two saved states; 0: only on stop
    stall_seconds: float = Field(default=20, gt=0)  # without a chunk for so long, the generator is restarted
    start_seconds: float = Field(default=180, gt=0)  # the same for its first chunk


class Video(Section):
    """How frames leave the machine."""

    encoder: str = "auto"
    crf: int = Field(default=20, ge=0, le=51)  # quality of libx264, smaller is better
    keyframe_seconds: float = Field(default=2, ge=0.5, le=10)  # also the length of an HLS segment
    hls_segments: int = Field(default=6, ge=3, le=60)
    push: list[str] = []  # rtmp://, srt://, udp:// addresses

    @model_validator(mode="after")
    def _known(self) -> Video:
        for target in self.push:
            if target.split("://")[0] not in FORMATS:
                raise ValueError(f"push {target!r}: expected rtmp://, rtmps://, srt:// or udp://")
        return self


class PlaylistSection(Section):
    loop: bool = True
    items: list[Item] = []


class Osc(Section):
    enabled: bool = False
    host: str = "127.0.0.1"
    port: Port = 9000


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: Path | None = None  # beside standard error: never more than five files of max_mb
    max_mb: int = Field(default=5, ge=1)


class Config(Section):
    """Everything. Relative paths in a file are relative to that file."""

    state_dir: Path = Path("everframe-state")
    server: Server = Server()
    stream: StreamSettings = StreamSettings()
    video: Video = Video()
    playlist: PlaylistSection = PlaylistSection()
    schedule: Timetable = Timetable()
    osc: Osc = Osc()
    logging: Logging = Logging()

    @property
    def first_playlist(self) -> Playlist | None:
        return Playlist(items=self.playlist.items, loop=self.playlist.loop) if self.playlist.items else None


def read_toml(file: Path, kind: type[Read]) -> Read:
    """Raises UserError naming the file and the field."""
    try:
        return kind.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None


def beside(file: Path, settings: Stream) -> Stream:
    """The settings with paths relative to the file they stand in made whole."""
    here = file.absolute().parent
    names = [name for name in ("bundle", "anchor") if getattr(settings, name) is not None]
    return settings.model_copy(update={name: here / getattr(settings, name) for name in names})


def read_config(file: Path) -> Config:
    """Raises UserError naming the file and the field."""
    config, here = read_toml(file, Config), file.absolute().parent
    logging = config.logging.model_copy(update={"file": here / config.logging.file} if config.logging.file else {})
    changes = {"state_dir": here / config.state_dir, "stream": beside(file, config.stream), "logging": logging}
    return config.model_copy(update=changes)
