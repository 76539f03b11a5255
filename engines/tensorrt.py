"""TensorRT and TensorRT-RTX: compiled engines run from Python, one code path, the module chosen by name.

No GPU has run this yet: what is tested without one is stated in docs/tensorrt.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

from . import store
from .base import Buffer, Computing, Shared, check_bindings
from .bundle import Bundle, Graph
from .cuda import Cuda, CudaBuffer
from .cudalaunch import CudaDevice, Workspace, named
from .errors import RunError, UserError
from .files import cache_place, write_whole
from .lower import lower, stored_low
from .machine import card_name
from .post import decodes
from .trtbuild import first_error_logger, load_module, started

HOST_CODE = "EVERFRAME_HOST_CODE"  # an environment variable: "allow" runs what engines of others carry
LOW_TYPES = {"fp16": "float16", "bf16": "bfloat16"}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


class TrtEngine:
    """One deserialised engine with one execution context, which every pass points at its own buffers.

    Passes of one engine never run at the same time, so they share the context and its scratch memory. That memory is ours,
    taken at the first run, so that a recorded graph can rely on it.
    """

    def __init__(
        self,
        engine: Any,
        trt: ModuleType,
        graph: Graph,
        device: CudaDevice,
        file: Path,
        errors: Any,
        workspace: Workspace,
    ):
        self.engine, self.trt, self.graph, self.device, self.file = engine, trt, graph, device, file
        self.errors = errors
        self._workspace = workspace
        self._scratch: CudaBuffer | None = None
        workspace.reserve(engine.device_memory_size_v2)
        # Then a pass waits for the host, which a recording forbids (NvInferRuntime.h on setWeightStreamingBudgetV2).
        self.streams_weights = streams(engine)
        self._cache: Any = None
        self._known = False  # whether what was kept of it could be used
        self._config: Any = None
        self._ran = False
        errors.clear()  # of others, which are not this engine's reason
        self.context = self._context()
        # Whose buffers the context points at. Weakly: a pass holds its engine and a stream's whole ring, and a cycle would
        # keep both on the card until the collector comes.
        self.bound: weakref.ref[TrtPass] | None = None

    def __del__(self) -> None:
        self.__dict__.pop("context", None)  # before what it was made of: the cache must outlive it

    @property
    def cache_file(self) -> Path:
        """What TensorRT-RTX compiled for this card, kept for the next start; every kind of card that shares the folder has
        its own."""
        card = re.sub(r"\W+", "-", self.device.cuda.name()).strip("-")
        return cache_place(self.file.with_suffix(f".{card}.cache"))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> TrtPass:
        check_bindings(self.graph, inputs, outputs, self.file)
        for name, buffer in outputs.items():
            owner = (
                self.engine.get_aliased_input_tensor(name) if hasattr(self.engine, "get_aliased_input_tensor") else None
            )
            if owner and inputs[owner] is not buffer:
                raise ValueError(f"{self.file}: {name} is {owner} updated in place: both need the same buffer")
        return TrtPass(self, {**inputs, **outputs})

    def fail(self, what: str) -> RunError:
        return RunError(f"{self.file}: {what}: {self.errors.take() or 'TensorRT gave no reason'}")

    def save_cache(self) -> None:
        """Write the cache of compiled kernels: beside the engine, or in the user's cache folder where the bundle cannot be
        written."""
        serialized = self._cache.serialize()
        if serialized is None:  # the next start compiles again
            return
        content, file = bytes(serialized), self.cache_file
        with contextlib.suppress(OSError, UserError):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not self._known or file.stat().st_size != len(content):
                write_whole(file, content)

    def _context(self) -> Any:
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self.engine, "create_runtime_config"):  # TensorRT-RTX, and classic from 11 on
            self._config = config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if hasattr(config, "create_runtime_cache"):  # TensorRT-RTX alone
                self._cache = config.create_runtime_cache()
                if self.cache_file.is_file():  # refused by itself when it is an older driver's, or damaged
                    self._known = bool(self._cache.deserialize(self.cache_file.read_bytes()))
                config.set_runtime_cache(self._cache)
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(strategy)
        if context is None:
            raise self.fail(f"no execution context, {self.device.cuda.memory_note()}")
        return context

    def prepare(self) -> None:
        """Before the first run, when every engine that shares the scratch memory has said how much it wants."""
        if not self._ran and self._cache is not None:  # all passes run the same kernels, compiled in the first one
            self.device.cuda.once_done(self.save_cache)
        self._ran = True
        if self._scratch is None and self.engine.device_memory_size_v2:
            self._scratch = self._workspace.take()
            self.context.set_device_memory(self._scratch.address, self._scratch.bytes)


class TrtPass:
    """An engine with the buffers of one pass."""

    def __init__(self, engine: TrtEngine, buffers: Mapping[str, Buffer]):
        self.engine = engine
        self._buffers = dict(buffers)  # kept alive

    def __call__(self, stream: Any = None) -> None:
        engine = self.engine
        stream = int(stream or engine.device.cuda.stream)
        if engine.bound is None or engine.bound() is not self:
            engine.prepare()
            for name, buffer in self._buffers.items():
                assert isinstance(buffer, CudaBuffer)
                if not engine.context.set_tensor_address(name, buffer.address):
                    raise engine.fail(f"does not accept the buffer of {name}")
            engine.bound = weakref.ref(self)
        engine.errors.clear()
        with named(engine.file.stem):
            if not engine.context.execute_async_v3(stream):
                raise engine.fail("could not run")

    def why_not_recorded(self) -> str | None:
        """What forbids a recording, if anything: asked after the first run, when everything is compiled."""
        engine = self.engine
        if engine.streams_weights:
            return "TensorRT: an engine that streams its weights cannot be recorded"
        asked = getattr(engine.context, "is_stream_capturable", None)
        if asked is None or asked(int(engine.device.cuda.stream)):
            return None
        return f"TensorRT: {engine.file.name} cannot be recorded"


class TrtBackend:
    """Loads a bundle's compiled engines. Raises UserError when there is no GPU, or no engine that is valid here."""

    def __init__(self, backend: str = "tensorrt-rtx", precision: str | None = None):
        self.backend, self.precision = backend, precision
        self.trt = load_module(backend)
        self.device = CudaDevice(Cuda())
        self.errors = error_recorder(self.trt)
        self._log = first_error_logger(self.trt)
        self._runtime = started(self.trt, self.trt.Runtime, self._log)
        self._runtime.error_recorder = self.errors
        # Choosing hashes every engine, which are gigabytes. By what the bundle is, not where: another may take its place.
        self._chosen: dict[tuple[Path, str, tuple[str, ...]], store.Stored] = {}
        # Decoding may run beside the step and prompt engines, so there are two.
        self._scratch, self._decoding = Workspace(self.device), Workspace(self.device)
        # Streams of one bundle share its engines' weights, on the device's own streams, one thread at a time.
        self._engines: Shared[tuple[Path, str], TrtEngine] = Shared()

    def computes(self, bundle: Bundle) -> Computing:
        record = self._found(bundle).record
        assert record is not None
        precision = {"fp16": "f16"}.get(str(record.options["precision"]), str(record.options["precision"]))
        return Computing(f"{self.backend} {self.trt.__version__}", card_name(), precision, record.built)

    def _found(self, bundle: Bundle) -> store.Stored:
        key = bundle.path, store.fingerprint(bundle, self.trt.__version__, {}), bundle.post
        if key not in self._chosen:
            self._chosen[key] = self._choose(bundle)
        return self._chosen[key]

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> TrtEngine:
        """Loaded once for all streams of this backend. `beside` is for CPUs: nothing changes here."""
        return self._engines.get((self._found(bundle).folder, name), lambda: self._load(bundle, name))

    def _load(self, bundle: Bundle, name: str) -> TrtEngine:
        found = self._found(bundle)
        record = found.record
        assert record is not None
        file = found.folder / record.graphs[name].file.file
        self.errors.clear()
        self._log.errors = ""  # another engine's
        content = file.read_bytes()
        hosts = bool(
            record.options.get("version_compatible")
        )  # its plan carries a lean runtime, which is code for the host
        if hosts:
            check_host_code(file, content)
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(content)
        if hosts:  # the next engine may be a stranger's
            self._runtime.engine_host_code_allowed = False
        if engine is None:
            reason = self.errors.take() or self._log.errors or self._validity(content) or "no reason given"
            kind = self.device.cuda.load_error(reason, len(content))
            raise kind(f"{file}: {self.backend} {self.trt.__version__} cannot load it: {reason}")
        if record.options.get("strip_weights"):
            self._refit(engine, bundle, name, str(record.options["precision"]))
        workspace = self._decoding if decodes(name) else self._scratch
        if record.options.get("weight_streaming"):  # what fits stays on the device, the rest comes when it is needed
            shared = min(engine.device_memory_size_v2, workspace.promised())  # it is this one's scratch memory too
            free = (self.device.free() or 0) + shared
            engine.weight_streaming_budget_v2 = streaming_budget(engine, bundle, free, self._ahead(bundle, name))
        graph = stored_types(bundle.manifest.graphs[name], LOW_TYPES[str(record.options["precision"])])
        return TrtEngine(engine, self.trt, graph, self.device, file, self.errors, workspace)

    def _ahead(self, bundle: Bundle, name: str) -> int:
        """Bytes that the engines which are not loaded yet will want: their weights and their scratch memory."""
        found = self._found(bundle)
        assert found.record is not None
        needed = {n for n in store.compiled_graphs(bundle) if n != name and (found.folder, n) not in self._engines}
        others = [r for n, r in found.record.graphs.items() if n in needed]
        return sum(r.file.bytes + r.memory.get("scratch_bytes", 0) for r in others)

    def _validity(self, content: bytes) -> str:
        """What TensorRT-RTX itself has against an engine on this card; nothing where it cannot tell."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        _, found = self._runtime.get_engine_validity(content)
        kinds = self.trt.EngineInvalidityDiagnostics.__members__.items()
        return ", ".join(name for name, kind in kinds if int(found) & int(kind))

    def _choose(self, bundle: Bundle) -> store.Stored:
        """The newest engines of this backend (and precision, if one was asked for) that are valid here."""
        everything = store.stored(bundle, {self.backend: self.trt.__version__}, whole=False)
        mine = [
            e
            for e in everything
            if e.record is not None
            and e.record.backend == self.backend
            and self.precision in (None, e.record.options.get("precision"))
        ]
        problems = []
        for found in mine:
            assert found.record is not None
            problem = found.problem or store.wrong_card(
                found.record, self.device.cuda.capability(), self.device.cuda.name()
            )
            problem = problem or store.damage(found.folder, found.record)
            if problem is None:
                return found
            problems.append(problem)
        why = f": {problems[0]}" if problems else ""
        raise UserError(
            f"{bundle.path}: holds no {self.backend} engine that can be used here{why}; run everframe build"
        )

    def _refit(self, engine: Any, bundle: Bundle, name: str, precision: str) -> None:
        """Put the bundle's weights into a weight-stripped engine."""
        import onnx

        file = bundle.graph_path(name)
        refitter = self.trt.Refitter(engine, self._log)
        parser = self.trt.OnnxParserRefitter(refitter, self._log)
        with tempfile.TemporaryDirectory() as scratch:
            for ref in bundle.manifest.graphs[name].data:
                os.symlink((bundle.path / ref.file).absolute(), Path(scratch) / ref.file)
            lowered = Path(scratch) / file.name
            onnx.save(lower(onnx.load(file, load_external_data=False), precision), lowered)  # type: ignore[arg-type]
            if not parser.refit_from_file(str(lowered)) or not refitter.refit_cuda_engine():
                size = sum(ref.bytes for ref in bundle.manifest.graphs[name].data)
                kind = self.device.cuda.load_error(self._log.errors, size)
                raise kind(f"{file}: its weights do not fit the stripped engine: {self._log.errors}")


def check_host_code(file: Path, content: bytes) -> None:
    """Raises UserError for an engine with code for the host that was not built here: its bundle may be anybody's, with the
    record that calls it version-compatible."""
    if os.environ.get(HOST_CODE) == "allow" or store.built_here(hashlib.sha256(content).hexdigest()):
        return
    raise UserError(
        f"{file}: carries code for the host (--version-compatible), and nothing here says that this user built it on this "
        f"machine: build it here, or set {HOST_CODE}=allow if you trust who did"
    )


def streams(engine: Any) -> bool:
    """Whether some of its weights stay on the host."""
    size = getattr(engine, "streamable_weights_size", 0)
    return bool(size) and engine.weight_streaming_budget_v2 < size


def streaming_budget(engine: Any, bundle: Bundle, free: int, ahead: int) -> int:
    """Bytes of weights that stay on the card: what a stream's tensors, the scratch memory and the engines ahead will not
    need.

    TensorRT's own automatic budget takes nearly all that is free, before any of them is there."""
    scratch = engine.device_memory_size_v2 + getattr(engine, "weight_streaming_scratch_memory_size", 0)
    return max(0, min(engine.streamable_weights_size, free - stream_bytes(bundle) - scratch - ahead))


def stream_bytes(bundle: Bundle) -> int:
    """What the tensors of a stream take, rather more than less: those of its graphs, each as often as a graph has it, but a
    ring that is updated in place, which is there once; and what passes hand to each other."""
    most: Counter[str] = Counter()
    steady = [name for name in store.compiled_graphs(bundle) if name not in ("encode", "probe")]
    for graph in (bundle.manifest.graphs[name] for name in steady):
        mine: Counter[str] = Counter()
        for spec in graph.inputs:
            mine[spec.name] += prod(spec.shape) * SIZES.get(spec.dtype, 8)
        for spec in graph.outputs:
            name = spec.name.removesuffix("_next")
            if not (name.startswith(("k_", "v_")) and name in mine):
                mine[name] += prod(spec.shape) * SIZES.get(spec.dtype, 8)
        most |= mine
    latents = 8 + len(bundle.manifest.schedule.steps)
    return most.total() + 2 * most["frames"] + latents * most["latent"]


def error_recorder(trt: ModuleType) -> Any:
    """TensorRT's errors in the order they came, with `take()` to get and forget them as one line."""

    class Recorder(trt.IErrorRecorder):
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.found: list[tuple[Any, str]] = []

        def report_error(self, code: Any, text: str) -> bool:
            self.found.append((code, text))
            return True  # TensorRT's "fatal, stop": the call that failed returns its failure

        def get_num_errors(self) -> int:  # the name that TensorRT's own side calls
            return len(self.found)

        num_errors = get_num_errors

        def get_error_code(self, index: int) -> Any:
            return self.found[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.found[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.found.clear()

        def take(self) -> str:
            line = "; ".join(f"{code.name}: {' '.join(text.split())}" for code, text in self.found)
            self.clear()
            return line[:400]

    return Recorder()


def stored_types(graph: Graph, low: str) -> Graph:
    """The graph's tensors as the lowered engine has them: what is kept between passes in the low type."""

    def change(specs):
        return [
            s.model_copy(update={"dtype": low}) if stored_low(s.name) and s.dtype == "float32" else s for s in specs
        ]

    return graph.model_copy(update={"inputs": change(graph.inputs), "outputs": change(graph.outputs)})
