"""`everframe calibrate`: a bundle in, a quantised bundle with its measured quality out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from ..engines.base import EngineOptions
from ..engines.bundle import MANIFEST, Bundle, Graph, describe, write_manifest
from ..engines.datafile import SHARED
from ..engines.errors import UserError
from ..engines.files import link_or_copy, new_folder, real
from ..engines.graphfile import EMBED_UP_TO, describe_graph
from ..engines.ort import OrtBackend
from ..engines.progress import QUIET, Report
from ..engines.text import few, quoted
from ..runtime.measure.compare import compare
from ..runtime.prompts import PromptBank
from . import sensitivity
from .linears import Linear, find_convolutions, find_linears, find_matching
from .observe import Statistics, observe
from .quantisedfile import QuantisedFile
from .quantize import METHODS, PRECISIONS, Range, check_decoder, peaks_of_weights, quantise, ranges
from .ring import check_form, int8_ring

HELD_OUT_SEED = 1000  # gate seeds start here: never used for calibration
RESULT, PLOT = "calibration.json", "calibration.png"


@dataclass(frozen=True)
class Settings:
    """What the user chose."""

    precision: str = "int8"
    method: str = "smoothquant"
    alpha: float = 0.5
    prompts: tuple[str, ...] = ()  # to calibrate with; empty: every second of the bank
    held_out: tuple[str, ...] = ()  # to judge with; empty: up to two others of the bank
    seeds: tuple[int, ...] = (0,)
    chunks: int = 32
    ring: str = "float"  # or int8
    decoder: bool = False
    sensitivity: bool = True
    exclude: tuple[str, ...] = ()  # parts of layer names to leave in float, beside what sensitivity says
    gate_chunks: int = 12
    gate_minutes: float = 2.0
    threads: int = 0


def check(settings: Settings, bundle: Bundle) -> None:
    """Everything that can be wrong of the choices, before hours of streaming. Raises UserError naming the flag."""
    if bundle.manifest.quality is not None or bundle.manifest.calibration is not None:
        raise UserError(f"{bundle.path}: is quantised already; calibrate the bundle it was made from")
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision!r}: expected one of {', '.join(PRECISIONS)}")
    if settings.method not in METHODS:
        raise UserError(f"--method {settings.method!r}: expected one of {', '.join(METHODS)}")
    if settings.ring not in ("float", "int8"):
        raise UserError(f"--ring {settings.ring!r}: expected float or int8")
    if not 0 < settings.alpha < 1:
        raise UserError(f"--alpha {settings.alpha}: expected a number between 0 and 1")
    if settings.ring == "int8":
        check_form(bundle.manifest.form)
    if settings.decoder:
        check_decoder(settings.precision)


def exclusions_of(bundle: Bundle, linears: Sequence[Linear], step: ModelProto, settings: Settings) -> list[str]:
    """Names of the layers that the user leaves in float. Raises UserError for a part of a name that no layer has, and for a
    recache graph in which no layer is found again."""
    names = [one.name for one in linears]
    for words in settings.exclude:
        if not any(words in name for name in names):
            raise UserError(f"--exclude {words!r}: is in no layer's name; expected a part of one of {few(names)}")
    excluded = [name for name in names if any(words in name for words in settings.exclude)]
    if "recache" in bundle.manifest.graphs:
        recache_layers(bundle, linears, step)
    return excluded


def recache_layers(
    bundle: Bundle, linears: Sequence[Linear], step: ModelProto
) -> tuple[ModelProto, list[tuple[Linear, Linear]]]:
    """The recache graph, and its layers beside those of the step graph that have the same weights. Raises UserError."""
    model = onnx.load(bundle.graph_path("recache"), load_external_data=False)
    pairs = find_matching(model, linears, step)
    if not pairs:
        raise UserError(f"{bundle.path}: its recache graph has none of the step graph's weights: export it anew")
    return model, pairs


def choose_prompts(bundle: Bundle, settings: Settings) -> tuple[list[str], list[str]]:
    """Prompts to calibrate with and others to judge with. Raises UserError for one that the bank does not have, and where
    no other is left."""
    bank, every = PromptBank(bundle), bundle.manifest.prompts
    held_out = [bank.find(prompt) for prompt in settings.held_out]
    chosen = [bank.find(prompt) for prompt in settings.prompts]
    if both := [prompt for prompt in held_out if prompt in chosen]:
        raise UserError(
            f"--held-out {quoted(both[0])}: is calibrated with too; expected prompts that are not in --prompts"
        )
    chosen = chosen or [prompt for prompt in every if prompt not in held_out][::2]
    others = [prompt for prompt in every if prompt not in chosen]
    held_out = held_out or others[:: max(1, len(others) // 2)][:2]
    if not chosen or not held_out:
        raise UserError(
            f"{bundle.path}: its bank of {len(every)} leaves no prompt to {'judge' if chosen else 'calibrate'} with: "
            "expected one more (everframe prompts add), or other --prompts and --held-out"
        )
    return chosen, held_out


def source_of(source: Path, target: Path) -> Bundle:
    """Raises UserError where the quantised bundle would take its place."""
    bundle = Bundle.open(source)
    if real(target) == real(bundle.path):
        raise UserError(f"{target}: is the bundle itself, which stays as it is; expected another name")
    return bundle


def calibrate(source: Path, target: Path, settings: Settings, force: bool, report: Report = QUIET) -> dict[str, Any]:
    """Write the quantised bundle to target and return its quality. Ctrl-C keeps the statistics gathered so far in
    TARGET.calibrating, and the same command goes on from there.

    Raises UserError.
    """
    bundle = source_of(source, target)
    check(settings, bundle)
    prompts, held_out = choose_prompts(bundle, settings)
    options = EngineOptions(threads=settings.threads)
    with new_folder(target, MANIFEST, replace=force) as part:
        work = real(target).with_name(f"{real(target).name}.calibrating")
        shutil.rmtree(work / "one", ignore_errors=True)  # of an interrupted run, perhaps with another bundle's weights
        models = {"step": onnx.load(bundle.graph_path("step"), load_external_data=False)}
        linears = find_linears(models["step"], bundle.manifest.network.layers)
        if settings.decoder:
            models["decode"] = onnx.load(bundle.graph_path("decode"), load_external_data=False)
            linears += find_convolutions(models["decode"])
        excluded = exclusions_of(bundle, linears, models["step"], settings)
        record: dict[str, Any] = {"settings": asdict(settings), "prompts": prompts, "held_out": held_out}
        found: dict[str, Range] = {}
        if not settings.precision.endswith("weights"):
            tell = partial(report.step, "calibrating, chunks")
            statistics = observe(
                bundle, linears, prompts, settings.seeds, settings.chunks, settings.method, work, tell, options
            )
            weights = peaks_of_weights(models["step"], linears, bundle.path)
            found = ranges(statistics, weights, settings.method, settings.alpha)
            record["ranges"] = report_ranges(statistics, found)
        if settings.sensitivity:
            after = bundle.manifest.geometry.window // bundle.manifest.geometry.chunk + 2
            known = sensitivity.references(bundle, prompts[:2], settings.seeds[0], after, options)
            tell = partial(report.step, "sensitivity, layers")
            results = sensitivity.measure(
                bundle, linears, found, settings.precision, known, work / "one", tell, options
            )
            excluded += sensitivity.exclusions([r for r in results if r.layer not in excluded])
            record["sensitivity"] = [asdict(result) for result in results]
            sensitivity.plot(results, excluded, part / PLOT)
        record["excluded"] = excluded
        graphs = quantised_graphs(bundle, part, models, linears, excluded, found, settings)
        quantised = finish(bundle, part, graphs, settings)
        report.line(
            f"{len(linears) - len(excluded)} of {len(linears)} layers quantised"
            + (f"; left in float: {', '.join(excluded)}" if excluded else ""),
        )
        backend = OrtBackend(options)
        comparison = compare(
            bundle,
            quantised,
            held_out,
            [HELD_OUT_SEED],
            settings.gate_chunks,
            settings.gate_minutes,
            (backend, backend),
            report.line,
        )
        record["quality"] = comparison.record()
        (part / RESULT).write_text(json.dumps(record, indent=1) + "\n")
        quality = comparison.summary()
        changes = {"calibration": describe(part / RESULT), "quality": quality}
        write_manifest(part, quantised.manifest.model_copy(update=changes))
    shutil.rmtree(work, ignore_errors=True)
    return quality


def quantised_graphs(
    bundle: Bundle,
    part: Path,
    models: dict[str, ModelProto],
    linears: Sequence[Linear],
    excluded: Sequence[str],
    found: dict[str, Range],
    settings: Settings,
) -> dict[str, Graph]:
    """Write every changed graph into part; empties `models`, for each holds its weights once it is quantised.

    Weights of large graphs go into one file as they are quantised; so do those of graphs that stay as they are but shared a
    file with others: else the bundle would carry its source's too."""
    # The probe is a float step graph: kept, it would bring all float weights along.
    graphs, g = {name: one for name, one in bundle.manifest.graphs.items() if name != "probe"}, bundle.manifest.geometry
    turned = g.sink * g.frame_tokens * any(spec.name == "sink_cos" for spec in graphs["step"].inputs)
    shared, written = QuantisedFile(part / SHARED), {}

    def change(name: str, model: ModelProto, chosen: Sequence[Linear], spans: dict[str, Range]) -> None:
        data = shared if graphs[name].data else None
        quantise(model, chosen, bundle.path, settings.precision, spans, data)
        if name in ("step", "recache") and settings.ring == "int8":
            int8_ring(model, turned)
        written[name] = write_graph(model, part / f"{name}.onnx", data)

    for name in list(models):
        chosen = [one for one in linears if one.conv == (name == "decode") and one.name not in excluded]
        change(name, models.pop(name), chosen, found)
    if "recache" in graphs:  # the same layers of the same weights, at the ranges of the step graph
        step = onnx.load(bundle.graph_path("step"), load_external_data=False)
        model, every = recache_layers(bundle, linears, step)
        pairs = [pair for pair in every if pair[1].name not in excluded]
        spans = {own.key: found[twin.key] for own, twin in pairs if twin.key in found}
        change("recache", model, [own for own, _ in pairs], spans)
    if "sinks" in graphs and settings.ring == "int8":
        model = onnx.load(bundle.graph_path("sinks"))
        int8_ring(model, turned)
        written["sinks"] = write_graph(model, part / "sinks.onnx")
    left = {ref.file for name in written for ref in graphs[name].data}
    for name in [n for n in graphs if n not in written and left & {ref.file for ref in graphs[n].data}]:
        model = onnx.load(bundle.graph_path(name), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.CopyFrom(shared.copy(tensor, bundle.path))
        written[name] = write_graph(model, part / f"{name}.onnx", shared)
    # Described at the end, when the file that they share is whole.
    return graphs | {name: describe_graph(part / f"{name}.onnx", data) for name, data in written.items()}


def report_ranges(statistics: Statistics, found: dict[str, Range]) -> dict[str, Any]:
    """Of every tensor: the largest magnitude at each pass (denoising steps, then commit; the decoder has one), and what was
    chosen."""
    return {
        name: {
            "threshold": span.threshold,
            "smoothed": span.smooth is not None,
            "peak_by_pass": np.round(
                statistics.peaks[name].max(1)[slice(-1, None) if name.startswith("decode:") else slice(-1)], 5
            ).tolist(),
        }
        for name, span in found.items()
    }


def write_graph(model: ModelProto, file: Path, written: QuantisedFile | None = None) -> list[str]:
    """Save it; returns the files of its weights. The model must hold all of them, but those that are `written` already."""
    if written is not None:
        onnx.save(model, file)
        return [written.file.name]
    data = [f"{file.name}.data"] if sum(len(t.raw_data) for t in model.graph.initializer) > EMBED_UP_TO else []
    onnx.save(model, file, save_as_external_data=bool(data), location=data[0] if data else None)
    return data


def finish(bundle: Bundle, part: Path, graphs: dict[str, Graph], settings: Settings) -> Bundle:
    """Everything else of the bundle beside the changed graphs."""
    provenance = bundle.manifest.provenance | {
        "calibrated_from": bundle.manifest.graphs["step"].model.sha256,
        "precision": settings.precision,
    }
    manifest = bundle.manifest.model_copy(
        update={"graphs": graphs, "precision": settings.precision, "provenance": provenance}
    )
    for ref in manifest.files():
        link_or_copy(bundle.path / ref.file, part / ref.file)
    write_manifest(part, manifest)
    return Bundle(part, manifest)
