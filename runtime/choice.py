"""`--backend auto`: the fastest backend that is installed, works and is verified here, by a short timing that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import onnxruntime

from ..engines import openvino
from ..engines.base import Backend, EngineOptions
from ..engines.bundle import Bundle
from ..engines.choose import DEFAULT, open_backend
from ..engines.doctor import installed
from ..engines.errors import RunError, UserError
from ..engines.files import cache_place, keep_record, kept_records, record_key
from ..engines.machine import card_name, find_gpu, processor_name, thread_count
from ..engines.store import FOLDER, BuildRecord, stored, wrong_card
from .stream import Stream

AUTO = "auto"
COMPILED = ("tensorrt-rtx", "tensorrt")  # backends that need engines from `everframe build`
FILE = "chosen.json"
TIMED = 4  # chunks, once the ring is full


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle here."""

    backend: str
    options: EngineOptions

    @property
    def on_card(self) -> bool:
        return self.backend in COMPILED or self.options.provider != DEFAULT.provider

    def __str__(self) -> str:
        if self.backend == "openvino":
            return f"{self.backend} {self.options.precision}"
        return self.backend if self.options.provider == DEFAULT.provider else f"{self.backend} {self.options.provider}"


def candidates(bundle: Bundle, options: EngineOptions) -> list[Candidate]:
    """What is installed and could run it, ONNX Runtime first; what is OpenVINO's alone where its options are given. Raises
    UserError for options that cannot be met."""
    plain = replace(options, device=DEFAULT.device, precision=DEFAULT.precision)
    if plain != options:
        open_backend("openvino", replace(options, provider=DEFAULT.provider))  # fails here, if it does
        return [Candidate("openvino", replace(options, precision=p)) for p in openvino.precisions(options)]
    found = [Candidate("onnxruntime", options)]
    plain = replace(options, provider=DEFAULT.provider)
    found += [Candidate("openvino", replace(plain, precision=one)) for one in openvino.precisions(plain)]
    packages = installed()
    if find_gpu()[0] is not None:
        if options.provider == DEFAULT.provider and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            found.append(Candidate("onnxruntime", replace(options, provider="cuda")))
        built = {record.backend for record in usable(bundle, packages, whole=True)}
        found += [Candidate(name, DEFAULT) for name in COMPILED if name in built]  # threads are a CPU's
    return found


def open_engines(
    bundle: Bundle,
    name: str,
    options: EngineOptions,
    tell: Callable[[str], None] = lambda line: None,
    verify: bool = True,
) -> Backend:
    """The backend of that name; for "auto", the fastest. tell: gets one line that says what was chosen, and why. verify:
    only engines that pass their proof.

    Raises UserError when it cannot work here.
    """
    if name != AUTO:
        return open_backend(name, options)
    found = candidates(bundle, options)
    if len(found) == 1:
        tell(f"{found[0]}: nothing else that could run this bundle so is installed")
        return open_backend(found[0].backend, found[0].options)
    file = cache_place(bundle.path / FOLDER) / FILE
    key = _key(bundle, found)
    record: Any = kept_records(file).get(key)
    # A CPU needs minutes for a chunk of what a card is for: it is tried where no card's works.
    tries = [[one for one in found if one.on_card], [one for one in found if not one.on_card]]
    tries = [these for these in tries if these]
    if not complete(record, tries[0]):
        record = {}
        for these in tries:
            for one in these:
                record |= timed(bundle, one, verify)
            if any(isinstance(record[str(one)], float) for one in these):
                break
        if complete(record, tries[0]) and verify:  # what failed may work the next time
            keep_record(file, key, record)
    assert isinstance(record, dict)
    best = fastest(found, record)
    told = (f"{label} {ms:.0f} ms" if isinstance(ms, float) else f"{label}: {ms}" for label, ms in record.items())
    tell(f"{best}: the fastest here; a chunk takes {', '.join(told)}")
    return open_backend(best.backend, best.options)


def check_engines(bundle: Bundle, name: str) -> None:
    """Raises UserError where a backend of that name needs compiled engines, and the bundle holds none for what is installed
    here. Without a look at the card, which is another process's."""
    if name not in COMPILED:
        return
    mine = [e for e in stored(bundle, installed()) if e.record is not None and e.record.backend == name]
    if all(e.problem is not None for e in mine):
        why = f": {mine[0].problem}" if mine else ""
        raise UserError(f"{bundle.path}: holds no {name} engine that can be used here{why}; run everframe build")


def complete(record: Any, found: list[Candidate]) -> bool:
    """Whether it has milliseconds for every candidate."""
    return isinstance(record, dict) and all(isinstance(record.get(str(one)), float) for one in found)


def fastest(found: list[Candidate], record: dict[str, float | str]) -> Candidate:
    """Raises UserError when none works."""
    working = [(ms, i) for i, one in enumerate(found) if isinstance(ms := record.get(str(one)), float)]
    if not working:
        raise UserError(f"--backend auto: none works here: {'; '.join(f'{k}: {v}' for k, v in record.items())}")
    return found[min(working)[1]]


def timed(bundle: Bundle, one: Candidate, verify: bool) -> dict[str, float | str]:
    """Median milliseconds of a chunk, or why there are none; and why a GPU is given its passes one by one, if it is."""
    spent, why = [], None
    try:
        with Stream(bundle, verify=verify, backend=open_backend(one.backend, one.options)) as stream:
            for _ in range(stream.layout.chunks + 1 + TIMED):
                began = time.perf_counter()
                stream.next_chunk()
                spent.append(1000 * (time.perf_counter() - began))
            why = stream.not_one_launch
    except (UserError, RunError) as error:
        return {str(one): str(error)}
    found: dict[str, float | str] = {str(one): round(median(spent[-TIMED:]), 1)}
    return found | ({f"{one}, whose passes are given one by one": why} if why else {})


def usable(bundle: Bundle, packages: dict[str, str], whole: bool) -> list[BuildRecord]:
    """Of the engines that the bundle holds, those that can be used with what is installed here, on this card. whole: every
    byte of them is read to tell, which may be gigabytes; else what is damaged counts too."""
    gpu, _ = find_gpu()
    good = [e.record for e in stored(bundle, packages, whole) if e.record is not None and e.problem is None]
    return [record for record in good if gpu is None or wrong_card(record, gpu.compute_capability, gpu.name) is None]


def _key(bundle: Bundle, found: list[Candidate]) -> str:
    """Of everything that could make another one the fastest."""
    packages = {name: version for name, version in installed().items() if name != "torch"}
    graphs = [graph.digest for _, graph in sorted(bundle.manifest.graphs.items())]
    what = [
        graphs,
        bundle.post,
        packages,
        [str(one) for one in found],
        repr(found[0].options),
        thread_count(found[0].options.threads),
        processor_name(),
        card_name(),
        sorted(record.built for record in usable(bundle, packages, whole=False)),
    ]
    return record_key(what)
