"""TensorRT without a GPU: modules with the names of the real bindings (bindings/*.json) and no others, whose engines are
ONNX Runtime's on the addresses of a simulated CUDA.

An engine's file names the bundle's own graph and the type that it was lowered to. A pass computes the graph in float32 and
keeps what is kept between passes in that type, as the compiled engine would; what is asked of the module that the real one
does not have is an AttributeError here too, and what has it but is not played here a NotImplementedError.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalIterable=false
from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from everframe.engines import lower as lowering
from everframe.engines.build import build_engines
from everframe.engines.trtbuild import BuildOptions

from simulated_cuda import SimulatedRuntime

LISTS = Path(__file__).parent / "bindings"
NAMES = sorted(file.stem for file in LISTS.glob("*.json"))
BACKEND = {name: "tensorrt-rtx" if name.startswith("rtx") else "tensorrt" for name in NAMES}
LAYERS = {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "TRT_Attention": "ATTENTION_INPUT"}
KINDS = {"float": "float32", "double": "float64"}  # NumPy's names of ONNX Runtime's types, where they differ

Change = Callable[[str, Any], None]  # of a graph's name and model: what goes wrong in an engine


class StandIn:
    """`module` and `runtime` in the place of TensorRT and cuda.bindings.runtime.

    folder: the bundle that is being built. change: what is wrong with the engines that are loaded. half: compute the lowered
    graphs in FP16, as an engine does, in place of rounding what they keep; slow on a CPU.
    """

    def __init__(self, name: str, runtime: SimulatedRuntime | None = None, change: Change | None = None):
        self.name, self.runtime, self.change = name, runtime or SimulatedRuntime(), change
        self.folder = Path()
        self.faults: list[str] = []
        self.host_code, self.capturable, self.streams_all, self.half = False, True, True, False
        listed = json.loads((LISTS / f"{name}.json").read_text())
        self.module = module = ModuleType({"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}[BACKEND[name]])
        module.__version__ = listed["version"]  # type: ignore[attr-defined]
        played = played_classes(self)
        for one, facts in listed["names"].items():
            if "values" in facts:
                setattr(module, one, IntEnum(one, facts["values"]))
            elif "has" in facts:
                setattr(module, one, restricted(one, played.get(one), set(facts["has"])))
            else:
                setattr(module, one, missing(one))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let `import tensorrt…` and cuda-python find these."""
        import cuda.bindings

        patch.setitem(sys.modules, self.module.__name__, self.module)
        patch.setattr(cuda.bindings, "runtime", self.runtime, raising=False)


def restricted(name: str, played: type | None, names: set[str]) -> type:
    """A class with these names: those that are played, and the others raising NotImplementedError."""
    own = {n: v for n, v in vars(played).items() if n.startswith("__") or n in names} if played else {}
    own |= {n: v for n, v in vars(played).items() if n.startswith("_") and not n.startswith("__")} if played else {}
    slots = set(vars(played).get("ATTRIBUTES", ())) if played else set()
    rest = {n: missing(f"{name}.{n}") for n in names - set(own) - slots}
    for gone in ("__dict__", "__weakref__"):
        own.pop(gone, None)

    def setter(self: Any, attribute: str, value: Any) -> None:
        if attribute not in names and not attribute.startswith("_") and type(self).__name__ == name:
            raise AttributeError(f"{name} has no {attribute}")
        object.__setattr__(self, attribute, value)

    return type(name, (), {**rest, **own, "__setattr__": setter})


def missing(name: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name} is not played")

    return call


def played_classes(stand: StandIn) -> dict[str, type]:
    """What Everframe uses. Attributes that are data stand in ATTRIBUTES: they exist where the list has them."""
    module, runtime = stand.module, stand.runtime

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None: ...

    class Plain:
        def __init__(self) -> None: ...

    class Builder:
        def __init__(self, log: Any) -> None: ...

        def create_network(self, flags: int = 0) -> Any:
            return module.INetworkDefinition()

        def create_builder_config(self) -> Any:
            return module.IBuilderConfig()

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            return json.dumps(network._built | {"flags": config._flags}).encode()

    class INetworkDefinition:
        ATTRIBUTES = ("num_layers", "num_inputs")

        def get_layer(self, index: int) -> Any:
            node = self._nodes[index]
            kind = getattr(module.LayerType, LAYERS.get(node.op_type, "ELEMENTWISE"), None)
            inputs = [SimpleNamespace(name=n) for n in node.input]
            return SimpleNamespace(type=kind, num_inputs=len(inputs), get_input=inputs.__getitem__)

        def get_input(self, index: int) -> Any:
            return SimpleNamespace(name=self._inputs[index].name)

    class OnnxParser:
        ATTRIBUTES = ("num_errors",)

        def __init__(self, network: Any, log: Any) -> None:
            self._network = network

        def parse_from_file(self, file: str) -> bool:
            graph = onnx.load(file, load_external_data=False).graph
            network = self._network
            network._nodes, network._inputs = list(graph.node), list(graph.input)
            network.num_layers, network.num_inputs = len(graph.node), len(graph.input)
            kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
            network._built = {"folder": str(stand.folder), "graph": Path(file).stem, "kinds": kinds}
            return True

    class IBuilderConfig:
        ATTRIBUTES = ("progress_monitor", "builder_optimization_level", "num_compute_capabilities", "max_aux_streams")

        def __init__(self) -> None:
            self._flags: list[str] = []

        def set_flag(self, flag: Any) -> None:
            self._flags.append(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

        def set_compute_capability(self, target: Any, index: int) -> None: ...

    class Runtime:
        ATTRIBUTES = ("error_recorder", "engine_host_code_allowed")

        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            stand.host_code = getattr(self, "engine_host_code_allowed", False)
            engine = module.ICudaEngine()
            engine._start(json.loads(content))
            return engine

        def get_engine_validity(self, content: bytes) -> Any:
            return module.EngineValidity.VALID, 0

    class ICudaEngine:
        ATTRIBUTES = ("device_memory_size_v2", "streamable_weights_size", "weight_streaming_scratch_memory_size")
        _budget = 0

        def _start(self, built: dict[str, Any]) -> None:
            change = half_too if stand.half else stand.change
            self._run = Graph(Path(built["folder"]), built["graph"], built["kinds"], change)
            self.device_memory_size_v2, self.weight_streaming_scratch_memory_size = 8192, 1024
            size = (Path(built["folder"]) / f"{built['graph']}.onnx").stat().st_size
            self.streamable_weights_size = size if "WEIGHT_STREAMING" in built["flags"] else 0
            self.weight_streaming_budget_v2 = self.streamable_weights_size if stand.streams_all else 0
            if "VERSION_COMPATIBLE" in built["flags"]:  # carries code for the host
                assert stand.host_code

        def __del__(self) -> None:
            runtime.free += self._budget

        @property
        def weight_streaming_budget_v2(self) -> int:
            return self._budget

        @weight_streaming_budget_v2.setter
        def weight_streaming_budget_v2(self, size: int) -> None:
            runtime.free += self._budget - size  # weights that stay on the card take its memory
            self._budget = size

        def get_aliased_input_tensor(self, name: str) -> str:
            owner = name.removesuffix("_next")
            return owner if owner != name and owner in self._run.kinds and name.startswith(("k_", "v_")) else ""

        def create_runtime_config(self) -> Any:
            return module.IRuntimeConfig()

        def create_execution_context(self, how: Any = None) -> Any:
            context = module.IExecutionContext()
            context._engine, context._scratch, context._places = self, None, {}
            context._cache = getattr(how, "_cache", None) and weakref.ref(how._cache)
            return context

    class IRuntimeConfig:
        def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...

        def create_runtime_cache(self) -> Any:
            return module.IRuntimeCache()

        def set_runtime_cache(self, cache: Any) -> None:
            self._cache = cache

    class IRuntimeCache:
        def serialize(self) -> bytes:
            return b"kernels"

        def deserialize(self, content: bytes) -> bool:
            return content == b"kernels"

    class IExecutionContext:
        def __del__(self) -> None:
            if self._cache is not None and self._cache() is None:
                stand.faults.append("a context outlived its runtime cache")

        def set_device_memory(self, address: int, size: int) -> None:
            self._scratch = (address, size)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._places[name] = address
            return name in self._engine._run.kinds

        def is_stream_capturable(self, stream: int) -> bool:
            return stand.capturable

        def execute_async_v3(self, stream: int) -> bool:
            graph, places, scratch = self._engine._run, dict(self._places), self._scratch

            if scratch is None or scratch[1] < self._engine.device_memory_size_v2:
                return False

            def run() -> None:
                mine = runtime.view(*scratch)
                mine[:] = stamp = np.random.default_rng().integers(0, 256, mine.size, np.uint8)
                graph(runtime, places)
                if not np.array_equal(mine, stamp):
                    stand.faults.append("two engines wrote the same scratch memory at a time")

            runtime.enqueue(stream, run)
            return True

    found = (
        Builder,
        INetworkDefinition,
        OnnxParser,
        IBuilderConfig,
        Runtime,
        ICudaEngine,
        IRuntimeConfig,
        IRuntimeCache,
    )
    names: dict[str, type] = {one.__name__: one for one in (*found, IExecutionContext, ILogger)}
    return names | {"IErrorRecorder": Plain, "IProgressMonitor": Plain}


def half_too(name: str, model: onnx.ModelProto) -> None:
    """What TensorRT is given of an FP16 engine, but for the attention, which stays the standard one: ONNX Runtime has no
    TRT_Attention."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "rewrite_attention", lambda model: None)
        lowering.lower(model, "fp16")


class Graph:
    """One graph of the bundle in ONNX Runtime, its tensors at addresses and in the types of the lowered graph."""

    def __init__(self, folder: Path, name: str, kinds: dict[str, int], change: Change | None):
        self.kinds = {n: helper.tensor_dtype_to_np_dtype(kind) for n, kind in kinds.items()}
        self.session = session(folder / f"{name}.onnx", change and partial(change, name))

    def __call__(self, runtime: SimulatedRuntime, places: dict[str, int]) -> None:
        feeds = {}
        for spec in self.session.get_inputs():
            theirs = spec.type.removeprefix("tensor(").removesuffix(")")
            kind, theirs = self.kinds[spec.name], KINDS.get(theirs, theirs)
            shape = tuple(spec.shape)
            view = runtime.view(places[spec.name], int(np.prod(shape)) * kind.itemsize)
            feeds[spec.name] = view.view(kind).reshape(shape).astype(theirs)
        outputs = self.session.get_outputs()
        for spec, made in zip(outputs, self.session.run(None, feeds), strict=True):
            kind = self.kinds[spec.name]
            runtime.view(places[spec.name], made.size * kind.itemsize).view(kind)[:] = made.astype(kind).reshape(-1)


@lru_cache(32)
def _session(file: Path, stamp: int) -> ort.InferenceSession:
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def session(file: Path, change: Callable[[Any], None] | None) -> ort.InferenceSession:
    if change is None:
        return _session(file, file.stat().st_mtime_ns)
    model = onnx.load(file)
    change(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def built(name: str, source: Path, folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> tuple[StandIn, Path]:
    """The stand-in of one list, in place, and a copy of the bundle with engines that it has built."""
    stand = StandIn(name)
    stand.install(patch)
    copy = copied(stand, source, folder)
    build_engines(copy, BuildOptions(backend=BACKEND[name], **options))
    return stand, copy


def copied(stand: StandIn, source: Path, folder: Path) -> Path:
    """A copy of the bundle, which the stand-in's next engines are of."""
    stand.folder = Path(shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("engines")))
    return stand.folder
