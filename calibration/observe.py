"""What the activations of real streams are: an instrumented step graph, and the statistics that it gathers.

The instrumented graph has, for every tensor that a linear layer reads, its largest magnitude per channel as one more
output, and where a histogram is wanted some of its rows. It runs as the bundle's probe graph, in the ordinary chunk loop:
all denoising steps and the commit pass, the ring filling, full and wrapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from ..engines.base import EngineOptions
from ..engines.bundle import Bundle, TensorSpec, describe
from ..engines.files import link_or_copy, write_whole
from ..runtime.stream import Stream
from .linears import Linear

PEAK, ROWS = "peak:", "rows:"
SAMPLED = 16  # rows of a tensor that go into its histogram, evenly spread
BINS, LEVELS, PERCENTILE = 2048, 128, 99.99


@dataclass
class Statistics:
    """Largest magnitudes per pass and channel, and histograms where a method needs them."""

    peaks: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # tensor -> [passes, K]
    histograms: HistogramCollector | None = None

    def add(self, observed: Sequence[dict[str, NDArray]], passes: int) -> None:
        """passes: denoising passes of the longest schedule. A first chunk's pass i is counted with the others' pass i."""
        rows: dict[str, list[NDArray]] = {}
        for i, values in enumerate(observed):
            for name, value in values.items():
                if name.startswith(PEAK):
                    known = self.peaks.setdefault(
                        name.removeprefix(PEAK), np.zeros((passes + 2, value.size), np.float32)
                    )
                    row = i if i < len(observed) - 2 else i - len(observed)  # commit and decoding stand last
                    known[row] = np.maximum(known[row], value.ravel())
                elif name.startswith(ROWS):
                    rows.setdefault(name.removeprefix(ROWS), []).append(value)
        if self.histograms is not None and rows:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints at every call
                self.histograms.collect({name: np.concatenate(parts) for name, parts in rows.items()})

    def save(self, file: Path, done: int, key: str) -> None:
        """Keep everything, with the number of streams that are in it."""
        arrays: dict[str, NDArray] = {f"{PEAK}{name}": values for name, values in self.peaks.items()}
        if self.histograms is not None:
            for name, parts in self.histograms.histogram_dict.items():
                arrays |= {f"hist{i}:{name}": np.asarray(part) for i, part in enumerate(parts)}
        content = io.BytesIO()
        np.savez(content, done=np.array(done), key=np.array(key), **arrays)  # type: ignore[arg-type]
        write_whole(file, content.getvalue())

    def load(self, file: Path, key: str) -> int:
        """Streams that are in the file already; 0 when it is not there, belongs to other settings or is damaged: then they
        are gathered anew."""
        try:
            with np.load(file) as opened:
                kept = {name: opened[name] for name in opened.files}
            done = int(kept["done"]) if str(kept["key"]) == key else 0
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
            return 0
        if done:
            self.peaks = {n.removeprefix(PEAK): kept[n] for n in kept if n.startswith(PEAK)}
            if self.histograms is not None:
                names = [n.removeprefix("hist0:") for n in kept if n.startswith("hist0:")]
                parts = {n: [kept[f"hist{i}:{n}"] for i in range(5) if f"hist{i}:{n}" in kept] for n in names}
                self.histograms.histogram_dict = {
                    n: tuple(p if p.ndim else p[()] for p in found) for n, found in parts.items()
                }
        return done

    def thresholds(self) -> dict[str, float]:
        """Magnitude at which each tensor is cut, by the histograms' method."""
        assert self.histograms is not None
        with contextlib.redirect_stdout(io.StringIO()):
            found = self.histograms.compute_collection_result()
        return {name: float(max(abs(low), abs(high))) for name, (low, high, *_) in found.items()}


def collector(method: str) -> HistogramCollector | None:
    """What gathers histograms for a method: ONNX Runtime's own tool."""
    if method not in ("entropy", "percentile"):
        return None
    return HistogramCollector(method, True, BINS, LEVELS, PERCENTILE, "same")


def instrument(model: ModelProto, linears: Sequence[Linear], rows: bool) -> list[TensorSpec]:
    """Add the outputs to the graph; returns their specs. Channels are a convolution's second axis, else the last."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*inferred.input, *inferred.value_info)
    }
    graph, specs = model.graph, []

    def output(name: str, shape: list[int]) -> None:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        specs.append(TensorSpec(name=name, shape=shape, dtype="float32"))

    for name, linear in {linear.activation: linear for linear in linears}.items():
        shape = shapes[name]
        channels = 1 if linear.conv else len(shape) - 1
        others = [i for i in range(len(shape)) if i != channels]
        wide, peak, axes = f"{name}/wide", f"{PEAK}{linear.key}", f"{name}/axes"
        graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [len(others)], others))
        graph.node.extend(
            [
                helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT),
                helper.make_node("Abs", [wide], [f"{name}/abs"]),
                helper.make_node("ReduceMax", [f"{name}/abs", axes], [peak], keepdims=0),
            ]
        )
        output(peak, [shape[channels]])
        if rows:
            count = min(SAMPLED, shape[-2])
            picks = np.linspace(0, shape[-2] - 1, count).astype(np.int64)
            graph.initializer.append(helper.make_tensor(f"{name}/picks", TensorProto.INT64, [count], picks))
            node = helper.make_node("Gather", [wide, f"{name}/picks"], [f"{ROWS}{linear.key}"], axis=len(shape) - 2)
            graph.node.append(node)
            output(f"{ROWS}{linear.key}", [*shape[:-2], count, shape[-1]])
    return specs


def with_graphs(
    bundle: Bundle, folder: Path, changed: Mapping[str, tuple[str, ModelProto, Sequence[TensorSpec]]]
) -> Bundle:
    """The bundle in another folder (an empty one or one of an earlier call), with graphs put in: name -> (the graph that it
    is made of and whose external data it refers to, model, additional outputs).

    Nothing is copied where a hard link will do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for ref in bundle.manifest.files():
        link_or_copy(bundle.path / ref.file, folder / ref.file)
    graphs = dict(bundle.manifest.graphs)
    for name, (source, model, outputs) in changed.items():
        was = bundle.manifest.graphs[source]
        file = folder / f"{name}.changed.onnx"
        onnx.save(model, file)
        graphs[name] = was.model_copy(update={"model": describe(file), "outputs": [*was.outputs, *outputs]})
    return Bundle(folder, bundle.manifest.model_copy(update={"graphs": graphs}))


def observe(
    bundle: Bundle,
    linears: Sequence[Linear],
    prompts: Sequence[str],
    seeds: Sequence[int],
    chunks: int,
    method: str,
    work: Path,
    tell: Callable[[int, int], None],
    options: EngineOptions | None = None,
) -> Statistics:
    """Run every prompt with every seed for so many chunks. What earlier, interrupted calls gathered in `work` is kept.

    tell(chunks done, chunks to do) after every chunk.
    """
    statistics = Statistics(histograms=collector(method))
    runs = [(prompt, seed) for prompt in prompts for seed in seeds]
    # Of large graphs the weights beside them too; the bank and other graphs are linked beside what was gathered. Positions,
    # and where sinks stand, are in the manifest alone.
    manifest = bundle.manifest
    sources = [
        *(f"{name} {graph.digest}" for name, graph in sorted(manifest.graphs.items())),
        manifest.prompt_bank.sha256,
    ]
    sources += [part.model_dump_json() for part in (manifest.rope, manifest.geometry, manifest.schedule)]
    names = sorted({linear.key for linear in linears})
    key = hashlib.sha256(json.dumps([sources, names, runs, chunks, method]).encode()).hexdigest()
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "statistics.npz"
    done = statistics.load(kept, key)
    for file in work.iterdir() if not done else ():  # links to another bundle's weights would stay
        if file.is_file():
            file.unlink()
    if done < len(runs):
        changed = {}
        for name, source in (("probe", "step"), ("decode", "decode")):
            mine = [linear for linear in linears if linear.conv == (source == "decode")]
            if mine or name == "probe":
                model = onnx.load(bundle.graph_path(source), load_external_data=False)
                changed[name] = (source, model, instrument(model, mine, statistics.histograms is not None))
        watched = with_graphs(bundle, work, changed)
        schedule = bundle.manifest.schedule
        passes = max(len(schedule.steps), len(schedule.first_steps or []))
        for number in range(done, len(runs)):
            prompt, seed = runs[number]
            with Stream(watched, prompt=prompt, seed=seed, probe=True, verify=False, options=options) as stream:
                for c in range(chunks):
                    statistics.add(stream.next_chunk().observed, passes)
                    tell(number * chunks + c + 1, len(runs) * chunks)
            statistics.save(kept, number + 1, key)
    return statistics
