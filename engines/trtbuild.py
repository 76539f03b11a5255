"""Compiling a bundle's graphs with TensorRT or TensorRT-RTX: same Python API, the module chosen by name.

Building needs no GPU with TensorRT-RTX (it compiles ahead of time for the named compute capabilities); classic TensorRT
builds on the card that is to run the engine.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import UserError
from .machine import find_gpu
from .text import first_line

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
PIP = {"tensorrt-rtx": "pip install 'everframe[rtx]'", "tensorrt": "pip install tensorrt (or the JetPack package)"}
LENGTHS_SINCE = (11, 1)
NO_CUDA = "CUDA initialization failure"
MEMORY = {
    "Total Weights Memory": "weights_bytes",
    "Total Activation Memory": "activation_bytes",
    "Max Scratch Memory": "scratch_bytes",
}


@dataclass(frozen=True)
class BuildOptions:
    """What decides an engine beside its graph. Part of its fingerprint."""

    backend: str = "tensorrt-rtx"
    precision: str = "fp16"
    targets: tuple[str, ...] = ()  # sm_86 …; empty: the backend's default
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False  # any card from Ampere on; classic TensorRT only
    strip_weights: bool = False  # weight-stripped, to be refitted from the bundle's graph
    weight_streaming: bool = False


@dataclass
class Built:
    """One compiled graph."""

    engine: memoryview  # TensorRT's own memory: a copy would be as large as all weights
    layers: int
    attentions: int
    quantised: int  # QuantizeLinear and DequantizeLinear that the parsed network kept
    memory: dict[str, int] = field(default_factory=dict)


# Flag, option, and why TensorRT-RTX 1.7 cannot do it; each was tried.
RTX_HAS_NOT = (
    ("--hardware-compatible", "hardware_compatible", "name the cards by --target"),
    (
        "--version-compatible",
        "version_compatible",
        "its engines hold for one version, and its wheel has no lean runtime",
    ),
    (
        "--weight-streaming",
        "weight_streaming",
        "it cannot stream into memory that is ours, which a recorded chunk needs",
    ),
)


def load_module(backend: str) -> ModuleType:
    """The TensorRT module of a backend. Raises UserError naming the pip line."""
    if backend not in MODULES:
        raise UserError(f"--backend {backend!r}: expected one of {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:
        raise UserError(f"--backend {backend}: not installed ({error}): {PIP[backend]}") from None


def targets_of(trt: ModuleType, names: Sequence[str]) -> list[Any]:
    """'sm_86' -> ComputeCapability.SM86. Raises UserError for one the module does not know."""
    if names and not hasattr(trt, "ComputeCapability"):
        raise UserError("--target: classic TensorRT builds for the card it runs on; leave it out")
    known = {n for n in vars(trt.ComputeCapability) if n.startswith("SM")} if names else set()
    for name in names:
        if name.upper().replace("_", "") not in known:
            listing = ", ".join(sorted(n.replace("SM", "sm_") for n in known))
            raise UserError(f"--target {name}: this {trt.__name__} {trt.__version__} compiles for {listing}")
    return [getattr(trt.ComputeCapability, name.upper().replace("_", "")) for name in names]


def check_options(options: BuildOptions) -> ModuleType:
    """Fail before any work. Raises UserError."""
    if options.precision not in ("fp16", "bf16"):
        raise UserError(
            f"--precision {options.precision!r}: expected fp16 or bf16 (TensorRT's fused attention takes no fp32)"
        )
    level = options.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise UserError(f"--optimization-level {level}: expected 0 to 5")
    if options.backend == "tensorrt-rtx":
        for flag, wanted, why in RTX_HAS_NOT:
            if getattr(options, wanted):
                raise UserError(f"{flag}: not with --backend tensorrt-rtx: {why}")
        if options.strip_weights and find_gpu()[0] is None:
            raise UserError("--strip-weights: needs a GPU's driver to build, with tensorrt-rtx (1.7 fails without one)")
    trt = load_module(options.backend)
    targets_of(trt, options.targets)
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UserError(f"--backend {options.backend}: building needs onnx: pip install 'everframe[rtx]'") from None
    return trt


def build_graph(
    bundle: Bundle, name: str, options: BuildOptions, progress: Callable[[str, int, int], bool] = lambda *_: True
) -> Built:
    """Compile one graph of the bundle. progress(phase, step, steps) returns False to stop the build.

    Raises UserError naming the graph and TensorRT's reason; also when a declared input ended up unused or an attention
    was not taken as one, because such an engine would be silently wrong.
    """
    import onnx

    from .lower import QUANTISED, lower

    trt = check_options(options)
    file = bundle.graph_path(name)
    model = onnx.load(file, load_external_data=False)
    expected = sum(n.op_type == "Attention" for n in model.graph.node)
    quantised = sum(n.op_type in QUANTISED for n in model.graph.node)
    lower(model, options.precision)  # type: ignore[arg-type] - checked above
    log = first_error_logger(trt)
    builder = started(trt, trt.Builder, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    with tempfile.TemporaryDirectory() as scratch:  # the parser reads external weights beside the file it is given
        for ref in bundle.manifest.graphs[name].data:
            os.symlink((bundle.path / ref.file).absolute(), Path(scratch) / ref.file)
        lowered = Path(scratch) / file.name
        onnx.save(model, lowered)
        if not parser.parse_from_file(str(lowered)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            reasons = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors)
            raise UserError(f"{file}: {options.backend} {trt.__version__} cannot parse it: {_line(reasons)}")
        attentions = inspect_network(trt, network, file, expected, quantised)
        config = _config(trt, builder, options)
        monitor = _monitor(trt, progress)
        config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if built is None:
        raise UserError(
            f"{file}: {options.backend} {trt.__version__} cannot build it: {_line(log.errors) or 'no reason'}"
        )
    return Built(np.frombuffer(built, np.uint8).data, network.num_layers, attentions, quantised, log.memory)


def inspect_network(trt: ModuleType, network: Any, file: Path, expected: int, quantised: int) -> int:
    """Attentions in the parsed network. Raises UserError when an input is unused, or an attention or a quantisation is
    missing: such an engine would be wrong, or silently as large and slow as before."""
    used = set()
    attentions = kept = 0
    attention = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # 10.3 and 10.7 have none, and no attention operator
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        attentions += attention is not None and layer.type == attention
        kept += layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
        used |= {layer.get_input(j).name for j in range(layer.num_inputs) if layer.get_input(j) is not None}
    unused = [n for n in (network.get_input(i).name for i in range(network.num_inputs)) if n not in used]
    if unused:
        raise UserError(f"{file}: the parser left graph inputs unused: {', '.join(unused)}")
    if kept != quantised:
        raise UserError(f"{file}: {quantised} quantisations in the graph, {kept} in the parsed network")
    if attentions != expected:
        raise UserError(f"{file}: {expected} attentions in the graph, {attentions} in the parsed network")
    return attentions


def _config(trt: ModuleType, builder: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    if options.targets:
        targets = targets_of(trt, options.targets)
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(target, i)
    if options.backend == "tensorrt":  # streams of its own would not be those that a chunk is recorded on
        config.max_aux_streams = 0
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.strip_weights, "STRIP_PLAN"),
        (options.strip_weights, "REFIT_IDENTICAL"),
        (options.weight_streaming, "WEIGHT_STREAMING"),
    )
    for wanted, flag in flags:
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: else its own allocations forbid capture
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return config


def started(trt: ModuleType, kind: Callable[[Any], Any], log: Any) -> Any:
    """A builder or a runtime. Raises UserError where TensorRT cannot start CUDA, which its bindings call a TypeError."""
    try:
        return kind(log)
    except TypeError as error:
        why = _line(log.errors) or first_line(error)
        raise UserError(f"{trt.__name__} {trt.__version__} cannot start: {why} (everframe doctor)") from None


def takes_lengths(backend: str, version: str) -> bool:
    """Whether its attention leaves out the ring's empty slots, as the in-place form needs."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return backend != "tensorrt" or numbers >= LENGTHS_SINCE


def first_error_logger(trt: ModuleType) -> Any:
    """Keeps TensorRT's errors and its memory figures, and prints nothing."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = ""
            self.memory: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            telling = severity <= trt.ILogger.ERROR or NO_CUDA in message  # which is a warning only
            if telling and not self.errors:
                self.errors = message
            for words, key in MEMORY.items():
                if message.startswith(words):
                    self.memory[key] = int("".join(c for c in message.split(":")[1] if c.isdigit()))

    return Log()


def _monitor(trt: ModuleType, progress: Callable[[str, int, int], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self.stopped = self.stopped or not progress(phase_name, step + 1, self.steps.get(phase_name, 0))
            except KeyboardInterrupt:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def options_record(options: BuildOptions) -> dict[str, Any]:
    """The options as they are stored; targets in one spelling, that of `Cuda.capability`."""
    return asdict(options) | {"targets": [f"sm_{_number(name)}" for name in options.targets]}


def _number(target: str) -> str:
    """'SM89', 'sm_89' -> '89'"""
    return target.casefold().removeprefix("sm").removeprefix("_")
