"""Compiled engines inside a bundle: `engines/<fingerprint>/` with one file per graph and a record of how they were made.

The fingerprint is a hash of everything that decides an engine: backend and its version, options, the graphs, and how these
are rewritten for it. A bundle that is exported again, or a backend that is updated, finds no engines of its own and the old
ones are told apart.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from .bundle import Bundle, FileRef, Model, describe, first_problem, verify
from .errors import UserError
from .files import keep_record, kept_records, new_folder, record_key, user_cache
from .lower import LOWERING
from .post import runs

FOLDER, RECORD = "engines", "record.json"
BUILT_HERE = "built_here.json"  # in the user's cache folder, which no bundle brings along


class EngineRecord(Model):
    """One compiled graph, as record.json tells it."""

    file: FileRef
    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    layers: int
    attentions: int
    quantised: int = 0
    seconds: float
    memory: dict[str, int]


class BuildRecord(Model):
    """What record.json says."""

    format: int = 1
    backend: str
    version: str
    options: dict[str, Any]
    made: str  # UTC, ISO 8601
    graphs: dict[str, EngineRecord]
    lowering: int = 1  # lower.LOWERING; records of before it was there say nothing

    @property
    def built(self) -> str:
        """What tells these engines from others of the same graphs: options, versions, and every byte of them."""
        return record_key(self.model_dump(include={"backend", "version", "options", "graphs", "lowering"}))[:16]


@dataclass(frozen=True)
class Stored:
    """One folder of engines and why it can't be used, if so."""

    fingerprint: str
    folder: Path
    record: BuildRecord | None
    problem: str | None


def fingerprint(bundle: Bundle, version: str, options: Mapping[str, Any]) -> str:
    """16 hex digits of everything that decides the engines."""
    graphs = {
        name: [graph.model.sha256, *(d.sha256 for d in graph.data)] for name, graph in bundle.manifest.graphs.items()
    }
    facts = {"version": version, "options": options, "graphs": graphs, "lowering": LOWERING}
    content = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write(
    bundle: Bundle,
    version: str,
    options: Mapping[str, Any],
    compiled: Callable[[], Iterator[tuple[str, bytes | memoryview, dict[str, Any]]]],
) -> Stored:
    """Store engines under their fingerprint, whole or not at all; engines already there are replaced.

    compiled: yields (graph name, engine, {layers, attentions, seconds, memory}).
    """
    home = bundle.path / FOLDER
    try:
        home.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{home}: cannot write: {error.strerror}") from None
    key = fingerprint(bundle, version, options)
    records = {}
    with new_folder(home / key, None, replace=True) as part:
        for name, engine, facts in compiled():
            file = part / f"{name}.engine"
            file.write_bytes(engine)
            sha = bundle.manifest.graphs[name].model.sha256
            records[name] = EngineRecord(file=describe(file), graph_sha256=sha, **facts)
        record = BuildRecord(
            backend=str(options["backend"]),
            version=version,
            options=dict(options),
            made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            graphs=records,
            lowering=LOWERING,
        )
        (part / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
    if options.get("version_compatible"):
        for one in records.values():
            keep_record(user_cache() / BUILT_HERE, one.file.sha256, {"made": record.made, "in": str(home / key)})
    return Stored(key, home / key, record, None)


def built_here(sha256: str) -> bool:
    """Whether this user has built an engine of this content on this machine, of those that hold code for the host."""
    return sha256 in kept_records(user_cache() / BUILT_HERE)


def stored(bundle: Bundle, versions: Mapping[str, str], whole: bool = True) -> list[Stored]:
    """All engines in the bundle, newest first. versions: installed backends and their versions. whole: read every engine for
    its checksum, which may be gigabytes; else `damage` tells it of one folder."""
    home = bundle.path / FOLDER
    folders = sorted(f for f in home.iterdir() if f.is_dir() and not f.name.startswith(".")) if home.is_dir() else []
    found = [check(bundle, folder, versions, whole) for folder in folders]
    return sorted(found, key=lambda s: s.record.made if s.record else "", reverse=True)


def wrong_card(record: BuildRecord | None, capability: str, card: str) -> str | None:
    """Why engines do not run on a card of that name and capability, as in "sm_89": they are for others. Classic TensorRT's
    are for the model that built them, unless they are hardware-compatible; records of before do not name it."""
    options = record.options if record else {}
    if (targets := options.get("targets")) and capability not in targets:
        return f"built for {', '.join(targets)}, this card is {capability}"
    if (built_on := options.get("card")) and built_on != card:
        return f"built on {built_on}, this card is {card}"
    return None


def check(bundle: Bundle, folder: Path, versions: Mapping[str, str], whole: bool = True) -> Stored:
    """Read one folder of engines and say what, if anything, keeps them from being used here."""
    try:
        record = BuildRecord.model_validate_json((folder / RECORD).read_bytes())
    except OSError:
        return Stored(folder.name, folder, None, f"{RECORD} is missing")
    except ValidationError as error:
        return Stored(folder.name, folder, None, f"{RECORD}: {first_problem(error)}")
    problem = problem_of(bundle, folder, record, versions) or (damage(folder, record) if whole else None)
    return Stored(folder.name, folder, record, problem)


def damage(folder: Path, record: BuildRecord) -> str | None:
    """The first engine that is not what its record says."""
    for engine in record.graphs.values():
        try:
            verify(folder / engine.file.file, engine.file)
        except UserError as error:
            return str(error)
    return None


def compiled_graphs(bundle: Bundle) -> list[str]:
    """What a stream of the bundle needs engines for: the text encoder stays with ONNX Runtime."""
    return [name for name in bundle.manifest.graphs if name != "text" and runs(name, bundle.post)]


def problem_of(bundle: Bundle, folder: Path, record: BuildRecord, versions: Mapping[str, str]) -> str | None:
    missing = sorted(set(compiled_graphs(bundle)) - set(record.graphs))
    if missing:
        hint = "" if any(runs(name, ()) for name in missing) else ": everframe build --post builds them"
        return f"no engine for {', '.join(missing)}{hint}"
    for name, engine in record.graphs.items():
        graph = bundle.manifest.graphs.get(name)
        if graph is None or graph.model.sha256 != engine.graph_sha256:
            return f"{name}: the graph has changed since"
    if record.lowering != LOWERING:
        return "built by an everframe that rewrites graphs for TensorRT in another way"
    installed = versions.get(record.backend)
    if installed is None:
        return f"{record.backend} is not installed"
    if installed != record.version and not record.options.get("version_compatible"):
        return f"built with {record.backend} {record.version}, installed is {installed}"
    if folder.name != fingerprint(bundle, record.version, record.options):
        return "the bundle's graphs, or what is recorded of the engines, are others than when they were built"
    return None
