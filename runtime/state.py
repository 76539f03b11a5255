"""A stream's state on disk: saved between chunks, resumed bit for bit after a power cut.

One safetensors file: the tensors of `Stream.snapshot`, and its facts as JSON in the file's metadata. It is written under a
temporary name, synced and renamed, so that there is always a whole one. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..engines.bundle import Bundle, Model, first_problem
from ..engines.errors import UserError
from ..engines.files import write_whole
from .stream import Stream

FORMAT = 1


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
    extra: dict[str, Any] = Field(default_factory=dict)  # what the saver wants back


def identity(bundle: Bundle) -> str:
    """A hash of the graphs that a state belongs to."""
    graphs = bundle.manifest.graphs
    parts = [graphs[name].digest for name in ("step", "decode", "recache") if name in graphs]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def save_state(stream: Stream, file: Path, extra: dict[str, Any] | None = None) -> None:
    """Write the stream's state, and with it what the caller wants back from `load_state`, anything that JSON holds. The file
    is replaced as a whole. Raises UserError when it cannot be written."""
    tensors, facts = stream.snapshot()
    facts |= {"format": FORMAT, "bundle": identity(stream.bundle), "seed": stream.seed, **_settings(stream)}
    facts["extra"] = extra or {}
    try:  # what is saved can be read again: else the state before it stays
        Facts.model_validate_json(json.dumps(facts))
    except (ValidationError, ValueError, TypeError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{file}: not saved, for it could not be read again: {problem}") from None
    content = save({k: _plain(np.ascontiguousarray(v)) for k, v in tensors.items()}, {"state": json.dumps(facts)})
    write_whole(file, content)


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
    ours_now = stream.snapshot()[0]
    for name, values in tensors.items():  # bfloat16 was written as its bits
        kind = getattr(ours_now.get(name), "dtype", values.dtype)
        if kind.kind == "V" and values.dtype == np.uint16:
            tensors[name] = values.view(kind)
    expected = {k: (v.shape, v.dtype) for k, v in ours_now.items() if not k.startswith(_COUNTED)}
    for name, (shape, dtype) in expected.items():
        found = (tensors[name].shape, tensors[name].dtype) if name in tensors else None
        if found != (shape, dtype):
            raise UserError(f"{file}: tensor {name}: found {found}, expected {shape} {dtype}")
    for prefix, count in (("recent_", len(facts.recent)), ("anchor_", facts.anchors)):
        if any(f"{prefix}{i}" not in tensors for i in range(count)):
            raise UserError(f"{file}: fewer than {count} tensors {prefix}…")
    if facts.begun and "begun" not in tensors:
        raise UserError(f"{file}: no tensor begun")
    stream.restore(tensors, facts.model_dump())
    return facts.extra


def _plain(values: np.ndarray) -> np.ndarray:
    """bfloat16 as its bits: safetensors' NumPy side does not know it."""
    return values.view(np.uint16) if values.dtype.kind == "V" else values


_COUNTED = ("recent_", "anchor_", "begun")  # how many there are depends on how far the stream is


def _settings(stream: Stream) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(stream.frequencies).tobytes()).hexdigest()[:16]
    distance = {"rope_mode": stream.rope_mode, "sink_distance": stream.sink_distance}
    return {**distance, "frequencies": digest, "overlap": stream.overlap}
