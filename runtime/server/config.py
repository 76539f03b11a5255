"""The server's configuration: a TOML file, every field checked, unknown ones refused."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ...engines.bundle import first_problem
from ...engines.errors import UserError
from ...engines.post import Choice
from ...engines.text import read_text
from ..noise import MAX_SEED
from ..overlay.parts import Overlay
from ..prompts import Transition
from .addresses import host_name, origin
from .discretion import redacted
from .orders.playlist import MOST_ITEMS, Item, Playlist, Text
from .orders.timetable import Timetable
from .pictures.push import FORMATS, PushSettings
from .pictures.screens import View

Read = TypeVar("Read", bound=BaseModel)
Stream = TypeVar("Stream", bound="StreamSettings")
Port = Annotated[int, Field(ge=1, le=65535)]
ScreenName = Annotated[str, Field(pattern=r"^[^\x00-\x1f/?#]{1,64}$")]
Seconds = Annotated[float, Field(ge=0.05, le=86400)]

SHORTEST_TOKEN = 16


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_token(token: str) -> str:
    """A bearer token as a header can carry it. Raises ValueError, which does not show it."""
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(f"found {len(token)} characters, expected at least {SHORTEST_TOKEN}")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("expected printable ASCII characters without blanks: no browser could send it otherwise")
    return token


def _token(found: Any) -> Any:
    """Before anything else may quote it."""
    if found is None:
        return None
    if not isinstance(found, str):
        raise ValueError("expected text")
    return check_token(found)


def _push(found: Any) -> Any:
    """Before anything else may quote an address with its key."""
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError('expected a list of addresses such as ["rtmp://mixer/live/lobby"]')
    for target in found:
        if target.split("://")[0] not in FORMATS or "://" not in target:
            raise ValueError(f"push {redacted(target)!r}: expected rtmp://, rtmps://, srt:// or udp://")
        if not (target.isascii() and target.isprintable()) or " " in target:
            raise ValueError(f"push {redacted(target)!r}: expected printable ASCII without blanks (%C3%BC for ü)")
        ports = r"[^/?#]*:\d{1,5}" if target.startswith(("udp", "srt")) else r"[^/?#:]|[^/?#]*[^/?#:]"
        if not re.match(rf"\w+://({ports})([/?#]|$)", target):
            raise ValueError(f"push {redacted(target)!r}: expected a host and, for udp and srt, its port")
    return found


class Server(Section):
    """Where the pages and the API are."""

    host: str = "127.0.0.1"
    port: Port = 8080
    token: Annotated[str | None, BeforeValidator(_token)] = None  # default: made once and kept in state_dir/token
    hosts: list[str] = []  # names under which browsers may ask for it, beside the loopback ones; "*" for any
    embed: list[str] = []  # origins whose pages may show the player in a frame; "*" for any
    origins: list[str] = []  # of our own pages, where a reverse proxy does not pass the Host that the browser sent
    rate: float = Field(default=10, gt=0, le=1e6)  # changes a second that one address may ask for
    missing_seconds: float = Field(default=600, ge=0, le=30 * 86400)  # after which a screen of [screens] is; 0: never

    @field_validator("hosts")
    @classmethod
    def _askable(cls, names: list[str]) -> list[str]:
        return [host_name(name) for name in names]

    @field_validator("embed", "origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        return [origin(one) for one in origins]

    @field_validator("origins")
    @classmethod
    def _ours(cls, origins: list[str]) -> list[str]:
        if "*" in origins:
            raise ValueError("'*': expected the origins of our own pages, such as https://signage.example")
        return origins


class StreamSettings(Section):
    """What is generated."""

    bundle: Path | None = None  # default: the demo
    prompt: Text | None = None
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    jitter: float | None = Field(default=None, ge=0, lt=1)
    rope: Literal["absolute", "relative"] | None = None  # default: the bundle's
    sink_distance: int | None = Field(default=None, ge=0, le=1_000_000)  # latent frames, with rope relative
    anchor: Path | None = None
    ground: str | None = None  # colour under what is transparent in the anchor; default: its border's, or black
    threads: int = Field(default=0, ge=0, le=1024)
    provider: str = "cpu"
    backend: str = "onnxruntime"
    device: str = "cpu"  # of openvino
    precision: str = "auto"  # of openvino
    gpu: int | None = Field(default=None, ge=0, le=1023)  # which NVIDIA card, as nvidia-smi counts them
    post: Choice | None = None  # which of the graphs of `everframe post add` run; default: the bundle's
    verify: bool = True  # hold the engines against the bundle's reference before the first chunk
    save_seconds: float = Field(default=300, ge=0, le=30 * 86400)  # of video between two saved states; 0: only on stop
    stall_seconds: Seconds = 20  # without a chunk for so long, the generator is restarted
    start_seconds: Seconds = 180  # the same for its first chunk, as long as it reads nothing, and for a free prompt

    @field_validator("ground")
    @classmethod
    def _of_an_anchor(cls, ground: str | None, others: ValidationInfo) -> str | None:
        if ground is not None and others.data.get("anchor") is None:
            raise ValueError(f"{ground!r}: expected an anchor with it")
        return ground


class Video(Section):
    """How frames leave the machine."""

    encoder: Literal["auto", "libx264", "h264_nvenc"] = "auto"  # browsers get H.264: nothing else is muxed for them
    crf: int = Field(default=20, ge=0, le=51)  # quality of libx264, smaller is better
    keyframe_seconds: float = Field(default=2, ge=0.5, le=10)  # also the length of an HLS segment
    hls_segments: int = Field(default=6, ge=3, le=60)
    webrtc: int = Field(default=0, ge=0, le=200)  # viewers by WebRTC at most; 0: off
    push: Annotated[list[str], BeforeValidator(_push)] = []  # rtmp://, rtmps://, srt://, udp:// addresses
    # "silence": an AAC track, which some services insist on; else an audio file that is heard over and over
    push_audio: Literal["none", "silence"] | Path = "none"
    push_kbits: int | None = Field(default=None, ge=50, le=100_000)  # a constant bit rate; default: constant quality

    @property
    def push_settings(self) -> PushSettings:
        sound = self.push_audio if isinstance(self.push_audio, Path) else None
        return PushSettings(self.push_audio != "none", sound, self.push_kbits)


class PlaylistSection(Section):
    loop: bool = True
    items: list[Item] = Field(default=[], max_length=MOST_ITEMS)


class Osc(Section):
    enabled: bool = False
    host: str = "127.0.0.1"
    port: Port = 9000


class Guest(Section):
    """The visitors' page."""

    enabled: bool = False
    prompts: list[Text] = []  # that can be wished for; default: the bank's
    seconds: float = Field(default=45, ge=1, le=3600)  # that a wish is shown
    every_seconds: float = Field(default=60, ge=0, le=86400)  # between two wishes of one visitor
    queue: int = Field(default=20, ge=1, le=1000)  # wishes that may wait
    transition: Transition = "smooth"
    free_text: bool = False  # where the bundle has its text encoder
    longest: int = Field(default=200, ge=10, le=2000)  # letters of a free text
    approval: bool = True  # free texts wait for the operator
    blocked: list[Annotated[str, Field(min_length=1, max_length=100)]] = []  # words that no free text may have


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: Path | None = None  # beside standard error: never more than five files of max_mb
    max_mb: int = Field(default=5, ge=1, le=100_000)


class Config(Section):
    """Everything. Relative paths in a file are relative to that file."""

    state_dir: Path = Path("everframe-state")
    server: Server = Server()
    stream: StreamSettings = StreamSettings()
    video: Video = Video()
    playlist: PlaylistSection = PlaylistSection()
    schedule: Timetable = Field(default_factory=Timetable)
    osc: Osc = Osc()
    overlay: Overlay = Overlay()
    screens: dict[ScreenName, View] = {}
    guest: Guest = Guest()
    logging: Logging = Logging()

    @property
    def first_playlist(self) -> Playlist | None:
        return Playlist(items=self.playlist.items, loop=self.playlist.loop) if self.playlist.items else None


def read_toml(file: Path, kind: type[Read]) -> Read:
    """Raises UserError naming the file and the field."""
    text = read_text(file)
    try:
        raw = tomllib.loads(text)
        if any(unicodedata.category(c) == "Cc" and not c.isspace() for c in _strings(raw)):
            raise UserError(f"{file}: a control character in a value: no path, host or prompt has one")
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{file}: {_problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None


def _strings(value: Any) -> str:
    """All text in a TOML document, in one."""
    if isinstance(value, dict):
        return "".join(_strings(one) for one in value.values())
    return "".join(map(_strings, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def _problem(error: ValidationError) -> str:
    """What stands under an unknown name, or where something else was expected, may be a token or an address with a key: text
    is quoted only where it is one of a few words."""
    first = error.errors(include_url=False)[0]
    quotable = first["type"] in ("literal_error", "value_error") or not isinstance(first["input"], str)
    if first["type"] == "extra_forbidden" or not quotable:
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return first_problem(error)


def beside(file: Path, settings: Stream) -> Stream:
    """The settings with paths relative to the file they stand in made whole."""
    here = file.absolute().parent
    names = [name for name in ("bundle", "anchor") if getattr(settings, name) is not None]
    return settings.model_copy(update={name: here / getattr(settings, name) for name in names})


def read_config(file: Path) -> Config:
    """Raises UserError naming the file and the field."""
    config, here = read_toml(file, Config), file.absolute().parent
    logging = config.logging.model_copy(update={"file": here / config.logging.file} if config.logging.file else {})
    stream, video = beside(file, config.stream), video_beside(file, config.video)
    changes = {"state_dir": here / config.state_dir, "stream": stream, "logging": logging, "video": video}
    return config.model_copy(update=changes | {"overlay": overlay_beside(file, config.overlay)})


def video_beside(file: Path, video: Video) -> Video:
    sound = video.push_audio
    return video.model_copy(update={"push_audio": file.absolute().parent / sound}) if isinstance(sound, Path) else video


def overlay_beside(file: Path, overlay: Overlay) -> Overlay:
    """The overlay with paths relative to the file it stands in made whole."""
    here, logo = file.absolute().parent, overlay.logo
    return overlay.model_copy(
        update={
            "font": overlay.font and here / overlay.font,
            "logo": logo and logo.model_copy(update={"file": logo.file and here / logo.file}),
        }
    )
