"""`--backend auto`: the fastest backend that is installed, works and is verified here, by a short timing that is kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from ..engines import openvino
from ..engines.base import Backend, EngineOptions
from ..engines.bundle import Bundle
from ..engines.choose import open_backend
from ..engines.doctor import installed
from ..engines.errors import UserError
from ..engines.files import cache_place, keep_record, kept_records
from ..engines.machine import find_gpu, processor_name
from ..engines.store import FOLDER, stored
from .stream import Stream

AUTO = "auto"
FILE = "chosen.json"
WARM, TIMED = 3, 4  # chunks


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle here."""

    backend: str
    options: EngineOptions

    def __str__(self) -> str:
        return f"{self.backend} {self.options.precision}" if self.backend == "openvino" else self.backend


def candidates(bundle: Bundle, options: EngineOptions) -> list[Candidate]:
    """What is installed and could run it, ONNX Runtime first."""
    found = [Candidate("onnxruntime", options)]
    found += [Candidate("openvino", replace(options, precision=p)) for p in openvino.precisions(options)]
    packages = installed()
    if find_gpu()[0] is not None:
        usable = {e.record.backend for e in stored(bundle, packages) if e.record is not None and e.problem is None}
        found += [Candidate(name, options) for name in ("tensorrt-rtx", "tensorrt") if name in usable]
    return found


def open_engines(
    bundle: Bundle, name: str, options: EngineOptions, tell: Callable[[str], None] = lambda line: None
) -> Backend:
    """The backend of that name; for "auto", the fastest. tell: gets one line that says what was chosen, and why.

    Raises UserError when it cannot work here.
    """
    if name != AUTO:
        return open_backend(name, options)
    found = candidates(bundle, options)
    if len(found) == 1:
        tell(f"{found[0]}: nothing else that could run this bundle is installed")
        return open_backend(found[0].backend, found[0].options)
    file = cache_place(bundle.path / FOLDER) / FILE
    key = _key(bundle, found)
    record = kept_records(file).get(key)
    if record is None:
        record = {str(one): timed(bundle, one) for one in found}
        keep_record(file, key, record)
    best = fastest(found, record)
    told = (f"{label} {ms:.0f} ms" if isinstance(ms, float) else f"{label}: {ms}" for label, ms in record.items())
    tell(f"{best}: the fastest here; a chunk takes {', '.join(told)}")
    return open_backend(best.backend, best.options)


def fastest(found: list[Candidate], record: dict[str, float | str]) -> Candidate:
    """Raises UserError when none works."""
    working = [(ms, i) for i, one in enumerate(found) if isinstance(ms := record[str(one)], float)]
    if not working:
        raise UserError(f"--backend auto: none works here: {'; '.join(f'{k}: {v}' for k, v in record.items())}")
    return found[min(working)[1]]


def timed(bundle: Bundle, one: Candidate) -> float | str:
    """Median milliseconds of a chunk, or why there are none."""
    spent = []
    try:
        with Stream(bundle, backend=open_backend(one.backend, one.options)) as stream:
            for _ in range(WARM + TIMED):
                began = time.perf_counter()
                stream.next_chunk()
                spent.append(1000 * (time.perf_counter() - began))
    except UserError as error:
        return str(error)
    return round(median(spent[WARM:]), 1)


def _key(bundle: Bundle, found: list[Candidate]) -> str:
    """Of everything that could make another one the fastest."""
    packages = {name: version for name, version in installed().items() if name != "torch"}
    gpu, _ = find_gpu()
    graphs = [graph.model.sha256 for _, graph in sorted(bundle.manifest.graphs.items())]
    what = [graphs, packages, [str(one) for one in found], repr(found[0].options), processor_name(), gpu and gpu.name]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
