"""The engine bundle: a folder that is all that passes from export to runtime.

Opening a bundle reads `manifest.json`, refuses an unknown format, and checks the size and SHA-256 of every file before
anything is loaded. Nothing in the folder is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError
from .files import put_back, reason
from .post import Output, check_choice, check_post, chosen_of, output_of
from .text import read_text

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20

Positive = Annotated[int, Field(gt=0, le=1 << 40)]
# Larger than any model or picture of this family can be, and small enough that sizes made of them stay numbers.
Side = Annotated[int, Field(gt=0, le=1 << 15)]
Frames = Annotated[int, Field(gt=0, le=1 << 12)]
Width = Annotated[int, Field(gt=0, le=1 << 20)]
Count = Annotated[int, Field(gt=0, le=1 << 12)]
DType = Literal["float32", "float16", "bfloat16", "int64", "uint8", "int8"]


def _plain_name(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]


class Model(BaseModel):
    """Base of all parts of the manifest: unknown fields and lossy conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileRef(Model):
    """One file of the bundle, as it must be found."""

    file: FileName
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TensorSpec(Model):
    """A graph input or output. All shapes are static."""

    name: str
    shape: list[Positive]
    dtype: DType

    @model_validator(mode="after")
    def _fits(self) -> TensorSpec:
        if math.prod(self.shape) > 1 << 40:
            raise ValueError(f"{self.name}: shape {self.shape} is larger than any tensor of this family")
        return self


class Graph(Model):
    """One ONNX graph: its file, its external data files, and its tensors in order."""

    model: FileRef
    data: list[FileRef] = []
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    @property
    def digest(self) -> str:
        """Of the graph and its weights, which may stand in a file of their own."""
        if not self.data:
            return self.model.sha256
        return hashlib.sha256("".join([self.model.sha256, *(ref.sha256 for ref in self.data)]).encode()).hexdigest()


def parse_size(text: str) -> tuple[int, int]:
    """'256x144' -> (256, 144). Raises UserError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size {text!r}: expected WIDTHxHEIGHT, for example 256x144")
    return int(match[1]), int(match[2])


class Network(Model):
    """Numbers of the transformer that the runtime needs or a reader wants to know."""

    dim: Width
    ffn_dim: Width
    heads: Count
    head_dim: Width
    layers: Count
    text_len: Width
    text_dim: Width


class Geometry(Model):
    """Sizes of the picture, the latents and the window. Frames of chunk, sink and window are latent frames."""

    width: Side
    height: Side
    fps: Annotated[int, Field(gt=0, le=1000)]
    latent_channels: Count
    space_scale: Annotated[int, Field(gt=0, le=64)] = 8  # pixels per latent pixel
    time_scale: Annotated[int, Field(gt=0, le=64)] = 4  # pixel frames per latent frame
    chunk: Frames  # F
    sink: int = Field(ge=0)
    window: Frames  # sinks and the current chunk included
    # α of sinks that move: every chunk that leaves the ring flows into them, sink ← α·sink + (1 − α)·chunk, by the graph
    # "sinks". None: they stay as they were committed.
    sink_ema: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Geometry:
        side = 2 * self.space_scale  # patches are 2 latent pixels wide
        if self.width % side or self.height % side:
            raise ValueError(f"size {self.width}x{self.height}: width and height must be multiples of {side}")
        if self.sink % self.chunk or (self.window - self.sink) % self.chunk or self.window <= self.sink:
            raise ValueError(
                f"sink {self.sink} and window {self.window} must be whole chunks of {self.chunk} latent frames, "
                "with the window larger than the sink"
            )
        if self.sink_ema is not None and (self.sink != self.chunk or self.window < 3 * self.chunk):
            raise ValueError(
                f"sink_ema {self.sink_ema} with sink {self.sink} and window {self.window}: a chunk that leaves the ring "
                f"flows into sinks of its own size: expected sink {self.chunk}, and a window of {3 * self.chunk} or more"
            )
        return self

    @property
    def behind(self) -> int:
        """Latent frames from the first sink frame to the first of the chunk, with the sinks right behind the window."""
        return self.window - self.chunk

    @property
    def frame_tokens(self) -> int:
        return (self.width // (2 * self.space_scale)) * (self.height // (2 * self.space_scale))

    @property
    def chunk_tokens(self) -> int:
        return self.chunk * self.frame_tokens

    @property
    def cache_tokens(self) -> int:
        return self.window * self.frame_tokens

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[1, C, F, 2h, 2w], the step graph's layout."""
        return 1, self.latent_channels, self.chunk, self.height // self.space_scale, self.width // self.space_scale

    @property
    def chunk_frames(self) -> int:
        return self.chunk * self.time_scale

    @property
    def chunk_seconds(self) -> float:
        return self.chunk_frames / self.fps


def check_sink_distance(geometry: Geometry, distance: int | None) -> None:
    """Raises ValueError for sinks that would stand among the frames of the window."""
    if distance is not None and distance < geometry.behind:
        raise ValueError(
            f"sink_distance {distance}: expected {geometry.behind} or more, which is right behind a window of "
            f"{geometry.window} latent frames"
        )


def check_shots(g: Geometry) -> None:
    """Raises ValueError for a ring in which the first chunk of a shot cannot stay."""
    least = g.sink + 2 * g.chunk
    if g.window < least or g.sink_ema is not None:
        raise ValueError(
            f"window {g.window}, sink_ema {g.sink_ema}: the first chunk of a shot stays in the ring beside the sinks: "
            f"expected a window of {least} latent frames or more, and no sink_ema"
        )


class ScheduleSpec(Model):
    """The few-step schedule that is baked into the step graph; the runtime only needs its length.

    The step graph's input `step` is 0 … n−1 for `steps`, n for the commit pass, n+1 … n+m for `first_steps`: those of the
    first chunk that is denoised, and of the first after a cut. None: they are as all others.
    """

    steps: list[Positive] = Field(min_length=1)
    shift: float = Field(gt=0)
    context_noise: int = Field(ge=0)
    sigmas: list[float]
    eta: float = Field(gt=0, le=1, default=1.0)  # share of fresh noise when x0 is noised again
    first_steps: list[Positive] | None = Field(default=None, min_length=1)
    first_sigmas: list[float] = []
    # How a pass makes the next one's input. renoise: x0 and fresh noise, the step graph's input "noise"; unipc: of the flow
    # predictions so far, which the graph leaves as "flow" and reads as "flow_0" …: no noise but the chunk's first.
    sampler: Literal["renoise", "unipc"] = "renoise"


class RopeSpec(Model):
    """Temporal RoPE: see everframe.runtime.rope."""

    theta: float = Field(gt=0)
    channels: Positive  # temporal channels of a head
    # Of the sinks: for ever where they were made, or following the window, which the step graph does by tables of its own.
    mode: Literal["absolute", "relative"] = "absolute"
    # Latent frames from the first sink frame to the first of the chunk, where they follow. None: right behind the window.
    sink_distance: Frames | None = None
    jitter_sigma: float = Field(ge=0, lt=1)
    jitter_seed: int = Field(ge=0)
    # ε_h of every head, drawn once from jitter_seed; or a list a layer, of all its heads: see everframe.runtime.jitter.
    epsilon: list[float] | list[list[float]]
    jitter_design: Positive | None = None  # reach of the design, latent frames; None: drawn


class Shots(Model):
    """A model of many shots (LongLive 2.0): a cut begins the next shot of one stream. The shot's first chunk stays in the
    ring beside the sinks until the next cut, and its prompt is told apart by a prefix."""

    offset: int = Field(ge=0)  # latent frames that positions jump by at a cut
    prefix: str = Field(min_length=1)  # of the first chunk's prompt, as it is encoded

    def without(self, prompt: str) -> str:
        """A prompt as banks hold it: the prefix is no part of it, for who looks a prompt up takes the prefix off."""
        while prompt.lstrip().startswith(self.prefix):
            prompt = prompt.lstrip().removeprefix(self.prefix)
        return prompt


class Manifest(Model):
    """What manifest.json says."""

    format: int
    name: str
    network: Network
    geometry: Geometry
    schedule: ScheduleSpec
    rope: RopeSpec
    form: Literal["in-place", "portable"] = "in-place"  # of the step graph: design.md §3
    # What `smooth` does: "window" runs the ring's frames in one pass, as LongLive does, through the graph "recache";
    # "chunks" commits them again one chunk after the other; "none": nothing, the model was trained without.
    recache: Literal["window", "chunks", "none"] = "chunks"
    shots: Shots | None = None  # None: a cut begins a new scene with new sinks
    graphs: dict[str, Graph]
    # Of the graphs behind the decoder, where nobody says which: "none", they run only where they are asked for.
    post: Literal["all", "none"] = "all"
    prompt_bank: FileRef
    prompts: list[str] = Field(min_length=1)
    tokenizer: FileRef | None = None  # of the graph "text", if the bundle has its text encoder
    precision: str = "as exported"  # of the linear layers: int8, fp8, …, as calibration made them
    calibration: FileRef | None = None  # scales, their prompts, and the quality they reached
    quality: dict[str, Any] | None = None  # of a quantised bundle against its source, by everframe compare
    reference: FileRef | None = None  # two chunks as PyTorch made them: everframe.runtime.reference
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        missing = {"step", "prompt", "decode"} - set(self.graphs)
        if missing:
            raise ValueError(f"graphs: missing {', '.join(sorted(missing))}")
        by_layer = [one for one in self.rope.epsilon if isinstance(one, list)]
        for row in by_layer or [self.rope.epsilon]:
            if len(row) != self.network.heads:
                raise ValueError(f"rope.epsilon: {len(row)} values for {self.network.heads} heads")
        if by_layer and len(by_layer) != self.network.layers:
            raise ValueError(f"rope.epsilon: {len(by_layer)} lists for {self.network.layers} layers")
        check_sink_distance(self.geometry, self.rope.sink_distance)
        if ("recache" in self.graphs) != (self.recache == "window"):
            raise ValueError(f"recache: {self.recache!r}, expected 'window' exactly when there is a graph 'recache'")
        if self.shots is not None:
            check_shots(self.geometry)
            if self.recache != "none" or self.rope.mode != "absolute":
                raise ValueError(
                    f"shots: recache {self.recache!r} and rope {self.rope.mode!r}: expected 'none' and 'absolute' with them"
                )
        if ("sinks" in self.graphs) != (self.geometry.sink_ema is not None):
            raise ValueError("geometry.sink_ema: must be there exactly when there is a graph 'sinks'")
        if ("text" in self.graphs) != (self.tokenizer is not None):
            raise ValueError("tokenizer: must be there exactly when there is a graph 'text'")
        check_post(self.graphs)
        return self

    def files(self) -> Iterable[FileRef]:
        """Every file once: graphs may share their weights."""
        refs = [ref for graph in self.graphs.values() for ref in (graph.model, *graph.data)]
        refs += [ref for ref in (self.prompt_bank, self.tokenizer, self.calibration, self.reference) if ref is not None]
        yield from {(ref.file, ref.bytes, ref.sha256): ref for ref in refs}.values()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. chosen: which of its post graphs run; None: those that its manifest says."""

    path: Path
    manifest: Manifest
    chosen: str | None = None

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and verify the bundle at path. Raises UserError naming the file and what is wrong with it."""
        folder = Path(path)
        put_back(folder)
        manifest = read_manifest(folder / MANIFEST)
        for ref in manifest.files():
            verify(folder / ref.file, ref)
        return cls(folder, manifest)

    def graph_path(self, name: str) -> Path:
        return self.path / self.manifest.graphs[name].model.file

    @property
    def post(self) -> tuple[str, ...]:
        """The post graphs that run behind the decoder: see everframe.engines.post."""
        return chosen_of(self.manifest.post if self.chosen is None else self.chosen, self.manifest.graphs)

    @property
    def output(self) -> Output:
        """Size and rate of the frames that leave a stream."""
        return output_of(self.manifest.geometry, self.manifest.graphs, self.post)

    def with_post(self, choice: str | None) -> Bundle:
        """The same, of whose post graphs only the chosen ones run; None: those that it says itself. Raises UserError for one
        that it does not have."""
        check_choice(choice, self.manifest.graphs, self.path)
        return replace(self, chosen=choice)


def read_manifest(file: Path) -> Manifest:
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: no such bundle (expected a folder with {MANIFEST})")
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise UserError(f"{file}: larger than {MAX_MANIFEST_BYTES >> 20} MiB; this is no manifest")
        raw = json.loads(read_text(file))
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise UserError(f"{file}: bundle format {version!r}, this version of everframe reads format {FORMAT}")
    try:
        return Manifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """'geometry.width: Input should be a valid integer, found "256" (and 2 more problems)'"""
    problem, *others = error.errors(include_url=False)
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    found = problem.get("input")
    text = f"{place}: {message}" if place else message
    if not isinstance(found, dict | list | BaseModel) and problem["type"] != "value_error":
        shown = json.dumps(found, default=str)
        text += f", found {shown if len(shown) <= 120 else shown[:100] + '…'}"
    return text + (f" (and {len(others)} more problems)" if others else "")


def verify(file: Path, ref: FileRef) -> None:
    """Raise UserError unless the file is there with the size and hash that ref states."""
    try:
        home = file.parent.resolve()
        if home not in file.resolve().parents:
            raise UserError(
                f"{file}: is a link that leads out of the bundle, to {file.resolve()}; copy the bundle with cp -rL"
            )
        size = file.stat().st_size
        if size != ref.bytes:
            raise UserError(f"{file}: {size} bytes, the manifest says {ref.bytes}: truncated or altered")
        if describe(file).sha256 != ref.sha256:
            raise UserError(f"{file}: its SHA-256 is not the manifest's: altered")
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None


def describe(file: Path) -> FileRef:
    """Name, size and hash of a file as the manifest records them."""
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return FileRef(file=file.name, bytes=file.stat().st_size, sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
