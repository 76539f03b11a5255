"""Engines into a bundle: every graph that runs compiled, and stored under the fingerprint of what decided it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import store
from .bundle import Bundle
from .errors import UserError
from .machine import find_gpu
from .progress import QUIET, Report
from .trtbuild import LENGTHS_SINCE, BuildOptions, build_graph, check_options, options_record, takes_lengths


def build_engines(path: Path, options: BuildOptions, report: Report = QUIET, post: str | None = None) -> store.Stored:
    """Compile every graph of the bundle that runs and store the engines in it. Ctrl-C stops and leaves nothing behind. post:
    which graphs behind the decoder are to run; default: those that the bundle says.

    Raises UserError as `trtbuild.build_graph` does.
    """
    trt = check_options(options)
    bundle = Bundle.open(path).with_post(post)
    if bundle.manifest.form == "in-place" and not takes_lengths(options.backend, trt.__version__):
        raise UserError(
            f"{path}: in-place form, which {options.backend} takes from {'.'.join(map(str, LENGTHS_SINCE))} on, and this is "
            f"{trt.__version__}: export it with --form portable"
        )
    names = store.compiled_graphs(bundle)

    def compiled() -> Iterator[tuple[str, bytes | memoryview, dict[str, Any]]]:
        for name in names:
            report.step(f"{name}: parsing", 0, None)

            def watch(phase: str, step: int, steps: int, name: str = name) -> bool:
                report.step(f"{name}: {phase}", step, steps or None)
                return True

            began = time.perf_counter()
            built = build_graph(bundle, name, options, watch)
            seconds = time.perf_counter() - began
            report.line(
                f"{name}: {len(built.engine) / 2**20:.1f} MiB, {built.layers} layers, {built.attentions} attentions, "
                f"{built.quantised} quantisations, {seconds:.1f} s"
            )
            facts = {
                "layers": built.layers,
                "attentions": built.attentions,
                "quantised": built.quantised,
                "seconds": round(seconds, 2),
                "memory": built.memory,
            }
            yield name, built.engine, facts

    result = store.write(bundle, trt.__version__, built_for(options), compiled)
    report.line(f"{result.folder}: {options.backend} {trt.__version__}, {options.precision}")
    return result


def built_for(options: BuildOptions) -> dict[str, Any]:
    """The options as they are recorded. Classic TensorRT builds for the card that it runs on, which stands for a target."""
    record = options_record(options)
    if options.backend == "tensorrt" and not options.hardware_compatible and (card := find_gpu()[0]):
        record |= {"targets": [card.compute_capability], "card": card.name}
    return record
