"""A stream's state on disk: saved between chunks, resumed bit for bit after a power cut.

One safetensors file: the tensors of `Stream.snapshot`, and its facts as JSON in the file's metadata. It is written under a
temporary name, synced and renamed, so that there is always a whole one. Nothing in it is ever executed.

`Saver` writes it while the stream goes on: the stream stands still for copies on its own device only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from ..engines.base import Buffer
from ..engines.bundle import Bundle, Model, first_problem
from ..engines.errors import UserError
from ..engines.files import write_whole
from .post import LAST
from .stream import Stream

FORMAT = 1
Array = np.ndarray | Buffer
# safetensors' names. bfloat16 is written as its bits: its NumPy side does not know it.
_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "U16",
    "int8": "I8",
    "uint8": "U8",
    "int64": "I64",
    "int32": "I32",
    "bool": "BOOL",
}


class Shot(Model):
    """Of a model of many shots: see `shots.ShotRing`."""

    slots: list[int | None]
    kept: int | None
    cut: bool  # whether the newest chunk begins a shot
    jump: int = Field(ge=0)


class Facts(Model):
    """What the file's metadata says."""

    format: int
    bundle: str  # identity of the graphs, see `identity`
    seed: int = Field(ge=0)
    rope_mode: str
    frequencies: str  # hash of the temporal spectrum
    index: int = Field(ge=0)
    written: int = Field(ge=0)
    first: bool = False  # whether the next chunk that is denoised is the first; states of old have no such bundles
    position: int = Field(ge=0)
    prompt: str
    pending: list[str] | None
    recent: list[int]
    sink_start: int | None
    sink_distance: int | None = None
    sink_at: int | None = None  # of states of before, as the tensors sink_0 …: what the host once turned
    sinks: int = 0
    anchors: int
    decoded: int = Field(ge=0)
    overlap: bool
    begun: tuple[int, int, int, str, bool] | None
    shot: Shot | None = None
    ring: dict[str, int | float | None] | None = None  # see `ring_of`; states of before say nothing of it
    extra: dict[str, Any] = Field(default_factory=dict)  # what the saver wants back


def identity(bundle: Bundle) -> str:
    """A hash of the graphs that a state belongs to."""
    graphs = bundle.manifest.graphs
    parts = [graphs[name].digest for name in ("step", "decode", "recache") if name in graphs]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def ring_of(bundle: Bundle) -> dict[str, int | float | None]:
    """What a bundle's ring is by its manifest: bundles may differ in it alone, their graphs the same."""
    g, shots = bundle.manifest.geometry, bundle.manifest.shots
    jump = None if shots is None else shots.offset
    return {"chunk": g.chunk, "window": g.window, "sink": g.sink, "sink_ema": g.sink_ema, "shots": jump}


def _check_ring(bundle: Bundle, file: Path, facts: Facts) -> None:
    """Raises UserError for a state of another ring."""
    ours = ring_of(bundle)
    theirs = facts.ring
    if theirs is None:  # of a ring with shots the state itself tells
        theirs = ours | ({"shots": None} if facts.shot is None else {"shots": ours["shots"] or 0})
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise UserError(f"{file}: belongs to another bundle: {name} {theirs.get(name)}, here {value}")
    if (facts.shot is None) != (ours["shots"] is None):
        raise UserError(f"{file}: shot: found {facts.shot}, expected {'none' if ours['shots'] is None else 'one'}")


def save_state(
    stream: Stream, file: Path, extra: dict[str, Any] | None = None, beside: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write the stream's state, and with it what the caller wants back from `load_state`, anything that JSON holds, and
    arrays that it wants back from `load_beside`. The file is replaced as a whole. Raises UserError when it cannot be
    written."""
    tensors, facts = stream.snapshot()
    tensors |= {f"{_BESIDE}{name}": values for name, values in (beside or {}).items()}
    write_whole(file, _content(tensors, _told(stream, file, tensors, facts, extra)))


class Saver:
    """Saves a stream's states to one file, in a thread, one at a time."""

    def __init__(self, stream: Stream, file: Path):
        self.stream, self.file = stream, file
        self._twins: dict[str, Buffer] | None = {}  # None: the device has no room for them
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._running: Future[None] | None = None

    def begin(self, extra: dict[str, Any] | None = None) -> None:
        """Take the stream's state as it is now, between two chunks, and go on writing it. Waits for one that is still being
        written. Raises UserError as `save_state` does, for what can be known now, and for that one."""
        self.wait()
        try:
            tensors, facts = self.stream.snapshot(self._twins)
        except UserError:
            if self._twins is None:
                raise
            self._twins = None
            tensors, facts = self.stream.snapshot()
        told = _told(self.stream, self.file, tensors, facts, extra)
        self._running = self._thread.submit(write_whole, self.file, _content(tensors, told))

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def wait(self) -> bool:
        """Until the file is there. Returns whether one was being written. Raises UserError when it could not be."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
        return running is not None

    def close(self) -> None:
        """Wait for the file, whatever became of it."""
        self._thread.shutdown()


def _told(
    stream: Stream, file: Path, tensors: Mapping[str, Array], facts: dict[str, Any], extra: dict[str, Any] | None
) -> str:
    """The facts as they are now, for the file's metadata. Raises UserError for what could not be read again, or gone on
    with: the chunk that is being made beside the last one may be the first that is not finite."""
    begun = tensors.get("begun")
    if isinstance(begun, np.ndarray) and not np.isfinite(begun).all():
        raise UserError(f"{file}: not saved, for the chunk that is being made is not finite")
    facts |= {"format": FORMAT, "bundle": identity(stream.bundle), "seed": stream.seed, **_settings(stream)}
    facts["ring"] = ring_of(stream.bundle)
    facts["extra"] = extra or {}
    try:  # what is saved can be read again: else the state before it stays
        told = json.dumps(facts)
        Facts.model_validate_json(told)
    except (ValidationError, ValueError, TypeError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{file}: not saved, for it could not be read again: {problem}") from None
    return told


def _content(tensors: Mapping[str, Array], told: str) -> Iterator[bytes | memoryview]:
    """A safetensors file part by part: its own writer wants every tensor as bytes beside the tensor."""
    end, header = 0, {}
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _TYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps({"__metadata__": {"state": told}, **header}).encode()
    words += b" " * (-len(words) % 8)
    yield len(words).to_bytes(8, "little") + words
    for tensor in tensors.values():
        if isinstance(tensor, np.ndarray):
            yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
        else:
            for part in tensor.parts():
                yield part.data


def read_facts(file: Path) -> Facts:
    """What a saved state says of itself: its seed, its position, its prompt. Raises UserError."""
    return _read(file, tensors=False)[0]


def _read(file: Path, tensors: bool) -> tuple[Facts, dict[str, np.ndarray]]:
    try:
        with safe_open(file, "np") as f:
            facts = Facts.model_validate_json((f.metadata() or {}).get("state", "{}"))
            return facts, {name: f.get_tensor(name) for name in f.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{file}: no such state") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a whole state: {error}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None


def load_beside(file: Path) -> dict[str, np.ndarray]:
    """The arrays that `save_state` was given beside the stream. Raises UserError."""
    _, tensors = _read(file, tensors=True)
    return {name.removeprefix(_BESIDE): values for name, values in tensors.items() if name.startswith(_BESIDE)}


def load_state(stream: Stream, file: Path) -> dict[str, Any]:
    """Put a saved state into a stream of the same bundle, seed and settings. Returns what its saver added.

    Raises UserError when the file is not whole, or belongs to something else.
    """
    facts, tensors = _read(file, tensors=True)
    if facts.format != FORMAT:
        raise UserError(f"{file}: state format {facts.format}, this version of everframe reads {FORMAT}")
    ours = {"bundle": identity(stream.bundle), "seed": stream.seed, **_settings(stream)}
    for name, value in ours.items():
        if getattr(facts, name) != value:
            raise UserError(
                f"{file}: belongs to another {name.replace('_', ' ')} ({getattr(facts, name)}, here {value})"
            )
    _check_ring(stream.bundle, file, facts)
    expected = stream.shapes()
    for name, values in tensors.items():  # bfloat16 was written as its bits
        _, kind = expected.get(name, ((), values.dtype))
        if kind.kind == "V" and values.dtype == np.uint16:
            tensors[name] = values.view(kind)
    for name, (shape, dtype) in expected.items():
        if name == LAST and name not in tensors:  # saved with other post graphs, or before the first frame
            continue
        found = (tensors[name].shape, tensors[name].dtype) if name in tensors else None
        if found != (shape, dtype):
            raise UserError(f"{file}: tensor {name}: found {found}, expected {shape} {dtype}")
    for prefix, count in (("recent_", len(facts.recent)), ("anchor_", facts.anchors)):
        if any(f"{prefix}{i}" not in tensors for i in range(count)):
            raise UserError(f"{file}: fewer than {count} tensors {prefix}…")
    if facts.begun and "begun" not in tensors:
        raise UserError(f"{file}: no tensor begun")
    try:
        stream.restore(tensors, facts.model_dump())
    except ValueError as error:  # of a buffer that is not always there, by its shape
        raise UserError(f"{file}: {error}") from None
    return facts.extra


_BESIDE = "beside_"


def _settings(stream: Stream) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(stream.frequencies).tobytes()).hexdigest()[:16]
    distance = {"rope_mode": stream.rope_mode, "sink_distance": stream.sink_distance}
    return {**distance, "frequencies": digest, "overlap": stream.overlap}
